//! What the TCP connections of each mobile process carried: the maps behind `mobile-ebpf`'s `account.rs`, and the sockets that are open.

use std::{
    collections::{HashMap, HashSet},
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{self, Map, MapData, MapError},
};
use mobile_ebpf_common::{Account, map};

use super::{
    bpf_error::{BpfError, Result},
    cgroup::MobileCgroup,
    diag::{self, Open},
    process,
};
use crate::control::protocol::Traffic;

/// How often the accounts of processes that have ended are closed: the map holds those of a thousand processes a second.
pub(crate) const SWEEP: Duration = Duration::from_secs(30);

/// How often the sockets are listed until nothing was counted meanwhile.
const LOOKS: usize = 3;

/// A process: its id, and when it started, in nanoseconds of CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holder {
    /// What the kernel calls it.
    pub(crate) pid: i32,
    /// An account older than this is that of a former process with the same id.
    pub(crate) started: u64,
}

/// The accounts.
pub(crate) struct Accounts {
    counted: Mutex<maps::HashMap<MapData, u32, Account>>,
    owners: MapData,
}

/// The maps of the accounts, as descriptors for the process that reads them.
pub(crate) struct AccountMaps {
    counted: MapData,
    owners: MapData,
}

impl AccountMaps {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        match (ebpf.take_map(map::ACCOUNTS), ebpf.take_map(map::OWNERS)) {
            (Some(Map::HashMap(counted)), Some(Map::SkStorage(owners))) => Ok(Self { counted, owners }),
            (Some(_), _) => Err(BpfError::Missing(map::OWNERS)),
            (None, _) => Err(BpfError::Missing(map::ACCOUNTS)),
        }
    }

    /// Returns the descriptors, in the order that [`Accounts::from_descriptors`] takes.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.counted.fd().as_fd(), self.owners.fd().as_fd()]
    }
}

impl Accounts {
    /// Opens the accounts from maps that another process has sent.
    pub(crate) fn from_descriptors([counted, owners]: [OwnedFd; 2]) -> Result<Self> {
        let counted = MapData::from_fd(counted).and_then(Map::from_map_data).map_err(failed)?;
        let counted = Mutex::new(maps::HashMap::try_from(counted).map_err(failed)?);
        let owners = MapData::from_fd(owners);
        let owners = owners.map_err(|source| BpfError::Map { name: map::OWNERS, source })?;
        Ok(Self { counted, owners })
    }

    /// What each of these processes has carried; in the same order.
    pub(crate) fn of(&self, holders: &[Holder]) -> Result<Vec<Traffic>> {
        let mut counted = self.counted_of(holders)?;
        let mut open = Vec::new();
        for _ in 0..LOOKS {
            open = self.open()?;
            // What was counted meanwhile would be in neither, or in both.
            let before = std::mem::replace(&mut counted, self.counted_of(holders)?);
            if before == counted {
                break;
            }
        }
        let mut open_of: HashMap<u32, Vec<Open>> = HashMap::new();
        for socket in open {
            open_of.entry(socket.owner.process).or_default().push(socket);
        }
        let open_of = |pid: i32| open_of.get(&pid.cast_unsigned()).map(Vec::as_slice).unwrap_or_default();
        let totals =
            holders.iter().zip(counted).map(|(holder, counted)| total(*holder, counted, open_of(holder.pid)));
        Ok(totals.collect())
    }

    /// The connections that are not over, of all processes.
    fn open(&self) -> Result<Vec<Open>> {
        diag::open(self.owners.fd().as_fd()).map_err(|source| BpfError::Io {
            action: "list the sockets of mobile processes with",
            path: "sock_diag".into(),
            source,
        })
    }

    /// The accounts of these processes, in the same order.
    fn counted_of(&self, holders: &[Holder]) -> Result<Vec<Option<Account>>> {
        let counted = self.counted();
        let account = |holder: &Holder| match counted.get(&holder.pid.cast_unsigned(), 0) {
            Ok(account) => Ok(Some(account)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(error)),
        };
        holders.iter().map(account).collect()
    }

    /// Closes the accounts of processes that are not mobile, because they have ended or lost the attribute, and have no connections
    /// that still are: what these have told already is told once. And those of processes that have ended and whose id another mobile
    /// one has now, which is to have an account of its own.
    pub(crate) fn sweep(&self, cgroup: &MobileCgroup) -> anyhow::Result<()> {
        let accounts: Vec<(u32, Account)> =
            self.counted().iter().collect::<std::result::Result<_, _>>().map_err(failed)?;
        if accounts.is_empty() {
            return Ok(());
        }
        // After the accounts: that of a process which becomes mobile meanwhile is not among them.
        let mobile: HashSet<i32> = cgroup.pids()?.into_iter().collect();
        let (in_use, over): (Vec<_>, Vec<_>) =
            accounts.into_iter().partition(|(pid, _)| mobile.contains(&pid.cast_signed()));
        let reused = in_use.into_iter().filter(|(pid, account)| {
            process::holder(pid.cast_signed()).is_ok_and(|holder| account.since < holder.started)
        });
        let mut closing: Vec<u32> = reused.map(|(pid, _)| pid).collect();
        if !over.is_empty() {
            // A kernel that cannot list sockets (without INET_DIAG) shows no accounts either.
            let open: HashSet<u32> = match self.open() {
                Ok(open) => open.iter().map(|socket| socket.owner.process).collect(),
                Err(error) => {
                    tracing::debug!(%error, "accounts are closed whatever is open");
                    HashSet::new()
                }
            };
            closing.extend(over.into_iter().map(|(pid, _)| pid).filter(|pid| !open.contains(pid)));
        }
        for pid in closing {
            match self.counted().remove(&pid) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(error).into()),
            }
        }
        Ok(())
    }

    /// Until no further process has a place; says who has one.
    #[cfg(test)]
    pub(super) fn fill(&self) -> Vec<u32> {
        let mut counted = self.counted();
        let made_up = (0..map::ACCOUNTS_ENTRIES).map(|number| u32::MAX - number);
        made_up.take_while(|pid| counted.insert(pid, &Account::default(), 0).is_ok()).collect()
    }

    /// Whether a process has connections that are not over.
    #[cfg(test)]
    pub(super) fn any_open(&self, pid: i32) -> bool {
        self.open().unwrap().iter().any(|socket| socket.owner.process == pid.cast_unsigned())
    }

    /// As if the account were that of a process which ended before this one got its id.
    #[cfg(test)]
    pub(super) fn make_another_s(&self, pid: i32) {
        let mut counted = self.counted();
        let account = counted.get(&pid.cast_unsigned(), 0).unwrap();
        counted.insert(&pid.cast_unsigned(), &Account { since: 1, ..account }, 0).unwrap();
    }

    /// How many processes have an account.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.counted().keys().count()
    }

    fn counted(&self) -> MutexGuard<'_, maps::HashMap<MapData, u32, Account>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn total(holder: Holder, counted: Option<Account>, open: &[Open]) -> Traffic {
    let mut traffic = Traffic::default();
    if let Some(account) = counted.filter(|account| account.since >= holder.started) {
        traffic = Traffic {
            connections: account.connections,
            bytes_sent: account.sent,
            bytes_received: account.received,
        };
    }
    for Open { owner, state, acked, received } in open {
        if owner.since >= holder.started {
            let more = owner.uncounted(*state, *acked, *received);
            traffic.connections += more.connections;
            traffic.bytes_sent += more.sent;
            traffic.bytes_received += more.received;
        }
    }
    traffic
}

fn failed(source: MapError) -> BpfError {
    BpfError::Map { name: map::ACCOUNTS, source }
}

#[cfg(test)]
mod tests {
    use mobile_ebpf_common::{
        TrackedConnection,
        account::{stage, state},
    };

    use super::*;

    #[test]
    fn what_a_former_process_with_the_same_id_carried_is_not_counted() {
        let holder = Holder { pid: 7, started: 1000 };
        let counted = |since| Some(Account { since, connections: 2, sent: 20, received: 30 });
        let open = |since, stage, state| Open {
            owner: TrackedConnection { since, process: 7, stage, ..TrackedConnection::default() },
            state,
            acked: 5,
            received: 6,
        };
        let carried =
            |connections, bytes_sent, bytes_received| Traffic { connections, bytes_sent, bytes_received };
        let established = 1;
        let sockets = [
            open(1000, stage::MISSING, established),
            open(999, stage::MISSING, established),
            open(1001, stage::BEGUN, state::SYN_SENT),
        ];
        assert_eq!(total(holder, counted(1000), &sockets), carried(3, 24, 36));
        assert_eq!(total(holder, counted(999), &sockets), carried(1, 4, 6));
        assert_eq!(total(holder, None, &[]), Traffic::default());
    }
}
