//! Changes by other programs to rules, routes, links, marks and settings of the host: full tunnels,
//! firewalls, administrators.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use mobile_tests::{LabOptions, LineProcess, PATIENCE, Testbed, addr, finish_within, port, until};

use crate::leaks::{assert_no_leak, captures};
use crate::{Outcome, ip_of, server, urls};

const RESTORED: &str = "mobile_routing_restored_total";

/// Checks that a new connection of a mobile process reaches the server with the relay's address as
/// its source.
fn mobile_is_seen_as_the_relay(bed: &Testbed) -> Outcome {
    for (url, relay) in urls("/ip").iter().zip([IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)]) {
        let done = finish_within(&mut bed.agent.run(&["curl", "-s", "-m", "10", url]), None, PATIENCE)?;
        assert_eq!(ip_of(&done.ok()?), relay);
    }
    Ok(())
}

/// Returns the kernel's rules, routes, addresses and device settings that make up the MOBILE route,
/// as text without counters, so that two states can be compared.
fn state(bed: &Testbed) -> anyhow::Result<String> {
    let host = &bed.lab.host;
    let mut all = String::new();
    for family in ["-4", "-6"] {
        all += &host.run(&["ip", family, "rule"])?;
        all += &host.run(&["ip", family, "route", "show", "table", "7700"])?;
        all += &host.run(&["ip", "-br", family, "addr", "show", "dev", "mobile0"])?;
    }
    for setting in ["rp_filter", "src_valid_mark"] {
        all += &host.run(&["cat", &format!("/proc/sys/net/ipv4/conf/mobile0/{setting}")])?;
    }
    Ok(all)
}

#[test]
fn changes_to_the_device_are_undone_and_counted() -> Outcome {
    let mut bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let before = state(&bed)?;
    let (four, six) = (format!("{}/32", bed.agent.address4), format!("{}/128", bed.agent.address6));
    for harm in [
        &["ip", "-4", "addr", "del", &four, "dev", "mobile0"][..],
        &["ip", "-6", "addr", "del", &six, "dev", "mobile0"],
        &["ip", "link", "set", "mobile0", "down"],
        // A changed setting is noticed with the next netlink notification.
        &["sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/mobile0/rp_filter; ip link set eth0 alias seen"],
        &["sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/mobile0/src_valid_mark; ip link set eth0 alias too"],
    ] {
        let restored = bed.agent.counter(RESTORED)?;
        bed.lab.host.run(harm)?;
        until(&format!("{harm:?} to be undone"), || {
            bed.agent.counter(RESTORED).is_ok_and(|now| now > restored)
                && state(&bed).is_ok_and(|now| now == before)
        })
        .map_err(|error| {
            error.context(format!("now:\n{}before:\n{before}", state(&bed).unwrap_or_default()))
        })?;
        assert_eq!(talk.request("still here")?, "still here");
    }
    assert_no_leak(&bed, captures)?;
    bed.expect_warning("put back");
    bed.finish()
}

#[test]
fn without_its_device_the_agent_ends_with_the_reason_and_the_next_agent_adopts_all() -> Outcome {
    let mut bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let mut shell = LineProcess::start(&mut bed.agent.run(&["sh"]))?;
    assert_eq!(shell.request("echo mobile")?, "mobile");
    bed.lab.host.run(&["ip", "link", "del", "mobile0"])?;
    until("the agent to end", || bed.agent.log().contains("the host virtual device is gone"))?;
    assert_eq!(shell.request(&format!("curl -s -m 1 {} || echo none", urls("/ip")[0]))?, "none");
    // systemd would start it again because of `Restart=always`.
    let _it_has_ended = bed.agent.kill();
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    assert_eq!(talk.request("still here")?, "still here");
    mobile_is_seen_as_the_relay(&bed)?;
    assert_no_leak(&bed, captures)?;
    bed.expect_warning("mobile0");
    bed.expect_warning("put back");
    bed.expect_warning("virtual device");
    bed.finish()
}

#[test]
fn a_firewall_with_marks_of_its_own_and_ours_leave_each_other_alone() -> Outcome {
    let bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let host = &bed.lab.host;
    // The firewall routes by one low bit of the mark, which it sets on packets to the server and
    // saves in the connection's mark.
    host.ip(&[
        "rule add fwmark 0x40/0x40 priority 6000 table 600",
        "route add unreachable default table 600",
    ])?;
    host.feed(
        &["nft", "-f", "-"],
        "table inet theirs {\n chain output {\n  type route hook output priority mangle\n  \
         ip daddr 192.0.2.0/24 meta mark set meta mark | 0x40\n  \
         ip6 daddr 2001:db8:52::/64 meta mark set meta mark | 0x40\n  ct mark set meta mark & 0x40\n }\n}\n",
    )?;
    let ordinary =
        || finish_within(host.command("curl").args(["-s", "-m", "1", &urls("/ip")[0]]), None, PATIENCE);
    assert!(!ordinary()?.status.success(), "their rule is not in force");
    mobile_is_seen_as_the_relay(&bed)?;
    // A rule that overwrites the whole mark removes the agent's bits: the rule for the persistent
    // address and the egress program remain.
    host.feed(
        &["nft", "-f", "-"],
        "delete table inet theirs\ntable inet theirs {\n chain output {\n  type route hook output priority mangle\n  \
         ip daddr 192.0.2.0/24 meta mark set 0x40\n }\n}\n",
    )?;
    mobile_is_seen_as_the_relay(&bed)?;
    host.run(&["nft", "delete", "table", "inet", "theirs"])?;
    host.ip(&["rule del priority 6000", "route flush table 600"])?;
    assert_no_leak(&bed, captures)?;
    assert!(ordinary()?.status.success());
    bed.finish()
}

#[test]
fn two_programs_that_both_insist_on_the_first_rule_do_not_fight_for_ever() -> Outcome {
    let mut bed = Testbed::new()?;
    // The new rule comes before all others.
    let push = || bed.lab.host.run(&["ip", "-4", "rule", "add", "not", "fwmark", "0xca6c", "table", "51820"]);
    for round in 1..=8 {
        push()?;
        bed.agent.wait_status("our rules to go first", |status| {
            status["rules_moved"] == round && status["rival_rules"] == 0
        })?;
    }
    mobile_is_seen_as_the_relay(&bed)?;
    push()?;
    bed.agent.wait_status("the end of patience", |status| status["rival_rules"] == 1)?;
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(bed.agent.counter("mobile_rules_moved_total")?, 8);
    assert_eq!(bed.agent.counter("mobile_rival_rules")?, 1);
    let said = bed.agent.cli(&["status"])?.ok()?;
    assert!(said.contains("rules      1 rules of other programs take"), "{said}");
    let said = bed.agent.cli(&["check"])?.stdout;
    assert!(said.contains("FAIL  rules: "), "{said}");
    bed.expect_warning("not from all fwmark 0xca6c lookup 51820");
    bed.finish()
}

/// Prepares a WireGuard full tunnel to a peer that does not answer, because only the routes matter.
/// Returns a function that runs `wg-quick` with a verb (`up`, `down`).
fn wg_quick(bed: &Testbed) -> anyhow::Result<impl Fn(&str) -> Outcome + use<>> {
    let host = bed.lab.host.clone();
    let keys = [host.run(&["wg", "genkey"])?, host.run(&["wg", "genkey"])?];
    let mut pubkey = host.command("wg");
    let public = finish_within(pubkey.arg("pubkey"), Some(keys[1].as_bytes()), PATIENCE)?.ok()?;
    // All namespaces share the directory in which wireguard-go makes a socket of this name.
    let device = format!("q{}", bed.lab.name().trim_start_matches("mobile-lab-"));
    let file = bed.lab.dir().join(format!("{device}.conf"));
    fs::write(
        &file,
        format!(
            "[Interface]\nPrivateKey = {}\nAddress = 10.99.0.2/32, fd99::2/128\n[Peer]\nPublicKey = {}\n\
             AllowedIPs = 0.0.0.0/0, ::/0\nEndpoint = {}:51820\n",
            keys[0].trim(),
            public.trim(),
            addr::RELAY4
        ),
    )?;
    Ok(move |verb: &str| {
        let mut command = host.command("wg-quick");
        command
            .args([verb, &file.display().to_string()])
            .env("WG_QUICK_USERSPACE_IMPLEMENTATION", "wireguard-go");
        finish_within(&mut command, None, PATIENCE)?.ok().map(drop)
    })
}

#[test]
fn wg_quick_started_after_the_agent_takes_everything_but_what_is_mobile() -> Outcome {
    let mut bed = Testbed::new()?;
    let wg_quick = wg_quick(&bed)?;
    let [echo, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    let before = state(&bed)?;
    wg_quick("up")?;
    bed.agent.wait_status("our rules to go first", |status| {
        status["rules_moved"].as_u64().is_some_and(|moved| moved > 0) && status["rival_rules"] == 0
    })?;
    assert_eq!(talk.request("still here")?, "still here");
    mobile_is_seen_as_the_relay(&bed)?;
    let mut plain = bed.lab.host.command("curl");
    let plain = finish_within(plain.args(["-s", "-m", "1", &urls("/ip")[0]]), None, PATIENCE)?;
    assert!(!plain.status.success(), "an ordinary process is not in the full tunnel: {plain:?}");
    // A handover while wg-quick is active.
    bed.lab.eth().remove_route()?;
    bed.agent.wait_active(bed.lab.wlan().name)?;
    mobile_is_seen_as_the_relay(&bed)?;
    wg_quick("down")?;
    until("our rules to be back in their place", || state(&bed).is_ok_and(|now| now == before))?;
    assert_eq!(talk.request("still here")?, "still here");
    bed.expect_warning("our rules go before it");
    bed.finish()
}

#[test]
fn wg_quick_started_before_the_agent_takes_everything_but_what_is_mobile() -> Outcome {
    let mut bed = Testbed::installed(&LabOptions::default())?;
    let wg_quick = wg_quick(&bed)?;
    wg_quick("up")?;
    bed.start()?;
    mobile_is_seen_as_the_relay(&bed)?;
    wg_quick("down")?;
    mobile_is_seen_as_the_relay(&bed)?;
    bed.expect_warning("our rules go before it");
    bed.finish()
}

#[test]
fn a_program_with_a_mark_of_its_own_neither_leaves_the_tunnel_nor_gets_into_it() -> Outcome {
    let bed = Testbed::new()?;
    let captures = captures(&bed)?;
    let tunnel = bed.lab.capture(&bed.lab.host, "mobile0", "icmp or icmp6")?;
    let ping = |mark: u32, target: IpAddr| {
        ["ping", "-n", "-c1", "-W5", "-m", &mark.to_string(), &target.to_string()].map(str::to_owned)
    };
    let targets = [IpAddr::from(addr::SERVER4), addr::SERVER6.into()];
    for target in targets {
        let argv = ping(77, target);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        finish_within(&mut bed.agent.run(&argv), None, PATIENCE)?.ok()?;
    }
    assert_no_leak(&bed, captures)?;
    until("each ping and its answer", || tunnel.packets().len() >= 4)?;
    for target in targets {
        let argv = ping(bed.lab.mark("laptop"), target);
        bed.lab.host.run(&argv.iter().map(String::as_str).collect::<Vec<_>>())?;
    }
    let packets = tunnel.stop()?;
    assert_eq!(packets.len(), 4, "an ordinary process is in the tunnel:\n{}", packets.join("\n"));
    bed.finish()
}
