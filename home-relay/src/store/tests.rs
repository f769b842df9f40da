use mobile_transport::keys::PrivateKey;

use super::*;
use crate::pool::Pools;

mod invitations;
mod power;
mod snapshot;

/// A time in September 2026, in seconds since 1970.
const NOW: u64 = 1_790_000_000;

impl Store {
    /// Authorises one client without a reach of its own.
    pub(crate) fn authorize(
        &self,
        name: &str,
        key: &PublicKey,
        wanted: Lease,
        pools: &Pools,
        now: u64,
    ) -> Result<Client, StoreError> {
        let reach = WantedReach::default();
        let new_client = NewClient { name: name.into(), public_key: *key, wanted, reach };
        let mut clients = self.authorize_all(&[new_client], pools, now)?;
        Ok(clients.pop().unwrap())
    }
}

fn pools() -> Pools {
    Pools::new(Some("10.9.8.0/24".parse().unwrap()), Some("fd12::/64".parse().unwrap())).unwrap()
}

fn key() -> PublicKey {
    PrivateKey::generate().unwrap().public()
}

#[test]
fn leases_survive_reopening_and_the_revocation_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("deep/state");
    let store = Store::open(&state).unwrap();
    store.authorize("a", &key(), Lease::default(), &pools(), NOW).unwrap();
    let b = store.authorize("b", &key(), Lease::default(), &pools(), NOW).unwrap();
    assert_eq!(b.lease.ipv4, Some("10.9.8.3".parse().unwrap()));
    drop(store);

    let store = Store::open(&state).unwrap();
    store.revoke("a", NOW).unwrap();
    drop(store);

    let store = Store::open(&state).unwrap();
    assert_eq!(store.clients().unwrap(), std::slice::from_ref(&b));
    let c = store.authorize("c", &key(), Lease::default(), &pools(), NOW).unwrap();
    assert_eq!(c.lease.ipv4, Some("10.9.8.4".parse().unwrap()), "the former address of a is in quarantine");
    assert_eq!(store.clients().unwrap(), [b, c]);
}

#[test]
fn a_freed_address_returns_to_its_former_key_and_goes_to_others_last() {
    let dir = tempfile::tempdir().unwrap();
    // The pool has the client addresses .2 to .6.
    let small = Pools::new(Some("10.9.8.0/29".parse().unwrap()), None).unwrap();
    let store = Store::open(dir.path()).unwrap();
    let keys: Vec<PublicKey> = (0..5).map(|_| key()).collect();
    let authorize = |store: &Store, name: &str, key: &PublicKey| {
        store.authorize(name, key, Lease::default(), &small, NOW).unwrap().lease.to_string()
    };
    for (name, key) in ["a", "b", "c"].into_iter().zip(&keys) {
        authorize(&store, name, key);
    }
    store.revoke("b", NOW - 20).unwrap();
    store.revoke("a", NOW - 10).unwrap();
    store.revoke("c", NOW - 5).unwrap();
    drop(store);
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(authorize(&store, "again", &keys[2]), "10.9.8.4", "the address it held before");
    assert_eq!(authorize(&store, "d", &keys[3]), "10.9.8.5", "never held before");
    assert_eq!(authorize(&store, "e", &keys[4]), "10.9.8.6", "never held before");
    assert_eq!(authorize(&store, "f", &key()), "10.9.8.3", "free for the longest time");
    assert_eq!(authorize(&store, "g", &key()), "10.9.8.2");
    let full = store.authorize("h", &key(), Lease::default(), &small, NOW).unwrap_err();
    assert!(matches!(full, StoreError::Pool(PoolError::Exhausted { .. })), "{full}");
    // A client that is moved frees an address too, and a request for that address by name succeeds.
    let wanted = Lease { ipv4: Some("10.9.8.3".parse().unwrap()), ipv6: None };
    store.revoke("f", NOW).unwrap();
    store.authorize("g", &{ store.clients().unwrap()[3].public_key }, wanted, &small, NOW).unwrap();
    assert_eq!(authorize(&store, "h", &key()), "10.9.8.2");
}

#[test]
fn each_key_has_one_name_and_each_name_one_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let key_a = key();
    let a = store.authorize("a", &key_a, Lease::default(), &pools(), NOW).unwrap();
    assert_eq!(
        store.authorize("a", &key_a, Lease::default(), &pools(), NOW).unwrap(),
        a,
        "the same again changes nothing"
    );
    assert!(matches!(
        store.authorize("a", &key(), Lease::default(), &pools(), NOW),
        Err(StoreError::NameTaken { .. })
    ));
    assert!(
        matches!(store.authorize("b", &key_a, Lease::default(), &pools(), NOW), Err(StoreError::KeyTaken { name }) if name == "a")
    );
    assert!(matches!(store.revoke("b", NOW), Err(StoreError::Unknown(_))));
    assert_eq!(store.clients().unwrap(), [a]);
}

#[test]
fn names_that_would_confuse_a_reader_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for bad in ["", "-x", "a b", "a/b", "é", &"x".repeat(64)] {
        assert!(
            matches!(
                store.authorize(bad, &key(), Lease::default(), &pools(), NOW),
                Err(StoreError::BadName(_))
            ),
            "{bad:?}"
        );
    }
    store.authorize("Laptop-1.home_office", &key(), Lease::default(), &pools(), NOW).unwrap();
}

#[test]
fn an_exhausted_pool_refuses_the_next_client_and_keeps_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let small = Pools::new(Some("10.0.0.0/30".parse().unwrap()), None).unwrap();
    let only = store.authorize("only", &key(), Lease::default(), &small, NOW).unwrap();
    let error = store.authorize("late", &key(), Lease::default(), &small, NOW).unwrap_err();
    assert!(error.to_string().contains("10.0.0.0/30 is exhausted"), "{error}");
    assert_eq!(store.clients().unwrap(), [only]);
}

#[test]
fn only_clients_of_a_changed_pool_get_new_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    for name in ["a", "b", "c"] {
        store.authorize(name, &key(), Lease::default(), &pools(), NOW).unwrap();
    }
    store.revoke("a", NOW).unwrap();
    assert!(store.reconcile(&pools(), NOW).unwrap().is_empty());

    let moved = Pools::new(Some("10.7.0.0/24".parse().unwrap()), pools().ipv6()).unwrap();
    let changed = store.reconcile(&moved, NOW).unwrap();
    assert_eq!(changed.len(), 2);
    let kept: Vec<Lease> = store.clients().unwrap().iter().map(|client| client.lease).collect();
    assert_eq!(kept, [changed[0].to, changed[1].to]);
    let words: Vec<String> =
        changed.iter().map(|it| format!("{} {} → {}", it.name, it.from, it.to)).collect();
    assert_eq!(words, ["b 10.9.8.3 fd12::3 → 10.7.0.2 fd12::3", "c 10.9.8.4 fd12::4 → 10.7.0.3 fd12::4"]);
}

#[test]
fn a_damaged_file_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE), b"not a database at all").unwrap();
    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("relay.redb") && error.contains("[state] dir"), "{error}");
}

#[test]
fn a_second_opener_waits_and_then_reports_the_store_as_busy() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");

    let path = dir.path().to_owned();
    let second = std::thread::spawn(move || Store::open(&path).map(|_| ()));
    std::thread::sleep(Duration::from_millis(100));
    drop(first);
    second.join().unwrap().unwrap();
}

#[test]
fn an_older_store_format_is_upgraded_and_a_newer_one_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE);
    let first = schema::builder().create(&path).unwrap();
    let transaction = first.begin_write().unwrap();
    let row = format!(r#"{{"name":"a","public_key":"{}","ipv4":"10.9.8.2","ipv6":null,"created":7}}"#, key());
    transaction.open_table(schema::CLIENTS).unwrap().insert("a", row.as_bytes()).unwrap();
    transaction.commit().unwrap();
    drop(first);

    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.entries(NOW).unwrap()[0].lease.to_string(), "10.9.8.2");
    let transaction = store.database.begin_write().unwrap();
    transaction.open_table(schema::META).unwrap().insert(schema::FORMAT, schema::VERSION + 1).unwrap();
    transaction.commit().unwrap();
    drop(store);

    let error = Store::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains("use the newer home-relay"), "{error}");
}

#[test]
fn a_batch_authorises_all_clients_or_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let new_client = |name: &str, public_key| NewClient {
        name: name.into(),
        public_key,
        wanted: Lease::default(),
        reach: WantedReach::default(),
    };
    let (a, b) = (key(), key());
    let clients = store.authorize_all(&[new_client("a", a), new_client("b", b)], &pools(), NOW).unwrap();
    let hosts: Vec<String> = clients.iter().map(|client| client.lease.ipv4.unwrap().to_string()).collect();
    assert_eq!(hosts, ["10.9.8.2", "10.9.8.3"]);
    assert_eq!(store.clients().unwrap(), clients);
    // One name with two keys, or one key under two names, is refused within a batch too.
    for wrong in
        [[new_client("c", key()), new_client("c", key())], [new_client("c", key()), new_client("d", a)]]
    {
        store.authorize_all(&wrong, &pools(), NOW).unwrap_err();
        assert_eq!(store.clients().unwrap(), clients, "no client was authorised");
    }
    let more = [new_client("b", b), new_client("c", key())];
    let more = store.authorize_all(&more, &pools(), NOW).unwrap();
    assert_eq!((&more[0], more[1].lease.ipv4), (&clients[1], Some("10.9.8.4".parse().unwrap())));
}
