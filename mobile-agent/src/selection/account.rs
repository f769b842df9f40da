//! The traffic of each mobile process's TCP connections: closed connections from the accounts of
//! `mobile-ebpf/src/account.rs`, open ones from the kernel's list of sockets.

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
    diag::{self, OpenConnection},
    process,
};
use crate::protocol::Traffic;

/// The interval at which traffic accounts of ended processes are removed. The map of accounts has
/// room for a thousand ended processes a second.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// The maximum number of attempts to list the open sockets. An attempt fails if a connection closes
/// meanwhile, because its bytes would then count twice or not at all.
const MAX_LISTINGS: usize = 3;

/// The identity of a process: its ID and its start time in nanoseconds of CLOCK_BOOTTIME.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ProcessIdentity {
    /// The ID of the process.
    pub(crate) pid: i32,
    /// The start time in nanoseconds of CLOCK_BOOTTIME. A traffic account that is older belongs to
    /// a former process with the same ID.
    pub(crate) started: u64,
}

/// The traffic accounts of mobile processes, in eBPF maps: the bytes of closed connections for each
/// process, and the owner of each open connection.
pub(crate) struct Accounts {
    counted: Mutex<maps::HashMap<MapData, u32, Account>>,
    owners: MapData,
}

/// The eBPF maps of the traffic accounts, whose file descriptors the agent sends to the process
/// helper.
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

    /// Returns the file descriptors of both maps, in the order that [`Accounts::from_descriptors`]
    /// takes.
    pub(crate) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.counted.fd().as_fd(), self.owners.fd().as_fd()]
    }
}

impl Accounts {
    /// Opens the traffic accounts from the eBPF maps whose file descriptors another process has
    /// sent.
    pub(crate) fn from_descriptors([counted, owners]: [OwnedFd; 2]) -> Result<Self> {
        let counted = MapData::from_fd(counted).and_then(Map::from_map_data).map_err(failed)?;
        let counted = Mutex::new(maps::HashMap::try_from(counted).map_err(failed)?);
        let owners = MapData::from_fd(owners);
        let owners = owners.map_err(|source| BpfError::Map { name: map::OWNERS, source })?;
        Ok(Self { counted, owners })
    }

    /// Returns the TCP traffic of each process, in the order of `processes`.
    pub(crate) fn of(&self, processes: &[ProcessIdentity]) -> Result<Vec<Traffic>> {
        let mut counted = self.counted_of(processes)?;
        let mut open = Vec::new();
        for _ in 0..MAX_LISTINGS {
            open = self.open()?;
            // A connection that was closed and counted meanwhile would be missing from both, or in
            // both.
            let before = std::mem::replace(&mut counted, self.counted_of(processes)?);
            if before == counted {
                break;
            }
        }
        let mut open_of: HashMap<u32, Vec<OpenConnection>> = HashMap::new();
        for socket in open {
            open_of.entry(socket.owner.process).or_default().push(socket);
        }
        let open_of = |pid: i32| open_of.get(&pid.cast_unsigned()).map(Vec::as_slice).unwrap_or_default();
        let totals = processes
            .iter()
            .zip(counted)
            .map(|(identity, counted)| total(*identity, counted, open_of(identity.pid)));
        Ok(totals.collect())
    }

    /// Returns the open TCP connections of all processes that have a traffic account.
    fn open(&self) -> Result<Vec<OpenConnection>> {
        diag::list_open(self.owners.fd().as_fd()).map_err(|source| BpfError::Io {
            action: "list the sockets of mobile processes with",
            path: "sock_diag".into(),
            source,
        })
    }

    /// Returns the traffic account of each process, in the order of `processes`; `None` for a
    /// process without one.
    fn counted_of(&self, processes: &[ProcessIdentity]) -> Result<Vec<Option<Account>>> {
        let counted = self.counted();
        let account = |identity: &ProcessIdentity| match counted.get(&identity.pid.cast_unsigned(), 0) {
            Ok(account) => Ok(Some(account)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(error)),
        };
        processes.iter().map(account).collect()
    }

    /// Removes traffic accounts that are not needed any longer: those of processes that are not
    /// mobile (ended, or made ordinary) and have no open connection through the tunnel, and those
    /// of ended processes whose ID a mobile process now has, which needs an account of its own.
    pub(crate) fn sweep(&self, cgroup: &MobileCgroup) -> anyhow::Result<()> {
        let accounts: Vec<(u32, Account)> =
            self.counted().iter().collect::<std::result::Result<_, _>>().map_err(failed)?;
        if accounts.is_empty() {
            return Ok(());
        }
        // List the mobile processes after the accounts, so that no account of a process that
        // becomes mobile in between is removed.
        let mobile: HashSet<i32> = cgroup.pids()?.into_iter().collect();
        let (in_use, unused): (Vec<_>, Vec<_>) =
            accounts.into_iter().partition(|(pid, _)| mobile.contains(&pid.cast_signed()));
        let reused = in_use.into_iter().filter(|(pid, account)| {
            process::identity(pid.cast_signed()).is_ok_and(|identity| account.since < identity.started)
        });
        let mut closing: Vec<u32> = reused.map(|(pid, _)| pid).collect();
        if !unused.is_empty() {
            // A kernel that cannot list sockets (without INET_DIAG) cannot show accounts either.
            let open: HashSet<u32> = match self.open() {
                Ok(open) => open.iter().map(|socket| socket.owner.process).collect(),
                Err(error) => {
                    tracing::debug!(%error, "cannot list open connections: removing accounts without regard to them");
                    HashSet::new()
                }
            };
            closing.extend(unused.into_iter().map(|(pid, _)| pid).filter(|pid| !open.contains(pid)));
        }
        for pid in closing {
            match self.counted().remove(&pid) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(error).into()),
            }
        }
        Ok(())
    }

    /// Fills the map of traffic accounts and returns the process IDs of the added accounts.
    #[cfg(test)]
    pub(super) fn fill(&self) -> Vec<u32> {
        let mut counted = self.counted();
        let made_up = (0..map::ACCOUNTS_ENTRIES).map(|number| u32::MAX - number);
        made_up.take_while(|pid| counted.insert(pid, &Account::default(), 0).is_ok()).collect()
    }

    /// Returns whether a process has open connections.
    #[cfg(test)]
    pub(super) fn any_open(&self, pid: i32) -> bool {
        self.open().unwrap().iter().any(|socket| socket.owner.process == pid.cast_unsigned())
    }

    /// Makes the traffic account of `pid` look as if it belonged to a former process with the same
    /// ID.
    #[cfg(test)]
    pub(super) fn backdate(&self, pid: i32) {
        let mut counted = self.counted();
        let account = counted.get(&pid.cast_unsigned(), 0).unwrap();
        counted.insert(&pid.cast_unsigned(), &Account { since: 1, ..account }, 0).unwrap();
    }

    /// Returns the number of traffic accounts.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.counted().keys().count()
    }

    fn counted(&self) -> MutexGuard<'_, maps::HashMap<MapData, u32, Account>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn total(identity: ProcessIdentity, counted: Option<Account>, open: &[OpenConnection]) -> Traffic {
    let mut traffic = Traffic::default();
    if let Some(account) = counted.filter(|account| account.since >= identity.started) {
        traffic = Traffic {
            connections: account.connections,
            bytes_sent: account.sent,
            bytes_received: account.received,
        };
    }
    for OpenConnection { owner, state, acked, received } in open {
        if owner.since >= identity.started {
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
    fn traffic_of_a_former_process_with_the_same_id_is_not_counted() {
        let identity = ProcessIdentity { pid: 7, started: 1000 };
        let counted = |since| Some(Account { since, connections: 2, sent: 20, received: 30 });
        let open = |since, stage, state| OpenConnection {
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
        assert_eq!(total(identity, counted(1000), &sockets), carried(3, 24, 36));
        assert_eq!(total(identity, counted(999), &sockets), carried(1, 4, 6));
        assert_eq!(total(identity, None, &[]), Traffic::default());
    }
}
