//! The kernel's TCP sender: congestion window, pacing, SACK, and a receiver that delays its
//! acknowledgements.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::super::super::{Bbr, CongestionWindow, TcpSample};
use super::bbr::BbrModel;
use super::bottleneck::Bottleneck;
use super::congestion::{Ack, Congestion, RateSample};
use super::cubic::Cubic;
use super::{MS, PACKET};

/// The time for which a receiver delays the acknowledgement of a lone segment.
const DELAYED_ACK: Duration = Duration::from_millis(40);

/// The number of later segments that are acknowledged before a segment counts as lost.
const LOSS_THRESHOLD: u32 = 3;

/// A piece of the stream that travels in one segment.
#[derive(Clone, Copy)]
pub(super) struct Segment {
    pub(super) bytes: u64,
    /// The time at which the keystroke came that the segment carries; `None` for bulk data.
    pub(super) typed_at: Option<Instant>,
}

/// A segment in flight.
struct InFlightSegment {
    segment: Segment,
    sent_at: Instant,
    /// The time at which an immediate acknowledgement is back; `None` if the segment was lost.
    ack_at: Option<Instant>,
    /// The bytes acknowledged when the segment was sent, the time of that acknowledgement, and the
    /// time at which the segment was sent that it acknowledged.
    delivered: u64,
    delivered_at: Instant,
    first_sent_at: Instant,
    app_limited: bool,
}

/// A lost segment, and the number of later segments that were acknowledged.
struct Hole {
    segment: Segment,
    sent_at: Instant,
    later_acks: u32,
}

/// The smoothed round trip (RFC 6298).
#[derive(Default)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
    min: Option<Duration>,
}

/// The state of loss recovery.
#[derive(Default)]
struct Recovery {
    holes: Vec<Hole>,
    retransmit: VecDeque<Segment>,
    /// The time at which the present recovery began; `None` outside of one.
    since: Option<Instant>,
    retransmitted: bool,
}

/// The marks with which the delivery rate is measured (net/ipv4/tcp_rate.c).
struct RateMarks {
    delivered_at: Instant,
    first_sent_at: Instant,
    /// The number of delivered bytes up to which samples are limited by the application.
    app_limited: u64,
}

/// The sending side of one TCP connection.
pub(in crate::rate_control) struct Kernel {
    pub(super) congestion: Congestion,
    /// The segments in flight, and what they carry in bytes.
    in_flight: VecDeque<InFlightSegment>,
    bytes_in_flight: u64,
    unsent: VecDeque<Segment>,
    unsent_bytes: u64,
    pub(in crate::rate_control) delivered: u64,
    rtt: RoundTrip,
    recovery: Recovery,
    marks: RateMarks,
    /// The time before which pacing lets no further segment leave.
    paced_until: Instant,
    /// The delay in the FIFO of the segment that was sent last.
    pub(super) last_queue_delay: Duration,
    pub(super) slowest_keystroke: Duration,
}

impl Kernel {
    pub(super) fn new(now: Instant, congestion: Congestion) -> Self {
        Self {
            congestion,
            in_flight: VecDeque::new(),
            bytes_in_flight: 0,
            unsent: VecDeque::new(),
            unsent_bytes: 0,
            delivered: 0,
            rtt: RoundTrip::default(),
            recovery: Recovery::default(),
            marks: RateMarks { delivered_at: now, first_sent_at: now, app_limited: 0 },
            paced_until: now,
            last_queue_delay: Duration::ZERO,
            slowest_keystroke: Duration::ZERO,
        }
    }

    pub(super) fn unsent_bytes(&self) -> u64 {
        self.unsent_bytes
    }

    /// Returns the number of bytes written but not acknowledged.
    pub(super) fn outstanding(&self) -> u64 {
        let retransmit: u64 = self.recovery.retransmit.iter().map(|segment| segment.bytes).sum();
        self.bytes_in_flight + retransmit + self.unsent_bytes
    }

    /// Forgets everything that was written and is not acknowledged.
    pub(in crate::rate_control) fn clear(&mut self) {
        self.in_flight.clear();
        self.unsent.clear();
        (self.bytes_in_flight, self.unsent_bytes) = (0, 0);
    }

    pub(super) fn write(&mut self, segment: Segment) {
        let idle = self.unsent.is_empty() && self.recovery.retransmit.is_empty();
        if idle && self.bytes_in_flight < self.window(u64::MAX) {
            self.marks.app_limited = (self.delivered + self.bytes_in_flight).max(1);
        }
        self.unsent_bytes += segment.bytes;
        self.unsent.push_back(segment);
    }

    pub(super) fn switch_to_bbr(&mut self, now: Instant) {
        let min_rtt = self.rtt.min.unwrap_or(MS);
        let window = self.window(0);
        self.paced_until = now;
        self.congestion =
            Congestion::Bbr(BbrModel::new(now, min_rtt, self.rtt.smoothed, window, self.delivered));
    }

    pub(super) fn switch_to_cubic(&mut self) {
        self.congestion = Congestion::LossBased(Cubic::resume(self.window(0) as f64 / PACKET as f64));
    }

    /// Returns the congestion window in bytes; `known` is the window of a kernel that knows the
    /// path.
    fn window(&self, known: u64) -> u64 {
        match &self.congestion {
            Congestion::SteadyBbr(_) => known,
            Congestion::LossBased(cubic) => (cubic.window as u64).max(2) * PACKET,
            Congestion::Bbr(bbr) => bbr.window as u64,
        }
    }

    fn window_on(&self, bottleneck: &Bottleneck) -> u64 {
        let products = (bottleneck.rtt * 5 / 2).as_secs_f64() * bottleneck.rate as f64;
        self.window((10 + products as u64 / PACKET) * PACKET)
    }

    /// Sends as much as the congestion window and pacing permit.
    pub(super) fn send(&mut self, now: Instant, bottleneck: &mut Bottleneck) {
        let window = self.window_on(bottleneck);
        while let Some(&segment) = self.recovery.retransmit.front().or(self.unsent.front()) {
            let fits = self.bytes_in_flight + segment.bytes <= window || self.bytes_in_flight == 0;
            if !fits || self.paced_until > now {
                return;
            }
            if self.recovery.retransmit.pop_front().is_none() {
                self.unsent.pop_front();
                self.unsent_bytes -= segment.bytes;
            }
            if let Congestion::Bbr(bbr) = &self.congestion {
                let takes = Duration::from_secs_f64(segment.bytes as f64 / bbr.pacing_rate.max(1000.0));
                self.paced_until = self.paced_until.max(now - MS) + takes;
            }
            self.launch(now, segment, bottleneck);
        }
    }

    fn launch(&mut self, now: Instant, segment: Segment, bottleneck: &mut Bottleneck) {
        if self.bytes_in_flight == 0 {
            (self.marks.delivered_at, self.marks.first_sent_at) = (now, now);
        }
        let passage = bottleneck.pass(now, segment.bytes);
        self.last_queue_delay = passage.queue_delay;
        if let (Some(typed_at), Some(_)) = (segment.typed_at, passage.ack_at) {
            self.slowest_keystroke = self.slowest_keystroke.max(passage.passed_at - typed_at);
        }
        self.bytes_in_flight += segment.bytes;
        self.in_flight.push_back(InFlightSegment {
            segment,
            sent_at: now,
            ack_at: passage.ack_at,
            delivered: self.delivered,
            delivered_at: self.marks.delivered_at,
            first_sent_at: self.marks.first_sent_at,
            app_limited: self.marks.app_limited > 0,
        });
    }

    /// Processes the acknowledgements that have come.
    pub(super) fn receive(&mut self, now: Instant) {
        while let Some(count) = self.acknowledged(now) {
            self.acknowledge(now, count);
        }
        // A lost tail is noticed by a probe (RFC 8985).
        let last_sent = self.recovery.holes.last().map(|hole| hole.sent_at);
        if self.in_flight.is_empty() && last_sent.is_some_and(|at| now > at + self.rtt.smoothed * 2 + 10 * MS)
        {
            self.lose(now, 0);
        }
    }

    /// Returns how many segments the next acknowledgement covers; `None` if none has come.
    fn acknowledged(&mut self, now: Instant) -> Option<usize> {
        while let Some(lost) = self.in_flight.pop_front_if(|flying| flying.ack_at.is_none()) {
            self.recovery.holes.push(Hole { segment: lost.segment, sent_at: lost.sent_at, later_acks: 0 });
        }
        let first = self.in_flight.front()?.ack_at?;
        // A receiver with a hole in the stream acknowledges each segment.
        if !self.recovery.holes.is_empty() {
            return (first <= now).then_some(1);
        }
        let (skipped, second) = self.next_arrival();
        match second {
            Some(second) if second <= first + DELAYED_ACK => {
                (second <= now).then_some(if skipped == 0 { 2 } else { 1 })
            }
            _ => (first + DELAYED_ACK <= now).then_some(1),
        }
    }

    /// Returns how many segments behind the first were lost before the next that arrives, and the
    /// time of its acknowledgement; `None` if no other arrives.
    fn next_arrival(&self) -> (usize, Option<Instant>) {
        let behind = self.in_flight.iter().skip(1).map(|flying| flying.ack_at);
        let skipped = behind.clone().take_while(Option::is_none).count();
        (skipped, behind.flatten().next())
    }

    fn acknowledge(&mut self, now: Instant, count: usize) {
        let acked: Vec<InFlightSegment> = self.in_flight.drain(..count).collect();
        let Some(newest) = acked.last() else { return };
        let bytes: u64 = acked.iter().map(|flying| flying.segment.bytes).sum();
        let window = self.window(u64::MAX);
        let slow_start = matches!(&self.congestion, Congestion::LossBased(cubic) if cubic.is_in_slow_start());
        let used = self.bytes_in_flight * if slow_start { 2 } else { 1 };
        self.bytes_in_flight -= bytes;
        self.delivered += bytes;
        self.rtt.observe(now - acked[0].sent_at, now - newest.sent_at);
        let sample = self.rate_sample(now, newest);
        (self.marks.delivered_at, self.marks.first_sent_at) = (now, newest.sent_at);
        for hole in &mut self.recovery.holes {
            hole.later_acks += count as u32;
        }
        if self.recovery.since.is_some_and(|since| newest.sent_at > since) && self.recovery.holes.is_empty() {
            self.recovery.since = None;
        }
        let rtt = now - newest.sent_at;
        self.lose(now, LOSS_THRESHOLD);
        let ack = Ack {
            now,
            rtt,
            min_rtt: self.rtt.min.unwrap_or(rtt),
            acked: bytes,
            delivered: self.delivered,
            in_flight: self.bytes_in_flight,
            window_limited: used + 2 * PACKET > window,
            recovering: self.recovery.since.is_some(),
            rate: sample,
        };
        match &mut self.congestion {
            Congestion::SteadyBbr(_) => {}
            Congestion::LossBased(cubic) => cubic.on_ack(&ack),
            Congestion::Bbr(bbr) => {
                bbr.on_ack(&ack);
                if bbr.is_probing_rtt() {
                    self.marks.app_limited = (self.delivered + self.bytes_in_flight).max(1);
                }
            }
        }
    }

    fn rate_sample(&mut self, now: Instant, newest: &InFlightSegment) -> RateSample {
        if self.marks.app_limited > 0 && self.delivered > self.marks.app_limited {
            self.marks.app_limited = 0;
        }
        let interval = (now - newest.delivered_at).max(newest.sent_at - newest.first_sent_at);
        let long_enough = self.rtt.min.is_some_and(|min| interval >= min);
        RateSample {
            rate: long_enough
                .then(|| (self.delivered - newest.delivered) as f64 / interval.as_secs_f64().max(1e-6)),
            app_limited: newest.app_limited,
            prior_delivered: newest.delivered,
        }
    }

    /// Retransmits the segments after which at least `later_acks` others were acknowledged.
    fn lose(&mut self, now: Instant, later_acks: u32) {
        let Recovery { holes, retransmit, since, retransmitted } = &mut self.recovery;
        let mut reduce = false;
        holes.retain(|hole| {
            if hole.later_acks < later_acks {
                return true;
            }
            self.bytes_in_flight -= hole.segment.bytes;
            retransmit.push_back(hole.segment);
            *retransmitted = true;
            // One reduction of the window for each round trip with losses.
            reduce |= since.is_none_or(|since| hole.sent_at > since);
            false
        });
        if reduce {
            *since = Some(now);
            if let Congestion::LossBased(cubic) = &mut self.congestion {
                cubic.on_loss();
            }
        }
    }

    /// Returns the statistics that the kernel would give.
    pub(super) fn sample(&self, bottleneck: &Bottleneck) -> TcpSample {
        let segments = self.window_on(bottleneck) / PACKET;
        let sample = TcpSample {
            outstanding: self.outstanding(),
            unsent: self.unsent_bytes,
            acked_bytes: self.delivered,
            window: CongestionWindow { segments, mss: PACKET },
            rtt: self.rtt.smoothed,
            rttvar: self.rtt.variation,
            min_rtt: self.rtt.min,
            recovering: self.recovery.since.is_some(),
            retransmitted: self.recovery.retransmitted,
            ..TcpSample::default()
        };
        match &self.congestion {
            Congestion::SteadyBbr(known) => TcpSample {
                pacing_rate: bottleneck.rate,
                rtt: Duration::ZERO,
                rttvar: MS / 2,
                min_rtt: None,
                bbr: Some(Bbr {
                    min_rtt: Some(known.min_rtt),
                    rate: bottleneck.rate,
                    starting: known.starting,
                }),
                ..sample
            },
            Congestion::LossBased(cubic) => TcpSample {
                pacing_rate: cubic.pacing_rate(self.rtt.smoothed) as u64,
                left_slow_start: cubic.left_slow_start(),
                ..sample
            },
            Congestion::Bbr(bbr) => TcpSample {
                pacing_rate: bbr.pacing_rate as u64,
                left_slow_start: true,
                bbr: Some(Bbr {
                    min_rtt: Some(bbr.min_rtt),
                    rate: bbr.rate() as u64,
                    starting: bbr.is_starting(),
                }),
                ..sample
            },
        }
    }
}

impl RoundTrip {
    /// Records the round trips of the oldest and of the newest segment of an acknowledgement.
    fn observe(&mut self, oldest: Duration, newest: Duration) {
        self.min = Some(self.min.map_or(newest, |min| min.min(newest)));
        if self.smoothed.is_zero() {
            (self.smoothed, self.variation) = (oldest, oldest / 2);
            return;
        }
        self.variation = (self.variation * 3 + self.smoothed.abs_diff(oldest)) / 4;
        self.smoothed = (self.smoothed * 7 + oldest) / 8;
    }
}
