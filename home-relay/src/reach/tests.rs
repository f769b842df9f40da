use super::*;

fn reach(text: &str) -> Reach {
    text.parse().unwrap()
}

fn allows(reach: &Reach, address: &str) -> bool {
    reach.ranges().is_none_or(|ranges| ranges.contains(address.parse().unwrap()))
}

#[test]
fn the_internet_excludes_private_networks_and_metadata_services() {
    let internet = reach("internet");
    for address in [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "168.63.129.15",
        "168.63.129.17",
        "172.32.0.1",
        "192.0.2.1",
        "198.51.100.7",
        "203.0.113.9",
        "223.255.255.255",
        "2001:db8::1",
        "2606:4700::1111",
        "64:ff9b::1.1.1.1",
    ] {
        assert!(allows(&internet, address), "{address}");
    }
    for address in [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "100.100.100.200",
        "127.0.0.1",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.192",
        "192.168.255.255",
        "198.19.0.1",
        "224.0.0.251",
        "255.255.255.255",
        "::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2002:c0a8:101::1",
        "64:ff9b::192.168.1.1",
        "64:ff9b:1::1",
        "::ffff:10.0.0.1",
    ] {
        assert!(!allows(&internet, address), "{address}");
    }
}

#[test]
fn listed_networks_are_reached_with_and_without_the_internet() {
    let lan = reach("192.168.1.0/24, fd12::/16, 192.168.2.0/24,192.168.7.7");
    assert!(allows(&lan, "192.168.1.255") && allows(&lan, "192.168.2.1") && allows(&lan, "fd12:9::1"));
    assert!(allows(&lan, "192.168.7.7"));
    assert!(!allows(&lan, "192.168.3.1") && !allows(&lan, "1.1.1.1") && !allows(&lan, "fd13::1"));
    let both = reach("10.0.0.0/8,internet");
    assert!(allows(&both, "10.9.9.9") && allows(&both, "1.1.1.1") && !allows(&both, "192.168.1.1"));
    assert!(allows(&reach("all"), "169.254.169.254") && !allows(&reach("none"), "1.1.1.1"));
}

#[test]
fn removing_an_address_splits_the_range_that_contains_it() {
    let mut ranges = reach("10.0.0.0/30,10.0.1.1").ranges().unwrap();
    for address in ["10.0.0.0", "10.0.0.2", "10.0.1.1", "10.9.9.9", "fd00::1"] {
        ranges.remove(IpNet::from(address.parse::<IpAddr>().unwrap()));
    }
    let left: Vec<String> = ranges.ipv4().map(|(from, to)| format!("{from}-{to}")).collect();
    assert_eq!(left, ["10.0.0.1-10.0.0.1", "10.0.0.3-10.0.0.3"]);
    let mut all = reach("0.0.0.0/0,::/0").ranges().unwrap();
    for address in ["0.0.0.0", "255.255.255.255", "::"] {
        all.remove(IpNet::from(address.parse::<IpAddr>().unwrap()));
        assert!(!all.contains(address.parse().unwrap()), "{address}");
    }
}

#[test]
fn a_reach_has_one_canonical_text_and_errors_explain_the_format() {
    for (text, canonical) in [
        ("all", "all"),
        (" none ", "none"),
        ("10.0.0.0/8,internet,10.0.0.0/8", "internet,10.0.0.0/8"),
        ("fd00::/8", "fd00::/8"),
        ("192.168.1.9", "192.168.1.9/32"),
    ] {
        assert_eq!(reach(text).to_string(), canonical);
        let json = serde_json::to_string(&reach(text)).unwrap();
        assert_eq!(serde_json::from_str::<Reach>(&json).unwrap(), reach(text));
    }
    assert_eq!(
        serde_json::from_str::<Reach>("[\"internet\", \"10.0.0.0/8\"]").unwrap(),
        reach("internet,10.0.0.0/8")
    );
    assert_eq!(serde_json::from_str::<Reach>("[]").unwrap(), reach("none"));
    for bad in ["", "internet,all", "lan", "10.0.0.0/33", "10.0.0.0/8;drop"] {
        let error = bad.parse::<Reach>().unwrap_err().to_string();
        assert!(error.contains("192.168.1.0/24") || error.contains("from 0 to 32"), "{bad}: {error}");
    }
}

#[test]
fn ranges_are_sorted_and_do_not_touch() {
    let ranges = reach("internet,9.0.0.0/8,192.0.2.0/24,2001:db8::/32").ranges().unwrap();
    assert!(ranges.ipv4.windows(2).all(|two| two[0].1 + 1 < two[1].0), "{ranges:?}");
    assert!(ranges.ipv6.windows(2).all(|two| two[0].1 + 1 < two[1].0), "{ranges:?}");
    assert_eq!(reach("0.0.0.0/0,::/0").ranges().unwrap().ipv4, [(0, u32::MAX)]);
}
