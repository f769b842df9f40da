use super::*;
use crate::config::Tracking;

fn ruleset() -> Ruleset {
    Ruleset {
        device: "home0".into(),
        pools: vec!["10.77.0.0/24".parse().unwrap(), "fd12::/64".parse().unwrap()],
        own: vec!["10.77.0.1".parse().unwrap(), "fd12::1".parse().unwrap()],
        nat: nat(),
        isolate: true,
        open: Vec::new(),
        destinations: destinations(),
        limits: ConnectionLimits { connections: 100, rate: 10 },
        port: ListenPort { address: "[::]:443".parse().unwrap(), track: Tracking::Auto },
        transit: Transit::Auto,
        host: HostState::default(),
    }
}

fn nat() -> Nat {
    Nat {
        masqueraded: vec!["10.77.0.0/24".parse().unwrap(), "fd12::/64".parse().unwrap()],
        interface: None,
        redirects: Vec::new(),
    }
}

fn destinations() -> Destinations {
    Destinations { reach: Reach::All, reach_of: Vec::new(), resolvers: Vec::new() }
}

fn assert_has(text: &str, rule: &str) {
    assert!(text.contains(&format!("        {rule}\n")), "no {rule} in {text}");
}

#[test]
fn clients_are_isolated_by_default_and_the_mss_is_always_clamped() {
    let clamp = "tcp flags & (syn | rst) == syn tcp option maxseg size set rt mtu";
    for (isolate, drops) in [(true, 1), (false, 0)] {
        let text = Ruleset { isolate, ..ruleset() }.text();
        assert_eq!(text.matches("iifname \"home0\" oifname \"home0\" drop").count(), drops);
        assert_has(&text, &format!("iifname \"home0\" {clamp}"));
        assert_has(&text, &format!("oifname \"home0\" {clamp}"));
    }
}

#[test]
fn transit_is_dropped_in_the_family_whose_forwarding_the_relay_turned_on() {
    let six = HostState { enabled_forwarding: [false, true], ..HostState::default() };
    for (transit, host, expected) in [
        (Transit::Auto, HostState::default(), [false, false]),
        (Transit::Auto, six, [false, true]),
        (Transit::Accept, six, [false, false]),
        (Transit::Drop, six, [true, true]),
    ] {
        let text = Ruleset { transit, host, ..ruleset() }.text();
        let drops = ["ipv4", "ipv6"]
            .map(|family| text.contains(&format!("meta nfproto {family} iifgroup != 7700 oifgroup != 7700")));
        assert_eq!(drops, expected, "{text}");
    }
}

#[test]
fn the_port_is_tracked_where_another_firewall_filters_this_host() {
    let firewall = HostState { has_firewall: true, ..HostState::default() };
    for (track, host, expected) in [
        (Tracking::Auto, HostState::default(), true),
        (Tracking::Auto, firewall, false),
        (Tracking::Off, firewall, true),
        (Tracking::On, HostState::default(), false),
    ] {
        let text = Ruleset { port: ListenPort { track, ..ruleset().port }, host, ..ruleset() }.text();
        assert_eq!(text.contains("notrack"), expected, "{text}");
    }
    let port = ListenPort { address: "192.0.2.1:8443".parse().unwrap(), track: Tracking::Auto };
    let text = Ruleset { port, ..ruleset() }.text();
    assert_has(&text, "iifname != \"home0\" ip daddr 192.0.2.1 fib daddr type local tcp dport 8443 notrack");
    assert_has(&text, "oifname != \"home0\" ip saddr 192.0.2.1 tcp sport 8443 notrack");
}

#[test]
fn clients_with_the_same_reach_share_a_chain() {
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let (all, internet): (Reach, Reach) = ("all".parse().unwrap(), "internet".parse().unwrap());
    let lan: Reach = "internet,192.168.1.0/24".parse().unwrap();
    let reach_of = vec![
        (address("10.77.0.2"), all.clone()),
        (address("fd12::2"), all),
        (address("10.77.0.3"), lan),
        (address("10.77.0.4"), internet.clone()),
    ];
    let destinations = Destinations { reach: internet, reach_of, resolvers: vec![address("192.168.9.9")] };
    let rules = Ruleset { destinations, ..ruleset() };
    let text = rules.text();
    assert!(rules.is_required());
    assert_has(&text, "ip saddr { 10.77.0.2 } goto reach1");
    assert_has(&text, "ip6 saddr { fd12::2 } goto reach1");
    assert_has(&text, "ip saddr { 10.77.0.3 } goto reach2");
    assert_has(&text, "ip daddr { 192.168.1.0/24 } goto limits");
    assert_has(&text, "ip daddr 192.168.9.9 meta l4proto { tcp, udp } th dport 53 goto limits");
    assert_has(&text, "ip daddr 10.77.0.1 icmp type echo-request goto limits");
    assert!(text.contains("goto reach0") && !text.contains("10.77.0.4"), "{text}");
    let none = Destinations { reach: "none".parse().unwrap(), ..self::destinations() };
    let none = Ruleset { destinations: none, ..ruleset() }.text();
    assert_has(&none, "counter name \"reach\" drop");
}

#[test]
fn disabled_limits_have_no_rules() {
    let text = Ruleset { limits: ConnectionLimits { connections: 0, rate: 0 }, ..ruleset() }.text();
    assert!(!text.contains("ct count") && !text.contains("limit rate"), "{text}");
    let text = ruleset().text();
    assert_has(&text, "add @connections6 { ip6 saddr ct count over 100 } counter name \"connections\" drop");
    assert_has(
        &text,
        "update @rate4 { ip saddr limit rate over 10/second burst 100 packets } counter name \"connection_rate\" drop",
    );
}

#[test]
fn set_elements_added_by_packets_do_not_count_as_a_change_of_the_table() {
    let empty =
        "table inet t {\n\tset rate4 {\n\t\tsize 9\n\t}\n\n\tset fixed {\n\t\telements = { 1 }\n\t}\n}\n";
    let filled = "table inet t {\n\tset rate4 {\n\t\tsize 9\n\t\telements = { 1.2.3.4 limit rate over 1/second,\n\t\t\t\
                  5.6.7.8 limit rate over 1/second }\n\t}\n\n\tset fixed {\n\t\telements = { 1 }\n\t}\n}\n";
    assert_eq!(without_elements(filled), empty);
    assert_eq!(without_elements(empty), empty);
}

#[test]
fn the_kernel_accepts_every_kind_of_rule() {
    let destinations = Destinations {
        reach: "internet,10.1.0.0/16,fd77::/32".parse().unwrap(),
        reach_of: vec![
            ("10.77.0.2".parse().unwrap(), Reach::All),
            ("fd12::9".parse().unwrap(), "none".parse().unwrap()),
        ],
        resolvers: vec!["10.77.0.1".parse().unwrap(), "fd12::1".parse().unwrap()],
    };
    let rules = Ruleset {
        destinations,
        open: vec!["fd12::/64".parse().unwrap()],
        host: HostState { enabled_forwarding: [true, true], ..HostState::default() },
        ..ruleset()
    };
    // Checking a ruleset takes root; the end-to-end cases run as root.
    if let Err(error) = rules.check_rules() {
        let error = format!("{error:#}");
        assert!(error.contains("ermitted") || error.contains("not installed"), "{error}\n{}", rules.text());
    }
}

#[test]
fn both_families_are_masqueraded_on_all_interfaces_but_the_device() {
    let text = ruleset().text();
    assert_has(&text, "ip saddr 10.77.0.0/24 oifname != \"home0\" masquerade");
    assert_has(&text, "ip6 saddr fd12::/64 oifname != \"home0\" masquerade");
}

#[test]
fn only_the_configured_interface_is_masqueraded() {
    let text = Ruleset { nat: Nat { interface: Some("eth0".into()), ..nat() }, ..ruleset() }.text();
    assert_has(&text, "ip saddr 10.77.0.0/24 oifname \"eth0\" masquerade");
    assert!(!text.contains("oifname != \"home0\" masquerade"), "{text}");
}

#[test]
fn a_port_is_forwarded_to_a_client_in_both_families() {
    let redirects = vec![
        PortRedirect { protocol: "tcp", port: 2222, to: "10.77.0.2:22".parse().unwrap() },
        PortRedirect { protocol: "udp", port: 53, to: "[fd12::2]:5353".parse().unwrap() },
    ];
    let text = Ruleset { nat: Nat { redirects, masqueraded: Vec::new(), ..nat() }, ..ruleset() };
    assert!(text.is_required());
    let text = text.text();
    assert_has(
        &text,
        "iifname != \"home0\" meta nfproto ipv4 fib daddr type local tcp dport 2222 dnat ip to 10.77.0.2:22",
    );
    assert_has(
        &text,
        "iifname != \"home0\" meta nfproto ipv6 fib daddr type local udp dport 53 dnat ip6 to [fd12::2]:5353",
    );
    assert!(!text.contains("masquerade"), "{text}");
}

#[test]
fn each_device_name_has_its_own_table() {
    assert_eq!(table("home0"), "home_relay");
    assert_eq!(table("vpn-2.1"), "home_relay_vpn-2.1");
    assert_eq!(table("a+b"), "home_relay_a/2bb");
    let text = Ruleset { device: "vpn1".into(), ..ruleset() }.text();
    assert!(text.starts_with("table inet home_relay_vpn1\ndelete table inet home_relay_vpn1\n"), "{text}");
}

#[test]
fn the_table_is_replaced_in_one_transaction() {
    let text = ruleset().text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines[..3],
        ["table inet home_relay", "delete table inet home_relay", "table inet home_relay {"]
    );
    assert_eq!(text.matches('{').count(), text.matches('}').count());
}
