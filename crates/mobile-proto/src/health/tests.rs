//! Tests with paths that die, and paths that only look dead.

use super::model::{LinkDirection, Model, Outcome};
use super::*;

/// 10 Mbit/s in bytes per millisecond.
const FAST: u64 = 1250;
/// Loads as (interval in milliseconds, bytes to write): a keystroke every 5 ms, every 50 ms and
/// every second, and more than the link carries.
const LOADS: [(u64, u64); 4] = [(5, 100), (50, 100), (1000, 100), (10, 20_000)];
const BULK: (u64, u64) = LOADS[3];

fn model(rtt: u64, loss: u64, seed: u64) -> Model {
    let direction = LinkDirection::new(rtt / 2, loss, FAST);
    Model::new(direction.clone(), direction, seed)
}

/// Returns a path without loss that has carried a load for five seconds.
fn steady(rtt: u64, load: (u64, u64)) -> Model {
    let mut model = model(rtt, 0, 1);
    model.run(5000, load.0, load.1);
    assert_eq!(model.outcomes, [], "a steady flow over a good path");
    model
}

/// Returns the milliseconds until the path is unresponsive, from the last answer and from now, when
/// the path was cut.
fn time_to_detect(model: &mut Model, load: (u64, u64)) -> (u64, u64) {
    let cut = model.ms;
    model.run(10_000, load.0, load.1);
    let at = model.first(Outcome::Unresponsive, cut).expect("a dead path is detected");
    assert_eq!(model.count(Outcome::Unresponsive), 1, "reported once");
    assert!(model.first(Outcome::Probing, 0).is_some_and(|probing| probing < at));
    (at - model.last_answer, at - cut)
}

#[test]
fn a_silent_path_is_detected_within_seven_round_trips_whichever_direction_died() {
    for (up, down) in [(true, true), (true, false), (false, true)] {
        let mut model = steady(20, (5, 100));
        model.cut(up, down);
        let samples = model.samples;
        let (after_answer, _) = time_to_detect(&mut model, (5, 100));
        assert!((100..=140).contains(&after_answer), "{after_answer} ms");
        assert!(model.pings <= u64::from(MAX_PINGS) && model.samples - samples < 40);
    }
}

#[test]
fn retransmissions_of_the_peer_are_no_sign_of_life_in_the_other_direction() {
    let mut model = steady(20, (5, 100));
    model.cut(true, false);
    (model.peer.retransmits, model.peer.program_answers) = (true, false);
    let (after_answer, _) = time_to_detect(&mut model, (5, 100));
    assert!(after_answer <= 200, "{after_answer} ms");
}

#[test]
fn one_write_is_enough_and_pings_do_the_rest() {
    let mut model = steady(20, (1000, 100));
    model.cut(true, true);
    let (_, after_cut) = time_to_detect(&mut model, (1000, 100));
    // The write was in flight when the path died.
    assert!(after_cut <= 300, "{after_cut} ms");
}

#[test]
fn an_idle_path_needs_no_samples_and_an_unanswered_keepalive_reveals_its_death() {
    let mut model = steady(20, (50, 100));
    model.run(1000, 0, 0);
    let before = model.samples;
    model.run(60_000, 0, 0);
    assert!(model.samples - before <= 1, "a sample is taken along with a PONG, none is requested");
    model.cut(true, true);
    model.ping();
    let (_, after_ping) = time_to_detect(&mut model, (0, 0));
    assert!(after_ping <= 300, "{after_ping} ms");
}

#[test]
fn a_dead_path_with_a_full_window_is_detected() {
    for rtt in [20, 100] {
        let mut model = steady(rtt, BULK);
        model.cut(true, true);
        let (after_answer, _) = time_to_detect(&mut model, BULK);
        assert!(after_answer <= 1000, "{after_answer} ms");
    }
}

#[test]
fn a_dead_lossy_path_is_detected_although_the_kernel_sends_nothing_new() {
    for seed in 0..10 {
        let mut model = model(20, 0, seed);
        model.link.up.loss = 5;
        model.run(20_000, BULK.0, BULK.1);
        assert_eq!(model.count(Outcome::Unresponsive), 0);
        model.cut(true, true);
        model.run(20_000, BULK.0, BULK.1);
        let at = model.first(Outcome::Unresponsive, 20_000).expect("a dead path is detected");
        assert!(at - model.last_answer <= 11_000, "seed {seed}: {} ms", at - model.last_answer);
    }
}

#[test]
fn a_long_path_is_not_a_dead_one() {
    for load in LOADS {
        let mut model = model(200, 0, 1);
        model.run(60_000, load.0, load.1);
        assert_eq!(model.count(Outcome::Unresponsive), 0);
        model.cut(true, true);
        let (_, after_cut) = time_to_detect(&mut model, load);
        assert!(after_cut <= 2500, "{after_cut} ms");
    }
}

#[test]
fn a_tenfold_drop_of_the_rate_is_not_death() {
    for load in LOADS {
        let mut model = steady(20, load);
        model.link.up.bytes_per_ms = FAST / 10;
        model.link.down.bytes_per_ms = FAST / 10;
        model.run(60_000, load.0, load.1);
        assert_eq!(model.count(Outcome::Unresponsive), 0, "{load:?}");
    }
}

#[test]
fn five_percent_loss_in_each_direction_is_not_death() {
    for (rtt, load) in [2, 20, 200].into_iter().flat_map(|rtt| LOADS.map(|load| (rtt, load))) {
        for seed in 0..4 {
            let mut model = model(rtt, 5, seed);
            model.peer.program_answers = seed % 2 == 0;
            model.run(60_000, load.0, load.1);
            assert_eq!(model.count(Outcome::Unresponsive), 0, "{rtt} ms, {load:?}, seed {seed}");
        }
    }
}

#[test]
fn twenty_percent_loss_is_not_death_unless_the_kernel_itself_gets_nothing_through() {
    for (rtt, load) in [2, 20, 200].into_iter().flat_map(|rtt| LOADS.map(|load| (rtt, load))) {
        for seed in 0..4 {
            let mut one_way = model(rtt, 0, seed);
            one_way.link.up.loss = 20;
            one_way.peer.program_answers = seed % 2 == 0;
            one_way.run(60_000, load.0, load.1);
            assert_eq!(one_way.count(Outcome::Unresponsive), 0, "{rtt} ms, {load:?}, seed {seed}");
            // With loss in both directions a third of all round trips fail: TCP itself may be in
            // back-off for long.
            let mut both_ways = model(rtt, 20, seed);
            both_ways.peer.program_answers = seed % 2 == 0;
            for _ in 0..60_000 {
                let before = both_ways.count(Outcome::Unresponsive);
                both_ways.run(1, load.0, load.1);
                let silence = both_ways.ms - both_ways.last_answer;
                let new = both_ways.count(Outcome::Unresponsive) > before;
                assert!(!new || silence > 20_000, "{rtt} ms, {load:?}, seed {seed}: {silence} ms");
            }
        }
    }
}

#[test]
fn a_path_that_recovers_is_reported_and_may_fail_again() {
    let mut model = steady(20, (5, 100));
    for round in 1..=3 {
        model.cut(true, true);
        model.run(2000, 5, 100);
        assert_eq!((model.count(Outcome::Unresponsive), model.count(Outcome::Recovered)), (round, round - 1));
        model.cut(false, false);
        model.run(5000, 5, 100);
        assert_eq!((model.count(Outcome::Unresponsive), model.count(Outcome::Recovered)), (round, round));
    }
}

#[test]
fn an_unresponsive_path_is_checked_once_a_second() {
    let mut model = steady(20, (5, 100));
    model.cut(true, true);
    model.run(5000, 5, 100);
    let before = model.samples;
    model.run(10_000, 5, 100);
    assert!(model.samples - before <= 11);
}

fn context(limits: &Limits) -> PathContext<'_> {
    PathContext {
        limits,
        unanswered: true,
        connecting: false,
        judged: true,
        max_pings: MAX_PINGS,
        srtt: None,
    }
}

fn sample(unacked: u32) -> TransportSample {
    TransportSample {
        delivered: 9,
        in_flight: unacked,
        unacked,
        segs_out: 9 + unacked,
        retransmitted: 0,
        last_ack: Duration::from_millis(20),
        srtt: Duration::from_millis(20),
        rttvar: Duration::from_millis(1),
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn without_samples_only_silence_counts() {
    let (now, limits) = (Instant::now(), Limits::default());
    let mut health = Health::default();
    let context = context(&limits);
    assert_eq!(health.deadline(context), None, "nothing was sent");
    health.start_waiting(now);
    assert!(!health.wants_sample(now + 10 * SECOND, context));
    assert_eq!(health.deadline(context), Some(now + 4 * SECOND), "the RTT is unknown");
    let measured = PathContext { srtt: Some(SECOND / 100), ..context };
    assert_eq!(health.deadline(measured), Some(now + SECOND));
    assert_eq!(health.deadline(PathContext { unanswered: false, ..measured }), None);
    assert!(!health.on_bytes_received(now + SECOND / 2));
    assert_eq!(health.on_timeout(now + SECOND, measured), HealthUpdate::default());
    let update = health.on_timeout(now + 3 * SECOND / 2, measured);
    assert_eq!(update, HealthUpdate { unresponsive: Some(SECOND), ..HealthUpdate::default() });
    assert_eq!(health.deadline(measured), None, "once");
    assert!(health.on_bytes_received(now + 2 * SECOND) && !health.is_unresponsive());
}

#[test]
fn the_timeout_for_welcome_follows_the_rtt_of_the_handshake() {
    let (now, limits) = (Instant::now(), Limits::default());
    let mut health = Health::default();
    health.start_waiting(now);
    let connecting = PathContext { connecting: true, judged: false, ..context(&limits) };
    let _ = health.on_sample(now, sample(1));
    assert_eq!(health.deadline(connecting), Some(now + SECOND));
    let _ = health.on_sample(now, TransportSample { srtt: SECOND, ..sample(1) });
    assert_eq!(health.deadline(connecting), Some(now + 4 * SECOND));
    assert!(health.on_timeout(now + 4 * SECOND, connecting).unresponsive.is_some());
    assert!(health.on_progress(now + 5 * SECOND));
}

#[test]
fn a_silent_program_behind_an_answering_kernel_is_detected() {
    let (mut now, limits) = (Instant::now(), Limits::default());
    let start = now;
    let context = context(&limits);
    let mut health = Health::default();
    let _ = health.on_sample(now, sample(0));
    health.start_waiting(now);
    let mut samples = 0;
    let detected_at = loop {
        now = health.deadline(context).expect("something is unanswered");
        if health.wants_sample(now, context) {
            samples += 1;
            assert!(!health.on_sample(now, sample(0)));
        }
        let update = health.on_timeout(now, context);
        assert!(!update.probing && !update.send_ping);
        if update.unresponsive.is_some() {
            break now;
        }
    };
    assert_eq!(detected_at - start, PROGRAM_TIMEOUT);
    assert!(samples < 100, "one for each overdue answer: {samples}");
    assert!(!health.on_sample(now, sample(0)), "an acknowledgement of the kernel does not end it");
    assert!(health.on_bytes_received(now));
}

#[test]
fn a_doubt_report_probes_the_path_once() {
    let (now, limits) = (Instant::now(), Limits::default());
    let mut health = Health::default();
    assert!(!health.start_probing(now), "without samples there is nothing to judge by");
    let _ = health.on_sample(now, sample(0));
    assert!(health.start_probing(now) && !health.start_probing(now));
    let waiting = PathContext { unanswered: true, ..context(&limits) };
    let due = health.deadline(waiting).expect("it is being probed");
    // The PING was answered, so the path is well and nothing is left to do.
    health.start_waiting(now);
    let _ = health.on_sample(due, sample(0));
    assert!(!health.on_timeout(due, context(&limits)).send_ping);
    assert!(health.probe.is_none());
}

#[test]
fn a_process_that_was_suspended_for_long_takes_a_sample_before_it_judges() {
    let (now, limits) = (Instant::now(), Limits::default());
    let mut health = Health::default();
    let context = context(&limits);
    let _ = health.on_sample(now, sample(0));
    health.start_waiting(now);
    let later = now + 1000 * SECOND;
    let _ = health.on_sample(later, sample(1));
    let update = health.on_timeout(later, context);
    assert_eq!(update, HealthUpdate { probing: true, unresponsive: None, send_ping: true });
    // A transport that provides no further samples is not trusted for ever.
    let mut now = later;
    while !health.is_unresponsive() {
        now = health.deadline(context).expect("it is probing");
        let _ = health.on_timeout(now, context);
    }
    assert!((10 * SECOND..20 * SECOND).contains(&(now - later)), "{:?}", now - later);
}

#[test]
fn a_transport_without_further_samples_is_not_asked_for_ever() {
    let (mut now, limits) = (Instant::now(), Limits::default());
    let end = now + 3600 * SECOND;
    let context = context(&limits);
    let mut health = Health::default();
    health.start_waiting(now);
    let _ =
        health.on_sample(now, TransportSample { srtt: Duration::ZERO, rttvar: Duration::ZERO, ..sample(9) });
    let mut detected = Vec::new();
    for turn in 0.. {
        assert!(turn < 10, "every {:?}", health.check_interval(&limits));
        let Some(due) = health.deadline(context).filter(|&due| due <= end) else { break };
        assert!(due > now, "the timer is due again at once");
        now = due;
        detected.extend(health.on_timeout(now, context).unresponsive);
    }
    assert_eq!(detected, [4 * INITIAL_RTT], "by silence, as without any samples");
    // The transport is trusted again as soon as it provides a sample.
    health.on_progress(now);
    let _ = health.on_sample(now, sample(1));
    assert!(health.wants_sample(now + SECOND, context));
}
