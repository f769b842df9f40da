//! Simulates power cuts: each write since the last fsync is on the disk or not, independently of
//! the others.

use std::sync::{Arc, Mutex, MutexGuard};

use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use redb::StorageBackend;

use super::*;

/// A disk in memory, with its content at the last fsync.
#[derive(Debug, Clone, Default)]
struct Disk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    now: Vec<u8>,
    synced: Vec<u8>,
    /// The changes since the last fsync, in order.
    unsynced: Vec<Change>,
    /// The number of changes until the power fails; `None` if the power stays on.
    writes_left: Option<u64>,
}

#[derive(Debug)]
enum Change {
    Length(usize),
    Bytes(usize, Vec<u8>),
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Makes the power fail after this many further changes.
    fn cut_after(&self, changes: u64) {
        self.state().writes_left = Some(changes);
    }

    /// Returns the disk after the power cut, with a random part of the changes since the last
    /// fsync.
    fn after_power_cut(&self, random: &mut StdRng) -> Self {
        let state = self.state();
        let mut found = state.synced.clone();
        for change in state.unsynced.iter().filter(|_| random.random_bool(0.5)) {
            match change {
                Change::Length(length) => found.resize(*length, 0),
                Change::Bytes(offset, bytes) => {
                    found.resize(found.len().max(offset + bytes.len()), 0);
                    found[*offset..offset + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        Self(Arc::new(Mutex::new(State { now: found.clone(), synced: found, ..State::default() })))
    }

    fn change(&self, change: Change) -> std::io::Result<()> {
        let mut state = self.state();
        match &mut state.writes_left {
            Some(0) => return Err(std::io::Error::other("the power is gone")),
            Some(writes_left) => *writes_left -= 1,
            None => {}
        }
        match &change {
            Change::Length(length) => state.now.resize(*length, 0),
            Change::Bytes(offset, bytes) => state.now[*offset..offset + bytes.len()].copy_from_slice(bytes),
        }
        state.unsynced.push(change);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.state().now.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.state().now[offset..offset + out.len()]);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.change(Change::Length(usize::try_from(len).unwrap()))
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut state = self.state();
        if state.writes_left == Some(0) {
            return Err(std::io::Error::other("the power is gone"));
        }
        state.synced = state.now.clone();
        state.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.change(Change::Bytes(usize::try_from(offset).unwrap(), data.to_vec()))
    }
}

fn open(disk: &Disk) -> Store {
    Store::new(schema::builder().create_with_backend(disk.clone()).unwrap()).unwrap()
}

// Larger than the bound: one sequence, whose steps share the state of every earlier round.
#[test]
fn acknowledged_changes_survive_a_power_cut_at_any_write() {
    let seed =
        std::env::var("MOBILE_TEST_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().unwrap());
    println!("MOBILE_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let mut disk = Disk::default();
    drop(open(&disk));
    let mut acknowledged: Vec<Client> = Vec::new();
    for round in 0..300 {
        let store = open(&disk);
        disk.cut_after(random.random_range(0..60));
        let mut in_flight = None;
        for step in 0..10 {
            let name = format!("{round}-{step}");
            let done = match acknowledged.len() {
                30.. => {
                    let name = acknowledged[0].name.clone();
                    in_flight = Some(name.clone());
                    store.revoke(&name, NOW).map(|_| drop(acknowledged.remove(0)))
                }
                _ if random.next_u32() % 2 == 0 => {
                    in_flight = Some(name.clone());
                    let done = store.authorize(&name, &key(), Lease::default(), &pools(), NOW);
                    done.map(|client| acknowledged.push(client))
                }
                _ => {
                    in_flight = Some(name.clone());
                    let token = TokenHash::of(&mobile_transport::invitation::new_token().unwrap());
                    let invited = store.invite(&name, token, BUSY_TIMEOUT, Lease::default(), &pools(), NOW);
                    let done = invited.and_then(|_| store.redeem(token, &key(), &pools(), NOW));
                    done.map(|client| acknowledged.push(client))
                }
            };
            if done.is_err() {
                break;
            }
            in_flight = None;
        }
        disk.cut_after(0);
        drop(store);
        disk = disk.after_power_cut(&mut random);

        let store = open(&disk);
        let mut found = store.clients().unwrap();
        let whole = |client: &Client| client.lease.ipv4.is_some() && client.lease.ipv6.is_some();
        assert!(found.iter().all(whole), "seed {seed}, round {round}: {found:?}");
        // The interrupted change is there completely or not at all; everything acknowledged is
        // there.
        if let Some(name) = &in_flight {
            let pending = store.entries(NOW).unwrap().iter().filter(|entry| entry.name == *name).count();
            assert!(pending <= 1, "seed {seed}, round {round}: {name} is there twice");
            let known = acknowledged.iter().any(|client| client.name == *name);
            let there = found.iter().any(|client| client.name == *name);
            match (known, there) {
                (true, false) => acknowledged.retain(|client| client.name != *name),
                (false, true) => found.retain(|client| client.name != *name),
                _ => {}
            }
            if store.entries(NOW).unwrap().iter().any(|entry| entry.name == *name) && !known {
                store.revoke(name, NOW).unwrap();
            }
        }
        acknowledged.sort_by(|a, b| a.name.cmp(&b.name));
        assert_eq!(found, acknowledged, "seed {seed}, round {round}");
    }
}
