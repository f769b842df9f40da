//! Tests what other users, other programs and other kernels cannot change: marks, pins, and which
//! programs are in force.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::Path,
};

use mobile_ebpf_common::MarkVerdict;

use super::{
    super::{
        bpf::{BpfError, Selector},
        pins,
        probe::{FOREIGN, Place, Probe},
    },
    KINDS, MARK, count,
};

/// The user id of `nobody`.
const OTHER_USER: u32 = 65_534;

#[test]
fn our_bits_of_a_mark_are_the_programs_alone_to_set_and_clear() {
    Place::with(|place| {
        let _selector = place.load();
        let (mut mobile, mut ordinary) = (place.mobile(), Probe::start());
        let foreign = 0x2a & FOREIGN;
        for kind in KINDS {
            mobile.open(kind);
            for mark in [0, foreign, MARK, 0x1200_0000] {
                assert_eq!(mobile.set_mark(kind, mark), MARK | (mark & FOREIGN), "{kind} {mark:x}");
            }
            ordinary.open(kind);
            ordinary.cannot_set_mark(kind, MARK | foreign);
            assert_eq!(ordinary.look(kind), 0, "{kind}");
            // Another value in our bits is not our mark, so anybody may set it.
            assert_eq!(ordinary.set_mark(kind, 0x1200_0000 | foreign), 0x1200_0000 | foreign, "{kind}");
            assert_eq!(ordinary.set_mark(kind, 0), 0, "{kind}");
        }
    });
}

#[test]
fn an_mptcp_connection_is_mobile_as_others_are() {
    Place::with(|place| {
        let selector = place.load();
        let mut mobile = place.mobile();
        assert_eq!(mobile.open("mptcp4"), MARK);
        assert_eq!(mobile.set_mark("mptcp4", 0), MARK);
        assert_eq!(mobile.connect("mptcp4", "127.0.0.1:9"), MARK);
        let mut late = Probe::start();
        assert_eq!(late.open("mptcp4"), 0);
        place.cgroup.attach(late.pid()).unwrap();
        late.connect("mptcp4", "127.0.0.1:9");
        // The socket that the call returned is the connection's first subflow.
        assert_eq!(count(&selector, MarkVerdict::Failed), 0);
        assert_eq!(count(&selector, MarkVerdict::Marked), 2);
    });
}

#[test]
fn the_fence_around_our_bits_holds_while_agents_take_over_and_for_sockets_made_before_attach() {
    Place::with(|place| {
        drop(place.load());
        let mut mobile = place.mobile();
        let mut late = Probe::start();
        assert_eq!(late.open("tcp4"), 0);
        place.cgroup.attach(late.pid()).unwrap();
        assert_eq!(late.connect("tcp4", "127.0.0.1:9"), MARK);
        for _ in 0..5 {
            mobile.open("raw4");
            assert_eq!(mobile.set_mark("raw4", 0), MARK);
            assert_eq!(late.set_mark("tcp4", 0), MARK);
            drop(place.load());
        }
    });
}

/// Returns the error of loading with the pin directory as it is.
fn refused(place: &Place, named: &Path) {
    let result = Selector::load_or_adopt(&place.pin_dir, &place.cgroup, place.marking);
    let Err(error) = result else { panic!("{} accepted", named.display()) };
    assert!(matches!(error, BpfError::UnsafePin { .. }), "{error}");
    assert!(error.to_string().contains(&named.display().to_string()), "{error}");
}

#[test]
fn pins_that_another_user_owns_or_may_write_are_refused() {
    Place::with(|place| {
        let dir = &place.pin_dir;
        pins::ensure_dir(dir).unwrap();
        chown(dir, Some(OTHER_USER), None).unwrap();
        refused(place, dir);
        chown(dir, Some(0), None).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
            refused(place, dir);
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        drop(place.load());
        // The error names what an earlier agent left.
        let generation = pins::generations(dir).unwrap().remove(0);
        for pin in [generation.clone(), pins::pin(&generation, "map", "VERDICTS")] {
            chown(&pin, Some(OTHER_USER), None).unwrap();
            refused(place, &pin);
            chown(&pin, Some(0), None).unwrap();
        }
        drop(place.load());
        assert_eq!(pins::generations(dir).unwrap().len(), 1);
    });
}

#[test]
fn a_directory_above_the_pins_that_another_user_may_change_is_refused() {
    Place::with(|place| {
        let above = &place.pin_dir;
        let deeper =
            Place { pin_dir: above.join("deeper"), cgroup: place.cgroup.clone(), marking: place.marking };
        pins::ensure_dir(above).unwrap();
        chown(above, Some(OTHER_USER), None).unwrap();
        refused(&deeper, above);
        chown(above, Some(0), None).unwrap();
        fs::set_permissions(above, fs::Permissions::from_mode(0o777)).unwrap();
        refused(&deeper, above);
        // The sticky bit lets others add files but not move root's; distributions mount bpffs like
        // this.
        fs::set_permissions(above, fs::Permissions::from_mode(0o1777)).unwrap();
        drop(deeper.load());
        std::mem::forget(deeper);
    });
}
