//! A relay with many clients: authorised from a file, with open sessions, during a flood of
//! unauthorised attempts.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use mobile_tests::crowd::{Attack, Crowd, Sources};
use mobile_tests::{Lab, LabOptions, Relay, until};

use crate::Outcome;

const CLIENTS: u32 = 200;

#[test]
fn two_hundred_clients_keep_their_sessions_and_receive_during_a_flood() -> Outcome {
    let lab = Lab::with(&LabOptions::default())?;
    let mut relay = Relay::install(&lab)?;
    let crowd = Crowd::start(&lab, &relay)?;
    // Some are authorised before the relay runs, all of them while it runs; existing clients stay
    // unchanged.
    crowd.authorize(&relay, &lab, 50)?;
    relay.start()?;
    crowd.authorize(&relay, &lab, CLIENTS)?;
    let pid = relay.pid().expect("it runs");
    let before = resident(pid)?;
    let members = crowd.open(0..CLIENTS, 16)?;
    let each = (resident(pid)? - before) / u64::from(CLIENTS);
    println!("the relay without sessions: {before} KiB; each of {CLIENTS}: {each} KiB");
    assert_eq!(relay.sessions()?.len(), CLIENTS as usize);

    for (attack, result) in [(Attack::Garbage, "tls"), (Attack::UnknownKey, "unauthorized")] {
        let series = format!("homerelay_handshakes_total{{result=\"{result}\"}}");
        let before = relay.counter(&series)?;
        let flood = crowd.flood(attack, Sources::Many, 100);
        until("the strangers to be refused", || {
            relay.counter(&series).is_ok_and(|refused| refused >= before + 20)
        })?;
        let (took, failed) = crowd.latencies(0..5, Duration::ZERO)?;
        assert_eq!((took.len(), failed), (5, 0), "a known client gets through at once");
        assert!(flood.attempts() >= 20);
    }

    // The sessions of clients 0 to 4 were replaced; each other client still receives at its
    // address.
    let others = &members[..];
    lab.relay.enter(|| -> Outcome {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        for member in others {
            let to = member.config.ipv4.expect("the pool has IPv4");
            socket.send_to(b"hello", SocketAddr::from((to, 9)))?;
        }
        Ok(())
    })?;
    until("every packet to arrive", || {
        others.iter().filter(|member| member.received() > 0).count() >= CLIENTS as usize - 5
    })?;
    drop(members);
    relay.stop()?;
    relay.cli(&["cleanup"])?.ok()?;
    let log = relay.log();
    let loud: Vec<&str> =
        log.lines().filter(|line| line.contains("WARN ") || line.contains("ERROR ")).collect();
    assert!(loud.is_empty(), "{loud:?}");
    lab.passed();
    Ok(())
}

/// Returns the resident memory of a process in KiB.
fn resident(pid: i32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("Linux tells it");
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
