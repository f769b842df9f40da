//! The packet input and output of a session.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use mobile_proto::{CoalescedSegment, InnerPacket, PacketHeaders};
use mobile_transport::coalescing::CoalescingWriter;
use mobile_transport::driver::PacketIo;

use super::demux::Demux;
use super::device::PacketDevice;
use super::queue::PacketQueue;
use super::source_filter::SourceFilter;
use crate::metrics::{DropReason, Metrics};

/// The packet input and output of one session: input from the client's queue and the device, output
/// through the source filter to the device.
pub(crate) struct ClientIo {
    pub(crate) queue: Arc<PacketQueue>,
    pub(crate) demux: Arc<Demux>,
    pub(crate) filter: SourceFilter,
    pub(crate) coalescing: CoalescingWriter,
    pub(crate) device: Arc<dyn PacketDevice>,
    pub(crate) metrics: Arc<Metrics>,
}

impl PacketIo for ClientIo {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        let Self { queue, demux, device, metrics, .. } = self;
        demux.poll_packet(cx, queue, &**device, metrics, buffer).map(|headers| {
            self.metrics.to_clients.count(1, headers.len() as u64);
            Ok(headers)
        })
    }

    fn send(&mut self, packet: InnerPacket<'_>) {
        let Self { filter, coalescing, device, metrics, .. } = self;
        match filter.check(packet) {
            Ok(()) => {
                coalescing
                    .send(packet, &mut |packet, made| write_to_device(&**device, metrics, packet, made));
            }
            Err(reason) => metrics.dropped(reason, 1),
        }
    }

    fn flush(&mut self) {
        let Self { coalescing, device, metrics, .. } = self;
        coalescing.flush(&mut |packet, made| write_to_device(&**device, metrics, packet, made));
    }
}

fn write_to_device(
    device: &dyn PacketDevice,
    metrics: &Metrics,
    packet: InnerPacket<'_>,
    made: CoalescedSegment,
) {
    match device.send(packet) {
        Ok(()) => metrics.from_clients.count(made.packets, made.bytes),
        Err(error) => metrics.dropped(drop_reason(&error), made.packets),
    }
}

/// Returns the reason why the device refused a packet: a failure of the device, or an offload
/// request that the packet's headers do not allow.
fn drop_reason(error: &io::Error) -> DropReason {
    if error.kind() == io::ErrorKind::InvalidInput { DropReason::Malformed } else { DropReason::Device }
}

#[cfg(test)]
#[cfg(debug_assertions)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Mutex;

    use mobile_proto::packet::parse_count;

    use super::*;
    use crate::pool::{Lease, Pools, TakenAddresses};
    use crate::server::source_filter::OwnReach;
    use crate::server::source_filter::tests::{packet, shared_policy};

    /// A device with packets waiting to be read, which counts those written to it.
    #[derive(Default)]
    struct Device {
        waiting: Mutex<Vec<Vec<u8>>>,
        written: Mutex<usize>,
    }

    impl PacketDevice for Device {
        fn send(&self, packet: InnerPacket<'_>) -> io::Result<()> {
            packet.offload.to_vnet(packet).map_err(io::Error::other)?;
            *self.written.lock().unwrap() += 1;
            Ok(())
        }

        fn coalesces_datagrams(&self) -> bool {
            true
        }

        fn try_recv(&self, buffer: &mut [u8]) -> io::Result<PacketHeaders> {
            let packet = self.waiting.lock().unwrap().pop().ok_or(io::ErrorKind::WouldBlock)?;
            buffer[..packet.len()].copy_from_slice(&packet);
            Ok(PacketHeaders::locate(&packet))
        }
    }

    /// Returns the packets that can be read, and how many were parsed in the meantime.
    async fn read_all(io: &mut ClientIo) -> (usize, u64) {
        let (mut buffer, mut packets, before) = ([0; 100], 0, parse_count::count());
        let drained = poll_fn(|cx| {
            while let Poll::Ready(Ok(headers)) = io.poll_recv(cx, &mut buffer) {
                assert!(InnerPacket::in_buffer(&buffer, headers).ip().is_ok());
                packets += 1;
            }
            Poll::Ready(())
        });
        drained.await;
        (packets, parse_count::count() - before)
    }

    /// Tests both directions. Packets from the device pass the demultiplexer, some of them read by
    /// another client's session and queued. Packets from the client pass the source filter to the
    /// device.
    #[tokio::test]
    async fn each_packet_is_parsed_once_on_its_way_through_the_relay() {
        let pools =
            Pools::new(Some("10.9.0.0/24".parse().unwrap()), Some("fd12::/64".parse().unwrap())).unwrap();
        let (demux, device) = (Arc::new(Demux::default()), Arc::new(Device::default()));
        let (metrics, policy) = (Arc::new(Metrics::new().unwrap()), shared_policy("internet"));
        let mut taken = TakenAddresses::default();
        let mut ends = [0, 1].map(|_| {
            let (queue, lease) =
                (Arc::new(PacketQueue::new(1000)), pools.lease(Lease::default(), &mut taken));
            let lease = lease.unwrap();
            demux.add(&lease, &queue);
            ClientIo {
                queue,
                demux: Arc::clone(&demux),
                filter: SourceFilter::new(lease, pools, Arc::clone(&policy), OwnReach::default()),
                coalescing: CoalescingWriter::new(device.coalesces_datagrams()),
                device: Arc::clone(&device) as _,
                metrics: Arc::clone(&metrics),
            }
        });
        let to = |address: &str| match address.contains(':') {
            true => packet("2001:db8::1", address),
            false => packet("192.0.2.1", address),
        };
        let waiting = ["10.9.0.2", "10.9.0.3", "fd12::2", "fd12::3", "10.9.0.2", "10.9.0.99"].map(to);
        *device.waiting.lock().unwrap() = waiting.to_vec();
        let (own, parsed) = read_all(&mut ends[0]).await;
        assert_eq!((own, parsed), (3, waiting.len() as u64), "of all packets in the device");
        let (queued, parsed) = read_all(&mut ends[1]).await;
        assert_eq!((queued, parsed), (2, 0), "they were parsed when they were read from the device");

        let sent = [("10.9.0.2", "192.0.2.1"), ("10.9.0.2", "10.9.0.3"), ("fd12::2", "2001:db8::1")];
        let sent = sent.map(|(source, destination)| packet(source, destination));
        let before = parse_count::count();
        for packet in &sent {
            ends[0].send(packet.into());
        }
        ends[0].flush();
        assert_eq!(parse_count::count() - before, sent.len() as u64);
        assert_eq!(*device.written.lock().unwrap(), 2, "one packet was for an isolated client");
    }
}
