//! Tests of standby paths and unresponsive paths.

use super::super::reconcile::UNRESPONSIVE_TIMEOUT;
use super::*;

/// Returns a rig connected over eth0, with a standby path on wlan0.
fn connected_with_standby() -> (Rig, PathId, PathId) {
    let mut rig = Rig::with_standby(two_uplinks(), &["*"]);
    let eth = rig.expect_connect("eth0");
    rig.succeed(eth, 1);
    let wlan = rig.expect_connect("wlan0");
    stand_by(&mut rig, wlan, 2);
    (rig, eth, wlan)
}

/// Simulates a successful attempt that opens a standby path: TCP and TLS are established and the
/// relay accepts the path, but the session does not move.
fn stand_by(rig: &mut Rig, path: PathId, last: u8) {
    assert!(rig.machine.transport_ready(rig.now, path, address(last)));
    rig.machine.path_ready(rig.now, path);
    assert_eq!(rig.actions(), []);
}

fn silence(rig: &mut Rig, path: PathId) -> PathRole {
    let began = rig.now - ms(120);
    rig.machine.mark_unresponsive(rig.now, path, began).expect("the path exists").role
}

#[test]
fn with_the_carrier_gone_the_standby_path_takes_over_at_once() {
    let (mut rig, eth, wlan) = connected_with_standby();
    let mut links = two_uplinks();
    links[0].carrier = false;
    rig.machine.set_uplinks(rig.now, links);
    assert_eq!(
        rig.actions(),
        [Action::Close { path: eth }, Action::Activate { path: wlan, keep: Vec::new() }]
    );
    assert_eq!(rig.active(), None, "the relay has not answered yet");
    rig.machine.activated(wlan, 5, 0);
    rig.now += ms(21);
    rig.machine.confirmed(rig.now, wlan);
    let handover = rig.recorded_handover();
    assert_eq!(
        (handover.cause, handover.blackout, handover.replayed),
        (HandoverCause::CarrierLost, ms(21), 5)
    );
    assert_eq!(rig.active().as_deref(), Some("wlan0"));
}

#[test]
fn standby_paths_are_held_only_on_configured_uplinks() {
    let links = vec![link("eth0", 100, 1), link("wlan0", 600, 2), link("wwan0", 700, 3)];
    let mut rig = Rig::with_standby(links, &["wl*"]);
    let eth = rig.expect_connect("eth0");
    rig.succeed(eth, 1);
    let wlan = rig.expect_connect("wlan0");
    stand_by(&mut rig, wlan, 2);
    rig.wait(Duration::from_secs(60));
    assert_eq!(rig.actions(), [], "a path over wwan0 may cost money");
    let ready: Vec<_> = rig.machine.ready().collect();
    assert_eq!(ready, [(eth, "eth0"), (wlan, "wlan0")]);
}

#[test]
fn a_better_uplink_takes_over_and_the_old_path_stands_by() {
    let mut rig = Rig::with_standby(vec![link("wlan0", 600, 2)], &["*"]);
    let wlan = rig.expect_connect("wlan0");
    rig.succeed(wlan, 2);
    rig.machine.set_uplinks(rig.now, two_uplinks());
    let eth = rig.expect_connect("eth0");
    assert!(rig.machine.transport_ready(rig.now, eth, address(1)));
    rig.machine.path_ready(rig.now, eth);
    assert_eq!(rig.actions(), [Action::Activate { path: eth, keep: vec![wlan] }]);
    assert_eq!(rig.active().as_deref(), Some("eth0"), "nothing is interrupted");
    rig.machine.confirmed(rig.now, eth);
    let actions = rig.actions();
    assert!(
        matches!(
            &actions[..],
            [Action::RecordHandover(handover)] if handover.cause == HandoverCause::BetterUplink
        ),
        "{actions:?}"
    );
    rig.machine.force(rig.now, Some("wlan0".into()));
    assert_eq!(rig.actions(), [Action::Activate { path: wlan, keep: vec![eth] }], "no handshake is needed");
}

#[test]
fn a_standby_path_that_cannot_be_opened_is_tried_ever_less_often() {
    let mut rig = Rig::with_standby(two_uplinks(), &["*"]);
    let eth = rig.expect_connect("eth0");
    rig.succeed(eth, 1);
    let mut waits = Vec::new();
    for fault in [Fault::Uplink, Fault::Relay, Fault::Uplink, Fault::Relay] {
        let path = rig.expect_connect("wlan0");
        rig.lose(path, fault);
        let start = rig.now;
        while rig.machine.connecting().next().is_none() {
            let deadline = rig.machine.deadline().unwrap();
            rig.wait(deadline - rig.now);
        }
        waits.push((rig.now - start).as_secs());
    }
    assert_eq!(waits, [1, 2, 4, 8]);
}

#[test]
fn a_silent_path_is_left_at_once_for_the_standby_path_and_closed_when_it_stays_silent() {
    let (mut rig, eth, wlan) = connected_with_standby();
    rig.wait(Duration::from_secs(100));
    assert_eq!(silence(&mut rig, eth), PathRole::Active);
    let actions = rig.actions();
    assert_eq!(
        actions,
        [Action::Activate { path: wlan, keep: vec![eth] }],
        "a path that may only be slow is kept"
    );
    rig.now += ms(20);
    rig.machine.confirmed(rig.now, wlan);
    let handover = rig.recorded_handover();
    assert_eq!((handover.cause, handover.blackout), (HandoverCause::Silent, ms(140)));
    rig.wait(UNRESPONSIVE_TIMEOUT);
    let actions = rig.actions();
    assert!(actions.contains(&Action::Close { path: eth }), "{actions:?}");
}

#[test]
fn a_recovered_path_stands_by_and_is_used_again_after_a_while() {
    let (mut rig, eth, wlan) = connected_with_standby();
    silence(&mut rig, eth);
    rig.machine.confirmed(rig.now, wlan);
    rig.actions();
    rig.now += ms(100);
    rig.machine.recovered(rig.now, eth);
    assert_eq!(rig.actions(), [], "the session does not return at once to a path that was slow");
    let mut moved = Vec::new();
    while moved.is_empty() {
        let deadline = rig.machine.deadline().expect("a return to the path is scheduled");
        rig.wait(deadline - rig.now);
        moved = rig.actions();
    }
    assert_eq!(moved, [Action::Activate { path: eth, keep: vec![wlan] }]);
}

#[test]
fn the_only_uplink_gets_a_second_path_beside_the_silent_one_and_the_first_to_answer_is_used() {
    for first_answers in [true, false] {
        let mut rig = Rig::with_standby(vec![link("eth0", 100, 1)], &["*"]);
        let eth = rig.expect_connect("eth0");
        rig.succeed(eth, 1);
        rig.wait(Duration::from_secs(100));
        silence(&mut rig, eth);
        assert_eq!(rig.active(), None, "an outage is reported");
        let fresh = rig.expect_connect("eth0");
        if first_answers {
            rig.machine.recovered(rig.now, eth);
            assert_eq!(rig.actions(), [Action::Abort { path: fresh }]);
            assert_eq!(rig.active_path(), eth, "no handover is counted");
        } else {
            rig.succeed(fresh, 1);
            let actions = rig.actions();
            assert!(actions.contains(&Action::Close { path: eth }), "{actions:?}");
            let recorded = actions.iter().find_map(|action| match action {
                Action::RecordHandover(handover) => {
                    Some((handover.from.as_str(), handover.to.as_str(), handover.cause))
                }
                _ => None,
            });
            assert_eq!(recorded, Some(("eth0", "eth0", HandoverCause::Silent)));
        }
    }
}

#[test]
fn when_the_standby_path_fails_too_the_outage_keeps_its_cause_and_its_beginning() {
    let (mut rig, eth, wlan) = connected_with_standby();
    rig.wait(Duration::from_secs(100));
    let mut links = two_uplinks();
    links[0].up = false;
    rig.machine.set_uplinks(rig.now, links);
    rig.actions();
    rig.now += ms(10);
    assert_eq!(rig.lose(wlan, Fault::Relay), Some(PathRole::Active));
    let fresh = rig.expect_connect("wlan0");
    rig.now += ms(40);
    rig.succeed(fresh, 2);
    let handover = rig.recorded_handover();
    assert_eq!((handover.cause, handover.blackout), (HandoverCause::LinkDown, ms(50)));
    assert_eq!((handover.from.as_str(), handover.to.as_str()), ("eth0", "wlan0"));
    assert_ne!(eth, fresh);
}

#[test]
fn an_uplink_whose_link_comes_and_goes_has_to_stay_for_a_while_before_it_is_used_again() {
    let (mut rig, _, _) = connected_with_standby();
    let mut stays = Vec::new();
    for _ in 0..5 {
        let mut links = two_uplinks();
        links[0].carrier = false;
        rig.machine.set_uplinks(rig.now, links);
        let over = rig.machine.current.as_ref().unwrap().path;
        rig.machine.confirmed(rig.now, over);
        rig.actions();
        rig.machine.set_uplinks(rig.now, two_uplinks());
        let eth = rig.expect_connect("eth0");
        assert!(rig.machine.transport_ready(rig.now, eth, address(1)));
        rig.machine.path_ready(rig.now, eth);
        let start = rig.now;
        while rig.machine.current.as_ref().unwrap().path != eth {
            let deadline = rig.machine.deadline().expect("the better uplink is used in the end");
            rig.wait(deadline - rig.now);
        }
        rig.machine.confirmed(rig.now, eth);
        rig.actions();
        stays.push((rig.now - start).as_millis());
    }
    assert_eq!(stays, [250, 500, 1000, 2000, 4000]);
}

#[test]
fn after_a_killed_relay_every_path_is_dead_and_the_best_uplink_is_dialled_at_once() {
    let (mut rig, eth, wlan) = connected_with_standby();
    rig.wait(Duration::from_secs(100));
    assert_eq!(rig.lose(eth, Fault::Relay), Some(PathRole::Active));
    let actions = rig.actions();
    let [Action::Activate { path, .. }, Action::Connect { uplink, .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((*path, uplink.as_str()), (wlan, "eth0"));
    assert_eq!(rig.lose(wlan, Fault::Relay), Some(PathRole::Active));
    assert_eq!(rig.active(), None);
    assert_eq!(rig.machine.outage_since(), Some(rig.now));
    rig.wait(UPLINK_STAGGER);
    rig.expect_connect("wlan0");
}

/// Regression: the healthy time of a path was counted from its opening, even if it had stalled
/// meanwhile. So each stall cleared the earlier failures and counted as the first.
#[test]
fn a_path_that_stalls_repeatedly_is_avoided_for_longer_each_time() {
    let (mut rig, eth, wlan) = connected_with_standby();
    rig.wait(Duration::from_secs(3600));
    let mut stays = Vec::new();
    for _ in 0..5 {
        assert_eq!(silence(&mut rig, eth), PathRole::Active);
        rig.machine.confirmed(rig.now, wlan);
        rig.now += ms(300);
        rig.machine.recovered(rig.now, eth);
        rig.actions();
        let start = rig.now;
        while !rig.machine.is_current(eth) {
            let deadline = rig.machine.deadline().expect("a return to the path is scheduled");
            rig.wait(deadline - rig.now);
        }
        rig.machine.confirmed(rig.now, eth);
        rig.actions();
        stays.push((rig.now - start).as_millis());
    }
    assert_eq!(stays, [700, 1700, 3700, 7700, 15_700]);
}

/// Regression: when a path went silent and then broke, the failure of its uplink was cleared,
/// because the path had been healthy for long before.
#[test]
fn a_silent_path_that_breaks_keeps_its_failure() {
    let (mut rig, eth, wlan) = connected_with_standby();
    rig.wait(Duration::from_secs(3600));
    silence(&mut rig, eth);
    rig.machine.confirmed(rig.now, wlan);
    rig.actions();
    assert_eq!(rig.lose(eth, Fault::Relay), Some(PathRole::Standby));
    assert_eq!(rig.machine.decision().usable, ["wlan0", "eth0"]);
    assert_eq!(rig.actions(), [], "the uplink is not dialled at once");
}

/// Regression: when both paths went silent, both uplinks were dialled, and both paths recovered,
/// each uplink kept two paths for ever.
#[test]
fn after_a_moment_without_any_answer_no_second_path_is_left_on_an_uplink() {
    let (mut rig, eth, wlan) = connected_with_standby();
    silence(&mut rig, wlan);
    silence(&mut rig, eth);
    rig.actions();
    rig.wait(UPLINK_STAGGER);
    rig.actions();
    rig.machine.recovered(rig.now, eth);
    rig.machine.recovered(rig.now, wlan);
    rig.actions();
    assert_eq!(rig.machine.ready().count(), 2);
    assert_eq!(rig.machine.connecting().count(), 0);
}

/// Regression: only `tick` ended attempts that had timed out, and a deadline in the past never
/// caused a tick.
#[test]
fn an_expired_attempt_ends_with_the_next_event() {
    let mut rig = Rig::new(two_uplinks());
    let path = rig.expect_connect("eth0");
    rig.now += ATTEMPT_TIMEOUT;
    rig.machine.force(rig.now, None);
    assert!(rig.actions().contains(&Action::Abort { path }));
}

/// Regression: a move to a network with the same addresses went unnoticed until an application sent
/// data.
#[test]
fn a_changed_gateway_probes_every_path() {
    let (mut rig, _, _) = connected_with_standby();
    let mut links = two_uplinks();
    links[1].gateways = vec![address(254)];
    rig.machine.set_uplinks(rig.now, links.clone());
    assert_eq!(rig.actions(), [Action::Probe]);
    links[1].ipv4_route = Some(601);
    rig.machine.set_uplinks(rig.now, links);
    assert_eq!(rig.actions(), [], "another metric is no other network");
}

/// Regression: the deprecation of an IPv6 address, which happens daily to a temporary one, closed
/// the path bound to it.
#[test]
fn a_deprecated_address_keeps_its_path() {
    let (mut rig, eth, _) = connected_with_standby();
    let mut links = two_uplinks();
    links[0].addresses.push(address(77));
    rig.machine.set_uplinks(rig.now, links.clone());
    let deprecated = links[0].addresses.remove(0);
    links[0].deprecated.push(deprecated);
    rig.machine.set_uplinks(rig.now, links);
    assert_eq!(rig.actions(), []);
    assert_eq!(rig.active_path(), eth);
}

/// Regression: a handover did not report the packets dropped before an attempt on another path that
/// failed.
#[test]
fn packets_dropped_before_a_failed_move_count_for_the_handover() {
    let (mut rig, eth, wlan) = connected_with_standby();
    rig.lose(eth, Fault::Relay);
    rig.machine.activated(wlan, 1, 40);
    rig.lose(wlan, Fault::Relay);
    rig.actions();
    rig.wait(UPLINK_STAGGER);
    let path =
        rig.machine.paths.iter().find(|candidate| candidate.uplink == "eth0").expect("eth0 is dialled").path;
    rig.actions();
    assert!(rig.machine.transport_ready(rig.now, path, address(1)));
    rig.machine.activated(path, 2, 2);
    rig.machine.path_ready(rig.now, path);
    rig.machine.confirmed(rig.now, path);
    let handover = rig.recorded_handover();
    assert_eq!((handover.replayed, handover.dropped), (2, 42));
}
