//! Loopback ports that nobody uses.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener};

use anyhow::{Result, bail};
use rand::Rng as _;

/// Below the range from which Linux takes ports for outgoing connections, so that none of those sits on it when the
/// service binds it or comes back after a kill.
const RANGE: std::ops::Range<u16> = 12_000..32_000;

/// A free loopback port; a service started with it keeps it through restarts, and no other test gets it meanwhile.
pub fn free() -> Result<u16> {
    for _ in 0..1000 {
        let port = rand::rng().random_range(RANGE);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && reserve(port) {
            return Ok(port);
        }
    }
    bail!("no free loopback port between {} and {}", RANGE.start, RANGE.end)
}

/// Takes the port for this process among all tests of the machine: between choosing a port and the moment its service
/// listens others choose, too.
fn reserve(port: u16) -> bool {
    let name = SocketAddr::from_abstract_name(format!("sluice-port-{port}"));
    let Ok(reservation) = name.and_then(|name| UnixListener::bind_addr(&name)) else { return false };
    // Held to the end of the process, whose services may come and go.
    std::mem::forget(reservation);
    true
}

/// `127.0.0.1:<a free port>`.
pub fn free_address() -> Result<String> {
    Ok(format!("127.0.0.1:{}", free()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_given_once() {
        let port = free().unwrap();
        assert!(!reserve(port), "{port} was reserved twice");
    }
}
