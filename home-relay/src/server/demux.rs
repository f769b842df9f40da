//! From the home virtual device to the clients: one task reads packets and gives each to the queue of
//! the client that holds the destination address.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use mobile_io::tun::Tun;
use mobile_proto::packet::IpHeader;
use mobile_proto::{MAX_PACKET, Packet};
use tracing::debug;

use super::queue::PacketQueue;
use crate::metrics::{Drop, Metrics};
use crate::pool::Lease;

/// Which queue a persistent address belongs to, for clients that have a session.
#[derive(Debug, Default)]
pub(crate) struct Routes(RwLock<HashMap<IpAddr, Arc<PacketQueue>>>);

impl Routes {
    /// The client has a session from now on.
    pub(crate) fn add(&self, lease: &Lease, queue: &Arc<PacketQueue>) {
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        routes.extend(lease.addresses().map(|address| (address, Arc::clone(queue))));
    }

    /// The client has none any more.
    pub(crate) fn remove(&self, lease: &Lease) {
        let mut routes = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for address in lease.addresses() {
            routes.remove(&address);
        }
    }

    /// Gives a packet from the world to its client.
    pub(crate) fn dispatch<'a>(&self, packet: impl Into<Packet<'a>>) -> Result<(), Drop> {
        let packet = packet.into();
        let header = IpHeader::parse(packet.bytes).map_err(|_| Drop::Malformed)?;
        // The kernel's own multicast (MLD) concerns no client, and is no loss.
        if header.dst.is_multicast() {
            return Ok(());
        }
        let routes = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let queue = routes.get(&header.dst).ok_or(Drop::NoSession)?;
        if queue.push(packet) { Ok(()) } else { Err(Drop::QueueFull) }
    }
}

/// After an error of the device: long enough not to spin, short enough not to be noticed.
const RETRY: Duration = Duration::from_millis(100);
/// Errors in a row after which the device is taken for gone (5 s): systemd then starts us anew.
const MAX_ERRORS: u32 = 50;

/// Reads the device until it is gone.
pub(crate) async fn run(tun: &Tun, routes: &Routes, metrics: &Metrics) -> anyhow::Result<()> {
    let mut buffer = vec![0; MAX_PACKET];
    let mut errors = 0;
    loop {
        match poll_fn(|cx| tun.poll_recv(cx, &mut buffer)).await {
            Ok((length, offload)) => {
                errors = 0;
                if let Err(reason) = routes.dispatch(Packet { bytes: &buffer[..length], offload }) {
                    metrics.dropped(reason);
                }
            }
            Err(error) if errors < MAX_ERRORS => {
                debug!("reading {}: {error}", tun.name());
                errors += 1;
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => {
                let name = tun.name();
                return Err(error).with_context(|| {
                    format!("{name} is gone: did somebody remove the device? restart the relay")
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::guard::tests::packet;
    use super::*;

    fn lease(host: u8) -> Lease {
        Lease {
            ipv4: Some([10, 9, 0, host].into()),
            ipv6: Some([0xfd12, 0, 0, 0, 0, 0, 0, u16::from(host)].into()),
        }
    }

    async fn pop(queue: &PacketQueue) -> Vec<u8> {
        let mut buffer = [0; 100];
        let (length, _) = poll_fn(|cx| queue.poll_pop(cx, &mut buffer)).await;
        buffer[..length].to_vec()
    }

    #[tokio::test]
    async fn a_packet_goes_to_the_holder_of_its_destination() {
        let routes = Routes::default();
        let queues = [Arc::new(PacketQueue::new(80)), Arc::new(PacketQueue::new(80))];
        routes.add(&lease(2), &queues[0]);
        routes.add(&lease(3), &queues[1]);
        let ipv4 = packet("192.0.2.1", "10.9.0.3");
        let ipv6 = packet("2001:db8::1", "fd12::2");
        routes.dispatch(&ipv4).unwrap();
        routes.dispatch(&ipv6).unwrap();
        assert_eq!(pop(&queues[1]).await, ipv4);
        assert_eq!(pop(&queues[0]).await, ipv6);
    }

    #[test]
    fn what_cannot_be_delivered_says_why() {
        let routes = Routes::default();
        let queue = Arc::new(PacketQueue::new(20));
        routes.add(&lease(2), &queue);
        assert_eq!(routes.dispatch(b"garbage"), Err(Drop::Malformed));
        assert_eq!(routes.dispatch(&packet("fd12::1", "ff02::16")), Ok(()), "nobody's");
        assert_eq!(routes.dispatch(&packet("192.0.2.1", "10.9.0.9")), Err(Drop::NoSession));
        assert_eq!(routes.dispatch(&packet("192.0.2.1", "10.9.0.2")), Ok(()));
        assert_eq!(routes.dispatch(&packet("192.0.2.1", "10.9.0.2")), Err(Drop::QueueFull));
        routes.remove(&lease(2));
        assert_eq!(routes.dispatch(&packet("192.0.2.1", "10.9.0.2")), Err(Drop::NoSession));
    }
}
