//! Tests of the traffic accounts on the running kernel: every byte counts once, however a
//! connection ends.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use mobile_ebpf_common::CountedEvent;

use super::super::{
    account::Accounts,
    bpf::Selector,
    process,
    sandbox::{Probe, Sandbox, run},
};
use crate::protocol::Traffic;

/// Addresses of this host outside 127.0.0.0/8 and ::1, so that connections to them look as if they
/// could leave by the tunnel.
const ADDRESSES: [&str; 2] = ["10.9.9.9", "fd99::9"];

fn traffic(connections: u64, bytes_sent: u64, bytes_received: u64) -> Traffic {
    Traffic { connections, bytes_sent, bytes_received }
}

fn traffic_of(accounts: &Accounts, probe: &Probe) -> Traffic {
    let identity = process::read(probe.pid()).unwrap().identity();
    accounts.of(&[identity]).unwrap()[0]
}

/// Waits until the traffic account of the probe has the value `expected`, because acknowledgements
/// and the end of a connection take a while.
fn wait_for(accounts: &Accounts, probe: &Probe, expected: Traffic, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while traffic_of(accounts, probe) != expected {
        assert!(Instant::now() < deadline, "{what}: {:?} and not {expected:?}", traffic_of(accounts, probe));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Returns a listener for each address family, with the kind of socket that can connect to it.
fn listeners() -> [(&'static str, TcpListener); 2] {
    run("ip", &["address", "add", ADDRESSES[0], "dev", "lo"]);
    // Without `nodad`, the address cannot be bound for a moment.
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

/// All the ways a connection may end, after both sides have read what the other sent.
const ENDS: [(&str, End); 6] = [
    ("this side closes first", |probe, kind, mut peer| {
        probe.stream(&format!("close {kind}"));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        std::thread::sleep(Duration::from_millis(20));
    }),
    ("the peer closes, this side reads the end and closes", |probe, kind, peer| {
        drop(peer);
        probe.stream(&format!("read-end {kind}"));
        probe.stream(&format!("close {kind}"));
    }),
    ("the peer closes, this side closes without reading", |probe, kind, peer| {
        drop(peer);
        std::thread::sleep(Duration::from_millis(20));
        probe.stream(&format!("close {kind}"));
    }),
    ("this side shuts down and reads the peer's stream to the end", |probe, kind, mut peer| {
        probe.stream(&format!("end {kind}"));
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        drop(peer);
        probe.stream(&format!("read-end {kind}"));
        probe.stream(&format!("close {kind}"));
    }),
    ("the peer resets", |probe, kind, peer| {
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        std::thread::sleep(Duration::from_millis(20));
        probe.stream(&format!("close {kind}"));
    }),
    ("both sides close at once", |probe, kind, peer| {
        let closes = std::thread::spawn(move || drop(peer));
        probe.stream(&format!("close {kind}"));
        closes.join().unwrap();
    }),
];

#[test]
fn every_byte_is_counted_once_however_a_connection_ends() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        let accounts = selector.accounts();
        let listeners = listeners();
        let (mut mobile, mut ordinary) = (sandbox.mobile(), Probe::start());
        let mut expected = traffic(0, 0, 0);
        for (kind, listener) in &listeners {
            for (what, end) in ENDS {
                for (probe, counts) in [(&mut mobile, 1), (&mut ordinary, 0)] {
                    let mut peer = connect(probe, kind, listener);
                    probe.stream(&format!("write {kind} 70001"));
                    peer.read_exact(&mut [0; 70001]).unwrap();
                    peer.write_all(&[1; 123]).unwrap();
                    probe.stream(&format!("read {kind} 123"));
                    let Traffic { connections, bytes_sent, bytes_received } = expected;
                    let all = traffic(
                        connections + counts,
                        bytes_sent + counts * 70001,
                        bytes_received + counts * 123,
                    );
                    if counts == 1 {
                        expected = all;
                        wait_for(&accounts, probe, all, &format!("{kind}: before {what}"));
                    }
                    end(probe, kind, peer);
                    if counts == 1 {
                        let deadline = Instant::now() + Duration::from_secs(5);
                        while accounts.any_open(probe.pid()) {
                            assert!(Instant::now() < deadline, "{kind}: {what}: the connection does not end");
                            std::thread::sleep(Duration::from_millis(5));
                        }
                        assert_eq!(traffic_of(&accounts, probe), all, "{kind}: {what}");
                    }
                }
            }
        }
        assert_eq!(traffic_of(&accounts, &ordinary), Traffic::default());
        assert_eq!((accounts.count(), unaccounted(&selector)), (1, 0));
    });
}

#[test]
fn refused_and_local_connections_are_not_counted() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        let accounts = selector.accounts();
        let [(kind, listener), _] = listeners();
        let mut mobile = sandbox.mobile();
        mobile.open(kind);
        let (address, unused) = (listener.local_addr().unwrap(), "10.9.9.9:9");
        mobile.connect(kind, unused);
        let local = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = connect(&mut mobile, kind, &local);
        mobile.stream(&format!("write {kind} 1000"));
        peer.read_exact(&mut [0; 1000]).unwrap();
        assert_eq!(traffic_of(&accounts, &mobile), Traffic::default());
        mobile.stream(&format!("close {kind}"));
        drop(peer);

        // A refused socket may connect again; it does not count if its process is ordinary by then.
        for (again, counted) in [(true, 1), (false, 1)] {
            mobile.open(kind);
            mobile.connect(kind, unused);
            if !again {
                sandbox.cgroup.detach(mobile.pid()).unwrap();
            }
            mobile.connect(kind, &address.to_string());
            let (mut peer, _) = listener.accept().unwrap();
            mobile.stream(&format!("write {kind} 10"));
            peer.read_exact(&mut [0; 10]).unwrap();
            wait_for(&accounts, &mobile, traffic(counted, 10 * counted, 0), "a second attempt");
            mobile.stream(&format!("close {kind}"));
            drop(peer);
            wait_for(&accounts, &mobile, traffic(counted, 10 * counted, 0), "after its end");
        }
    });
}

#[test]
fn the_next_agent_continues_the_accounts_and_removes_those_of_ended_processes() {
    Sandbox::with(|sandbox| {
        let first = sandbox.load();
        let [(kind, listener), _] = listeners();
        let (mut mobile, mut child) = (sandbox.mobile(), sandbox.mobile());
        let peers = [&mut mobile, &mut child].map(|probe| {
            let mut peer = connect(probe, kind, &listener);
            probe.stream(&format!("write {kind} 500"));
            peer.read_exact(&mut [0; 500]).unwrap();
            peer
        });
        wait_for(&first.accounts(), &mobile, traffic(1, 500, 0), "with the first agent");
        let both: Vec<_> = (0..3).map(|_| sandbox.load()).collect();
        let accounts = both[2].accounts();
        wait_for(&accounts, &mobile, traffic(1, 500, 0), "with the next agent, while it is open");
        drop(peers);
        for probe in [&mut mobile, &mut child] {
            probe.stream(&format!("read-end {kind}"));
            probe.stream(&format!("close {kind}"));
            wait_for(&accounts, probe, traffic(1, 500, 0), "with the next agent, after the connection's end");
        }
        assert_eq!(accounts.count(), 2);
        let last = sandbox.load().accounts();
        assert_eq!(traffic_of(&last, &mobile), traffic(1, 500, 0));

        last.sweep(&sandbox.cgroup).unwrap();
        assert_eq!(last.count(), 2);
        child.kill();
        last.sweep(&sandbox.cgroup).unwrap();
        assert_eq!(last.count(), 1);
        let peer = connect(&mut mobile, kind, &listener);
        sandbox.cgroup.detach(mobile.pid()).unwrap();
        last.sweep(&sandbox.cgroup).unwrap();
        assert_eq!(traffic_of(&last, &mobile), traffic(2, 500, 0), "a connection is still mobile");
        drop(peer);
        mobile.stream(&format!("close {kind}"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while last.any_open(mobile.pid()) {
            assert!(Instant::now() < deadline, "the connection does not end");
        }
        last.sweep(&sandbox.cgroup).unwrap();
        assert_eq!(last.count(), 0);
    });
}

/// Tests that the account of an ended process does not hide the traffic of a new one with its ID.
#[test]
fn the_account_of_an_ended_process_is_removed_although_another_has_its_id() {
    Sandbox::with(|sandbox| {
        let accounts = sandbox.load().accounts();
        let [(kind, listener), _] = listeners();
        let mut mobile = sandbox.mobile();
        let end = |mobile: &mut Probe, peer| {
            mobile.stream(&format!("close {kind}"));
            drop::<TcpStream>(peer);
        };
        let peer = connect(&mut mobile, kind, &listener);
        end(&mut mobile, peer);
        wait_for(&accounts, &mobile, traffic(1, 0, 0), "its own account");
        accounts.backdate(mobile.pid());
        assert_eq!(traffic_of(&accounts, &mobile), traffic(0, 0, 0));
        accounts.sweep(&sandbox.cgroup).unwrap();
        assert_eq!(accounts.count(), 0);
        let peer = connect(&mut mobile, kind, &listener);
        end(&mut mobile, peer);
        wait_for(&accounts, &mobile, traffic(1, 0, 0), "a new account");
    });
}

#[test]
fn a_connection_without_room_for_its_account_is_counted_as_missing() {
    Sandbox::with(|sandbox| {
        let selector = sandbox.load();
        let accounts = selector.accounts();
        let [(kind, listener), _] = listeners();
        let mut mobile = sandbox.mobile();
        let filled = accounts.fill();
        assert_eq!(filled.len(), mobile_ebpf_common::map::ACCOUNTS_ENTRIES as usize);
        let peer = connect(&mut mobile, kind, &listener);
        wait_for(&accounts, &mobile, traffic(1, 0, 0), "while it is open");
        drop(peer);
        mobile.stream(&format!("close {kind}"));
        let deadline = Instant::now() + Duration::from_secs(5);
        while unaccounted(&selector) == 0 {
            assert!(Instant::now() < deadline, "the connection is not counted as missing");
        }
        assert_eq!(unaccounted(&selector), 1);
        // Removing accounts of ended processes makes room.
        accounts.sweep(&sandbox.cgroup).unwrap();
        drop(connect(&mut mobile, kind, &listener));
        mobile.stream(&format!("close {kind}"));
        wait_for(&accounts, &mobile, traffic(1, 0, 0), "with room again");
        assert_eq!(unaccounted(&selector), 1);
    });
}
