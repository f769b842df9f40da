//! Tests of route selection on the running kernel: the marks of a process's sockets depend on
//! whether the process is mobile.

use std::{
    io::{Read as _, Seek as _},
    sync::Mutex,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mobile_ebpf_common::{MarkVerdict, map, program, retries};

use super::{
    bpf::{self, BpfError, Selector},
    deadline, pins,
    sandbox::{FOREIGN, Probe, Sandbox, TcpOption},
};
use crate::config::OnFailure;

mod accounts;
mod protection;
mod queries;

const MARK: u32 = 0x4d00_0000;
const KINDS: [&str; 8] = ["tcp4", "tcp6", "udp4", "udp6", "ping4", "ping6", "raw4", "raw6"];
/// Socket kinds for which connect() runs the eBPF programs, each with a destination where nothing
/// listens; every second IPv6 destination is IPv4-mapped.
const CONNECTS: [(&str, &str); 8] = [
    ("tcp4", "127.0.0.1:9"),
    ("tcp6", "[::1]:9"),
    ("tcp6", "[::ffff:127.0.0.1]:9"),
    ("udp4", "127.0.0.1:9"),
    ("udp6", "[::1]:9"),
    ("udp6", "[::ffff:127.0.0.1]:9"),
    ("ping4", "127.0.0.1:0"),
    ("ping6", "[::1]:0"),
];
const SENDS: [(&str, &str); 3] =
    [("udp4", "127.0.0.1:9"), ("udp6", "[::1]:9"), ("udp6", "[::ffff:127.0.0.1]:9")];

fn count(selector: &Selector, wanted: MarkVerdict) -> u64 {
    let verdicts = selector.verdicts().unwrap();
    verdicts.into_iter().find(|(verdict, _)| *verdict == wanted).unwrap().1
}

#[test]
fn adding_to_a_full_bypass_map_is_a_counted_error_and_keeps_its_entries() {
    Sandbox::with(|sandbox| {
        let mut selector = sandbox.load();
        let net = |number: u32| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
            IpNet::new(address.into(), 32).unwrap()
        };
        // The sandbox itself bypasses some networks.
        let room = map::BYPASS_ENTRIES - u32::try_from(sandbox.marking.bypass.len()).unwrap();
        for number in 0..room {
            selector.add_bypass(net(number)).unwrap();
        }
        assert_eq!(selector.bypass_full(), 0);
        let error = selector.add_bypass(net(room)).unwrap_err();
        assert!(matches!(error, BpfError::Full { name: map::BYPASS, .. }), "{error}");
        assert!(error.to_string().contains("65536 entries; bypass larger networks"), "{error}");
        assert_eq!(selector.bypass_full(), 1);
        // The entries are kept, and a removed one makes room for the next.
        selector.remove_bypass(net(0)).unwrap();
        selector.add_bypass(net(room)).unwrap();
        selector.remove_bypass(net(room - 1)).unwrap();
    });
}

#[test]
fn every_socket_of_a_mobile_process_is_marked_and_no_other() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        let (mut mobile, mut ordinary) = (sandbox.mobile(), Probe::start());
        for kind in KINDS {
            assert_eq!(mobile.open(kind), MARK, "{kind}");
            assert_eq!(ordinary.open(kind), 0, "{kind}");
        }
        for (kind, to) in CONNECTS {
            mobile.open(kind);
            ordinary.open(kind);
            assert_eq!(mobile.connect(kind, to), MARK, "{kind} {to}");
            assert_eq!(ordinary.connect(kind, to), 0, "{kind} {to}");
        }
        assert_eq!(count(&selector, MarkVerdict::Failed), 0);
    });
}

#[test]
fn the_attribute_at_connect_decides_about_sockets_created_before() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        for (kind, to) in CONNECTS {
            let mut probe = Probe::start();
            assert_eq!(probe.open(kind), 0);
            sandbox.cgroup.attach(probe.pid()).unwrap();
            assert_eq!(probe.connect(kind, to), MARK, "{kind} {to}");

            let mut probe = sandbox.mobile();
            assert_eq!(probe.open(kind), MARK);
            sandbox.cgroup.detach(probe.pid()).unwrap();
            assert_eq!(probe.connect(kind, to), 0, "{kind} {to}");
        }
        assert_eq!(count(&selector, MarkVerdict::Cleared), CONNECTS.len() as u64);
    });
}

#[test]
fn after_the_deadline_no_new_connection_is_marked_until_it_is_extended() {
    Sandbox::with(|sandbox| {
        let mut selector = sandbox.load();
        assert_eq!(deadline::has_passed(&sandbox.pin_dir), Some(false));
        let set_deadline = |deadline: u64| {
            let path = sandbox.pin_dir.join("1").join(format!("map-{}", map::DEADLINE));
            let map = aya::maps::Map::Array(aya::maps::MapData::from_pin(path).unwrap());
            aya::maps::Array::try_from(map).unwrap().set(0, &deadline, 0).unwrap();
        };
        for (kind, to) in CONNECTS {
            let (mut mobile, mut ordinary) = (sandbox.mobile(), Probe::start());
            assert_eq!(mobile.open(kind), MARK);
            assert_eq!(ordinary.open(kind), 0);
            set_deadline(1);
            assert_eq!(deadline::has_passed(&sandbox.pin_dir), Some(true));
            assert_eq!(mobile.connect(kind, to), 0, "{kind} {to}");
            assert_eq!(ordinary.connect(kind, to), 0, "{kind} {to}");
            assert_eq!(mobile.open(kind), 0, "{kind}");
            selector.extend_deadline(OnFailure::Open).unwrap();
            assert_eq!(deadline::has_passed(&sandbox.pin_dir), Some(false));
            assert_eq!(mobile.connect(kind, to), MARK, "{kind} {to}");
        }
        assert_eq!(count(&selector, MarkVerdict::Direct), 2 * CONNECTS.len() as u64);
    });
}

#[test]
fn an_unconnected_datagram_is_marked_by_the_attribute_too() {
    Sandbox::with(|sandbox| {
        let _selector = sandbox.load();
        for (kind, to) in SENDS {
            let mut probe = Probe::start();
            probe.open(kind);
            assert_eq!(probe.send(kind, to), 0);
            sandbox.cgroup.attach(probe.pid()).unwrap();
            assert_eq!(probe.send(kind, to), MARK, "{kind} {to}");
            sandbox.cgroup.detach(probe.pid()).unwrap();
            assert_eq!(probe.send(kind, to), 0, "{kind} {to}");
        }
    });
}

#[test]
fn bits_outside_the_mask_are_kept() {
    Sandbox::with(|sandbox| {
        let _selector = sandbox.load();
        let foreign = 0x2a & FOREIGN;
        let mut probe = Probe::start();
        probe.open("udp4");
        assert_eq!(probe.set_mark("udp4", foreign), foreign);
        sandbox.cgroup.attach(probe.pid()).unwrap();
        assert_eq!(probe.connect("udp4", "127.0.0.1:9"), MARK | foreign);
        sandbox.cgroup.detach(probe.pid()).unwrap();
        assert_eq!(probe.connect("udp4", "127.0.0.1:9"), foreign);
    });
}

#[test]
fn mobile_connections_retransmit_at_short_intervals_and_keep_their_connect_timeout() {
    Sandbox::with(|sandbox| {
        let _selector = sandbox.load();
        let (mut mobile, mut ordinary) = (sandbox.mobile(), Probe::start());
        for (kind, to) in CONNECTS.into_iter().filter(|(kind, _)| kind.starts_with("tcp")) {
            ordinary.open(kind);
            let default = TcpOption::ALL.map(|option| ordinary.tcp_option(kind, option));
            ordinary.connect(kind, to);
            assert_eq!(
                TcpOption::ALL.map(|option| ordinary.tcp_option(kind, option)),
                default,
                "{kind} {to}"
            );
            mobile.open(kind);
            // Connect twice: the second connect() must not raise the number of attempts further.
            for _ in 0..2 {
                mobile.connect(kind, to);
                let now = TcpOption::ALL.map(|option| mobile.tcp_option(kind, option));
                let [Some(_), Some(count)] = default else {
                    // Linux before 6.15.
                    assert_eq!(now, default, "{kind} {to}");
                    continue;
                };
                assert_eq!(now, [Some(retries::RTO_MAX_MS), Some(retries::syn_count(count))], "{kind} {to}");
            }
            if default[0].is_some() {
                mobile.open(kind);
                mobile.set_tcp_option(kind, TcpOption::RtoMax, 2000);
                mobile.connect(kind, to);
                let now = TcpOption::ALL.map(|option| mobile.tcp_option(kind, option));
                assert_eq!(now, [Some(2000), default[1]], "the application's own value: {kind} {to}");
            }
        }
    });
}

#[test]
fn children_inherit_the_attribute() {
    Sandbox::with(|sandbox| {
        let _selector = sandbox.load();
        let mut probe = Probe::start();
        assert_eq!(probe.child_opens("tcp4"), 0);
        sandbox.cgroup.attach(probe.pid()).unwrap();
        assert_eq!(probe.child_opens("tcp4"), MARK);
        sandbox.cgroup.detach(probe.pid()).unwrap();
        assert_eq!(probe.child_opens("tcp4"), 0);
    });
}

#[test]
fn other_network_namespaces_are_left_alone() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        let mut probe = sandbox.mobile();
        assert_eq!(probe.open("udp4"), MARK);
        probe.leave_namespace();
        assert_eq!(probe.open("tcp4"), 0);
        assert_eq!(count(&selector, MarkVerdict::OtherNamespace), 1);
        // The mark of another program that looks like the agent's.
        sandbox.cgroup.detach(probe.pid()).unwrap();
        assert_eq!(probe.set_mark("tcp4", MARK), MARK);
        assert_eq!(probe.connect("tcp4", "127.0.0.1:9"), MARK);
        assert_eq!(count(&selector, MarkVerdict::Cleared), 0);
    });
}

#[test]
fn verdicts_count_every_decision_about_a_mobile_process_once() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        let mut mobile = sandbox.mobile();
        mobile.open("udp4");
        mobile.connect("udp4", "127.0.0.1:9");
        mobile.connect("udp4", "127.0.0.1:10");
        assert_eq!(count(&selector, MarkVerdict::Marked), 1);
        assert_eq!(count(&selector, MarkVerdict::Kept), 2);
        let before = selector.verdicts().unwrap();
        Probe::start().open("udp4");
        assert_eq!(selector.verdicts().unwrap(), before);
    });
}

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

#[test]
fn log_messages_of_the_programs_reach_tracing_if_enabled() {
    Sandbox::with(|sandbox| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut output = tempfile::tempfile().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(Mutex::new(output.try_clone().unwrap()))
            .finish();
        let _default = tracing::subscriber::set_default(subscriber);
        let marking = bpf::Marking { log: true, ..sandbox.marking };
        let mut selector = Selector::load_or_adopt(&sandbox.pin_dir, &sandbox.cgroup, marking).unwrap();
        let mut probe = Probe::start();
        probe.open("udp4");
        sandbox.cgroup.attach(probe.pid()).unwrap();
        let expected = format!("connect4: pid {}: socket mark is now 4d000000", probe.pid());
        runtime.block_on(async {
            let logs = selector.spawn_logs().unwrap();
            probe.connect("udp4", "127.0.0.1:9");
            let mut text = String::new();
            let deadline = Instant::now() + Duration::from_secs(5);
            while !text.contains(&expected) {
                assert!(Instant::now() < deadline, "{text}");
                tokio::time::sleep(Duration::from_millis(5)).await;
                output.rewind().unwrap();
                text.clear();
                output.read_to_string(&mut text).unwrap();
            }
            logs.abort();
        });
    });
}
