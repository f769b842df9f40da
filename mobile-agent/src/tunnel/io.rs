//! Lets the session driver send and receive packets on the host virtual device.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use mobile_proto::{CoalescedSegment, InnerPacket, PacketHeaders};
use mobile_transport::coalescing::CoalescingWriter;
use mobile_transport::driver::PacketIo;
use mobile_transport::tun::Tun;

use crate::routing::delivery_filter::DeliveryFilter;

/// The host virtual device with its delivery filter.
pub(crate) struct TunIo {
    tun: Tun,
    filter: Arc<DeliveryFilter>,
    coalescing: CoalescingWriter,
}

impl TunIo {
    /// Creates the packet I/O on an open TUN device.
    pub(crate) fn new(tun: Tun, filter: Arc<DeliveryFilter>) -> Self {
        let coalescing = CoalescingWriter::new(tun.coalesces_datagrams());
        Self { tun, filter, coalescing }
    }
}

impl PacketIo for TunIo {
    fn poll_recv(&mut self, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<PacketHeaders>> {
        self.tun.poll_recv(cx, buf)
    }

    fn send(&mut self, packet: InnerPacket<'_>) {
        if self.filter.admits(packet) {
            let Self { tun, filter, coalescing } = self;
            coalescing.send(packet, &mut |packet, segment| write(tun, filter, packet, segment));
        } else {
            self.filter.misaddressed.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn flush(&mut self) {
        let Self { tun, filter, coalescing } = self;
        coalescing.flush(&mut |packet, segment| write(tun, filter, packet, segment));
    }
}

fn write(tun: &Tun, filter: &DeliveryFilter, packet: InnerPacket<'_>, segment: CoalescedSegment) {
    if tun.try_send(packet).is_err() {
        filter.refused.fetch_add(segment.packets, Ordering::Relaxed);
    }
}
