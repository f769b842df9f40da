use mobile_transport::invitation::new_token;

use super::*;

const DAY: Duration = Duration::from_secs(24 * 3600);

fn token() -> TokenHash {
    TokenHash::of(&new_token().unwrap())
}

fn invite(store: &Store, name: &str, token: TokenHash) -> StoredInvitation {
    store.invite(name, token, DAY, Lease::default(), &pools(), NOW).unwrap()
}

#[test]
fn a_token_authorises_one_key_once_with_the_reserved_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (token, laptop, thief) = (token(), key(), key());
    let invited = invite(&store, "laptop", token);
    let other = store.authorize("other", &key(), Lease::default(), &pools(), NOW).unwrap();
    assert_ne!(other.lease, invited.lease, "they are set aside");
    assert_eq!(store.entries(NOW).unwrap(), [ListedClient::from(invited.clone()), ListedClient::from(other)]);
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    let client = store.redeem(token, &laptop, &pools(), NOW + 5).unwrap();
    assert_eq!((client.name.as_str(), client.lease), ("laptop", invited.lease));
    assert_eq!(store.entries(NOW).unwrap().len(), 2, "no longer invited");
    assert_eq!(
        store.redeem(token, &laptop, &pools(), NOW + 6).unwrap(),
        client,
        "its answer may have been lost"
    );
    let error = store.redeem(token, &thief, &pools(), NOW + 6).unwrap_err();
    assert!(matches!(error, StoreError::TokenUsed(_)), "{error}");

    store.revoke("laptop", NOW).unwrap();
    let error = store.redeem(token, &laptop, &pools(), NOW + 7).unwrap_err();
    assert!(matches!(error, StoreError::TokenUsed(_)), "a revoked client does not come back by it: {error}");
}

#[test]
fn unknown_withdrawn_and_expired_tokens_get_different_errors() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let refused = |token, now| store.redeem(token, &key(), &pools(), now).unwrap_err();
    assert!(matches!(refused(token(), NOW), StoreError::TokenUnknown));

    let (first, second) = (token(), token());
    let lease = invite(&store, "laptop", first).lease;
    assert_eq!(invite(&store, "laptop", second).lease, lease, "invited again: the same addresses");
    assert!(matches!(refused(first, NOW), StoreError::TokenUnknown), "replaced");

    assert!(
        matches!(refused(second, NOW + DAY.as_secs()), StoreError::TokenExpired(name) if name == "laptop")
    );
    // A clock that was set back far does not extend the invitation; a small adjustment does no
    // harm.
    let error = refused(second, NOW - 3600);
    assert!(
        matches!(error, StoreError::TokenFromFuture(_)) && error.to_string().contains("clock"),
        "{error}"
    );
    assert!(
        store.entries(NOW - 60).unwrap().len() == 1 && store.entries(NOW + DAY.as_secs()).unwrap().is_empty()
    );

    let entry = store.revoke("laptop", NOW).unwrap();
    assert_eq!((entry.public_key, entry.lease), (None, lease));
    assert!(matches!(refused(second, NOW), StoreError::TokenUnknown), "withdrawn");
    assert!(matches!(store.revoke("laptop", NOW), Err(StoreError::Unknown(_))));
}

#[test]
fn an_expired_invitation_frees_its_addresses_and_is_forgotten_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let small = Pools::new(Some("10.0.0.0/30".parse().unwrap()), None).unwrap();
    let old = token();
    store.invite("late", old, DAY, Lease::default(), &small, NOW).unwrap();
    let error = store.invite("next", token(), DAY, Lease::default(), &small, NOW).unwrap_err();
    assert!(error.to_string().contains("10.0.0.0/30 is exhausted"), "{error}");
    let later = NOW + DAY.as_secs();
    store.invite("next", token(), DAY, Lease::default(), &small, later).unwrap();
    let error = store.redeem(old, &key(), &small, later).unwrap_err();
    assert!(matches!(error, StoreError::TokenExpired(_)), "{error}");

    let much_later = later + 32 * DAY.as_secs();
    store.invite("third", token(), DAY, Lease::default(), &small, much_later).unwrap();
    let error = store.redeem(old, &key(), &small, much_later).unwrap_err();
    assert!(matches!(error, StoreError::TokenUnknown), "{error}");
}

#[test]
fn names_and_keys_stay_unique_across_clients_and_invitations() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (invitation, desk) = (token(), key());
    let invited = invite(&store, "laptop", invitation);
    store.authorize("desk", &desk, Lease::default(), &pools(), NOW).unwrap();
    let error = store.redeem(invitation, &desk, &pools(), NOW).unwrap_err();
    assert!(matches!(error, StoreError::KeyTaken { name } if name == "desk"));
    let error = store.invite("desk", token(), DAY, Lease::default(), &pools(), NOW).unwrap_err();
    assert!(matches!(error, StoreError::AlreadyClient(_)), "{error}");

    let client = store.authorize("laptop", &key(), Lease::default(), &pools(), NOW).unwrap();
    assert_eq!(client.lease, invited.lease, "what was set aside for the name");
    assert!(matches!(store.redeem(invitation, &key(), &pools(), NOW), Err(StoreError::TokenUnknown)));
}

#[test]
fn requested_addresses_must_be_free_and_in_a_pool() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let four = |text: &str| Lease { ipv4: Some(text.parse().unwrap()), ipv6: None };
    let (a, b) = (key(), key());
    let first = store.authorize("a", &a, four("10.9.8.77"), &pools(), NOW).unwrap();
    assert_eq!(first.lease.to_string(), "10.9.8.77 fd12::2");
    let again = store.authorize("a", &a, Lease::default(), &pools(), NOW).unwrap();
    assert_eq!(again, first, "naming none changes nothing");
    let six = Lease { ipv4: None, ipv6: Some("fd12::99".parse().unwrap()) };
    let changed = store.authorize("a", &a, six, &pools(), NOW).unwrap();
    assert_eq!(changed.lease.to_string(), "10.9.8.77 fd12::99");
    assert_eq!(store.clients().unwrap(), [changed]);

    store.invite("c", token(), DAY, four("10.9.8.80"), &pools(), NOW).unwrap();
    for (taken, by) in [("10.9.8.77", "a"), ("10.9.8.80", "c")] {
        let error = store.authorize("b", &b, four(taken), &pools(), NOW).unwrap_err();
        assert!(matches!(&error, StoreError::AddressTaken { name, .. } if name == by), "{error}");
    }
    for (nobodys, word) in
        [("10.9.9.1", "in no pool"), ("10.9.8.1", "the relay's own"), ("10.9.8.255", "broadcast")]
    {
        let error = store.authorize("b", &b, four(nobodys), &pools(), NOW).unwrap_err().to_string();
        assert!(error.contains(word) && error.contains(nobodys), "{error}");
    }
    let error = store.authorize("b", &b, six, &Pools::new(pools().ipv4(), None).unwrap(), NOW).unwrap_err();
    assert!(error.to_string().contains("10.9.8.0/24"), "the pools there are: {error}");
}

#[test]
fn a_changed_pool_moves_pending_invitations_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let token = token();
    invite(&store, "laptop", token);
    let moved = Pools::new(Some("10.7.0.0/24".parse().unwrap()), pools().ipv6()).unwrap();
    assert_eq!(store.reconcile(&moved, NOW).unwrap().len(), 1);
    let client = store.redeem(token, &key(), &moved, NOW).unwrap();
    assert_eq!(client.lease.ipv4, Some("10.7.0.2".parse().unwrap()));
}

#[test]
fn a_refused_token_reads_only_its_own_rows_and_waits_for_no_writer() {
    let dir = tempfile::tempdir().unwrap();
    let store = std::sync::Arc::new(Store::open(dir.path()).unwrap());
    let (used, expired, laptop) = (token(), token(), key());
    invite(&store, "laptop", used);
    store.redeem(used, &laptop, &pools(), NOW).unwrap();
    store.invite("phone", expired, Duration::ZERO, Lease::default(), &pools(), NOW).unwrap();
    // A malformed row: reading the whole table fails.
    let transaction = store.database.begin_write().unwrap();
    transaction.open_table(schema::CLIENTS).unwrap().insert("zz", &b"no row of ours"[..]).unwrap();
    transaction.commit().unwrap();

    // A slow admin command holds the write lock.
    let _writing = store.database.begin_write().unwrap();
    let (told, hear) = std::sync::mpsc::channel();
    let guessing = std::sync::Arc::clone(&store);
    std::thread::spawn(move || {
        for (token, key) in [(token(), laptop), (used, key()), (expired, laptop), (used, laptop)] {
            told.send(guessing.redeem(token, &key, &pools(), NOW)).unwrap();
        }
    });
    let next = || hear.recv_timeout(Duration::from_secs(10)).expect("an answer while another one writes");
    assert!(matches!(next(), Err(StoreError::TokenUnknown)));
    assert!(matches!(next(), Err(StoreError::TokenUsed(_))));
    assert!(matches!(next(), Err(StoreError::TokenExpired(_))));
    assert_eq!(next().unwrap().public_key, laptop, "its answer may have been lost");
}

const HOUR: u64 = 3600;

#[test]
fn an_invitation_made_while_the_clock_was_ahead_does_not_outlive_its_replacement() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (old, new, laptop) = (token(), token(), key());
    store.invite("laptop", old, DAY, Lease::default(), &pools(), NOW + HOUR).unwrap();
    // The clock is correct again.
    invite(&store, "laptop", new);
    store.redeem(new, &laptop, &pools(), NOW).unwrap();
    let error = store.redeem(old, &key(), &pools(), NOW + HOUR).unwrap_err();
    assert!(matches!(error, StoreError::TokenUnknown), "{error}");
    assert_eq!(store.clients().unwrap()[0].public_key, laptop);
}

#[test]
fn an_invitation_made_while_the_clock_was_ahead_can_be_revoked() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let token = token();
    store.invite("laptop", token, DAY, Lease::default(), &pools(), NOW + HOUR).unwrap();
    assert_eq!(store.entries(NOW).unwrap(), [], "it cannot be redeemed now");
    assert_eq!(store.revoke("laptop", NOW).unwrap().expires, Some(NOW + HOUR + DAY.as_secs()));
    let error = store.redeem(token, &key(), &pools(), NOW + HOUR).unwrap_err();
    assert!(matches!(error, StoreError::TokenUnknown), "{error}");
    assert!(matches!(store.revoke("laptop", NOW), Err(StoreError::Unknown(_))));
}

#[test]
fn an_invitation_beside_a_client_of_its_name_does_not_replace_the_clients_key() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let (laptop, stray) = (key(), token());
    let client = store.authorize("laptop", &laptop, Lease::default(), &pools(), NOW).unwrap();
    // Write the invitation directly: the store itself never leaves one beside a client.
    let transaction = store.database.begin_write().unwrap();
    let mut tables = address_tables::AddressTables::open(&transaction).unwrap();
    let expires = NOW + DAY.as_secs();
    let (name, lease) = ("laptop".into(), client.lease);
    tables
        .put_invitation(&StoredInvitation { name, token: stray, lease, created: NOW, expires, used_by: None })
        .unwrap();
    drop(tables);
    transaction.commit().unwrap();
    let error = store.redeem(stray, &key(), &pools(), NOW).unwrap_err();
    assert!(matches!(error, StoreError::TokenUnknown), "{error}");
    assert_eq!(store.clients().unwrap(), [client]);
}

#[test]
fn addresses_reserved_while_the_clock_was_ahead_are_not_assigned_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let early = token();
    let set_aside = store.invite("early", early, DAY, Lease::default(), &pools(), NOW + HOUR).unwrap();
    let other = store.authorize("other", &key(), Lease::default(), &pools(), NOW).unwrap();
    assert_eq!(other.lease, set_aside.lease, "free, as the clock says");
    let client = store.redeem(early, &key(), &pools(), NOW + HOUR).unwrap();
    assert!(client.lease.addresses().all(|own| other.lease.addresses().all(|it| it != own)));
    assert!(store.reconcile(&pools(), NOW + HOUR).unwrap().is_empty());
}
