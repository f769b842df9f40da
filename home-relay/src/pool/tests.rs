use super::*;

fn pools(ipv4: &str, ipv6: &str) -> Pools {
    Pools::new(Some(ipv4.parse().unwrap()), Some(ipv6.parse().unwrap())).unwrap()
}

#[test]
fn the_relay_has_the_first_address_of_a_pool_and_the_first_client_the_second() {
    let pools = pools("10.9.8.77/24", "fd12::/64");
    let own: Vec<String> = pools.own_addresses().iter().map(ToString::to_string).collect();
    assert_eq!(own, ["10.9.8.1/24", "fd12::1/64"]);
    let lease = pools.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
    assert_eq!(lease.ipv4, Some("10.9.8.2".parse().unwrap()));
    assert_eq!(lease.ipv6, Some("fd12::2".parse().unwrap()));
}

#[test]
fn unused_addresses_are_assigned_first_and_then_the_one_free_longest() {
    let pools = pools("10.9.8.0/24", "fd12::/64");
    let first = pools.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
    let second = pools.lease(Lease::default(), &mut TakenAddresses::from_iter([first])).unwrap();
    assert_eq!(second.ipv4, Some("10.9.8.3".parse().unwrap()));
    assert_eq!(pools.lease(Lease::default(), &mut TakenAddresses::from_iter([second])).unwrap(), first);

    let small = Pools::new(Some("10.9.8.0/29".parse().unwrap()), None).unwrap();
    let mut taken = TakenAddresses::default();
    // Of .2 to .6, .3 is held, and .4 and .2 were held before.
    taken.insert(Lease { ipv4: Some("10.9.8.3".parse().unwrap()), ipv6: None });
    taken.insert_freed("10.9.8.4".parse().unwrap(), 70);
    taken.insert_freed("10.9.8.2".parse().unwrap(), 80);
    taken.insert_freed("10.9.8.3".parse().unwrap(), 10);
    let mut assigned = Vec::new();
    while let Ok(lease) = small.lease(Lease::default(), &mut taken) {
        assigned.push(lease.to_string());
    }
    assert_eq!(assigned, ["10.9.8.5", "10.9.8.6", "10.9.8.4", "10.9.8.2"]);
}

#[test]
fn an_exhausted_pool_is_named_with_the_next_step() {
    let pools = Pools::new(Some("10.0.0.0/30".parse().unwrap()), None).unwrap();
    let only = pools.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
    assert_eq!(only.ipv4, Some("10.0.0.2".parse().unwrap()));
    let error =
        pools.lease(Lease::default(), &mut TakenAddresses::from_iter([only])).unwrap_err().to_string();
    assert!(error.contains("10.0.0.0/30") && error.contains("all its 1 client"), "{error}");
    assert!(error.contains("[pool] ipv4"), "{error}");
}

#[test]
fn a_lease_is_kept_while_the_pool_contains_it_and_replaced_otherwise() {
    let before = pools("10.9.8.0/24", "fd12::/64");
    let held = before.lease(Lease::default(), &mut TakenAddresses::default()).unwrap();
    assert_eq!(before.lease(held, &mut TakenAddresses::default()).unwrap(), held);
    let wider = pools("10.9.0.0/16", "fd12::/64");
    assert_eq!(wider.lease(held, &mut TakenAddresses::default()).unwrap(), held);
    let moved = pools("10.7.0.0/24", "fd12::/64");
    let lease = moved.lease(held, &mut TakenAddresses::default()).unwrap();
    assert_eq!(lease.ipv4, Some("10.7.0.2".parse().unwrap()));
    assert_eq!(lease.ipv6, held.ipv6);
}

#[test]
fn a_lease_of_the_relays_own_or_the_broadcast_address_is_replaced() {
    let pools = Pools::new(Some("10.9.8.0/29".parse().unwrap()), None).unwrap();
    for taken in ["10.9.8.0", "10.9.8.1", "10.9.8.7"] {
        let held = Lease { ipv4: Some(taken.parse().unwrap()), ipv6: None };
        assert_eq!(
            pools.lease(held, &mut TakenAddresses::default()).unwrap().ipv4,
            Some("10.9.8.2".parse().unwrap())
        );
    }
}

#[test]
fn unusable_pools_are_refused() {
    assert_eq!(Pools::new(None, None), Err(PoolError::Missing));
    for bad in ["10.0.0.0/31", "10.0.0.1/32"] {
        let result = Pools::new(Some(bad.parse().unwrap()), None);
        assert!(matches!(result, Err(PoolError::TooSmall { .. })), "{bad}: {result:?}");
    }
    for bad in ["224.0.0.0/24", "127.0.0.0/8", "0.0.0.0/0"] {
        let result = Pools::new(Some(bad.parse().unwrap()), None);
        assert!(matches!(result, Err(PoolError::NotUnicast { .. })), "{bad}: {result:?}");
    }
    let result = Pools::new(None, Some("ff02::/64".parse().unwrap()));
    assert!(matches!(result, Err(PoolError::NotUnicast { .. })));
}

#[test]
fn every_address_of_a_pool_can_be_leased_once() {
    let pools = pools("10.9.8.0/28", "fd12::/124");
    let mut leases: Vec<Lease> = Vec::new();
    for _ in 0..13 {
        let lease = pools.lease(Lease::default(), &mut leases.iter().copied().collect()).unwrap();
        assert!(lease.addresses().all(|address| pools.contains(address) && !pools.is_own(address)));
        assert!(!leases.contains(&lease));
        leases.push(lease);
    }
    let error = pools.lease(Lease::default(), &mut leases.iter().copied().collect()).unwrap_err();
    assert!(matches!(error, PoolError::Exhausted { family: "IPv4", capacity: 13, .. }), "{error}");
}
