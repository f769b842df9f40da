use std::collections::VecDeque;

use super::*;
use crate::rate_control::sample::{Bbr, CongestionWindow};

const MS: Duration = Duration::from_millis(1);
const MAX_BACKLOG: usize = 32 * 1024;
const PACKET: u64 = 1500;

/// The measurements of one run of a [`Link`].
struct RunResult {
    /// The number of bytes acknowledged.
    bytes: u64,
    /// The longest and the mean delay of a packet in the FIFO.
    longest: Duration,
    mean: Duration,
}

/// A simulated link with an unlimited FIFO, a kernel with up to two and a half bandwidth-delay
/// products in flight, and a peer that acknowledges every other packet.
///
/// The simulation advances in steps of 0.1 ms; timers fire up to 2 ms late.
struct Link {
    limit: SendLimit,
    now: Instant,
    /// The rate in bytes per second.
    rate: u64,
    rtt: Duration,
    /// The kernel's congestion window in segments.
    cwnd: u64,
    /// The time at which each packet in flight will be acknowledged.
    in_flight: VecDeque<Instant>,
    unsent: u64,
    link_free_at: Instant,
    acked_bytes: u64,
    min_rtt: Duration,
    paused_until: Option<Instant>,
    /// The delay in the FIFO of the packet that was sent last.
    last_queue_delay: Duration,
    starting: bool,
}

impl Link {
    fn new(rate: u64, rtt: Duration) -> Self {
        let now = Instant::now();
        Self {
            limit: SendLimit::new(MAX_BACKLOG),
            now,
            rate,
            rtt,
            cwnd: 10,
            in_flight: VecDeque::new(),
            unsent: 0,
            link_free_at: now,
            acked_bytes: 0,
            min_rtt: rtt,
            paused_until: None,
            last_queue_delay: Duration::ZERO,
            starting: false,
        }
    }

    fn send(&mut self) {
        while self.unsent > 0 && (self.in_flight.len() as u64) < self.cwnd {
            self.unsent -= PACKET;
            let start = self.link_free_at.max(self.now);
            self.last_queue_delay = start - self.now;
            self.link_free_at = start + Duration::from_secs_f64(PACKET as f64 / self.rate as f64);
            self.in_flight.push_back(self.link_free_at + self.rtt);
        }
    }

    /// Runs the simulation for the time `length`, with a sender that always has data.
    fn run(&mut self, length: Duration) -> RunResult {
        let (end, before) = (self.now + length, self.acked_bytes);
        let (mut longest, mut sum) = (Duration::ZERO, Duration::ZERO);
        self.cwnd = 10 + bytes_in(self.rate, self.rtt * 5 / 2) as u64 / PACKET;
        while self.now < end {
            self.now += MS / 10;
            while self.in_flight.get(1).is_some_and(|&at| at <= self.now) {
                self.in_flight.drain(..2);
                self.acked_bytes += 2 * PACKET;
            }
            // Without a limit of ours the kernel's own limit applies.
            while self.paused_until.is_none_or(|until| until <= self.now) && self.unsent < 64 * 1024 {
                let path = TcpSample {
                    outstanding: self.in_flight.len() as u64 * PACKET + self.unsent,
                    unsent: self.unsent,
                    acked_bytes: self.acked_bytes,
                    cwnd: self.cwnd,
                    mss: PACKET,
                    pacing_rate: self.rate,
                    rttvar: MS / 2,
                    bbr: Some(Bbr { min_rtt: Some(self.min_rtt), rate: self.rate, starting: self.starting }),
                    ..TcpSample::default()
                };
                let late = MS * (self.acked_bytes / PACKET % 2 + 1) as u32;
                self.paused_until =
                    self.limit.update(self.now, path, false).map(|wait| self.now + wait + late);
                if self.paused_until.is_none() {
                    // Write a batch, rounded up to whole packets.
                    let batch = self.limit.batch().unwrap_or(PACKET as usize) as u64;
                    self.unsent += batch.next_multiple_of(PACKET);
                    self.send();
                }
            }
            self.send();
            longest = longest.max(self.last_queue_delay);
            sum += self.link_free_at.saturating_duration_since(self.now);
        }
        let mean = sum / (length.as_micros() / 100) as u32;
        RunResult { bytes: self.acked_bytes - before, longest, mean }
    }
}

#[test]
fn a_slow_path_is_kept_busy_and_its_fifo_is_not() {
    for mbits in [5, 10, 40] {
        for rtt in [10 * MS, 20 * MS, 100 * MS] {
            let rate = mbits * 125_000;
            let mut link = Link::new(rate, rtt);
            link.run(Duration::from_secs(3));
            let RunResult { bytes, longest, mean } = link.run(Duration::from_secs(2));
            let share = bytes as f64 / (rate * 2) as f64;
            assert!(share > 0.97, "{mbits} Mbit/s, {rtt:?}: {share}");
            let packet = Duration::from_secs_f64(PACKET as f64 / rate as f64);
            assert!(longest < rtt / 4 + 8 * MS + 2 * packet, "{mbits} Mbit/s, {rtt:?}: {longest:?}");
            assert!(mean < rtt / 20 + 3 * MS + 2 * packet, "{mbits} Mbit/s, {rtt:?}: {mean:?}");
        }
    }
}

#[test]
fn the_limit_follows_a_path_that_becomes_faster_or_slower() {
    let mut link = Link::new(1_250_000, 20 * MS);
    link.run(Duration::from_secs(3));
    link.rate *= 3;
    link.run(Duration::from_secs(2));
    let RunResult { bytes, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.rate * 97 / 100, "{bytes}");
    link.rate /= 3;
    link.run(Duration::from_secs(4));
    let RunResult { bytes, longest, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.rate * 97 / 100 && longest < 15 * MS, "{bytes} {longest:?}");
}

#[test]
fn a_longer_round_trip_starves_a_path_only_for_a_while() {
    let mut link = Link::new(1_250_000, 20 * MS);
    link.run(Duration::from_secs(3));
    link.rtt *= 10;
    let RunResult { bytes, .. } = link.run(Duration::from_secs(10));
    assert!(bytes > 0);
    // bbr has measured the round trip again.
    link.min_rtt = link.rtt;
    link.run(Duration::from_secs(10));
    let RunResult { bytes, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.rate * 95 / 100, "{bytes}");
}

#[test]
fn little_data_waits_unsent_in_the_kernel_and_a_fast_path_is_not_limited() {
    let now = Instant::now();
    let mut slow = SendLimit::new(MAX_BACKLOG);
    let path = |unsent, pacing_rate| TcpSample { unsent, pacing_rate, ..TcpSample::default() };
    assert_eq!(slow.update(now, path(0, 1_250_000), false), None);
    assert_eq!(slow.backlog(), Some(5000));
    assert_eq!(slow.update(now, path(4999, 1_250_000), false), None);
    let wait = slow.update(now, path(10_000, 1_250_000), false).unwrap();
    assert_eq!(wait, 6 * MS, "until 2 ms of it are left");
    assert_eq!(slow.update(now, path(1 << 30, 1_250_000), false), Some(MAX_PAUSE));
    assert_eq!(slow.update(now, path(1 << 30, 1_000), false), Some(MAX_PAUSE));
    assert_eq!(slow.backlog(), Some(MIN_BACKLOG));
    let mut fast = SendLimit::new(MAX_BACKLOG);
    let path = TcpSample { outstanding: 1 << 30, ..path(1 << 30, 125_000_000) };
    assert_eq!((fast.update(now, path, false), fast.backlog()), (None, None));
}

/// Tests that the limit does not apply to a path in start-up.
///
/// The first round trip carries 10 packets, and each further one twice as many. When the limit
/// allowed only a quarter more than the last round trip had carried, bbr measured no more capacity:
/// the first transfer over a path of 100 Mbit/s had 28 Mbit/s for three seconds.
#[test]
fn a_new_path_is_not_limited_to_the_rate_of_its_first_round_trips() {
    let update = |starting| {
        let (mut limit, now) = (SendLimit::new(MAX_BACKLOG), Instant::now());
        let bbr = Some(Bbr { min_rtt: Some(20 * MS), rate: 700_000, starting });
        let path = TcpSample { pacing_rate: 2_000_000, bbr, ..TcpSample::default() };
        assert_eq!(limit.update(now, path, false), None);
        let path = TcpSample { acked_bytes: 36_200, outstanding: 60_000, ..path };
        (limit.update(now + 50 * MS, path, false), limit.backlog())
    };
    assert_eq!(update(true), (None, Some(8000)), "as fast as the kernel would like to send");
    let (wait, backlog) = update(false);
    assert!(wait.is_some() && backlog == Some(MIN_BACKLOG), "{wait:?} {backlog:?}");
}

/// Tests senders that pace themselves, in which case bbr never leaves start-up and would keep the
/// data of three round trips in the FIFO.
#[test]
fn a_path_in_endless_start_up_is_limited_once_it_is_full() {
    let mut link = Link::new(1_250_000, 20 * MS);
    link.starting = true;
    link.run(Duration::from_secs(3));
    let RunResult { bytes, longest, .. } = link.run(Duration::from_secs(2));
    assert!(bytes > link.rate * 2 * 97 / 100 && longest < 15 * MS, "{bytes} {longest:?}");
}

/// Tests that saturation is also detected on a fast path, which is never paused. Otherwise the
/// limit would use the path's earlier rate for ever.
#[test]
fn a_fast_path_that_becomes_slow_is_detected() {
    let mut link = Link::new(12_500_000, 20 * MS);
    link.run(Duration::from_secs(2));
    assert_eq!(link.limit.backlog(), None);
    link.rate /= 10;
    link.run(Duration::from_secs(4));
    let RunResult { bytes, longest, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.rate * 97 / 100 && longest < 15 * MS, "{bytes} {longest:?}");
}

/// Tests that a path counts as growing when bbr starts again from a low rate.
///
/// At 1 % loss a transfer often began when bbr sent at a twentieth of the path's rate. When the
/// session then dropped packets for their delay, their sender used only a third of the path's rate
/// for seconds.
#[test]
fn a_path_is_growing_until_its_rate_is_known_and_when_bbr_starts_again() {
    let mut link = Link::new(1_250_000, 20 * MS);
    assert!(link.limit.is_growing());
    link.run(Duration::from_secs(2));
    assert!(!link.limit.is_growing());
    let mut sample = |rate, write_blocked| {
        link.now += SAMPLE_TIME;
        link.acked_bytes += if write_blocked { link.rate / 20 } else { 0 };
        let bbr = Some(Bbr { min_rtt: Some(20 * MS), rate, starting: false });
        link.limit.update(
            link.now,
            TcpSample { bbr, acked_bytes: link.acked_bytes, ..TcpSample::default() },
            write_blocked,
        );
        link.limit.is_growing()
    };
    assert!(sample(500_000, false));
    assert!(!sample(1_000_000, false));
    // Keystrokes do not help bbr to find the rate.
    assert!((0..100).all(|_| sample(500_000, false)));
    // The first call only begins a sample.
    let grown = std::iter::repeat_with(|| sample(500_000, true)).take_while(|growing| *growing).count();
    assert_eq!(grown, RAMP_UP_SAMPLES + 1, "a low rate is then not taken for the start-up");
}

/// Tests a path of 20 ms whose send buffer is smaller than the bandwidth-delay product. Such a path
/// never has unsent data, and must still not count as growing for ever.
#[test]
fn a_path_limited_by_its_send_buffer_is_not_growing_for_ever() {
    let (mut limit, mut now) = (SendLimit::new(MAX_BACKLOG), Instant::now());
    for slot in 0..10 {
        now += SAMPLE_TIME;
        let path = TcpSample { acked_bytes: slot * 2_000_000, outstanding: 4 << 20, ..TcpSample::default() };
        limit.update(now, path, true);
    }
    assert!(!limit.is_growing());
}

/// Tests that bulk data leaves a part of bbr's congestion window free.
///
/// In the 0.2 s in which bbr reduces its window to four segments, a keystroke would otherwise wait
/// a round trip behind bulk data.
#[test]
fn bulk_data_does_not_fill_the_congestion_window() {
    let mut link = Link::new(1_250_000, 20 * MS);
    link.run(Duration::from_secs(2));
    link.in_flight.clear();
    link.unsent = 0;
    let bbr = Some(Bbr { min_rtt: Some(20 * MS), rate: 1_250_000, starting: false });
    let path = TcpSample { acked_bytes: link.acked_bytes, cwnd: 4, mss: 1448, bbr, ..TcpSample::default() };
    let backlog = link.limit.backlog();
    let mut update = |outstanding, recovering| {
        let wait = link.limit.update(link.now, TcpSample { outstanding, recovering, ..path }, false);
        (wait.is_some(), link.limit.batch())
    };
    assert_eq!(update(0, false), (false, Some(2 * 1448)));
    assert_eq!(update(1448, false), (false, Some(1448)));
    assert_eq!(update(3 * 1448, false), (true, Some(MIN_WRITE)));
    assert_eq!(update(4 * 1448, true), (false, backlog), "behind a loss the kernel's window is as small");
}

/// Tests that a path counts as saturated when it queues at the bottleneck, although the kernel has
/// no unsent data.
#[test]
fn a_path_in_endless_start_up_is_full_even_without_unsent_data() {
    let (mut limit, mut now) = (SendLimit::new(MAX_BACKLOG), Instant::now());
    let bbr = Some(Bbr { min_rtt: Some(20 * MS), rate: 1_800_000, starting: true });
    let mut update = |slot: u64| {
        now += SAMPLE_TIME;
        let path = TcpSample {
            acked_bytes: slot * 62_500,
            outstanding: 60_000,
            pacing_rate: 5_000_000,
            bbr,
            ..TcpSample::default()
        };
        limit.update(now, path, false)
    };
    assert_eq!(update(0), None);
    let paused: Vec<bool> = (1..8).map(|slot| update(slot).is_some()).collect();
    assert_eq!(paused, [false, false, false, true, true, true, true]);
}

/// Tests a path in start-up behind a filled FIFO.
///
/// bbr never lowers its pacing rate during start-up, so it keeps the pacing rate of cubic's slow
/// start (two congestion windows in a round trip), at which the path would count as fast.
#[test]
fn a_path_whose_fifo_a_paced_sender_fills_is_limited() {
    let (rate, mut now) = (1_250_000, Instant::now());
    let mut limit = SendLimit::new(MAX_BACKLOG);
    let mut path = TcpSample {
        rtt: 55 * MS,
        rttvar: MS,
        min_rtt: Some(20 * MS),
        outstanding: rate * 55 / 1000,
        cwnd: 90,
        mss: PACKET,
        pacing_rate: 7 * rate,
        bbr: Some(Bbr { min_rtt: Some(20 * MS), rate, starting: true }),
        ..TcpSample::default()
    };
    assert_eq!(limit.update(now, path, false), None);
    for _ in 0..20 {
        now += 20 * MS;
        path.acked_bytes += rate / 50;
        limit.update(now, path, false);
    }
    assert!(limit.batch().is_some_and(|batch| batch < MAX_BACKLOG), "{limit:?}");
    assert!(limit.update(now, path, false).is_some(), "{limit:?}");
    // The same amount in flight without a queue is what a path holds that has become longer, as
    // bbr's minimum round trip shows.
    let mut limit = SendLimit::new(MAX_BACKLOG);
    path.bbr = Some(Bbr { min_rtt: Some(54 * MS), rate, starting: true });
    for _ in 0..20 {
        now += 20 * MS;
        path.acked_bytes += rate / 50;
        assert_eq!(limit.update(now, path, false), None);
    }
}
