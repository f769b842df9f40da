//! Route selection on the real kernel: what a process is decides about the marks of its sockets.

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
    probe::{FOREIGN, Place, Probe, TcpOption},
};
use crate::config::OnFailure;

mod accounts;
mod fences;
mod queries;

const MARK: u32 = 0x4d00_0000;
const KINDS: [&str; 8] = ["tcp4", "tcp6", "udp4", "udp6", "ping4", "ping6", "raw4", "raw6"];
/// Kinds with a connect() that passes the programs, and a destination for each; the second of each IPv6 one is
/// IPv4-mapped. Nothing listens there.
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
fn a_full_bypass_is_an_error_that_is_counted_and_nothing_in_it_is_lost() {
    Place::with(|place| {
        let mut selector = place.load();
        let net = |number: u32| {
            let address = std::net::Ipv4Addr::from(0x0a00_0000 + number);
            IpNet::new(address.into(), 32).unwrap()
        };
        // The place itself bypasses some.
        let room = map::BYPASS_ENTRIES - u32::try_from(place.marking.bypass.len()).unwrap();
        for number in 0..room {
            selector.add_bypass(net(number)).unwrap();
        }
        assert_eq!(selector.bypass_full(), 0);
        let error = selector.add_bypass(net(room)).unwrap_err();
        assert!(matches!(error, BpfError::Full { name: map::BYPASS, .. }), "{error}");
        assert!(error.to_string().contains("65536 entries; bypass larger networks"), "{error}");
        assert_eq!(selector.bypass_full(), 1);
        // What is there stays, and the next place is the next one's.
        selector.remove_bypass(net(0)).unwrap();
        selector.add_bypass(net(room)).unwrap();
        selector.remove_bypass(net(room - 1)).unwrap();
    });
}

#[test]
fn every_socket_a_mobile_process_makes_is_marked_and_no_other() {
    Place::with(|place| {
        let selector = place.load();
        let (mut mobile, mut ordinary) = (place.mobile(), Probe::start());
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
fn the_attribute_at_connect_decides_for_sockets_made_before() {
    Place::with(|place| {
        let selector = place.load();
        for (kind, to) in CONNECTS {
            let mut probe = Probe::start();
            assert_eq!(probe.open(kind), 0);
            place.cgroup.attach(probe.pid()).unwrap();
            assert_eq!(probe.connect(kind, to), MARK, "{kind} {to}");

            let mut probe = place.mobile();
            assert_eq!(probe.open(kind), MARK);
            place.cgroup.detach(probe.pid()).unwrap();
            assert_eq!(probe.connect(kind, to), 0, "{kind} {to}");
        }
        assert_eq!(count(&selector, MarkVerdict::Cleared), CONNECTS.len() as u64);
    });
}

#[test]
fn when_the_deadline_is_over_no_new_connection_is_marked_until_it_is_put_off() {
    Place::with(|place| {
        let mut selector = place.load();
        assert_eq!(deadline::is_over(&place.pin_dir), Some(false));
        let over = |deadline: u64| {
            let path = place.pin_dir.join("1").join(format!("map-{}", map::DEADLINE));
            let map = aya::maps::Map::Array(aya::maps::MapData::from_pin(path).unwrap());
            aya::maps::Array::try_from(map).unwrap().set(0, &deadline, 0).unwrap();
        };
        for (kind, to) in CONNECTS {
            let (mut mobile, mut ordinary) = (place.mobile(), Probe::start());
            assert_eq!(mobile.open(kind), MARK);
            assert_eq!(ordinary.open(kind), 0);
            over(1);
            assert_eq!(deadline::is_over(&place.pin_dir), Some(true));
            assert_eq!(mobile.connect(kind, to), 0, "{kind} {to}");
            assert_eq!(ordinary.connect(kind, to), 0, "{kind} {to}");
            assert_eq!(mobile.open(kind), 0, "{kind}");
            selector.put_off_deadline(OnFailure::Open).unwrap();
            assert_eq!(deadline::is_over(&place.pin_dir), Some(false));
            assert_eq!(mobile.connect(kind, to), MARK, "{kind} {to}");
        }
        assert_eq!(count(&selector, MarkVerdict::Direct), 2 * CONNECTS.len() as u64);
    });
}

#[test]
fn an_unconnected_datagram_follows_the_attribute_too() {
    Place::with(|place| {
        let _selector = place.load();
        for (kind, to) in SENDS {
            let mut probe = Probe::start();
            probe.open(kind);
            assert_eq!(probe.send(kind, to), 0);
            place.cgroup.attach(probe.pid()).unwrap();
            assert_eq!(probe.send(kind, to), MARK, "{kind} {to}");
            place.cgroup.detach(probe.pid()).unwrap();
            assert_eq!(probe.send(kind, to), 0, "{kind} {to}");
        }
    });
}

#[test]
fn bits_of_the_mark_that_are_not_ours_stay() {
    Place::with(|place| {
        let _selector = place.load();
        let foreign = 0x2a & FOREIGN;
        let mut probe = Probe::start();
        probe.open("udp4");
        assert_eq!(probe.set_mark("udp4", foreign), foreign);
        place.cgroup.attach(probe.pid()).unwrap();
        assert_eq!(probe.connect("udp4", "127.0.0.1:9"), MARK | foreign);
        place.cgroup.detach(probe.pid()).unwrap();
        assert_eq!(probe.connect("udp4", "127.0.0.1:9"), foreign);
    });
}

#[test]
fn mobile_connections_repeat_at_short_intervals_and_connect_as_patiently_as_ever() {
    Place::with(|place| {
        let _selector = place.load();
        let (mut mobile, mut ordinary) = (place.mobile(), Probe::start());
        for (kind, to) in CONNECTS.into_iter().filter(|(kind, _)| kind.starts_with("tcp")) {
            ordinary.open(kind);
            let usual = TcpOption::ALL.map(|option| ordinary.tcp_option(kind, option));
            ordinary.connect(kind, to);
            assert_eq!(TcpOption::ALL.map(|option| ordinary.tcp_option(kind, option)), usual, "{kind} {to}");
            mobile.open(kind);
            // Twice: what was set is not set again, and the patience does not grow.
            for _ in 0..2 {
                mobile.connect(kind, to);
                let now = TcpOption::ALL.map(|option| mobile.tcp_option(kind, option));
                let [Some(_), Some(count)] = usual else {
                    // Linux before 6.15.
                    assert_eq!(now, usual, "{kind} {to}");
                    continue;
                };
                assert_eq!(now, [Some(retries::RTO_MAX_MS), Some(retries::syn_count(count))], "{kind} {to}");
            }
            if usual[0].is_some() {
                mobile.open(kind);
                mobile.set_tcp_option(kind, TcpOption::RtoMax, 2000);
                mobile.connect(kind, to);
                let now = TcpOption::ALL.map(|option| mobile.tcp_option(kind, option));
                assert_eq!(now, [Some(2000), usual[1]], "its own choice: {kind} {to}");
            }
        }
    });
}

#[test]
fn children_inherit() {
    Place::with(|place| {
        let _selector = place.load();
        let mut probe = Probe::start();
        assert_eq!(probe.child_opens("tcp4"), 0);
        place.cgroup.attach(probe.pid()).unwrap();
        assert_eq!(probe.child_opens("tcp4"), MARK);
        place.cgroup.detach(probe.pid()).unwrap();
        assert_eq!(probe.child_opens("tcp4"), 0);
    });
}

#[test]
fn other_network_namespaces_are_left_alone() {
    Place::with(|place| {
        let selector = place.load();
        let mut probe = place.mobile();
        assert_eq!(probe.open("udp4"), MARK);
        probe.leave_namespace();
        assert_eq!(probe.open("tcp4"), 0);
        assert_eq!(count(&selector, MarkVerdict::OtherNamespace), 1);
        // Someone else's mark that looks like ours.
        place.cgroup.detach(probe.pid()).unwrap();
        assert_eq!(probe.set_mark("tcp4", MARK), MARK);
        assert_eq!(probe.connect("tcp4", "127.0.0.1:9"), MARK);
        assert_eq!(count(&selector, MarkVerdict::Cleared), 0);
    });
}

#[test]
fn verdicts_count_every_decision_about_a_mobile_process_once() {
    Place::with(|place| {
        let selector = place.load();
        let mut mobile = place.mobile();
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
fn a_killed_agent_leaves_everything_in_force_and_the_next_adopts_it() {
    Place::with(|place| {
        let mut agent = Probe::start();
        agent.become_agent(place);
        let mut mobile = place.mobile();
        assert_eq!(mobile.open("tcp4"), MARK);
        agent.kill();

        for kind in KINDS {
            assert_eq!(mobile.open(kind), MARK, "{kind}");
        }
        let mut late = Probe::start();
        late.open("tcp4");
        place.cgroup.attach(late.pid()).unwrap();
        assert_eq!(late.connect("tcp4", "127.0.0.1:9"), MARK);

        let next = place.load();
        assert!(next.adopted());
        assert_eq!(count(&next, MarkVerdict::Marked), 2 + KINDS.len() as u64);
        assert_eq!(mobile.open("tcp4"), MARK);
        assert_eq!(count(&next, MarkVerdict::Marked), 3 + KINDS.len() as u64);
        assert_eq!(pins::generations(&place.pin_dir).unwrap().len(), 1);
    });
}

#[test]
fn no_socket_slips_through_while_agents_take_over() {
    Place::with(|place| {
        let _first = place.load();
        let mut mobile = place.mobile();
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
                drop(place.load());
            }
            stop.store(true, relaxed);
            assert!(sockets.join().unwrap() > 0);
        });
    });
}

#[test]
fn a_new_mark_takes_effect_at_adoption() {
    Place::with(|place| {
        drop(place.load());
        let mut mobile = place.mobile();
        assert_eq!(mobile.open("tcp4"), MARK);
        let marking = bpf::Marking { mark: 0x5e00_0000, ..place.marking };
        let _next = Selector::load_or_adopt(&place.pin_dir, &place.cgroup, marking).unwrap();
        assert_eq!(mobile.open("tcp4"), 0x5e00_0000);
    });
}

/// Whether everybody's sockets are watched.
fn is_wide(place: &Place) -> bool {
    let generation = pins::generations(&place.pin_dir).unwrap().remove(0);
    pins::pin(&generation, "root-link", program::ACCOUNT).exists()
}

#[test]
fn whoever_is_mobile_at_adoption_may_have_brought_sockets_along() {
    Place::with(|place| {
        drop(place.load());
        assert!(!is_wide(place));
        let mobile = place.mobile();
        drop(place.load());
        assert!(is_wide(place));
        place.cgroup.detach(mobile.pid()).unwrap();
        drop(place.load());
        assert!(!is_wide(place));
    });
}

#[test]
fn everybody_is_watched_while_there_is_a_slice() {
    Place::with(|place| {
        let mut selector = place.load();
        selector.set_slice(1).unwrap();
        selector.narrow().unwrap();
        assert!(is_wide(place));
        selector.set_slice(0).unwrap();
        selector.narrow().unwrap();
        assert!(!is_wide(place));
    });
}

#[test]
fn counters_of_another_shape_are_replaced() {
    Place::with(|place| {
        drop(place.load());
        let generation = pins::generations(&place.pin_dir).unwrap().remove(0);
        let verdicts = pins::pin(&generation, "map", map::VERDICTS);
        std::fs::remove_file(&verdicts).unwrap();
        let other = aya::maps::MapData::from_pin(pins::pin(&generation, "map", map::CONFIG)).unwrap();
        other.pin(&verdicts).unwrap();
        let next = place.load();
        assert!(next.adopted());
        // Until the kernel has detached the old programs, they mark before the new ones do, and count elsewhere.
        let mut mobile = place.mobile();
        let deadline = Instant::now() + Duration::from_secs(5);
        while count(&next, MarkVerdict::Marked) == 0 {
            assert!(Instant::now() < deadline, "nothing is counted");
            assert_eq!(mobile.open("tcp4"), MARK);
        }
        assert_eq!(count(&next, MarkVerdict::Marked), 1);
    });
}

#[test]
fn a_half_filled_generation_of_a_killed_agent_is_removed() {
    Place::with(|place| {
        drop(place.load());
        std::fs::create_dir(place.pin_dir.join("2")).unwrap();
        let next = place.load();
        assert_eq!(place.mobile().open("tcp4"), MARK);
        assert_eq!(count(&next, MarkVerdict::Marked), 1);
        assert_eq!(pins::generations(&place.pin_dir).unwrap(), [place.pin_dir.join("3")]);
    });
}

#[test]
fn remove_takes_it_all_out_of_force() {
    Place::with(|place| {
        drop(place.load());
        let mut mobile = place.mobile();
        assert_eq!(mobile.open("tcp4"), MARK);
        assert!(bpf::remove(&place.pin_dir).unwrap());
        assert!(!place.pin_dir.exists());
        // The kernel detaches an unpinned link in the background.
        let deadline = Instant::now() + Duration::from_secs(5);
        while mobile.open("tcp4") != 0 {
            assert!(Instant::now() < deadline, "still marked");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!bpf::remove(&place.pin_dir).unwrap());
    });
}

#[test]
fn a_pin_directory_elsewhere_is_refused_and_nothing_is_left() {
    Place::with(|place| {
        let dir = tempfile::tempdir().unwrap();
        let pin_dir = dir.path().join("pins");
        let result = Selector::load_or_adopt(&pin_dir, &place.cgroup, place.marking);
        let Err(error) = result else { panic!("{} accepted", pin_dir.display()) };
        assert!(matches!(error, BpfError::NotBpffs(_)), "{error}");
        assert!(error.to_string().contains("/sys/fs/bpf"), "{error}");
        assert!(!pin_dir.exists());
    });
}

#[test]
fn a_service_without_cap_sys_resource_can_load() {
    Place::with(|place| {
        let mut agent = Probe::start_without_sys_resource();
        agent.become_agent(place);
        assert_eq!(place.mobile().open("tcp4"), MARK);
    });
}

#[test]
fn messages_of_the_programs_reach_tracing_when_asked_for() {
    Place::with(|place| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut output = tempfile::tempfile().unwrap();
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_writer(Mutex::new(output.try_clone().unwrap()))
            .finish();
        let _default = tracing::subscriber::set_default(subscriber);
        let marking = bpf::Marking { log: true, ..place.marking };
        let mut selector = Selector::load_or_adopt(&place.pin_dir, &place.cgroup, marking).unwrap();
        let mut probe = Probe::start();
        probe.open("udp4");
        place.cgroup.attach(probe.pid()).unwrap();
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
