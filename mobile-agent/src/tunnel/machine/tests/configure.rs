//! Tests of changes of the settings at run time.

use super::super::action::Action;
use super::*;
use crate::tunnel::PresentPaths;

fn glob(text: &str) -> GlobMatcher {
    Glob::new(text).unwrap().compile_matcher()
}

#[test]
fn another_relay_takes_over_once_it_has_accepted_a_path() {
    let mut rig = Rig::connected();
    let old = rig.active_path();
    rig.machine.dial_anew(rig.now, PresentPaths::Replace);
    let new = rig.expect_connect("eth0");
    assert_eq!(rig.machine.active().map(|active| active.path), Some(old), "the session continues");
    rig.succeed_beside(new, 1);
    let actions = rig.actions();
    let handover = actions.iter().find_map(|action| match action {
        Action::RecordHandover(handover) => Some((handover.cause, handover.blackout)),
        _ => None,
    });
    assert_eq!(handover, Some((HandoverCause::Reloaded, Duration::ZERO)), "{actions:?}");
    assert!(actions.contains(&Action::Close { path: old }), "{actions:?}");
    assert_eq!(rig.active_path(), new);
}

#[test]
fn a_relay_that_refuses_leaves_the_session_on_the_former_path() {
    let mut rig = Rig::connected();
    let old = rig.active_path();
    rig.machine.dial_anew(rig.now, PresentPaths::Replace);
    let new = rig.expect_connect("eth0");
    assert!(rig.machine.transport_ready(rig.now, new, address(1)));
    assert_eq!(rig.actions(), [], "a path that works is not left before the welcome");
    rig.lose(new, Fault::Identity);
    for _ in 0..100 {
        rig.wait(ms(500));
        for action in rig.actions() {
            match action {
                Action::Connect { path, .. } => drop(rig.lose(path, Fault::Identity)),
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(rig.active_path(), old);
}

#[test]
fn another_key_is_used_for_new_attempts_and_present_paths_stay() {
    let mut rig = Rig::new(vec![link("eth0", 100, 1)]);
    let old = rig.expect_connect("eth0");
    rig.succeed(old, 1);
    rig.machine.dial_anew(rig.now, PresentPaths::Keep);
    assert_eq!(rig.actions(), []);
    rig.lose(old, Fault::Identity);
    assert_eq!(rig.actions(), [], "a refused key is tried again later");
    rig.machine.dial_anew(rig.now, PresentPaths::Keep);
    rig.expect_connect("eth0");
}

#[test]
fn a_preferred_uplink_takes_over_and_an_excluded_one_is_left() {
    let mut rig = Rig::connected();
    let preferences = |prefer: &[&str], exclude: &[&str]| {
        let [prefer, exclude] = [prefer, exclude].map(|globs| globs.iter().map(|it| glob(it)).collect());
        Preferences { prefer, exclude, standby: Vec::new() }
    };
    rig.machine.set_preferences(rig.now, preferences(&["wl*"], &[]));
    let wlan = rig.expect_connect("wlan0");
    rig.succeed_beside(wlan, 2);
    assert_eq!(rig.active().as_deref(), Some("wlan0"));
    rig.actions();
    rig.machine.set_preferences(rig.now, preferences(&[], &["wl*"]));
    let actions = rig.actions();
    assert_eq!(actions[0], Action::Close { path: wlan });
    assert!(matches!(&actions[1], Action::Connect { uplink, .. } if uplink == "eth0"), "{actions:?}");
}
