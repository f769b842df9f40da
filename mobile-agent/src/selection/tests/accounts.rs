//! What mobile processes carry: to the byte, however a connection ends.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use mobile_ebpf_common::CountedEvent;

use super::super::{
    account::Accounts,
    bpf::Selector,
    probe::{Place, Probe, run},
    process,
};
use crate::control::protocol::Traffic;

/// Addresses of this machine that are not loopback's: what goes there might as well leave by the tunnel.
const ADDRESSES: [&str; 2] = ["10.9.9.9", "fd99::9"];

fn traffic(connections: u64, bytes_sent: u64, bytes_received: u64) -> Traffic {
    Traffic { connections, bytes_sent, bytes_received }
}

fn of(accounts: &Accounts, probe: &Probe) -> Traffic {
    let holder = process::read(probe.pid()).unwrap().holder();
    accounts.of(&[holder]).unwrap()[0]
}

/// Waits: acknowledgements take their time, and so does the end of a connection.
fn becomes(accounts: &Accounts, probe: &Probe, expected: Traffic, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while of(accounts, probe) != expected {
        assert!(Instant::now() < deadline, "{what}: {:?} and not {expected:?}", of(accounts, probe));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A listener for each family, and the kind of socket that reaches it.
fn listeners() -> [(&'static str, TcpListener); 2] {
    run("ip", &["address", "add", ADDRESSES[0], "dev", "lo"]);
    // Else it cannot be bound for a moment.
    run("ip", &["address", "add", ADDRESSES[1], "dev", "lo", "nodad"]);
    let listen = |address: &str| TcpListener::bind((address, 0)).unwrap();
    [("tcp4", listen(ADDRESSES[0])), ("tcp6", listen(ADDRESSES[1]))]
}

fn connect(probe: &mut Probe, kind: &str, listener: &TcpListener) -> TcpStream {
    probe.open(kind);
    probe.connect(kind, &listener.local_addr().unwrap().to_string());
    listener.accept().unwrap().0
}

fn unaccounted(selector: &Selector) -> u64 {
    let events = selector.events().unwrap();
    events.into_iter().find(|(event, _)| *event == CountedEvent::Unaccounted).unwrap().1
}

type End = fn(&mut Probe, &str, TcpStream);

/// Every way a connection ends, after both sides have read what the other sent.
const ENDS: [(&str, End); 6] = [
    ("we close, they close later", |probe, kind, mut peer| {
        probe.stream(&format!("close {kind}"));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(20));
    }),
    ("they close, we read the end and close", |probe, kind, peer| {
        drop(peer);
        probe.stream(&format!("read-end {kind}"));
        probe.stream(&format!("close {kind}"));
    }),
    ("they close, we close without looking", |probe, kind, peer| {
        drop(peer);
        std::thread::sleep(Duration::from_millis(20));
        probe.stream(&format!("close {kind}"));
    }),
    ("we end our stream and read theirs to the end", |probe, kind, mut peer| {
        probe.stream(&format!("end {kind}"));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        drop(peer);
        probe.stream(&format!("read-end {kind}"));
        probe.stream(&format!("close {kind}"));
    }),
    ("they reset it", |probe, kind, peer| {
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        std::thread::sleep(Duration::from_millis(20));
        probe.stream(&format!("close {kind}"));
    }),
    ("both at once", |probe, kind, peer| {
        let closes = std::thread::spawn(move || drop(peer));
        probe.stream(&format!("close {kind}"));
        closes.join().unwrap();
    }),
];

#[test]
fn every_byte_is_counted_once_and_nothing_else_however_a_connection_ends() {
    Place::with(|place| {
        let selector = place.load();
        let accounts = selector.accounts();
        let listeners = listeners();
        let (mut mobile, mut ordinary) = (place.mobile(), Probe::start());
        let mut so_far = traffic(0, 0, 0);
        for (kind, listener) in &listeners {
            for (what, end) in ENDS {
                for (probe, counts) in [(&mut mobile, 1), (&mut ordinary, 0)] {
                    let mut peer = connect(probe, kind, listener);
                    probe.stream(&format!("write {kind} 70001"));
                    peer.read_exact(&mut [0; 70001]).unwrap();
                    peer.write_all(&[1; 123]).unwrap();
                    probe.stream(&format!("read {kind} 123"));
                    let Traffic { connections, bytes_sent, bytes_received } = so_far;
                    let all = traffic(
                        connections + counts,
                        bytes_sent + counts * 70001,
                        bytes_received + counts * 123,
                    );
                    if counts == 1 {
                        so_far = all;
                        becomes(&accounts, probe, all, &format!("{kind}: before {what}"));
                    }
                    end(probe, kind, peer);
                    if counts == 1 {
                        let deadline = Instant::now() + Duration::from_secs(5);
                        while accounts.any_open(probe.pid()) {
                            assert!(Instant::now() < deadline, "{kind}: {what}: it does not end");
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        assert_eq!(of(&accounts, probe), all, "{kind}: {what}");
                    }
                }
            }
        }
        assert_eq!(of(&accounts, &ordinary), Traffic::default());
        assert_eq!((accounts.count(), unaccounted(&selector)), (1, 0));
    });
}

#[test]
fn what_is_refused_is_no_connection_and_what_stays_on_this_machine_is_not_counted() {
    Place::with(|place| {
        let selector = place.load();
        let accounts = selector.accounts();
        let [(kind, listener), _] = listeners();
        let mut mobile = place.mobile();
        mobile.open(kind);
        let (address, nobody) = (listener.local_addr().unwrap(), "10.9.9.9:9");
        mobile.connect(kind, nobody);
        let local = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = connect(&mut mobile, kind, &local);
        mobile.stream(&format!("write {kind} 1000"));
        peer.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(of(&accounts, &mobile), Traffic::default());
        mobile.stream(&format!("close {kind}"));
        drop(peer);

        // A socket that was refused may be connected again; once it is ordinary, it does not count.
        for (again, counted) in [(true, 1), (false, 1)] {
            mobile.open(kind);
            mobile.connect(kind, nobody);
            if !again {
                place.cgroup.detach(mobile.pid()).unwrap();
            }
            mobile.connect(kind, &address.to_string());
            let (mut peer, _) = listener.accept().unwrap();
            mobile.stream(&format!("write {kind} 10"));
            peer.read_exact(&mut [0; 10]).unwrap();
            becomes(&accounts, &mobile, traffic(counted, 10 * counted, 0), "a second attempt");
            mobile.stream(&format!("close {kind}"));
            drop(peer);
            becomes(&accounts, &mobile, traffic(counted, 10 * counted, 0), "its end");
        }
    });
}

#[test]
fn the_next_agent_goes_on_counting_and_closes_the_accounts_of_the_dead() {
    Place::with(|place| {
        let first = place.load();
        let [(kind, listener), _] = listeners();
        let (mut mobile, mut child) = (place.mobile(), place.mobile());
        let peers = [&mut mobile, &mut child].map(|probe| {
            let mut peer = connect(probe, kind, &listener);
            probe.stream(&format!("write {kind} 500"));
            peer.read_exact(&mut [0; 500]).unwrap();
            peer
        });
        becomes(&first.accounts(), &mobile, traffic(1, 500, 0), "with the first agent");
        let both: Vec<_> = (0..3).map(|_| place.load()).collect();
        let accounts = both[2].accounts();
        becomes(&accounts, &mobile, traffic(1, 500, 0), "with the next agent, while it is open");
        drop(peers);
        for probe in [&mut mobile, &mut child] {
            probe.stream(&format!("read-end {kind}"));
            probe.stream(&format!("close {kind}"));
            becomes(&accounts, probe, traffic(1, 500, 0), "with the next agent, when it is over");
        }
        assert_eq!(accounts.count(), 2);
        let last = place.load().accounts();
        assert_eq!(of(&last, &mobile), traffic(1, 500, 0));

        last.sweep(&place.cgroup).unwrap();
        assert_eq!(last.count(), 2);
        child.kill();
        last.sweep(&place.cgroup).unwrap();
        assert_eq!(last.count(), 1);
        let peer = connect(&mut mobile, kind, &listener);
        place.cgroup.detach(mobile.pid()).unwrap();
        last.sweep(&place.cgroup).unwrap();
        assert_eq!(of(&last, &mobile), traffic(2, 500, 0), "a connection is still mobile");
        drop(peer);
        mobile.stream(&format!("close {kind}"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while last.any_open(mobile.pid()) {
            assert!(Instant::now() < deadline, "it does not end");
        }
        last.sweep(&place.cgroup).unwrap();
        assert_eq!(last.count(), 0);
    });
}

/// Such an account hid what the process with the same id carried, for as long as that was mobile.
#[test]
fn an_account_of_a_process_that_has_ended_is_closed_though_another_has_its_id() {
    Place::with(|place| {
        let accounts = place.load().accounts();
        let [(kind, listener), _] = listeners();
        let mut mobile = place.mobile();
        let end = |mobile: &mut Probe, peer| {
            mobile.stream(&format!("close {kind}"));
            drop::<TcpStream>(peer);
        };
        let peer = connect(&mut mobile, kind, &listener);
        end(&mut mobile, peer);
        becomes(&accounts, &mobile, traffic(1, 0, 0), "its own");
        accounts.make_another_s(mobile.pid());
        assert_eq!(of(&accounts, &mobile), traffic(0, 0, 0));
        accounts.sweep(&place.cgroup).unwrap();
        assert_eq!(accounts.count(), 0);
        let peer = connect(&mut mobile, kind, &listener);
        end(&mut mobile, peer);
        becomes(&accounts, &mobile, traffic(1, 0, 0), "a new one");
    });
}

#[test]
fn without_a_place_for_an_account_what_is_missing_is_counted() {
    Place::with(|place| {
        let selector = place.load();
        let accounts = selector.accounts();
        let [(kind, listener), _] = listeners();
        let mut mobile = place.mobile();
        let filled = accounts.fill();
        assert_eq!(filled.len(), mobile_ebpf_common::map::ACCOUNTS_ENTRIES as usize);
        let peer = connect(&mut mobile, kind, &listener);
        becomes(&accounts, &mobile, traffic(1, 0, 0), "while it is open");
        drop(peer);
        mobile.stream(&format!("close {kind}"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while unaccounted(&selector) == 0 {
            assert!(Instant::now() < deadline, "it is not counted as missing");
        }
        assert_eq!(unaccounted(&selector), 1);
        // The dead make room.
        accounts.sweep(&place.cgroup).unwrap();
        drop(connect(&mut mobile, kind, &listener));
        mobile.stream(&format!("close {kind}"));
        becomes(&accounts, &mobile, traffic(1, 0, 0), "with room again");
        assert_eq!(unaccounted(&selector), 1);
    });
}
