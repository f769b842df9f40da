//! A model of the kernel's TCP state of a connection: each write is a segment, which is
//! acknowledged when its last byte has arrived and an answer can come back.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use mobile_proto::TransportSample;

/// The round-trip time of every path.
pub(crate) const RTT: Duration = Duration::from_millis(20);

#[derive(Default)]
pub(crate) struct KernelModel {
    /// The offset in the stream of the end of each unacknowledged segment.
    segments: VecDeque<usize>,
    sent: usize,
    arrived: usize,
    delivered: u32,
    segs_out: u32,
    last_ack: Option<Instant>,
}

impl KernelModel {
    pub(crate) fn sent(&mut self, bytes: usize) {
        if bytes > 0 {
            self.sent += bytes;
            self.segs_out += 1;
            self.segments.push_back(self.sent);
        }
    }

    pub(crate) fn arrived(&mut self, bytes: usize) {
        self.arrived += bytes;
    }

    pub(crate) fn acknowledge(&mut self, now: Instant) {
        while self.segments.front().is_some_and(|&end| end <= self.arrived) {
            self.segments.pop_front();
            self.delivered += 1;
            self.last_ack = Some(now);
        }
    }

    pub(crate) fn sample(&self, now: Instant) -> TransportSample {
        let unacked = self.segments.len() as u32;
        TransportSample {
            delivered: self.delivered,
            in_flight: unacked,
            unacked,
            segs_out: self.segs_out,
            retransmitted: 0,
            last_ack: self.last_ack.map_or(Duration::ZERO, |at| now.saturating_duration_since(at)),
            srtt: RTT,
            rttvar: RTT / 20,
        }
    }
}
