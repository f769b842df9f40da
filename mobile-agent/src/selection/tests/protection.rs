//! Tests of what other users, other programs and other kernels cannot change: marks, pins, and
//! which programs are in force.

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
        sandbox::{FOREIGN, Probe, Sandbox},
    },
    KINDS, MARK, count,
};

/// The user ID of the user `nobody`.
const OTHER_USER: u32 = 65_534;

#[test]
fn only_the_programs_may_change_the_agents_bits_of_a_mark() {
    Sandbox::with(|sandbox| {
        let _selector = sandbox.load();
        let (mut mobile, mut ordinary) = (sandbox.mobile(), Probe::start());
        let foreign = 0x2a & FOREIGN;
        for kind in KINDS {
            mobile.open(kind);
            for mark in [0, foreign, MARK, 0x1200_0000] {
                assert_eq!(mobile.set_mark(kind, mark), MARK | (mark & FOREIGN), "{kind} {mark:x}");
            }
            ordinary.open(kind);
            ordinary.cannot_set_mark(kind, MARK | foreign);
            assert_eq!(ordinary.socket_mark(kind), 0, "{kind}");
            // Another value in these bits is not the agent's mark, so any program may set it.
            assert_eq!(ordinary.set_mark(kind, 0x1200_0000 | foreign), 0x1200_0000 | foreign, "{kind}");
            assert_eq!(ordinary.set_mark(kind, 0), 0, "{kind}");
        }
    });
}

#[test]
fn an_mptcp_connection_is_mobile_like_any_other() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        let mut mobile = sandbox.mobile();
        assert_eq!(mobile.open("mptcp4"), MARK);
        assert_eq!(mobile.set_mark("mptcp4", 0), MARK);
        assert_eq!(mobile.connect("mptcp4", "127.0.0.1:9"), MARK);
        let mut late = Probe::start();
        assert_eq!(late.open("mptcp4"), 0);
        sandbox.cgroup.attach(late.pid()).unwrap();
        late.connect("mptcp4", "127.0.0.1:9");
        // The socket that the call returned is the connection's first subflow.
        assert_eq!(count(&selector, MarkVerdict::Failed), 0);
        assert_eq!(count(&selector, MarkVerdict::Marked), 2);
    });
}

#[test]
fn the_mark_is_protected_while_one_agent_replaces_another_and_on_sockets_created_before_attach() {
    Sandbox::with(|sandbox| {
        drop(sandbox.load());
        let mut mobile = sandbox.mobile();
        let mut late = Probe::start();
        assert_eq!(late.open("tcp4"), 0);
        sandbox.cgroup.attach(late.pid()).unwrap();
        assert_eq!(late.connect("tcp4", "127.0.0.1:9"), MARK);
        for _ in 0..5 {
            mobile.open("raw4");
            assert_eq!(mobile.set_mark("raw4", 0), MARK);
            assert_eq!(late.set_mark("tcp4", 0), MARK);
            drop(sandbox.load());
        }
    });
}

/// Asserts that loading the eBPF programs fails with an error that names this path.
fn assert_refused(sandbox: &Sandbox, named: &Path) {
    let result = Selector::load_or_adopt(&sandbox.pin_dir, &sandbox.cgroup, sandbox.marking);
    let Err(error) = result else { panic!("{} accepted", named.display()) };
    assert!(matches!(error, BpfError::UnsafePin { .. }), "{error}");
    assert!(error.to_string().contains(&named.display().to_string()), "{error}");
}

#[test]
fn pins_that_another_user_owns_or_may_write_are_refused() {
    Sandbox::with(|sandbox| {
        let dir = &sandbox.pin_dir;
        pins::ensure_dir(dir).unwrap();
        chown(dir, Some(OTHER_USER), None).unwrap();
        assert_refused(sandbox, dir);
        chown(dir, Some(0), None).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
            assert_refused(sandbox, dir);
        }
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
        drop(sandbox.load());
        // The error names what an earlier agent left.
        let generation = pins::generations(dir).unwrap().remove(0);
        for pin in [generation.clone(), pins::pin(&generation, "map", "VERDICTS")] {
            chown(&pin, Some(OTHER_USER), None).unwrap();
            assert_refused(sandbox, &pin);
            chown(&pin, Some(0), None).unwrap();
        }
        drop(sandbox.load());
        assert_eq!(pins::generations(dir).unwrap().len(), 1);
    });
}

#[test]
fn a_directory_above_the_pins_that_another_user_may_change_is_refused() {
    Sandbox::with(|sandbox| {
        let above = &sandbox.pin_dir;
        let deeper = Sandbox {
            pin_dir: above.join("deeper"),
            cgroup: sandbox.cgroup.clone(),
            marking: sandbox.marking,
        };
        pins::ensure_dir(above).unwrap();
        chown(above, Some(OTHER_USER), None).unwrap();
        assert_refused(&deeper, above);
        chown(above, Some(0), None).unwrap();
        fs::set_permissions(above, fs::Permissions::from_mode(0o777)).unwrap();
        assert_refused(&deeper, above);
        // The sticky bit lets others add files but not move root's; distributions mount bpffs like
        // this.
        fs::set_permissions(above, fs::Permissions::from_mode(0o1777)).unwrap();
        drop(deeper.load());
        std::mem::forget(deeper);
    });
}
