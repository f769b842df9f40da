//! The congestion control of the model's kernel.

use std::time::{Duration, Instant};

use super::bbr::BbrModel;
use super::cubic::Cubic;

/// The congestion control of the model's kernel, with its state.
pub(in crate::rate_control) enum Congestion {
    SteadyBbr(SteadyBbr),
    LossBased(Cubic),
    Bbr(BbrModel),
}

/// The state of a kernel that knows the path and need not measure it: bbr in a steady state.
pub(in crate::rate_control) struct SteadyBbr {
    pub(in crate::rate_control) min_rtt: Duration,
    pub(in crate::rate_control) starting: bool,
}

/// The input of a congestion control from one acknowledgement.
pub(super) struct Ack {
    pub(super) now: Instant,
    /// The round trip of the newest acknowledged segment.
    pub(super) rtt: Duration,
    pub(super) min_rtt: Duration,
    /// The bytes that this acknowledgement covers, the total acknowledged so far, and the bytes in
    /// flight.
    pub(super) acked: u64,
    pub(super) delivered: u64,
    pub(super) in_flight: u64,
    /// Whether the congestion window limited the sender.
    pub(super) window_limited: bool,
    pub(super) recovering: bool,
    pub(super) rate: RateSample,
}

/// A sample of the delivery rate (`struct rate_sample` of the kernel).
pub(super) struct RateSample {
    /// Bytes per second; `None` if the sample is too short.
    pub(super) rate: Option<f64>,
    /// Whether the application, not the network, limited the sender when it sent the segment.
    pub(super) app_limited: bool,
    /// The number of bytes that were acknowledged when the segment was sent.
    pub(super) prior_delivered: u64,
}
