//! Where a node listens, and where it tells others to reach it: TiDB Binlog's `addr` and `advertise-addr`; and PD's URLs.

use std::net::{SocketAddr, UdpSocket};

use super::Invalid;

/// A node's `addr` and `advertise-addr` as configured; either may be empty, and may have a scheme as in TiDB Binlog.
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a> {
    /// Where it listens. Empty: the address from which this machine reaches others.
    pub addr: &'a str,
    /// What it registers. Empty: `addr`.
    pub advertise_addr: &'a str,
    /// For an empty `addr`.
    pub default_port: u16,
}

impl Addresses<'_> {
    /// `host:port` to listen on.
    pub fn listen(self) -> String {
        match self.addr {
            "" => format!("{}:{}", routed_host(), self.default_port),
            addr => without_scheme(addr).to_owned(),
        }
    }

    /// `host:port` to register, given the address that is really listened on.
    pub fn registered(self, listening: SocketAddr) -> String {
        match self.advertise_addr {
            "" => {
                let listen = self.listen();
                let host = listen.rsplit_once(':').map_or("", |(host, _)| host);
                format!("{host}:{}", listening.port())
            }
            advertised => without_scheme(advertised).to_owned(),
        }
    }

    /// # Errors
    /// One of them is not `host:port`, or what would be registered is no address that `callers` could dial.
    pub fn validate(self, callers: &str) -> Result<(), Invalid> {
        let listen = self.listen();
        host_port("addr", &listen)?;
        let advertised = match self.advertise_addr {
            "" => &listen,
            advertised => without_scheme(advertised),
        };
        let host = host_port("advertise-addr", advertised)?;
        if host.is_empty() || host == "0.0.0.0" || host == "[::]" {
            let reason = format!(
                "`{advertised}` cannot be dialled by {callers}; set a host name or address of this machine"
            );
            return Err(Invalid::new("advertise-addr", reason));
        }
        Ok(())
    }
}

fn host_port<'a>(field: &str, address: &'a str) -> Result<&'a str, Invalid> {
    match address.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => Ok(host),
        _ => Err(Invalid::new(field, format!("`{address}` is not host:port"))),
    }
}

fn without_scheme(address: &str) -> &str {
    address.split_once("://").map_or(address, |(_, rest)| rest).trim_end_matches('/')
}

/// The address this machine would send from (nothing is sent), or loopback.
fn routed_host() -> String {
    let routed = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    match routed {
        Ok(address) if !address.ip().is_unspecified() => address.ip().to_string(),
        _ => "127.0.0.1".to_owned(),
    }
}

/// What a comma-separated key names, one by one.
pub fn listed(list: &str) -> Vec<String> {
    list.split(',').map(|url| url.trim().to_owned()).filter(|url| !url.is_empty()).collect()
}

/// # Errors
/// `pd-urls` names nothing, or something that is no URL.
pub fn validate_pd_urls(list: &str) -> Result<(), Invalid> {
    let urls = listed(list);
    if urls.is_empty() {
        return Err(Invalid::new("pd-urls", "is empty; give PD's client URLs, as http://host:2379"));
    }
    match urls.iter().find(|url| !url.starts_with("http://") && !url.starts_with("https://")) {
        Some(url) => Err(Invalid::new("pd-urls", format!("`{url}` needs a scheme: http:// or https://"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses<'a>(addr: &'a str, advertise_addr: &'a str) -> Addresses<'a> {
        Addresses { addr, advertise_addr, default_port: 8250 }
    }

    #[test]
    fn what_is_listened_on_and_what_is_registered() {
        let listening = "127.0.0.1:4711".parse().unwrap();
        for (addr, advertise_addr, listen, registered) in [
            ("http://pump-1:8250/", "", "pump-1:8250", "pump-1:4711"),
            ("0.0.0.0:8250", "http://pump-1:80", "0.0.0.0:8250", "pump-1:80"),
            ("[::1]:0", "", "[::1]:0", "[::1]:4711"),
        ] {
            let addresses = addresses(addr, advertise_addr);
            addresses.validate("others").unwrap();
            assert_eq!(
                (addresses.listen(), addresses.registered(listening)),
                (listen.into(), registered.into())
            );
        }
        let unset = addresses("", "");
        unset.validate("others").unwrap();
        assert!(unset.listen().ends_with(":8250"), "{}", unset.listen());
    }

    #[test]
    fn what_nobody_can_dial_is_named() {
        for (addr, advertise_addr, field) in [
            ("pump-1", "", "addr"),
            ("http://", "", "addr"),
            ("pump-1:8250", "http://", "advertise-addr"),
            ("pump-1:70000", "pump-1:8250", "addr"),
            ("0.0.0.0:8250", "", "advertise-addr"),
            ("pump-1:8250", "[::]:8250", "advertise-addr"),
            ("pump-1:8250", ":8250", "advertise-addr"),
            ("pump-1:8250", "pump-1", "advertise-addr"),
        ] {
            assert_eq!(
                addresses(addr, advertise_addr).validate("others").unwrap_err().field,
                field,
                "{addr}"
            );
        }
    }

    #[test]
    fn pd_is_named_by_urls() {
        assert_eq!(listed(" http://a:1,, https://b:2 "), ["http://a:1", "https://b:2"]);
        validate_pd_urls("http://a:1,https://b:2").unwrap();
        for wrong in ["", " , ", "http://a:1,b:2"] {
            assert_eq!(validate_pd_urls(wrong).unwrap_err().field, "pd-urls", "{wrong}");
        }
    }
}
