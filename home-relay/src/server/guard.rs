//! What a client may send: packets from its own addresses, to where ordinary forwarding leads.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mobile_proto::packet::IpHeader;

use crate::metrics::Drop;
use crate::pool::{Lease, Pools};

/// Checks every packet of one client.
#[derive(Debug, Clone)]
pub(crate) struct Guard {
    lease: Lease,
    pools: Pools,
    /// May it not reach other clients? The whole relay's, and may change.
    isolate: Arc<AtomicBool>,
}

impl Guard {
    /// For the client that holds `lease`.
    pub(crate) fn new(lease: Lease, pools: Pools, isolate: Arc<AtomicBool>) -> Self {
        Self { lease, pools, isolate }
    }

    /// May this packet be forwarded?
    pub(crate) fn check(&self, packet: &[u8]) -> Result<(), Drop> {
        let header = IpHeader::parse(packet).map_err(|_| Drop::Malformed)?;
        let own = match header.src {
            IpAddr::V4(source) => self.lease.ipv4 == Some(source),
            IpAddr::V6(source) => self.lease.ipv6 == Some(source),
        };
        if !own {
            return Err(Drop::Source);
        }
        if self.pools.contains(header.dst)
            && !self.pools.is_own(header.dst)
            && self.isolate.load(Ordering::Relaxed)
        {
            return Err(Drop::Isolation);
        }
        if !is_forwardable(header.dst) {
            return Err(Drop::Destination);
        }
        Ok(())
    }
}

/// Multicast and the scopes of one link or host are not forwarded by a router either; from a tunnel
/// they could only reach services of the relay's own host that expect its neighbours.
fn is_forwardable(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_forwardable_ipv4(address),
        IpAddr::V6(address) => is_forwardable_ipv6(address),
    }
}

fn is_forwardable_ipv4(address: Ipv4Addr) -> bool {
    !(address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        // RFC 1122, 3.2.1.3: "this network" is never a destination.
        || address.octets()[0] == 0)
}

fn is_forwardable_ipv6(address: Ipv6Addr) -> bool {
    !(address.is_loopback()
        || address.is_unicast_link_local()
        || address.is_multicast()
        || address.is_unspecified()
        // RFC 4291, 2.5.5: an IPv4 address in disguise is no destination on the wire.
        || address.to_ipv4_mapped().is_some())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::pool::Taken;

    /// A packet of headers only.
    pub(crate) fn packet(source: &str, destination: &str) -> Vec<u8> {
        match (source.parse().unwrap(), destination.parse().unwrap()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let mut packet = vec![0x45, 0, 0, 20, 0, 0, 0, 0, 64, 17, 0, 0];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let mut packet = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
                packet.extend(source.octets());
                packet.extend(destination.octets());
                packet
            }
            _ => panic!("two families in one packet"),
        }
    }

    fn guard() -> Guard {
        let pools =
            Pools::new(Some("10.9.0.0/24".parse().unwrap()), Some("fd12::/64".parse().unwrap())).unwrap();
        Guard::new(
            pools.lease(Lease::default(), &mut Taken::default()).unwrap(),
            pools,
            Arc::new(AtomicBool::new(true)),
        )
    }

    #[test]
    fn a_client_reaches_the_world_and_the_relay_from_its_own_addresses() {
        for (source, destination) in [
            ("10.9.0.2", "192.0.2.1"),
            ("10.9.0.2", "10.9.0.1"),
            ("fd12::2", "2001:db8::1"),
            ("fd12::2", "fd12::1"),
        ] {
            assert_eq!(guard().check(&packet(source, destination)), Ok(()), "{source} {destination}");
        }
    }

    #[test]
    fn somebody_elses_source_is_refused() {
        for (source, destination) in [
            ("10.9.0.3", "192.0.2.1"),
            ("192.0.2.9", "192.0.2.1"),
            ("0.0.0.0", "192.0.2.1"),
            ("fd12::3", "2001:db8::1"),
        ] {
            assert_eq!(guard().check(&packet(source, destination)), Err(Drop::Source), "{source}");
        }
        let ipv4_only = Guard { lease: Lease { ipv6: None, ..guard().lease }, ..guard() };
        assert_eq!(ipv4_only.check(&packet("fd12::2", "2001:db8::1")), Err(Drop::Source));
    }

    #[test]
    fn other_clients_are_out_of_reach() {
        assert_eq!(guard().check(&packet("10.9.0.2", "10.9.0.77")), Err(Drop::Isolation));
        assert_eq!(guard().check(&packet("fd12::2", "fd12::77")), Err(Drop::Isolation));
    }

    #[test]
    fn other_clients_are_in_reach_where_they_are_one_network() {
        let guard = guard();
        guard.isolate.store(false, Ordering::Relaxed);
        assert_eq!(guard.check(&packet("10.9.0.2", "10.9.0.77")), Ok(()));
        assert_eq!(guard.check(&packet("10.9.0.3", "10.9.0.77")), Err(Drop::Source));
    }

    #[test]
    fn what_no_router_forwards_is_not_forwarded() {
        for destination in ["127.0.0.1", "169.254.169.254", "224.0.0.251", "255.255.255.255", "0.0.0.0"] {
            assert_eq!(
                guard().check(&packet("10.9.0.2", destination)),
                Err(Drop::Destination),
                "{destination}"
            );
        }
        for destination in ["::1", "::", "fe80::1", "ff02::fb", "::ffff:127.0.0.1"] {
            assert_eq!(
                guard().check(&packet("fd12::2", destination)),
                Err(Drop::Destination),
                "{destination}"
            );
        }
    }

    #[test]
    fn no_packet_at_all_is_malformed() {
        let good = packet("10.9.0.2", "192.0.2.1");
        for bad in [&[][..], &[0x45], &good[..19], &[&good[..], &[0]].concat(), &[0xff; 40]] {
            assert_eq!(guard().check(bad), Err(Drop::Malformed), "{bad:?}");
        }
    }
}
