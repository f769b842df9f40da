//! Several clients of one relay; also a relay reached over IPv6, restarts of both programs, and
//! one-way datagrams.

use std::net::IpAddr;

use mobile_tests::{
    Agent, LabOptions, LineProcess, PATIENCE, RELAY_PORT, Testbed, UplinkName, addr, finish_within, port,
    until,
};

use crate::{Outcome, ip_of, server, urls};

#[test]
fn two_clients_have_addresses_of_their_own_and_do_not_disturb_each_other() -> Outcome {
    let bed = Testbed::new()?;
    // The other client is on the router of eth0's visited network.
    let elsewhere = bed.lab.visited[1].clone();
    let mut other = Agent::install_in(&bed.lab, &elsewhere, "desktop", &bed.relay)?;
    other.start()?;
    other.wait_connected()?;
    assert_ne!(other.address4, bed.agent.address4);
    assert_ne!(other.address6, bed.agent.address6);
    assert_eq!(bed.relay.sessions()?.len(), 2);

    let tool = mobile_tests::program("labtool")?.display().to_string();
    let [four, six] = server(port::ECHO);
    let mut talks = Vec::new();
    for server in [&four, &six] {
        talks.push((bed.mobile_labtool(&["tcp", server])?, "laptop"));
        talks.push((LineProcess::start(&mut other.run(&[&tool, "tcp", server]))?, "desktop"));
    }
    for (talk, name) in &mut talks {
        let greeting = talk.next_line()?;
        let local = ip_of(greeting.split(' ').nth(1).expect("connected LOCAL PEER"));
        let agent = if *name == "laptop" { &bed.agent } else { &other };
        assert!([IpAddr::V4(agent.address4), IpAddr::V6(agent.address6)].contains(&local), "{name}: {local}");
    }
    // A handover and a kill of one client do not affect the other.
    bed.lab.eth().remove_route()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    other.kill()?;
    for (talk, name) in &mut talks {
        talk.send_line(name)?;
    }
    for (talk, name) in talks.iter_mut().filter(|(_, name)| *name == "laptop") {
        assert_eq!(talk.next_line()?, *name);
    }
    other.start()?;
    for (talk, name) in talks.iter_mut().filter(|(_, name)| *name == "desktop") {
        assert_eq!(talk.next_line()?, *name);
    }
    drop(talks);
    other.stop()?;
    other.cli(&["cleanup"])?.ok()?;
    bed.finish()
}

#[test]
fn clients_of_one_relay_do_not_reach_each_other() -> Outcome {
    let bed = Testbed::new()?;
    let elsewhere = bed.lab.visited[1].clone();
    let mut other = Agent::install_in(&bed.lab, &elsewhere, "desktop", &bed.relay)?;
    other.start()?;
    other.wait_connected()?;
    for address in [bed.agent.address4.to_string(), bed.agent.address6.to_string()] {
        let mut ping = other.run(&["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", &address]);
        assert_eq!(finish_within(&mut ping, None, PATIENCE)?.code(), 1, "{address} answers");
        // The relay itself reaches the laptop, so the laptop was not unreachable.
        bed.lab.relay.run(&["ping", "-n", "-c", "1", "-W", "5", &address])?;
    }
    other.stop()?;
    other.cli(&["cleanup"])?.ok()?;
    bed.finish()
}

#[test]
fn an_ordinary_server_on_the_host_answers_at_the_persistent_address_over_a_handover() -> Outcome {
    let mut bed = Testbed::new()?;
    // The server's answers match the second rule, which is for the source address.
    let _echo = mobile_tests::TcpService::echo(&bed.lab.host, port::ECHO)?;
    let tool = mobile_tests::program("labtool")?;
    for address in [format!("{}:7", bed.agent.address4), format!("[{}]:7", bed.agent.address6)] {
        let mut talk = LineProcess::start(bed.lab.relay.command(&tool).args(["tcp", &address]))?;
        assert!(talk.next_line()?.starts_with("connected "));
        assert_eq!(talk.request("before")?, "before");
        bed.lab.eth().cut()?;
        bed.agent.wait_active(UplinkName::Wlan)?;
        assert_eq!(talk.request("after")?, "after");
        bed.lab.eth().bring_up()?;
        bed.agent.wait_active(UplinkName::Eth)?;
    }
    bed.expect_quick_replug();
    bed.finish()
}

#[test]
fn a_relay_reached_over_ipv6_carries_both_families() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    bed.agent.configure("relay", "endpoint", format!("[{}]:{RELAY_PORT}", addr::RELAY6))?;
    bed.start()?;
    for (url, relay) in urls("/ip").iter().zip([IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)]) {
        let seen = finish_within(&mut bed.agent.run(&["curl", "-s", url]), None, PATIENCE)?.ok()?;
        assert_eq!(ip_of(&seen), relay);
    }
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    bed.lab.eth().cut()?;
    bed.lab.eth().give_up_address()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    assert_eq!(talk.request("after")?, "after");
    assert_eq!(bed.relay.active_peer()?.ip(), IpAddr::V6(bed.lab.wlan().address6()));
    bed.finish()
}

#[test]
fn a_client_keeps_its_addresses_over_restarts_of_both() -> Outcome {
    let mut bed = Testbed::new()?;
    let addresses = bed.agent.status()?["addresses"].clone();
    bed.agent.stop()?;
    bed.agent.cli(&["cleanup"])?.ok()?;
    bed.relay.stop()?;
    bed.relay.cli(&["cleanup"])?.ok()?;
    // A client that is authorised in between gets other addresses.
    let newcomer =
        bed.agent.cli(&["keygen", "--out", &bed.lab.dir().join("new.key").display().to_string()])?.ok()?;
    let others = bed.relay.authorize("newcomer", newcomer.trim())?;
    bed.start()?;
    until("the same addresses", || bed.agent.status().is_ok_and(|status| status["addresses"] == addresses))?;
    assert!(
        !others.contains(&IpAddr::V4(bed.agent.address4))
            && !others.contains(&IpAddr::V6(bed.agent.address6))
    );
    bed.finish()
}

#[test]
fn a_stream_of_datagrams_that_nobody_answers_is_one_connection() -> Outcome {
    // More than a client's connection limit in that time: 200 a second and 2,000 at once.
    const DATAGRAMS: u32 = 4000;
    let bed = Testbed::new()?;
    let receive = format!(
        "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\ns.bind(('{0}', 4700))\n\
         s.settimeout(5)\nprint('ready', flush=True)\ngot = 0\ntry:\n  while got < {DATAGRAMS}:\n    \
         s.recv(16); got += 1\nexcept TimeoutError: pass\nprint(got, flush=True)\n",
        addr::SERVER4
    );
    let mut receiver = LineProcess::start(bed.lab.server.command("python3").args(["-c", &receive]))?;
    assert_eq!(receiver.next_line()?, "ready");
    let send = format!(
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         for _ in range({DATAGRAMS}): s.sendto(b'x', ('{0}', 4700)); time.sleep(0.001)\n",
        addr::SERVER4
    );
    finish_within(&mut bed.agent.run(&["python3", "-c", &send]), None, PATIENCE)?.ok()?;
    let got: u32 = receiver.next_line_within(PATIENCE)?.parse()?;
    assert!(got > DATAGRAMS * 19 / 20, "{got} of {DATAGRAMS} arrived");
    bed.finish()
}
