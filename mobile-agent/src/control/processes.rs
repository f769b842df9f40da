//! What the control socket does to processes: sets and clears the MOBILE attribute, lists who has it.

use std::collections::HashMap;
use std::net::IpAddr;

use super::access::{Asker, Held, may_change};
use super::protocol::{Change, Connection, Process, Traffic};
use super::unchanged::Unchanged;
use crate::daemon::Agent;
use crate::selection::account::Accounts;
use crate::selection::cgroup::MobileCgroup;
use crate::selection::process::{self, Reader};
use crate::selection::sockets::{self, Mark};

/// Sets or clears the attribute of each process that the asker may change.
pub(super) fn change(agent: &Agent, asker: Asker, pids: &[i32], mobile: bool) -> Vec<Change> {
    let persistent = agent.persistent();
    // One for all of them: there may be a thousand.
    let mut reader = Reader::default();
    pids.iter()
        .map(|&pid| {
            let held = Held::open(pid);
            // A /proc mounted with hidepid keeps others' processes from the asker, and not from the agent, which
            // must not tell what the asker could not see.
            let may_see = held.as_ref().is_ok_and(|held| may_change(asker, held.owners));
            let known = may_see.then(|| reader.process(pid).ok()).flatten();
            let changed = held.and_then(|held| change_with_sockets(agent, asker, &held, mobile));
            let kept = known.as_ref().filter(|_| changed.is_ok()).map(|process| {
                process
                    .connections
                    .iter()
                    .filter(|connection| connection.is_mobile(&persistent) != mobile)
                    .map(connection)
                    .collect()
            });
            Change {
                pid,
                command: known.map(|process| process.comm),
                error: changed.err().map(|error| error.to_string()),
                kept: kept.unwrap_or_default(),
            }
        })
        .collect()
}

/// Sets or clears the attribute of a process that is held, and of its sockets that have no peer.
pub(super) fn change_with_sockets(
    agent: &Agent,
    asker: Asker,
    held: &Held,
    mobile: bool,
) -> Result<(), Unchanged> {
    change_one(&agent.cgroup, asker, held, mobile)?;
    // After the attribute: what it makes from here on is marked, or not, as it is made.
    let routing = &agent.config.routing;
    let ours = Mark { mark: routing.mark, mask: routing.mark_mask };
    sockets::follow(held.pid, held.pidfd(), ours, mobile);
    Ok(())
}

/// Sets or clears the attribute of a process that is held.
pub(super) fn change_one(
    cgroup: &MobileCgroup,
    asker: Asker,
    held: &Held,
    mobile: bool,
) -> Result<(), Unchanged> {
    if !may_change(asker, held.owners) {
        return Err(Unchanged::Foreign(held.pid));
    }
    // Only now: where others' processes are is not for everybody to know.
    if held.elsewhere {
        return Err(Unchanged::OtherNamespace(held.pid));
    }
    let set = |mobile| if mobile { cgroup.attach(held.pid) } else { cgroup.detach(held.pid) };
    let before = cgroup.is_mobile(held.pid)?;
    set(mobile)?;
    if !held.is_alive() {
        // It ended meanwhile: whoever has its number now was not meant.
        if before != mobile
            && let Err(error) = set(before)
        {
            tracing::debug!(pid = held.pid, %error, "cannot undo the change of a process that has ended");
        }
        return Err(Unchanged::Ended(held.pid));
    }
    Ok(())
}

/// The mobile processes that the asker may see.
pub(super) fn list(
    cgroup: &MobileCgroup,
    asker: Asker,
    persistent: &[IpAddr],
    accounts: &Accounts,
) -> Result<Vec<Process>, String> {
    let pids = cgroup.pids().map_err(|error| error.to_string())?;
    // Each name costs a look into the user database, which may be across the network.
    let mut names: HashMap<u32, String> = HashMap::new();
    let mut processes = Reader::default().processes(&pids);
    processes.retain(|process| may_change(asker, process.owners));
    let traffic = traffic(accounts, &processes);
    Ok(processes
        .into_iter()
        .zip(traffic)
        .map(|(process, tcp)| Process {
            pid: process.pid,
            uid: process.uid,
            user: names.entry(process.uid).or_insert_with(|| user_name(process.uid)).clone(),
            command: if process.cmdline.is_empty() {
                format!("[{}]", process.comm)
            } else {
                process::shortened(process.cmdline.join(" "))
            },
            connections: process
                .connections
                .iter()
                .filter(|connection| connection.is_mobile(persistent))
                .map(connection)
                .collect(),
            tcp,
        })
        .collect())
}

/// What each process carried. Without it the list is still worth having.
fn traffic(accounts: &Accounts, processes: &[process::Process]) -> Vec<Option<Traffic>> {
    let holders: Vec<_> = processes.iter().map(process::Process::holder).collect();
    match accounts.of(&holders) {
        Ok(traffic) => traffic.into_iter().map(Some).collect(),
        Err(error) => {
            tracing::warn!(%error, "`mobile ps` does not say what processes carried");
            vec![None; processes.len()]
        }
    }
}

fn connection(connection: &process::Connection) -> Connection {
    let process::Connection { transport, local, remote } = connection;
    Connection { protocol: transport.word().to_owned(), local: local.to_string(), remote: remote.to_string() }
}

fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}
