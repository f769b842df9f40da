//! Tests when the rate control wants samples, and what follows from the outcome of its commands.

use std::time::Instant;

use super::super::{Bbr, CongestionOutcome, RateControl, SampleDue, SocketChange, TcpSample, WriteOutcome};
use super::model::{MS, NOTSENT_LOWAT};
use super::*;

/// A path on which a segment was lost, and which the network limits.
fn lossy() -> TcpSample {
    TcpSample {
        rtt: 21 * MS,
        rttvar: MS,
        min_rtt: Some(20 * MS),
        retransmitted: true,
        ..TcpSample::default()
    }
}

fn observe(control: &mut RateControl, now: Instant, sample: &TcpSample) -> Vec<SocketChange> {
    control.observe(now, sample).collect()
}

#[test]
fn a_refused_switch_to_bbr_is_not_repeated() {
    let (mut control, now) = (RateControl::limited(NOTSENT_LOWAT), Instant::now());
    assert_eq!(observe(&mut control, now, &lossy()), [SocketChange::UseBbr]);
    control.report(CongestionOutcome::Unchanged);
    for second in 1..100 {
        assert_eq!(observe(&mut control, now + second * SECOND, &lossy()), []);
    }
}

/// Observes a path of 10 Mbit/s with bbr, behind a queue that does not drain, until the congestion
/// control is to be restored; returns the time, at most ten seconds later.
fn restored_at(control: &mut RateControl, began: Instant) -> Option<Instant> {
    let bbr = Some(Bbr { min_rtt: Some(20 * MS), rate: 1_250_000, starting: false });
    (1..500).map(|step| began + step * 20 * MS).find(|&now| {
        let acked_bytes = (now - began).as_micros() as u64 * 5 / 4;
        let sample = TcpSample { rtt: 250 * MS, outstanding: 400_000, acked_bytes, bbr, ..lossy() };
        observe(control, now, &sample) == [SocketChange::RestoreCongestionControl(b"cubic".to_vec())]
    })
}

#[test]
fn the_replaced_congestion_control_is_restored_for_ten_seconds() {
    let (mut control, now) = (RateControl::limited(NOTSENT_LOWAT), Instant::now());
    assert_eq!(observe(&mut control, now, &lossy()), [SocketChange::UseBbr]);
    control.report(CongestionOutcome::Replaced(b"cubic".to_vec()));
    let restored = restored_at(&mut control, now).unwrap();
    control.report(CongestionOutcome::Restored);
    assert_eq!(observe(&mut control, restored + 9 * SECOND, &lossy()), []);
    assert_eq!(observe(&mut control, restored + 10 * SECOND, &lossy()), [SocketChange::UseBbr]);
}

#[test]
fn a_path_that_used_bbr_from_the_start_keeps_it() {
    let (mut control, now) = (RateControl::limited(NOTSENT_LOWAT), Instant::now());
    assert_eq!(observe(&mut control, now, &lossy()), [SocketChange::UseBbr]);
    control.report(CongestionOutcome::Unchanged);
    assert_eq!(restored_at(&mut control, now), None);
}

#[test]
fn a_send_buffer_is_raised_once() {
    let (mut control, now) = (RateControl::unlimited(), Instant::now());
    let busy = TcpSample { retransmitted: false, outstanding: 4 << 20, ..lossy() };
    assert_eq!(observe(&mut control, now, &busy), [SocketChange::RaiseSendBuffer]);
    assert_eq!(observe(&mut control, now + SECOND, &busy), []);
}

#[test]
fn samples_are_wanted_as_long_and_as_often_as_they_are_used() {
    let (mut control, now) = (RateControl::limited(NOTSENT_LOWAT), Instant::now());
    assert_eq!(control.sample_due(), SampleDue::BeforeWrite);
    // A fast path.
    let fast = TcpSample { pacing_rate: 125_000_000, ..TcpSample::default() };
    assert_eq!(observe(&mut control, now, &fast), []);
    assert_eq!(control.sample_due(), SampleDue::At(now + 20 * MS));
    assert!(!control.sample_due().is_due(now + 19 * MS) && control.sample_due().is_due(now + 20 * MS));
    // A slow path with room, and one that has enough unsent data.
    let slow = TcpSample { pacing_rate: 1_250_000, ..TcpSample::default() };
    assert_eq!(observe(&mut control, now, &slow), []);
    assert_eq!(control.sample_due(), SampleDue::BeforeWrite);
    assert_eq!(observe(&mut control, now, &TcpSample { unsent: 10_000, ..slow }), []);
    assert_eq!((control.sample_due(), control.budget().bytes), (SampleDue::At(now + 6 * MS), 0));
    control.sample_unavailable(now);
    assert!(control.budget().bytes > 0 && control.paused_until().is_none());
    // A path that only the kernel limits, before and after its switch to bbr.
    let mut control = RateControl::unlimited();
    assert_eq!(observe(&mut control, now, &lossy()), [SocketChange::UseBbr]);
    control.report(CongestionOutcome::Replaced(b"cubic".to_vec()));
    assert_eq!(control.sample_due(), SampleDue::Never);
}

#[test]
fn a_batch_grows_while_the_socket_accepts_every_write() {
    let mut control = RateControl::unlimited();
    let mut batch_after = |outcome| {
        control.on_write(outcome);
        control.budget().bytes / 1024
    };
    assert_eq!([WriteOutcome::Complete; 3].map(&mut batch_after), [32, 64, 64]);
    assert_eq!(batch_after(WriteOutcome::Blocked), 16);
}
