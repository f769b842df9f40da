//! Decides which ports of this host may be forwarded to a client: those that no program of the host
//! listens on.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::bail;

use crate::config::Config;
use crate::store::Protocol;

/// Refuses a port whose forward would hide a program of this host from the Internet, such as this
/// relay or an sshd.
pub(crate) fn check_free(config: &Config, protocol: Protocol, port: u16) -> anyhow::Result<()> {
    if protocol == Protocol::Tcp && port == config.listen.address.port() {
        bail!(
            "tcp port {port} is this relay's own ([listen] address): clients could not connect; choose another"
        );
    }
    let wildcards: [SocketAddr; 2] =
        [(Ipv4Addr::UNSPECIFIED, port).into(), (Ipv6Addr::UNSPECIFIED, port).into()];
    for address in wildcards {
        let tried = match protocol {
            Protocol::Tcp => TcpListener::bind(address).map(drop),
            Protocol::Udp => UdpSocket::bind(address).map(drop),
        };
        // Any other error (no IPv6, a privileged port for an ordinary user) says nothing about a
        // listener.
        if tried.is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse) {
            bail!(
                "a program of this host listens on {protocol} port {port}, and the forward would hide it from the \
                 Internet: choose another port (`ss -lnp` shows the program)"
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_and_the_relays_own_port_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("relay.toml");
        let text =
            "listen.address = \"[::]:443\"\nidentity.private_key_file = \"k\"\npool.ipv4 = \"10.9.0.0/24\"";
        std::fs::write(&path, text).unwrap();
        let config = Config::load(&path).unwrap();
        let own = check_free(&config, Protocol::Tcp, 443).unwrap_err().to_string();
        assert!(own.contains("[listen] address"), "{own}");
        // A listener on one address alone counts, on either protocol.
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        for (protocol, port) in [
            (Protocol::Tcp, tcp.local_addr().unwrap().port()),
            (Protocol::Udp, udp.local_addr().unwrap().port()),
        ] {
            let error = check_free(&config, protocol, port).unwrap_err().to_string();
            assert!(error.contains(&format!("listens on {protocol} port {port}")), "{error}");
        }
        drop(tcp);
    }
}
