//! Delivers packets from the home virtual device to the clients.
//!
//! A task reads the device and puts each packet into the queue of the client that holds the
//! destination address. A session that is running also reads the device itself: the packets of a
//! bulk transfer go straight into its buffer, without a copy in a queue and without a switch to
//! another task.

use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::task::{Context, Poll};
use std::time::Duration;

use anyhow::Context as _;
use mobile_proto::{InnerPacket, MAX_PACKET, PacketHeaders};
use mobile_transport::tun::Tun;
use tracing::debug;

use super::device::PacketDevice;
use super::queue::PacketQueue;
use crate::metrics::{DropReason, Metrics};
use crate::pool::Lease;

/// Distributes the device's packets to the clients with a session.
#[derive(Debug, Default)]
pub(crate) struct Demux {
    /// Locked from reading a packet of the device until its delivery, because two concurrent
    /// readers would reorder packets. Only a reader looks up where a packet goes, so that the table
    /// needs no lock of its own.
    routes: Mutex<Routes>,
}

/// The packet queues of clients with a session, keyed by the clients' persistent addresses.
#[derive(Debug, Default)]
struct Routes(HashMap<IpAddr, Arc<PacketQueue>>);

impl Routes {
    /// Returns the queue of the client that holds the packet's destination address; `None` if the
    /// packet is for no client and is dropped without being counted.
    fn find(&self, packet: &InnerPacket<'_>) -> Result<Option<&Arc<PacketQueue>>, DropReason> {
        let destination = packet.destination().ok_or(DropReason::Malformed)?;
        match self.0.get(&destination) {
            Some(queue) => Ok(Some(queue)),
            // Multicast is the kernel's own, such as MLD reports.
            None if destination.is_multicast() => Ok(None),
            None => Err(DropReason::NoSession),
        }
    }

    /// Puts a packet into the queue of the client that holds its destination address.
    fn dispatch(&self, packet: InnerPacket<'_>) -> Result<(), DropReason> {
        match self.find(&packet)? {
            Some(queue) if !queue.push(packet) => Err(DropReason::QueueFull),
            _ => Ok(()),
        }
    }
}

impl Demux {
    /// Starts delivering packets for the addresses of `lease` to `queue`.
    pub(crate) fn add(&self, lease: &Lease, queue: &Arc<PacketQueue>) {
        self.lock().0.extend(lease.addresses().map(|address| (address, Arc::clone(queue))));
    }

    /// Stops delivering packets for the addresses of `lease` to `queue`. An address that another
    /// client holds in the meantime keeps its new queue.
    pub(crate) fn remove(&self, lease: &Lease, queue: &Arc<PacketQueue>) {
        let mut routes = self.lock();
        for address in lease.addresses() {
            if routes.0.get(&address).is_some_and(|holder| Arc::ptr_eq(holder, queue)) {
                routes.0.remove(&address);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The largest number of other clients' packets that a session reads from the device and delivers
/// before it goes on with its own work.
const MAX_OTHER_PACKETS: usize = 16;

impl Demux {
    /// Reads the next packet for the client of `queue` into `buffer`, first from the queue, then
    /// from the device, and returns where its headers are. If there is none, the task is woken by
    /// the queue's next packet.
    pub(crate) fn poll_packet(
        &self,
        cx: &mut Context<'_>,
        queue: &PacketQueue,
        device: &dyn PacketDevice,
        metrics: &Metrics,
        buffer: &mut [u8],
    ) -> Poll<PacketHeaders> {
        // Lock before looking at the queue: packets that another reader took from the device are
        // then already in the queue.
        let routes = match self.routes.try_lock() {
            Ok(routes) => Some(routes),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if let Poll::Ready(packet) = queue.poll_pop(cx, buffer) {
            return Poll::Ready(packet);
        }
        let Some(routes) = routes else { return Poll::Pending };
        for _ in 0..MAX_OTHER_PACKETS {
            // The task that waits for the device handles errors, and reads the packets beyond the
            // bound.
            let Ok(headers) = device.try_recv(buffer) else { break };
            let packet = InnerPacket::in_buffer(buffer, headers);
            match routes.find(&packet) {
                Ok(Some(holder)) if std::ptr::eq(Arc::as_ptr(holder), queue) => {
                    return Poll::Ready(headers);
                }
                Ok(Some(holder)) if !holder.push(packet) => metrics.dropped(DropReason::QueueFull, 1),
                Ok(_) => {}
                Err(reason) => metrics.dropped(reason, 1),
            }
        }
        Poll::Pending
    }

    /// Reads and delivers the device's next packet; returns whether the read had to wait.
    async fn deliver_next(&self, tun: &Tun, metrics: &Metrics, buffer: &mut [u8]) -> io::Result<bool> {
        let mut waited = false;
        let read = poll_fn(|cx| {
            let routes = self.lock();
            let read = tun.poll_recv(cx, buffer);
            waited |= read.is_pending();
            read.map_ok(|headers| {
                if let Err(reason) = routes.dispatch(InnerPacket::in_buffer(buffer, headers)) {
                    metrics.dropped(reason, 1);
                }
            })
        });
        read.await?;
        Ok(waited)
    }

    /// Puts a packet into the queue of the client that holds its destination address.
    #[cfg(test)]
    pub(crate) fn dispatch<'a>(&self, packet: impl Into<InnerPacket<'a>>) -> Result<(), DropReason> {
        self.lock().dispatch(packet.into())
    }
}

/// The pause after an error when reading the device: long enough to avoid spinning, too short to be
/// noticed.
const READ_RETRY_DELAY: Duration = Duration::from_millis(100);
/// The number of consecutive read errors after which the device counts as gone (5 s); systemd then
/// restarts the relay.
const MAX_READ_ERRORS: u32 = 50;

/// Reads the device and delivers its packets until the device is gone.
pub(crate) async fn run(tun: &Tun, demux: &Demux, metrics: &Metrics) -> anyhow::Result<()> {
    let mut buffer = vec![0; MAX_PACKET];
    let mut errors = 0;
    loop {
        match demux.deliver_next(tun, metrics, &mut buffer).await {
            Ok(waited) => {
                errors = 0;
                if waited {
                    // The packet's session is awake and reads the following packets itself.
                    tokio::task::yield_now().await;
                }
            }
            Err(error) if errors < MAX_READ_ERRORS => {
                debug!("cannot read {}, retrying: {error}", tun.name());
                errors += 1;
                tokio::time::sleep(READ_RETRY_DELAY).await;
            }
            Err(error) => {
                let name = tun.name();
                return Err(error).with_context(|| {
                    format!("cannot read {name}: was the device removed? restart the relay")
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::source_filter::tests::packet;
    use super::*;

    fn lease(host: u8) -> Lease {
        Lease {
            ipv4: Some([10, 9, 0, host].into()),
            ipv6: Some([0xfd12, 0, 0, 0, 0, 0, 0, u16::from(host)].into()),
        }
    }

    async fn pop(queue: &PacketQueue) -> Vec<u8> {
        let mut buffer = [0; 100];
        let headers = poll_fn(|cx| queue.poll_pop(cx, &mut buffer)).await;
        buffer[..headers.len()].to_vec()
    }

    #[tokio::test]
    async fn a_packet_is_delivered_to_the_holder_of_its_destination_address() {
        let demux = Demux::default();
        let queues = [Arc::new(PacketQueue::new(80)), Arc::new(PacketQueue::new(80))];
        demux.add(&lease(2), &queues[0]);
        demux.add(&lease(3), &queues[1]);
        let ipv4 = packet("192.0.2.1", "10.9.0.3");
        let ipv6 = packet("2001:db8::1", "fd12::2");
        demux.dispatch(&ipv4).unwrap();
        demux.dispatch(&ipv6).unwrap();
        assert_eq!(pop(&queues[1]).await, ipv4);
        assert_eq!(pop(&queues[0]).await, ipv6);
    }

    /// A device with packets waiting to be read.
    struct Waiting(Mutex<Vec<Vec<u8>>>);

    impl PacketDevice for Waiting {
        fn send(&self, _packet: InnerPacket<'_>) -> io::Result<()> {
            Ok(())
        }

        fn try_recv(&self, buffer: &mut [u8]) -> io::Result<PacketHeaders> {
            let packet = self.0.lock().unwrap().pop().ok_or(io::ErrorKind::WouldBlock)?;
            buffer[..packet.len()].copy_from_slice(&packet);
            Ok(PacketHeaders::locate(&packet))
        }
    }

    #[tokio::test]
    async fn a_session_reads_queued_packets_before_the_device_and_delivers_those_of_others() {
        let demux = Demux::default();
        let queues = [Arc::new(PacketQueue::new(80)), Arc::new(PacketQueue::new(80))];
        demux.add(&lease(2), &queues[0]);
        demux.add(&lease(3), &queues[1]);
        let metrics = Metrics::new().unwrap();
        let [first, second] = ["192.0.2.1", "192.0.2.2"].map(|from| packet(from, "10.9.0.2"));
        let [other, nobodys] = ["10.9.0.3", "10.9.0.9"].map(|to| packet("192.0.2.1", to));
        demux.dispatch(&first).unwrap();
        let device = Waiting(Mutex::new(vec![second.clone(), nobodys, other.clone()]));
        let mut buffer = [0; 100];
        for expected in [first, second] {
            let headers =
                poll_fn(|cx| demux.poll_packet(cx, &queues[0], &device, &metrics, &mut buffer)).await;
            assert_eq!(buffer[..headers.len()], expected);
        }
        assert_eq!(pop(&queues[1]).await, other);
        assert!(metrics.text().contains("reason=\"no_session\"} 1"), "{}", metrics.text());
        let empty = poll_fn(|cx| {
            Poll::Ready(demux.poll_packet(cx, &queues[0], &device, &metrics, &mut buffer).is_pending())
        });
        assert!(empty.await);
    }

    #[test]
    fn while_another_task_reads_the_device_a_session_takes_only_queued_packets() {
        let demux = Demux::default();
        let queue = Arc::new(PacketQueue::new(80));
        demux.add(&lease(2), &queue);
        let metrics = Metrics::new().unwrap();
        let device = Waiting(Mutex::new(vec![packet("192.0.2.1", "10.9.0.2")]));
        let take = |demux: &Demux| {
            let mut cx = Context::from_waker(std::task::Waker::noop());
            demux.poll_packet(&mut cx, &queue, &device, &metrics, &mut [0; 100])
        };
        let reading = demux.routes.lock().unwrap();
        assert!(take(&demux).is_pending());
        drop(reading);
        assert!(take(&demux).is_ready());
    }

    #[test]
    fn undeliverable_packets_have_a_drop_reason() {
        let demux = Demux::default();
        let queue = Arc::new(PacketQueue::new(20));
        demux.add(&lease(2), &queue);
        assert_eq!(demux.dispatch(b"garbage"), Err(DropReason::Malformed));
        assert_eq!(demux.dispatch(&packet("fd12::1", "ff02::16")), Ok(()), "multicast is no loss");
        assert_eq!(demux.dispatch(&packet("192.0.2.1", "10.9.0.9")), Err(DropReason::NoSession));
        assert_eq!(demux.dispatch(&packet("192.0.2.1", "10.9.0.2")), Ok(()));
        assert_eq!(demux.dispatch(&packet("192.0.2.1", "10.9.0.2")), Err(DropReason::QueueFull));
        demux.remove(&lease(2), &queue);
        assert_eq!(demux.dispatch(&packet("192.0.2.1", "10.9.0.2")), Err(DropReason::NoSession));
    }

    #[tokio::test]
    async fn removing_a_lease_does_not_unroute_the_next_holder_of_its_address() {
        let demux = Demux::default();
        let [first, second] = [80, 80].map(|bytes| Arc::new(PacketQueue::new(bytes)));
        // The two clients swap their addresses, and the second gets its new one before the first
        // has released it.
        demux.add(&lease(2), &first);
        demux.add(&lease(2), &second);
        demux.remove(&lease(2), &first);
        let to_it = packet("192.0.2.1", "10.9.0.2");
        demux.dispatch(&to_it).unwrap();
        assert_eq!(pop(&second).await, to_it);
    }
}
