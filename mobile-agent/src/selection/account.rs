//! What the TCP connections of each mobile process carried: the maps behind `mobile-ebpf`'s `account.rs`, and the sockets that are open.

use std::{
    collections::{HashMap, HashSet},
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{self, Map, MapData, MapError},
};
use mobile_ebpf_common::{Account, account, map};

use super::{
    bpf_error::{BpfError, Result},
    cgroup::MobileCgroup,
    diag::{self, Open},
};
use crate::control::protocol::Traffic;

/// How often the accounts of processes that have ended are closed: the map holds those of a thousand processes a second.
pub(crate) const SWEEP: Duration = Duration::from_secs(30);

/// How often the sockets are listed until no connection has ended meanwhile.
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
    over: Mutex<maps::HashMap<MapData, u32, Account>>,
    owners: MapData,
}

impl Accounts {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let over = ebpf.take_map(map::ACCOUNTS).ok_or(BpfError::Missing(map::ACCOUNTS))?;
        let over = maps::HashMap::try_from(over).map_err(failed)?;
        match ebpf.take_map(map::OWNERS) {
            Some(Map::SkStorage(owners)) => Ok(Self { over: Mutex::new(over), owners }),
            _ => Err(BpfError::Missing(map::OWNERS)),
        }
    }

    /// What each of these processes has carried; in the same order.
    pub(crate) fn of(&self, holders: &[Holder]) -> Result<Vec<Traffic>> {
        let mut over = self.over_of(holders)?;
        let mut open = Vec::new();
        for _ in 0..LOOKS {
            open = diag::open(self.owners.fd().as_fd()).map_err(|source| BpfError::Io {
                action: "list the sockets of mobile processes with",
                path: "sock_diag".into(),
                source,
            })?;
            // A connection that ended meanwhile would be in neither list, or in both.
            let before = std::mem::replace(&mut over, self.over_of(holders)?);
            if before == over {
                break;
            }
        }
        let mut open_of: HashMap<u64, Vec<Open>> = HashMap::new();
        for socket in open {
            open_of.entry(socket.owner.process).or_default().push(socket);
        }
        let open_of =
            |pid: i32| open_of.get(&pid.cast_unsigned().into()).map(Vec::as_slice).unwrap_or_default();
        let totals = holders.iter().zip(over).map(|(holder, over)| total(*holder, over, open_of(holder.pid)));
        Ok(totals.collect())
    }

    /// The accounts of these processes, in the same order.
    fn over_of(&self, holders: &[Holder]) -> Result<Vec<Option<Account>>> {
        let over = self.over();
        let account = |holder: &Holder| match over.get(&holder.pid.cast_unsigned(), 0) {
            Ok(account) => Ok(Some(account)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(failed(error)),
        };
        holders.iter().map(account).collect()
    }

    /// Closes the accounts of processes that are not mobile: they have ended, or lost the attribute.
    pub(crate) fn sweep(&self, cgroup: &MobileCgroup) -> anyhow::Result<()> {
        let pids: Vec<u32> = self.over().keys().collect::<std::result::Result<_, _>>().map_err(failed)?;
        if pids.is_empty() {
            return Ok(());
        }
        // After the accounts: that of a process which becomes mobile meanwhile is not among them.
        let mobile: HashSet<i32> = cgroup.pids()?.into_iter().collect();
        for pid in pids.into_iter().filter(|pid| !mobile.contains(&pid.cast_signed())) {
            match self.over().remove(&pid) {
                Ok(()) | Err(MapError::KeyNotFound) => {}
                Err(error) => return Err(failed(error).into()),
            }
        }
        Ok(())
    }

    /// Until no further process has a place; says who has one.
    #[cfg(test)]
    pub(super) fn fill(&self) -> Vec<u32> {
        let mut over = self.over();
        let made_up = (0..map::ACCOUNTS_ENTRIES).map(|number| u32::MAX - number);
        made_up.take_while(|pid| over.insert(pid, &Account::default(), 0).is_ok()).collect()
    }

    /// How many connections of a process are over.
    #[cfg(test)]
    pub(super) fn ended(&self, pid: i32) -> Option<u64> {
        self.over().get(&pid.cast_unsigned(), 0).ok().map(|account| account.connections)
    }

    /// How many processes have an account.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.over().keys().count()
    }

    fn over(&self) -> MutexGuard<'_, maps::HashMap<MapData, u32, Account>> {
        self.over.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn total(holder: Holder, over: Option<Account>, open: &[Open]) -> Traffic {
    let mut traffic = Traffic::default();
    if let Some(account) = over.filter(|account| account.since >= holder.started) {
        traffic = Traffic {
            connections: account.connections,
            bytes_sent: account.sent,
            bytes_received: account.received,
        };
    }
    for socket in open {
        if socket.owner.since < holder.started || !account::is_made(socket.state) {
            continue;
        }
        traffic.connections += 1;
        traffic.bytes_sent += account::sent(socket.state, socket.acked, false);
        // While it is open, the last FIN has not come.
        traffic.bytes_received += account::received(socket.state, socket.received, socket.received);
    }
    traffic
}

fn failed(source: MapError) -> BpfError {
    BpfError::Map { name: map::ACCOUNTS, source }
}

#[cfg(test)]
mod tests {
    use mobile_ebpf_common::Owner;

    use super::*;

    #[test]
    fn what_a_former_process_with_the_same_id_carried_is_not_counted() {
        let holder = Holder { pid: 7, started: 1000 };
        let over = |since| Some(Account { since, connections: 2, sent: 20, received: 30 });
        let open = |since, state| Open {
            owner: Owner { since, half_closed_at: 0, process: 7 },
            state,
            acked: 5,
            received: 6,
        };
        let carried =
            |connections, bytes_sent, bytes_received| Traffic { connections, bytes_sent, bytes_received };
        let sockets = [open(1000, 1), open(999, 1), open(1001, account::state::SYN_SENT)];
        assert_eq!(total(holder, over(1000), &sockets), carried(3, 24, 36));
        assert_eq!(total(holder, over(999), &sockets), carried(1, 4, 6));
        assert_eq!(total(holder, None, &[]), Traffic::default());
    }
}
