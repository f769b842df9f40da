use std::path::PathBuf;
use std::time::Duration;

use mobile_host::check::Level;
use mobile_netlink::{Family, ListedRule};
use mobile_transport::keys::PublicKey;

use super::super::facts::{Bpffs, Links, Occupied, Platform};
use super::super::reach::Reached;
use super::*;
use crate::config::Routing;
use crate::status::Refusal;
use crate::tunnel::cause::Failure;
use crate::uplinks::policy::{Decision, Obstacle, Uplink, UplinkVerdict};

const WORKS: Reached = Reached {
    address: std::net::SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)), 443),
    took: Duration::from_millis(40),
};

fn key(byte: u8) -> PublicKey {
    PublicKey::from_bytes([byte; 32])
}

fn uplink(name: &str) -> Uplink {
    Uplink {
        name: name.into(),
        up: true,
        carrier: true,
        addresses: vec!["10.22.0.2".parse().unwrap()],
        deprecated: Vec::new(),
        ipv4_route: Some(100),
        ipv6_route: None,
        gateways: Vec::new(),
        tunnel: false,
        mobile_reader: None,
    }
}

fn links() -> Links {
    Links {
        uplinks: vec![uplink("eth0"), uplink("wlan0")],
        decision: Decision { usable: vec!["eth0".into(), "wlan0".into()], verdicts: Vec::new() },
        rp_filter: vec![("eth0".into(), 2), ("wlan0".into(), 0)],
        rules: vec![rule(0, Some(255)), ours(), rule(32766, Some(254)), rule(32767, Some(253))],
        foreign_routes: Vec::new(),
        persistent: vec!["10.77.0.2".parse().unwrap()],
        refused: Vec::new(),
        local: vec![("eth0".into(), "10.22.0.2/24".parse().unwrap())],
    }
}

fn rule(priority: u32, table: Option<u32>) -> ListedRule {
    ListedRule {
        priority,
        family: Family::V4,
        table,
        fwmark: None,
        from: None,
        inverted: false,
        has_other_selectors: false,
        suppresses_default_route: false,
    }
}

fn ours() -> ListedRule {
    let Routing { table, mark, mark_mask, rule_priority, .. } = Routing::default();
    ListedRule { fwmark: Some((mark, mark_mask)), ..rule(rule_priority, Some(table)) }
}

/// Returns a routing rule such as wg-quick adds, which sends every packet without WireGuard's mark
/// into the VPN.
fn full_tunnel(priority: u32) -> ListedRule {
    ListedRule { fwmark: Some((0xca6c, u32::MAX)), inverted: true, ..rule(priority, Some(51820)) }
}

fn healthy() -> Facts {
    Facts {
        root: true,
        platform: Platform {
            kernel: "6.18.5-amd64".into(),
            ipv6: true,
            cgroup2: Ok(PathBuf::from("/sys/fs/cgroup")),
            bpffs: Bpffs::Mounted,
            programs: Some(Ok(())),
            tun: Some(Ok(())),
            nftables: Some(Ok(())),
            control: None,
            metrics: None,
            in_use: Some(Ok(Vec::new())),
        },
        config: ConfigFile::Read(PathBuf::from("/etc/mobile/agent.toml")),
        routing: Routing::default(),
        relay: Ok(RelayIdentity { endpoint: "relay.example.org:443".into(), public_key: key(1) }),
        key: Ok(Some(key(2))),
        agent: Ok(None),
        resolved: Some(Ok(vec![WORKS.address])),
        links: Ok(links()),
        reached: Some(vec![("eth0".into(), Ok(WORKS)), ("wlan0".into(), Ok(WORKS))]),
        open: None,
        resolvers: vec!["127.0.0.53".parse().unwrap()],
    }
}

fn refusal(kind: &str) -> Refusal {
    Refusal {
        kind: kind.into(),
        claim: "10.22.0.1".into(),
        reason: "next_hop".into(),
        cause: "10.22.0.1 is a router of this host's routes".into(),
        next_step: "have another one chosen".into(),
    }
}

#[test]
fn refused_parts_of_the_assignment_are_reported() {
    let facts = |kind: &str| with_links(|links| links.refused = vec![refusal(kind)]);
    assert_fault(&facts("address"), Level::Fail, "addresses", "10.22.0.1 is a router");
    assert_fault(&facts("resolver"), Level::Warn, "resolver", "10.22.0.1 is a router");
}

/// Returns the level, topic and text of each finding that is not `ok`.
fn faults(facts: &Facts) -> Vec<(Level, String, String)> {
    judge(facts)
        .into_iter()
        .filter(|finding| finding.level != Level::Ok)
        .map(|finding| {
            let next = finding.next_step.expect("a finding that is not ok has a next step");
            (finding.level, finding.topic, format!("{} / {next}", finding.seen))
        })
        .collect()
}

#[track_caller]
fn assert_fault(facts: &Facts, level: Level, topic: &str, part: &str) {
    let faults = faults(facts);
    let [(found_level, found_topic, text)] = &faults[..] else { panic!("not one: {faults:?}") };
    assert_eq!((*found_level, found_topic.as_str()), (level, topic), "{text}");
    assert!(text.contains(part), "no {part:?} in {text:?}");
}

fn with_platform(change: impl FnOnce(&mut Platform)) -> Facts {
    let mut facts = healthy();
    change(&mut facts.platform);
    facts
}

fn with_links(change: impl FnOnce(&mut Links)) -> Facts {
    let mut links = links();
    change(&mut links);
    Facts { links: Ok(links), ..healthy() }
}

#[test]
fn a_healthy_host_has_no_fault() {
    assert_eq!(faults(&healthy()), []);
    assert_eq!(faults(&with_platform(|platform| platform.ipv6 = false)), []);
}

#[test]
fn sockets_that_the_agent_cannot_have_are_reported() {
    let address = "127.0.0.1:9477".parse().unwrap();
    for (error, part) in [(None, "in use by another program"), (Some("no such address".into()), "no such")] {
        let occupied = Some(Occupied { address, error });
        assert_fault(&with_platform(|platform| platform.metrics = occupied), Level::Fail, "metrics", part);
    }
    let control = with_platform(|platform| platform.control = Some("no group named `x`".into()));
    assert_fault(&control, Level::Fail, "control", "no group");
}

#[test]
fn an_old_kernel_is_reported_with_the_oldest_that_works_and_the_reason() {
    let old = with_platform(|platform| platform.kernel = "5.10.0-30".into());
    assert_fault(&old, Level::Fail, "kernel", "5.15");
    assert_fault(&old, Level::Fail, "kernel", "SO_NETNS_COOKIE");
    assert_fault(
        &with_platform(|platform| platform.kernel = "unknown".into()),
        Level::Warn,
        "kernel",
        "5.15",
    );
    assert!(platform::kernel("6.1.0-50-cloud").seen.contains("6.15"));
    assert!(!platform::kernel("6.18.5").seen.contains("6.15"));
    assert_eq!(platform::kernel("5.14-rc1").level, Level::Ok);
}

#[test]
fn an_ordinary_user_is_told_what_was_not_checked() {
    for config in [healthy().config, ConfigFile::NotAllowed("/etc/mobile/agent.toml".into())] {
        let hidden = matches!(config, ConfigFile::NotAllowed(_));
        let Facts { platform, .. } = healthy();
        let platform = Platform { programs: None, tun: None, nftables: None, ..platform };
        let agent = Err(FactError::denied(&"join the group `netdev`"));
        let (key, reached) = (Ok(None), None);
        let findings = judge(&Facts { root: false, config, platform, key, reached, agent, ..healthy() });
        let skipped: Vec<&str> = findings
            .iter()
            .filter(|finding| finding.level == Level::Skipped)
            .map(|finding| finding.topic.as_str())
            .collect();
        let expected = ["config", "key", "eBPF", "TUN", "ingress", "relay", "on_failure", "agent"];
        let readable = |topic: &&str| hidden || !["config", "on_failure"].contains(topic);
        assert_eq!(skipped, expected.into_iter().filter(readable).collect::<Vec<_>>());
        assert!(findings.iter().all(|finding| finding.level < Level::Warn), "{findings:?}");
    }
}

#[test]
fn a_missing_prerequisite_fails_with_a_next_step() {
    fn error<T>() -> Result<T, FactError> {
        Err("no such thing".into())
    }
    for (facts, topic) in [
        (Facts { key: error(), ..healthy() }, "key"),
        (with_platform(|platform| platform.cgroup2 = error()), "cgroup2"),
        (with_platform(|platform| platform.programs = Some(error())), "eBPF"),
        (with_platform(|platform| platform.tun = Some(error())), "TUN"),
        (Facts { links: error(), ..healthy() }, "netlink"),
        (Facts { relay: error(), resolved: None, reached: None, ..healthy() }, "config"),
    ] {
        assert_fault(&facts, Level::Fail, topic, "no such thing");
    }
    let facts = Facts { resolved: Some(error()), reached: None, ..healthy() };
    assert_fault(&facts, Level::Fail, "relay name", "relay.example.org");
    assert_fault(
        &with_platform(|platform| platform.bpffs = Bpffs::Missing),
        Level::Fail,
        "bpffs",
        "CONFIG_BPF",
    );
    assert_fault(
        &with_platform(|platform| platform.bpffs = Bpffs::Elsewhere),
        Level::Fail,
        "bpffs",
        "pin_dir",
    );
    assert_eq!(faults(&with_platform(|platform| platform.bpffs = Bpffs::Mountable)), []);
}

#[test]
fn without_cgroup2_the_programs_are_not_checked() {
    let facts = with_platform(|platform| {
        (platform.cgroup2, platform.programs) = (Err("no cgroup2".into()), None);
    });
    let faults = faults(&facts);
    let [(Level::Fail, cgroup2, _), (Level::Warn, programs, text)] = &faults[..] else {
        panic!("not two: {faults:?}")
    };
    assert_eq!((cgroup2.as_str(), programs.as_str()), ("cgroup2", "eBPF"));
    assert!(text.starts_with("not checked, because cgroup2 is not mounted"), "{text}");
}

#[test]
fn a_missing_ingress_filter_is_a_warning_with_a_next_step() {
    let missing = with_platform(|platform| platform.nftables = Some(Err("nft is not installed".into())));
    let findings = judge(&missing);
    let found = findings.iter().find(|finding| finding.topic == "ingress").unwrap();
    assert_eq!(found.level, Level::Warn);
    assert!(found.seen.contains("nft is not installed"), "{found:?}");
    assert!(found.next_step.as_ref().is_some_and(|next| next.starts_with("install nftables")), "{found:?}");
}

#[test]
fn an_invalid_configuration_is_reported_once() {
    let facts = |config| Facts {
        config,
        relay: Err("the configuration cannot be read".into()),
        key: Err("no key".into()),
        resolved: None,
        reached: None,
        ..healthy()
    };
    let error = "agent.toml:3: unknown key".to_owned();
    assert_fault(&facts(ConfigFile::Invalid(error)), Level::Fail, "config", "agent.toml:3");
    let part = "this host is not enrolled / run `mobile enroll INVITATION`";
    assert_fault(&facts(ConfigFile::NotEnrolled), Level::Fail, "config", part);
}

#[test]
fn a_conflicting_rule_is_reported_with_the_priority_that_helps() {
    let facts = with_links(|links| links.rules.insert(1, full_tunnel(4899)));
    assert_fault(&facts, Level::Fail, "rules", "`4899: not from all fwmark 0xca6c lookup 51820`");
    assert_fault(&facts, Level::Fail, "rules", "rule_priority below 4899");
    let facts = with_links(|links| {
        links.rules.insert(1, ListedRule { suppresses_default_route: true, ..rule(7, Some(254)) });
    });
    assert_fault(&facts, Level::Warn, "rules", "directly");
    // A rule behind the agent's takes no packets of mobile processes.
    assert_eq!(faults(&with_links(|links| links.rules.push(full_tunnel(5000)))), []);
}

#[test]
fn a_mark_that_another_program_uses_is_reported() {
    let mark = Routing::default().mark;
    let shared = ListedRule { fwmark: Some((mark, u32::MAX)), ..rule(20000, Some(9)) };
    assert_fault(&with_links(|links| links.rules.push(shared)), Level::Warn, "mark", "20000");
}

#[test]
fn a_table_that_another_program_uses_is_reported() {
    let route = ("10.0.0.0/8".parse().unwrap(), "wg0".to_owned());
    assert_fault(&with_links(|links| links.foreign_routes.push(route)), Level::Fail, "table", "wg0");
    let facts = with_links(|links| links.rules.push(rule(20000, Some(7700))));
    assert_fault(&facts, Level::Fail, "table", "20000");
}

#[test]
fn a_network_that_contains_a_persistent_address_is_reported() {
    let local = |net: &str| {
        let net = net.parse().unwrap();
        with_links(|links| links.local.push(("wlan0".into(), net)))
    };
    assert_fault(&local("10.77.0.9/16"), Level::Warn, "addresses", "10.77.0.9/16 on wlan0");
    assert_fault(&local("10.77.0.2/24"), Level::Fail, "addresses", "wlan0 has");
}

#[test]
fn strict_reverse_path_filters_are_reported_with_several_uplinks_only() {
    let strict = || vec![("eth0".into(), 1), ("wlan0".into(), 1)];
    let facts = with_links(|links| links.rp_filter = strict());
    assert_fault(&facts, Level::Warn, "rp_filter", "eth0, wlan0");
    assert_eq!(faults(&with_links(|links| links.rp_filter = strict().split_off(1))), []);
}

#[test]
fn without_a_usable_uplink_the_reason_of_each_is_reported() {
    let mut facts = with_links(|links| {
        links.decision.usable.clear();
        let verdict = UplinkVerdict { name: "eth0".into(), obstacle: Some(Obstacle::NoCarrier) };
        links.decision.verdicts.push(verdict);
    });
    facts.reached = Some(Vec::new());
    assert_fault(&facts, Level::Fail, "uplinks", "eth0: no carrier");
}

#[test]
fn one_uplink_that_reaches_the_relay_suffices_unless_the_key_is_refused() {
    let blocked = || Failure::unreachable("no answer");
    let reached = |outcomes: [Outcome; 2]| {
        let [eth, wlan] = outcomes;
        Facts { reached: Some(vec![("eth0".into(), eth), ("wlan0".into(), wlan)]), ..healthy() }
    };
    assert_fault(&reached([Ok(WORKS), Err(blocked())]), Level::Warn, "relay over wlan0", "no answer");
    let both = faults(&reached([Err(blocked()), Err(blocked())]));
    assert_eq!(both.iter().filter(|(level, ..)| *level == Level::Fail).count(), 2, "{both:?}");
    let refused = Failure::tls(&mobile_transport::tls::HandshakeFailure::Refused, &key(2));
    assert_fault(&reached([Ok(WORKS), Err(refused)]), Level::Fail, "relay over wlan0", "authorize");
}

#[test]
fn the_consequence_of_failures_depends_on_what_failed() {
    let fail = |topic: &str| Finding::fail(topic, "seen", "next");
    let idle = Finding::ok("agent", "not running");
    let unreached = [fail("relay over eth0"), fail("relay name"), idle.clone()];
    assert!(consequence(&unreached).starts_with("there is no session"));
    assert!(consequence(&[fail("relay over eth0"), fail("TUN"), idle]).contains("may not work"));
    let connected = Finding::ok("agent", format!("{CONNECTED} eth0"));
    assert!(consequence(&[fail("relay over wlan0"), connected]).starts_with("the agent is connected"));
}

#[test]
fn a_resolver_of_the_visited_network_is_a_warning() {
    let resolvers = vec!["127.0.0.53".parse().unwrap(), "192.168.1.1".parse().unwrap()];
    let facts = Facts { resolvers, ..healthy() };
    assert_fault(&facts, Level::Warn, "resolver", "192.168.1.1");
    assert_fault(&facts, Level::Warn, "resolver", "systemctl reload home-relay");
}
