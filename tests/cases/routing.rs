//! The MOBILE route on a host where other programs change rules, routes and links too.

use std::net::IpAddr;

use mobile_tests::{PATIENCE, Testbed, addr, finish_within, port, until};

use crate::{Outcome, ip_of, server, urls};

#[test]
fn flushed_rules_and_routes_are_restored() -> Outcome {
    let mut bed = Testbed::new()?;
    let host = bed.lab.host.clone();
    let state = || -> anyhow::Result<String> {
        let mut all = String::new();
        for family in ["-4", "-6"] {
            all += &host.run(&["ip", family, "rule"])?;
            all += &host.run(&["ip", family, "route", "show", "table", "7700"])?;
        }
        Ok(all)
    };
    let [server, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &server])?;
    talk.next_line()?;
    let before = state()?;
    assert!(before.contains("unreachable default") && before.contains("lookup 7700"), "{before}");
    for family in ["-4", "-6"] {
        host.run(&["ip", family, "route", "flush", "table", "7700"])?;
        host.run(&["ip", family, "rule", "del", "pref", "4900"])?;
        host.run(&["ip", family, "rule", "del", "pref", "4901"])?;
        until("the rules and routes to be back", || state().is_ok_and(|now| now == before)).map_err(
            |error| error.context(format!("now:\n{}before:\n{before}", state().unwrap_or_default())),
        )?;
    }
    assert_eq!(talk.request("still here")?, "still here");
    bed.expect_warning("put back");
    bed.finish()
}

#[test]
fn in_a_network_without_ipv6_mobile_processes_have_it_and_ordinary_ones_are_refused_at_once() -> Outcome {
    let bed = Testbed::new()?;
    let host = &bed.lab.host;
    let [_, six] = urls("/ip");
    let fetch = ["curl", "-s", "-m", "10", &six];
    let mobile = || -> anyhow::Result<IpAddr> {
        Ok(ip_of(&finish_within(&mut bed.agent.run(&fetch), None, PATIENCE)?.ok()?))
    };
    let reply_rule = || host.run(&["ip", "-6", "rule", "show", "pref", "4901"]);
    let [_, echo] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &echo])?;
    talk.next_line()?;
    assert!(reply_rule()?.contains(&bed.agent.address6.to_string()));
    let tunnel = bed.lab.capture(host, "mobile0", "ip6 and tcp")?;

    for uplink in [bed.lab.eth(), bed.lab.wlan()] {
        uplink.remove_family(mobile_tests::Family::Six)?;
    }
    until("the rule for replies to go", || reply_rule().is_ok_and(|rule| rule.is_empty()))?;
    let before = tunnel.packets().len();
    let refused = finish_within(host.command("curl").args(&fetch[1..]), None, PATIENCE)?;
    // curl's "could not connect", not its timeout.
    assert_eq!(refused.code(), 7, "{refused:?}");
    assert_eq!(tunnel.packets().len(), before, "an ordinary process is in the tunnel");
    assert_eq!(mobile()?, IpAddr::V6(addr::RELAY6));
    until("the capture to see the mobile process", || tunnel.packets().len() > before)?;
    assert_eq!(talk.request("still here")?, "still here");

    for uplink in [bed.lab.eth(), bed.lab.wlan()] {
        uplink.bring_up()?;
    }
    until("the rule for replies to be back", || {
        reply_rule().is_ok_and(|rule| rule.contains(&bed.agent.address6.to_string()))
    })?;
    let ordinary = host.run(&fetch)?;
    assert!(ip_of(&ordinary) != IpAddr::V6(addr::RELAY6), "{ordinary}");
    assert_eq!(mobile()?, IpAddr::V6(addr::RELAY6));
    tunnel.stop()?;
    // Nothing may have been restored, since nothing was removed.
    bed.finish()
}

#[test]
fn bypassed_destinations_are_reached_directly() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    bed.agent.configure("routing", "bypass", vec![format!("{}/32", addr::SERVER4)])?;
    bed.start()?;
    let [four, six] = urls("/ip");
    let ask = |url: &str| -> anyhow::Result<IpAddr> {
        Ok(ip_of(&finish_within(&mut bed.agent.run(&["curl", "-s", url]), None, PATIENCE)?.ok()?))
    };
    assert_eq!(ask(&four)?, IpAddr::V4(bed.lab.eth().name.nat_address()));
    assert_eq!(ask(&six)?, IpAddr::V6(addr::RELAY6));
    bed.finish()
}

#[test]
fn the_bypass_can_be_changed_while_the_agent_runs() -> Outcome {
    let bed = Testbed::new()?;
    let direct = [IpAddr::V4(bed.lab.eth().name.nat_address()), IpAddr::V6(bed.lab.eth().address6())];
    let relay = [IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)];
    let nets = [format!("{}/32", addr::SERVER4), format!("{}/128", addr::SERVER6)];
    let seen = |url: &str| -> anyhow::Result<IpAddr> {
        Ok(ip_of(&finish_within(&mut bed.agent.run(&["curl", "-s", url]), None, PATIENCE)?.ok()?))
    };
    let bypass = |args: &[&str]| bed.agent.cli(&[&["bypass"], args].concat());
    for (family, url) in urls("/ip").iter().enumerate() {
        for _ in 0..2 {
            assert_eq!(seen(url)?, relay[family]);
            bypass(&["add", &nets[family]])?.ok()?;
            assert_eq!(seen(url)?, direct[family]);
            bypass(&["del", &nets[family]])?.ok()?;
        }
        assert_eq!(seen(url)?, relay[family]);
    }
    let refused = bypass(&["add", "192.168.7.9/16"])?;
    assert!(refused.code() == 2 && refused.stderr.contains("write \"192.168.0.0/16\""), "{refused:?}");
    for _ in 0..2 {
        bypass(&["add", "192.168.0.0/16"])?.ok()?;
    }
    assert_eq!(bypass(&["list"])?.ok()?, "192.168.0.0/16\n");
    assert_eq!(
        bypass(&["list", "--json"])?.ok()?.split_whitespace().collect::<String>(),
        "[\"192.168.0.0/16\"]"
    );
    assert_eq!(bypass(&["del", "10.0.0.0/8"])?.code(), 1);
    // The bypass stays after rules and routes are restored.
    bed.lab.host.run(&["ip", "-4", "route", "flush", "table", "7700"])?;
    let table = || bed.lab.host.run(&["ip", "-4", "route", "show", "table", "7700"]);
    until("the bypass to be back", || table().is_ok_and(|table| table.contains("throw 192.168.0.0/16")))?;
    let mut bed = bed;
    bed.expect_warning("put back");
    bed.finish()
}

#[test]
fn loopback_stays_loopback_for_mobile_processes() -> Outcome {
    let bed = Testbed::new()?;
    let _local = mobile_tests::TcpService::start(&bed.lab.host, 8080, |stream, peer| {
        use std::io::Write;
        let _ = writeln!(&stream, "{peer}");
    })?;
    for address in ["127.0.0.1:8080", "[::1]:8080"] {
        let mut talk = bed.mobile_labtool(&["tcp", address])?;
        talk.next_line()?;
        assert!(ip_of(&talk.next_line()?).is_loopback());
    }
    bed.finish()
}

#[test]
fn the_preferred_uplink_carries_the_tunnel_whatever_the_default_route_says() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    bed.agent.configure("uplink", "prefer", vec!["wl*".to_owned()])?;
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_active(bed.lab.wlan().name)?;
    assert_eq!(bed.relay.active_peer()?.ip().to_canonical(), IpAddr::V4(bed.lab.wlan().name.nat_address()));
    bed.lab.wlan().cut()?;
    bed.agent.wait_active(bed.lab.eth().name)?;
    bed.lab.wlan().bring_up()?;
    bed.agent.wait_active(bed.lab.wlan().name)?;
    bed.expect_quick_replug();
    bed.finish()
}

#[test]
fn the_tunnels_device_takes_no_part_in_multicast() -> Outcome {
    let mut bed = Testbed::new()?;
    let host = bed.lab.host.clone();
    let flags = || host.run(&["ip", "-o", "link", "show", "dev", "mobile0"]);
    assert!(!flags()?.contains("MULTICAST"), "{}", flags()?);
    host.run(&["ip", "link", "set", "dev", "mobile0", "multicast", "on"])?;
    until("the flag to be cleared again", || flags().is_ok_and(|flags| !flags.contains("MULTICAST")))?;
    bed.expect_warning("put back");
    bed.finish()
}
