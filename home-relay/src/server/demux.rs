//! From the home virtual device to the clients: a task waits for packets and gives each to the queue of the client that
//! holds the destination address. A session that is at work reads the device itself: a bulk transfer's packets go straight
//! into its buffer, with neither a copy in a queue nor another task in between.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock, TryLockError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use mobile_io::tun::Tun;
use mobile_proto::packet::IpHeader;
use mobile_proto::{MAX_PACKET, Offload, Packet};
use tracing::debug;

use super::queue::PacketQueue;
use super::session::Sink;
use crate::metrics::{Drop, Metrics};
use crate::pool::Lease;

/// Which queue a persistent address belongs to, for clients that have a session.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    queues: RwLock<HashMap<IpAddr, Arc<PacketQueue>>>,
    /// Held by whoever reads the device, until the packet is where it belongs: with two readers on two threads, packets
    /// would overtake each other.
    turn: Mutex<()>,
}

impl Routes {
    /// The client has a session from now on.
    pub(crate) fn add(&self, lease: &Lease, queue: &Arc<PacketQueue>) {
        let mut routes = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        routes.extend(lease.addresses().map(|address| (address, Arc::clone(queue))));
    }

    /// Stops delivering packets for `lease` to `queue`. An address that another client's queue has
    /// by now stays with that client.
    pub(crate) fn remove(&self, lease: &Lease, queue: &Arc<PacketQueue>) {
        let mut routes = self.queues.write().unwrap_or_else(PoisonError::into_inner);
        for address in lease.addresses() {
            if routes.get(&address).is_some_and(|holder| Arc::ptr_eq(holder, queue)) {
                routes.remove(&address);
            }
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
        let routes = self.queues.read().unwrap_or_else(PoisonError::into_inner);
        let queue = routes.get(&header.dst).ok_or(Drop::NoSession)?;
        if queue.push(packet) { Ok(()) } else { Err(Drop::QueueFull) }
    }
}

/// Packets of others that a session passes on before it goes on with its own work.
const OTHERS: usize = 16;

impl Routes {
    /// The next packet for the client of `queue`: what waits there, then what waits in the device. When there is none,
    /// the queue's next packet wakes the task.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        queue: &PacketQueue,
        device: &dyn Sink,
        metrics: &Metrics,
        buffer: &mut [u8],
    ) -> Poll<(usize, Offload)> {
        // Before the queue is asked: what another reader has taken from the device is in it by then.
        let turn = match self.turn.try_lock() {
            Ok(turn) => Some(turn),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Poll::Ready(packet) = queue.poll_pop(cx, buffer) {
            return Poll::Ready(packet);
        }
        if turn.is_none() {
            return Poll::Pending;
        }
        for _ in 0..OTHERS {
            // An error is for the task that waits for the device. It also has the packets beyond the bound.
            let Ok((length, offload)) = device.try_recv(buffer) else { break };
            let packet = Packet { bytes: &buffer[..length], offload };
            if self.is_for(queue, packet) {
                return Poll::Ready((length, offload));
            }
            if let Err(reason) = self.dispatch(packet) {
                metrics.dropped(reason, 1);
            }
        }
        Poll::Pending
    }

    fn is_for(&self, queue: &PacketQueue, packet: Packet<'_>) -> bool {
        IpHeader::parse(packet.bytes).is_ok_and(|header| {
            let routes = self.queues.read().unwrap_or_else(PoisonError::into_inner);
            routes.get(&header.dst).is_some_and(|own| std::ptr::eq(Arc::as_ptr(own), queue))
        })
    }

    /// The device's next packet, dispatched; whether it had to be waited for.
    async fn read_one(&self, tun: &Tun, metrics: &Metrics, buffer: &mut [u8]) -> io::Result<bool> {
        let mut waited = false;
        let read = poll_fn(|cx| {
            let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
            let read = tun.poll_recv(cx, buffer);
            waited |= read.is_pending();
            read.map_ok(|(length, offload)| {
                if let Err(reason) = self.dispatch(Packet { bytes: &buffer[..length], offload }) {
                    metrics.dropped(reason, 1);
                }
            })
        });
        read.await?;
        Ok(waited)
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
        match routes.read_one(tun, metrics, &mut buffer).await {
            Ok(waited) => {
                errors = 0;
                if waited {
                    // Its session is awake now, and takes what follows by itself.
                    tokio::task::yield_now().await;
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

    /// A device with packets waiting.
    struct Waiting(Mutex<Vec<Vec<u8>>>);

    impl Sink for Waiting {
        fn send(&self, _packet: Packet<'_>) -> io::Result<()> {
            Ok(())
        }

        fn try_recv(&self, buffer: &mut [u8]) -> io::Result<(usize, Offload)> {
            let packet = self.0.lock().unwrap().pop().ok_or(io::ErrorKind::WouldBlock)?;
            buffer[..packet.len()].copy_from_slice(&packet);
            Ok((packet.len(), Offload::None))
        }
    }

    #[tokio::test]
    async fn a_session_reads_its_own_packets_after_the_waiting_ones_and_passes_on_the_others() {
        let routes = Routes::default();
        let queues = [Arc::new(PacketQueue::new(80)), Arc::new(PacketQueue::new(80))];
        routes.add(&lease(2), &queues[0]);
        routes.add(&lease(3), &queues[1]);
        let metrics = Metrics::new().unwrap();
        let [first, second] = ["192.0.2.1", "192.0.2.2"].map(|from| packet(from, "10.9.0.2"));
        let [other, nobodys] = ["10.9.0.3", "10.9.0.9"].map(|to| packet("192.0.2.1", to));
        routes.dispatch(&first).unwrap();
        let device = Waiting(Mutex::new(vec![second.clone(), nobodys, other.clone()]));
        let mut buffer = [0; 100];
        for expected in [first, second] {
            let (length, _) =
                poll_fn(|cx| routes.poll_take(cx, &queues[0], &device, &metrics, &mut buffer)).await;
            assert_eq!(buffer[..length], expected);
        }
        assert_eq!(pop(&queues[1]).await, other);
        assert!(metrics.text().contains("reason=\"no_session\"} 1"), "{}", metrics.text());
        let empty = poll_fn(|cx| {
            Poll::Ready(routes.poll_take(cx, &queues[0], &device, &metrics, &mut buffer).is_pending())
        });
        assert!(empty.await);
    }

    #[test]
    fn while_another_reads_the_device_a_session_takes_only_what_waits() {
        let routes = Routes::default();
        let queue = Arc::new(PacketQueue::new(80));
        routes.add(&lease(2), &queue);
        let metrics = Metrics::new().unwrap();
        let device = Waiting(Mutex::new(vec![packet("192.0.2.1", "10.9.0.2")]));
        let take = |routes: &Routes| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            routes.poll_take(&mut cx, &queue, &device, &metrics, &mut [0; 100])
        };
        let turn = routes.turn.lock().unwrap();
        assert!(take(&routes).is_pending());
        drop(turn);
        assert!(take(&routes).is_ready());
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
        routes.remove(&lease(2), &queue);
        assert_eq!(routes.dispatch(&packet("192.0.2.1", "10.9.0.2")), Err(Drop::NoSession));
    }

    #[tokio::test]
    async fn a_client_that_gives_up_an_address_does_not_take_it_from_the_next_one() {
        let routes = Routes::default();
        let [first, second] = [80, 80].map(|bytes| Arc::new(PacketQueue::new(bytes)));
        // The two clients swap their addresses, and the second gets its new one before the first
        // has released it.
        routes.add(&lease(2), &first);
        routes.add(&lease(2), &second);
        routes.remove(&lease(2), &first);
        let to_it = packet("192.0.2.1", "10.9.0.2");
        routes.dispatch(&to_it).unwrap();
        assert_eq!(pop(&second).await, to_it);
    }
}
