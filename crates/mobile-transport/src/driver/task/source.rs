//! The source of a driver's packets.

use std::cell::Cell;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use mobile_proto::MAX_PACKET;

use super::{Driver, PACKETS_PER_ROUND};
use crate::driver::PacketIo;

/// The delay before polling a failed packet source, such as a TUN device that is down, again.
const SOURCE_RETRY: Duration = Duration::from_secs(1);

thread_local! {
    /// The packet buffer that no driver on this thread uses at the moment.
    ///
    /// A driver holds the buffer only during a read, so thousands of idle ones hold none.
    static PACKET_BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// The reason why the driver stopped reading packets from the source in this round.
#[derive(PartialEq)]
pub(super) enum SourceState {
    /// The source has no packet and will wake the task.
    Pending,
    /// The session has no room for another packet.
    NoRoom,
    /// The driver has read the maximum number of packets for one round.
    BatchDone,
}

impl<I: PacketIo> Driver<I> {
    /// Reads packets from the source into the session.
    pub(super) fn read_packets(&mut self, cx: &mut Context<'_>, now: Instant) -> SourceState {
        if self.stopping.is_some() || self.source_retry_at.is_some_and(|retry| now < retry) {
            return SourceState::Pending;
        }
        self.source_retry_at = None;
        let mut buffer = PACKET_BUFFER.take();
        buffer.resize(MAX_PACKET, 0);
        let source = self.read_packets_into(cx, now, &mut buffer);
        PACKET_BUFFER.set(buffer);
        source
    }

    fn read_packets_into(&mut self, cx: &mut Context<'_>, now: Instant, buffer: &mut Vec<u8>) -> SourceState {
        for _ in 0..PACKETS_PER_ROUND {
            if !self.wants_packets() {
                return SourceState::NoRoom;
            }
            match self.io.poll_recv(cx, buffer) {
                Poll::Pending => return SourceState::Pending,
                Poll::Ready(Ok(headers)) => {
                    self.source_failing = false;
                    // The session counts the packets that it drops.
                    let _ = self.session.enqueue_in_place(now, buffer, headers);
                }
                Poll::Ready(Err(error)) => {
                    self.source_retry_at = Some(now + SOURCE_RETRY);
                    if !std::mem::replace(&mut self.source_failing, true) {
                        tracing::warn!(%error, "cannot read packets from the device; retrying every second");
                    }
                    return SourceState::Pending;
                }
            }
        }
        SourceState::BatchDone
    }

    /// Returns whether the session accepts packets from the source. Without an active path the
    /// session accepts every packet, and drops packets itself when its queue is full.
    pub(super) fn wants_packets(&self) -> bool {
        self.session.has_room() || self.session.active_path().is_none()
    }
}
