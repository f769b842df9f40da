use super::*;
use crate::store::Snapshot;

#[test]
fn a_snapshot_in_parts_is_the_whole_and_restores_to_the_same_database() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    for number in 0..7 {
        store.authorize(&format!("client-{number}"), &key(), Lease::default(), &pools(), NOW).unwrap();
    }
    store.revoke("client-3", NOW).unwrap();
    let snapshot = store.snapshot().unwrap();
    snapshot.check().unwrap();
    for rows in [1, 2, 5, 1000] {
        let parts = snapshot.clone().split(rows);
        assert!(
            parts
                .iter()
                .all(|part| part.tables.values().map(std::collections::BTreeMap::len).sum::<usize>() <= rows)
        );
        let mut whole = Snapshot::default();
        parts.into_iter().for_each(|part| whole.append(part));
        assert_eq!(whole, snapshot, "{rows}");
    }
    assert_eq!(Snapshot::empty().unwrap().split(1).len(), 1);

    let restored = dir.path().join("restored");
    std::fs::create_dir(&restored).unwrap();
    snapshot.write_to(&Store::file_in(&restored)).unwrap();
    let restored = Store::open(&restored).unwrap();
    assert_eq!(restored.snapshot().unwrap(), snapshot);
    assert_eq!(restored.clients().unwrap(), store.clients().unwrap());
}

#[test]
fn a_snapshot_of_an_earlier_format_is_upgraded() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    store.authorize("laptop", &key(), Lease::default(), &pools(), NOW).unwrap();
    let now = store.snapshot().unwrap();
    let clients_only = now.tables.clone().into_iter().filter(|(table, _)| table == "clients").collect();
    let first = Snapshot { format: 1, tables: clients_only };
    first.check().unwrap();
    assert_eq!(first.upgraded().unwrap(), now);
}
