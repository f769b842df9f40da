//! Tests of route selection on the running kernel: the marks of a process's sockets depend on
//! whether the process is mobile.

use std::{
    io::{Read as _, Seek as _},
    sync::Mutex,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use mobile_ebpf_common::{MarkVerdict, map, retries};

use super::{
    bpf::{self, BpfError, Selector},
    deadline,
    sandbox::{FOREIGN, Probe, Sandbox, TcpOption},
};
use crate::config::OnFailure;

mod accounts;
mod generations;
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
