use super::*;
use crate::rate_control::sample::{Bbr, CongestionWindow};
use crate::rate_control::tests::model::{Link, MS, NOTSENT_LOWAT, PACKET, RunResult};

const MAX_BACKLOG: usize = NOTSENT_LOWAT;

impl Link {
    /// Returns the send limit of the path.
    fn limit(&mut self) -> &mut SendLimit {
        self.control.limit.as_mut().unwrap()
    }
}

#[test]
fn a_slow_path_is_kept_busy_and_its_fifo_is_not() {
    for mbits in [5, 10, 40] {
        for rtt in [10 * MS, 20 * MS, 100 * MS] {
            let rate = mbits * 125_000;
            let mut link = Link::known(rate, rtt);
            link.run(Duration::from_secs(3));
            let RunResult { bytes, longest, mean, .. } = link.run(Duration::from_secs(2));
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
    let mut link = Link::known(1_250_000, 20 * MS);
    link.run(Duration::from_secs(3));
    link.bottleneck.rate *= 3;
    link.run(Duration::from_secs(2));
    let RunResult { bytes, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.bottleneck.rate * 97 / 100, "{bytes}");
    link.bottleneck.rate /= 3;
    link.run(Duration::from_secs(4));
    let RunResult { bytes, longest, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.bottleneck.rate * 97 / 100 && longest < 15 * MS, "{bytes} {longest:?}");
}

#[test]
fn a_longer_round_trip_starves_a_path_only_for_a_while() {
    let mut link = Link::known(1_250_000, 20 * MS);
    link.run(Duration::from_secs(3));
    link.bottleneck.rtt *= 10;
    let RunResult { bytes, .. } = link.run(Duration::from_secs(10));
    assert!(bytes > 0);
    // bbr has measured the round trip again.
    link.known_path().min_rtt = link.bottleneck.rtt;
    link.run(Duration::from_secs(10));
    let RunResult { bytes, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.bottleneck.rate * 95 / 100, "{bytes}");
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
    let mut link = Link::known(1_250_000, 20 * MS);
    link.known_path().starting = true;
    link.run(Duration::from_secs(3));
    let RunResult { bytes, longest, .. } = link.run(Duration::from_secs(2));
    assert!(bytes > link.bottleneck.rate * 2 * 97 / 100 && longest < 15 * MS, "{bytes} {longest:?}");
}

/// Tests that saturation is also detected on a fast path, which is never paused. Otherwise the
/// limit would use the path's earlier rate for ever.
#[test]
fn a_fast_path_that_becomes_slow_is_detected() {
    let mut link = Link::known(12_500_000, 20 * MS);
    link.run(Duration::from_secs(2));
    assert_eq!(link.limit().backlog(), None);
    link.bottleneck.rate /= 10;
    link.run(Duration::from_secs(4));
    let RunResult { bytes, longest, .. } = link.run(Duration::from_secs(1));
    assert!(bytes > link.bottleneck.rate * 97 / 100 && longest < 15 * MS, "{bytes} {longest:?}");
}

/// Tests that a path counts as growing when bbr starts again from a low rate.
///
/// At 1 % loss a transfer often began when bbr sent at a twentieth of the path's rate. When the
/// session then dropped packets for their delay, their sender used only a third of the path's rate
/// for seconds.
#[test]
fn a_path_is_growing_until_its_rate_is_known_and_when_bbr_starts_again() {
    let mut link = Link::known(1_250_000, 20 * MS);
    assert!(link.limit().is_growing());
    link.run(Duration::from_secs(2));
    assert!(!link.limit().is_growing());
    let mut sample = |rate, write_blocked| {
        link.now += SAMPLE_TIME;
        link.kernel.delivered += if write_blocked { link.bottleneck.rate / 20 } else { 0 };
        let bbr = Some(Bbr { min_rtt: Some(20 * MS), rate, starting: false });
        let now = link.now;
        link.control.limit.as_mut().unwrap().update(
            now,
            TcpSample { bbr, acked_bytes: link.kernel.delivered, ..TcpSample::default() },
            write_blocked,
        );
        link.limit().is_growing()
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
    let mut link = Link::known(1_250_000, 20 * MS);
    link.run(Duration::from_secs(2));
    link.kernel.clear();
    let bbr = Some(Bbr { min_rtt: Some(20 * MS), rate: 1_250_000, starting: false });
    let path = TcpSample {
        acked_bytes: link.kernel.delivered,
        window: CongestionWindow { segments: 4, mss: 1448 },
        bbr,
        ..TcpSample::default()
    };
    let now = link.now;
    let limit = link.limit();
    let backlog = limit.backlog();
    let mut update = |outstanding, recovering| {
        let wait = limit.update(now, TcpSample { outstanding, recovering, ..path }, false);
        (wait.is_some(), limit.batch())
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
        window: CongestionWindow { segments: 90, mss: PACKET },
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
