//! Loopback ports that nobody uses.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};
use rand::Rng as _;

/// Below the range from which Linux takes ports for outgoing connections, so that none of those sits on it when the
/// service binds it or comes back after a kill.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A free loopback port; a service started with it keeps it through restarts.
pub fn free() -> Result<u16> {
    for _ in 0..1000 {
        let port = rand::rng().random_range(RANGE);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free loopback port between {} and {}", RANGE.start, RANGE.end)
}

/// `127.0.0.1:<a free port>`.
pub fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free()?))
}
