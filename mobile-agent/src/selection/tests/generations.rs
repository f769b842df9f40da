//! Tests that the eBPF programs of one agent outlive it, and are replaced by those of the next.

use std::time::{Duration, Instant};

use mobile_ebpf_common::{MarkVerdict, map, program};

use super::{KINDS, MARK, count};
use crate::selection::{
    bpf::{self, BpfError, Selector},
    pins,
    sandbox::{Probe, Sandbox},
};

#[test]
fn the_programs_of_a_killed_agent_stay_in_force_until_the_next_replaces_them() {
    Sandbox::with(|sandbox| {
        let mut agent = Probe::start();
        agent.become_agent(sandbox);
        let mut mobile = sandbox.mobile();
        assert_eq!(mobile.open("tcp4"), MARK);
        agent.kill();

        for kind in KINDS {
            assert_eq!(mobile.open(kind), MARK, "{kind}");
        }
        let mut late = Probe::start();
        late.open("tcp4");
        sandbox.cgroup.attach(late.pid()).unwrap();
        assert_eq!(late.connect("tcp4", "127.0.0.1:9"), MARK);

        let next = sandbox.load();
        assert!(next.adopted());
        assert_eq!(count(&next, MarkVerdict::Marked), 2 + KINDS.len() as u64);
        assert_eq!(mobile.open("tcp4"), MARK);
        assert_eq!(count(&next, MarkVerdict::Marked), 3 + KINDS.len() as u64);
        assert_eq!(pins::generations(&sandbox.pin_dir).unwrap().len(), 1);
    });
}

#[test]
fn every_socket_is_marked_while_one_agent_replaces_another() {
    Sandbox::with(|sandbox| {
        let _first = sandbox.load();
        let mut mobile = sandbox.mobile();
        let stop = std::sync::atomic::AtomicBool::new(false);
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            let sockets = scope.spawn(|| {
                let mut opened = 0_u32;
                while !stop.load(relaxed) {
                    assert_eq!(mobile.open("udp4"), MARK, "after {opened}");
                    opened += 1;
                }
                opened
            });
            for _ in 0..5 {
                drop(sandbox.load());
            }
            stop.store(true, relaxed);
            assert!(sockets.join().unwrap() > 0);
        });
    });
}

#[test]
fn a_new_mark_takes_effect_when_the_programs_are_replaced() {
    Sandbox::with(|sandbox| {
        drop(sandbox.load());
        let mut mobile = sandbox.mobile();
        assert_eq!(mobile.open("tcp4"), MARK);
        let marking = bpf::Marking { mark: 0x5e00_0000, ..sandbox.marking };
        let _next = Selector::load_or_adopt(&sandbox.pin_dir, &sandbox.cgroup, marking).unwrap();
        assert_eq!(mobile.open("tcp4"), 0x5e00_0000);
    });
}

/// Returns whether the eBPF programs for packets are attached to the root cgroup.
fn is_attached_to_root(sandbox: &Sandbox) -> bool {
    let generation = pins::generations(&sandbox.pin_dir).unwrap().remove(0);
    pins::pin(&generation, "root-link", program::ACCOUNT).exists()
}

#[test]
fn a_start_with_mobile_processes_attaches_the_packet_programs_to_the_root() {
    Sandbox::with(|sandbox| {
        drop(sandbox.load());
        assert!(!is_attached_to_root(sandbox));
        let mobile = sandbox.mobile();
        drop(sandbox.load());
        assert!(is_attached_to_root(sandbox));
        sandbox.cgroup.detach(mobile.pid()).unwrap();
        drop(sandbox.load());
        assert!(!is_attached_to_root(sandbox));
    });
}

#[test]
fn the_packet_programs_stay_attached_to_the_root_while_there_is_a_slice() {
    Sandbox::with(|sandbox| {
        let mut selector = sandbox.load();
        selector.set_slice(1).unwrap();
        selector.detach_from_root().unwrap();
        assert!(is_attached_to_root(sandbox));
        selector.set_slice(0).unwrap();
        selector.detach_from_root().unwrap();
        assert!(!is_attached_to_root(sandbox));
    });
}

#[test]
fn counters_with_another_layout_are_replaced() {
    Sandbox::with(|sandbox| {
        drop(sandbox.load());
        let generation = pins::generations(&sandbox.pin_dir).unwrap().remove(0);
        let verdicts = pins::pin(&generation, "map", map::VERDICTS);
        std::fs::remove_file(&verdicts).unwrap();
        let other = aya::maps::MapData::from_pin(pins::pin(&generation, "map", map::CONFIG)).unwrap();
        other.pin(&verdicts).unwrap();
        let next = sandbox.load();
        assert!(next.adopted());
        // Until the kernel has detached the old programs, they mark before the new ones and count
        // in their own map.
        let mut mobile = sandbox.mobile();
        let deadline = Instant::now() + Duration::from_secs(5);
        while count(&next, MarkVerdict::Marked) == 0 {
            assert!(Instant::now() < deadline, "nothing is counted");
            assert_eq!(mobile.open("tcp4"), MARK);
        }
        assert_eq!(count(&next, MarkVerdict::Marked), 1);
    });
}

#[test]
fn an_incomplete_generation_of_a_killed_agent_is_removed() {
    Sandbox::with(|sandbox| {
        drop(sandbox.load());
        std::fs::create_dir(sandbox.pin_dir.join("2")).unwrap();
        let next = sandbox.load();
        assert_eq!(sandbox.mobile().open("tcp4"), MARK);
        assert_eq!(count(&next, MarkVerdict::Marked), 1);
        assert_eq!(pins::generations(&sandbox.pin_dir).unwrap(), [sandbox.pin_dir.join("3")]);
    });
}

#[test]
fn remove_detaches_the_programs() {
    Sandbox::with(|sandbox| {
        drop(sandbox.load());
        let mut mobile = sandbox.mobile();
        assert_eq!(mobile.open("tcp4"), MARK);
        assert!(bpf::remove(&sandbox.pin_dir).unwrap());
        assert!(!sandbox.pin_dir.exists());
        // The kernel detaches an unpinned link in the background.
        let deadline = Instant::now() + Duration::from_secs(5);
        while mobile.open("tcp4") != 0 {
            assert!(Instant::now() < deadline, "still marked");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!bpf::remove(&sandbox.pin_dir).unwrap());
    });
}

#[test]
fn a_pin_directory_on_another_file_system_is_refused_and_not_created() {
    Sandbox::with(|sandbox| {
        let dir = tempfile::tempdir().unwrap();
        let pin_dir = dir.path().join("pins");
        let result = Selector::load_or_adopt(&pin_dir, &sandbox.cgroup, sandbox.marking);
        let Err(error) = result else { panic!("{} accepted", pin_dir.display()) };
        assert!(matches!(error, BpfError::NotBpffs(_)), "{error}");
        assert!(error.to_string().contains("/sys/fs/bpf"), "{error}");
        assert!(!pin_dir.exists());
    });
}

#[test]
fn the_programs_load_without_cap_sys_resource() {
    Sandbox::with(|sandbox| {
        let mut agent = Probe::start_without_sys_resource();
        agent.become_agent(sandbox);
        assert_eq!(sandbox.mobile().open("tcp4"), MARK);
    });
}
