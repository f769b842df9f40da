use super::*;
use globset::Glob;
use proptest::prelude::*;

const BOTH: Families = Families { ipv4: true, ipv6: true };

fn uplink(name: &str, metric: u32) -> Uplink {
    Uplink {
        name: name.into(),
        up: true,
        carrier: true,
        addresses: vec!["192.0.2.7".parse().unwrap()],
        deprecated: Vec::new(),
        ipv4_route: Some(metric),
        ipv6_route: None,
        gateways: Vec::new(),
        tunnel: false,
        mobile_reader: None,
    }
}

fn globs(patterns: &[&str]) -> Vec<GlobMatcher> {
    patterns.iter().map(|pattern| Glob::new(pattern).unwrap().compile_matcher()).collect()
}

fn preferences(failing: &BTreeSet<String>) -> UplinkPreferences<'_> {
    UplinkPreferences { forced: None, prefer: &[], exclude: &[], families: BOTH, current: None, failing }
}

#[test]
fn another_network_is_distinguished_from_a_change_of_this_one() {
    let before = uplink("wlan0", 600);
    let address = |text: &str| text.parse::<IpAddr>().unwrap();
    let more = vec![before.addresses[0], address("2001:db8::7")];
    for (now, elsewhere) in [
        (before.clone(), false),
        (Uplink { ipv4_route: Some(10), ..before.clone() }, false),
        (Uplink { addresses: more, ..before.clone() }, false),
        (Uplink { gateways: vec![address("192.0.2.1")], ..before.clone() }, true),
        (Uplink { addresses: vec![address("192.0.2.8")], ..before.clone() }, true),
        (Uplink { addresses: Vec::new(), ..before.clone() }, true),
        (Uplink { carrier: false, ..before.clone() }, true),
        (Uplink { ipv6_route: Some(1), ..before.clone() }, true),
    ] {
        assert_eq!(now.is_different_network(&before), elsewhere, "{now:?}");
        assert_eq!(before.is_different_network(&now), elsewhere, "{now:?}");
    }
}

#[test]
fn the_lower_metric_wins_and_the_name_breaks_a_tie() {
    let none = BTreeSet::new();
    let links = [uplink("wlan0", 600), uplink("eth0", 100), uplink("eth1", 100)];
    assert_eq!(decide(&links, &preferences(&none)).usable, ["eth0", "eth1", "wlan0"]);
}

#[test]
fn preference_beats_metric_and_force_beats_both() {
    let none = BTreeSet::new();
    let links = [uplink("eth0", 100), uplink("wlan0", 600), uplink("wwan0", 700)];
    let prefer = globs(&["wl*"]);
    let mut preferences = preferences(&none);
    preferences.prefer = &prefer;
    assert_eq!(decide(&links, &preferences).usable, ["wlan0", "eth0", "wwan0"]);
    preferences.forced = Some("wwan0");
    assert_eq!(decide(&links, &preferences).usable, ["wwan0", "wlan0", "eth0"]);
}

#[test]
fn a_failing_uplink_ranks_last_and_the_current_one_wins_a_tie() {
    let failing = BTreeSet::from(["eth0".to_owned()]);
    let links = [uplink("eth0", 100), uplink("wlan0", 600), uplink("wlan1", 600)];
    let mut preferences = preferences(&failing);
    preferences.current = Some("wlan1");
    assert_eq!(decide(&links, &preferences).usable, ["wlan1", "wlan0", "eth0"]);
}

#[test]
fn every_obstacle_is_reported() {
    let none = BTreeSet::new();
    let exclude = globs(&["docker*"]);
    let mut preferences = preferences(&none);
    preferences.exclude = &exclude;
    preferences.families = Families { ipv4: true, ipv6: false };
    let links = [
        uplink("docker0", 1),
        Uplink { up: false, ..uplink("a", 1) },
        Uplink { carrier: false, ..uplink("b", 1) },
        Uplink { addresses: vec!["2001:db8::1".parse().unwrap()], ..uplink("c", 1) },
        Uplink { ipv4_route: None, ipv6_route: Some(1), ..uplink("d", 1) },
        uplink("e", 1),
    ];
    let decision = decide(&links, &preferences);
    let obstacles: Vec<_> = decision.verdicts.iter().map(|verdict| verdict.obstacle).collect();
    assert_eq!(
        obstacles,
        [
            Some(Obstacle::Excluded),
            Some(Obstacle::Down),
            Some(Obstacle::NoCarrier),
            Some(Obstacle::NoAddress),
            Some(Obstacle::NoRoute),
            None
        ]
    );
    assert_eq!(decision.usable, ["e"]);
}

#[test]
fn a_tunnel_is_usable_only_if_preferred_and_never_if_it_loops() {
    let none = BTreeSet::new();
    let vpn = Uplink { tunnel: true, ..uplink("tun0", 50) };
    let links = [uplink("eth0", 100), vpn];
    let mut preferences = preferences(&none);
    preferences.forced = Some("tun0");
    let decision = decide(&links, &preferences);
    assert_eq!(decision.usable, ["eth0"]);
    assert_eq!(decision.verdicts[1].obstacle, Some(Obstacle::Tunnel));
    let prefer = globs(&["tun*"]);
    preferences.prefer = &prefer;
    assert_eq!(decide(&links, &preferences).usable, ["tun0", "eth0"]);
    for looping in [
        Uplink { mobile_reader: Some("openvpn (7)".into()), ..links[1].clone() },
        Uplink { mobile_reader: Some("openvpn (7)".into()), ..uplink("tap0", 50) },
    ] {
        let decision = decide(&[looping], &preferences);
        assert_eq!(decision.verdicts[0].obstacle, Some(Obstacle::Loop));
        assert!(decision.usable.is_empty());
    }
}

#[test]
fn a_metric_counts_only_in_a_family_that_reaches_the_relay() {
    let none = BTreeSet::new();
    let mut preferences = preferences(&none);
    preferences.families = Families { ipv4: true, ipv6: false };
    let links = [Uplink { ipv6_route: Some(1), ..uplink("eth0", 500) }, uplink("wlan0", 400)];
    assert_eq!(decide(&links, &preferences).usable, ["wlan0", "eth0"]);
}

fn any_uplink() -> impl Strategy<Value = Uplink> {
    (
        "[a-e][0-2]",
        any::<(bool, bool)>(),
        proptest::collection::vec(any::<IpAddr>(), 0..3),
        proptest::option::of(0u32..4),
        proptest::option::of(0u32..4),
    )
        .prop_map(|(name, (up, carrier), addresses, ipv4_route, ipv6_route)| Uplink {
            name,
            up,
            carrier,
            addresses,
            deprecated: Vec::new(),
            ipv4_route,
            ipv6_route,
            gateways: Vec::new(),
            tunnel: false,
            mobile_reader: None,
        })
}

proptest! {
    #[test]
    fn exactly_the_usable_uplinks_are_ranked(
        links in proptest::collection::btree_map("[a-e][0-2]", any_uplink(), 0..6),
        families in any::<(bool, bool)>(),
        forced in proptest::option::of("[a-e][0-2]"),
        failing in proptest::collection::btree_set("[a-e][0-2]", 0..3),
    ) {
        let links: Vec<Uplink> = links.into_iter().map(|(name, link)| Uplink { name, ..link }).collect();
        let exclude = globs(&["e*"]);
        let mut preferences = preferences(&failing);
        preferences.exclude = &exclude;
        preferences.forced = forced.as_deref();
        preferences.families = Families { ipv4: families.0, ipv6: families.1 };
        let decision = decide(&links, &preferences);
        prop_assert_eq!(decision.verdicts.len(), links.len());
        for (link, verdict) in links.iter().zip(&decision.verdicts) {
            let serves = reachable_families(link, preferences.families);
            let usable = link.up && link.carrier && !link.name.starts_with('e') && (serves.ipv4 || serves.ipv6);
            prop_assert_eq!(verdict.obstacle.is_none(), usable);
            prop_assert_eq!(decision.usable.contains(&link.name), usable);
        }
        if let Some(first) = decision.usable.first() {
            if let Some(forced) = &forced && decision.usable.contains(forced) && !failing.contains(forced) {
                prop_assert_eq!(first, forced);
            }
            if failing.contains(first) {
                prop_assert!(decision.usable.iter().all(|name| failing.contains(name)));
            }
        }
    }

    #[test]
    fn the_choice_does_not_depend_on_the_order_of_the_links(
        links in proptest::collection::btree_map("[a-e][0-2]", any_uplink(), 0..6),
    ) {
        let none = BTreeSet::new();
        let mut links: Vec<Uplink> = links.into_iter().map(|(name, link)| Uplink { name, ..link }).collect();
        let forward = decide(&links, &preferences(&none)).usable;
        links.reverse();
        prop_assert_eq!(forward, decide(&links, &preferences(&none)).usable);
    }
}
