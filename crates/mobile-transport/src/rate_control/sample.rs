//! The figures by which the rate of a path is controlled: the kernel's statistics of the sending
//! direction of its TCP connection.

use std::time::Duration;

/// The kernel's statistics of the sending direction of a TCP connection at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TcpSample {
    /// The number of bytes written but not acknowledged, not even selectively, whether sent or
    /// unsent.
    pub(crate) outstanding: u64,
    /// The number of outstanding bytes that have not been sent.
    pub(crate) unsent: u64,
    /// The total number of bytes acknowledged, including selectively.
    pub(crate) acked_bytes: u64,
    pub(crate) window: CongestionWindow,
    /// The pacing rate in bytes per second.
    pub(crate) pacing_rate: u64,
    pub(crate) rtt: Duration,
    pub(crate) rttvar: Duration,
    /// The minimum round trip of the last five minutes (`tcp_min_rtt_wlen`); `None` before the
    /// first measurement.
    pub(crate) min_rtt: Option<Duration>,
    /// Whether the connection is in loss recovery: data sent since a loss has not been
    /// acknowledged.
    pub(crate) recovering: bool,
    /// Whether any segment was ever retransmitted.
    pub(crate) retransmitted: bool,
    /// Whether slow start has ended (RFC 5681): after a loss, after the round trip grew, or after
    /// half a round trip of acknowledgements without a gap (HyStart, of cubic).
    pub(crate) left_slow_start: bool,
    /// The state of bbr; `None` if the connection uses another congestion control.
    pub(crate) bbr: Option<Bbr>,
}

/// The congestion window of a TCP connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CongestionWindow {
    /// The number of segments.
    pub(crate) segments: u64,
    /// The maximum length in bytes of one segment.
    pub(crate) mss: u64,
}

/// The state of bbr for one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bbr {
    /// The minimum round trip, which bbr measures again every ten seconds; `None` before the first
    /// measurement.
    pub(crate) min_rtt: Option<Duration>,
    /// The estimated delivery rate in bytes per second, on which the pacing rate is based.
    pub(crate) rate: u64,
    /// Whether bbr is in its start-up phase, in which it paces well above the estimated rate.
    pub(crate) starting: bool,
}

impl TcpSample {
    /// Returns whether the kernel is still searching for the path's capacity, that is, sends more
    /// in each round trip than was delivered in the one before.
    pub(crate) fn is_starting(&self) -> bool {
        self.bbr.map_or(!self.left_slow_start, |bbr| bbr.starting)
    }

    /// Returns the minimum round trip: for bbr its own, which covers ten seconds, otherwise the
    /// kernel's, which covers five minutes.
    pub(super) fn base_rtt(&self) -> Option<Duration> {
        self.bbr.map_or(self.min_rtt, |bbr| bbr.min_rtt)
    }
}
