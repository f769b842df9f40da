//! The packet input and output of a session.

use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};

use mobile_proto::{CoalescedSegment, InnerPacket, PacketHeaders};
use mobile_transport::coalescing::CoalescingWriter;
use mobile_transport::driver::PacketIo;

use super::demux::Demux;
use super::device::PacketSink;
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
    pub(crate) device: Arc<dyn PacketSink>,
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
    device: &dyn PacketSink,
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
