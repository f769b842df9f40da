//! What the control socket does to processes: sets and clears the MOBILE attribute, lists who has it.

use std::net::IpAddr;

use super::access::{Asker, Held, may_change};
use super::protocol::{Change, Connection, Process};
use crate::selection::cgroup::MobileCgroup;
use crate::selection::process;

/// Sets or clears the attribute of each process that the asker may change.
pub(super) fn change(
    cgroup: &MobileCgroup,
    asker: Asker,
    pids: &[i32],
    mobile: bool,
    persistent: &[IpAddr],
) -> Vec<Change> {
    pids.iter()
        .map(|&pid| {
            let known = process::read(pid).ok();
            let changed = Held::open(pid).and_then(|held| change_one(cgroup, asker, &held, mobile));
            let kept = known.as_ref().filter(|_| changed.is_ok()).map(|process| {
                process
                    .connections
                    .iter()
                    .filter(|connection| connection.is_mobile(persistent) != mobile)
                    .map(connection)
                    .collect()
            });
            Change {
                pid,
                command: known.map(|process| process.comm),
                error: changed.err(),
                kept: kept.unwrap_or_default(),
            }
        })
        .collect()
}

/// Sets or clears the attribute of a process that is held.
pub(super) fn change_one(
    cgroup: &MobileCgroup,
    asker: Asker,
    held: &Held,
    mobile: bool,
) -> Result<(), String> {
    if !may_change(asker, held.owners) {
        let owner = user_name(held.owners[0]);
        let pid = held.pid;
        return Err(format!(
            "process {pid} belongs to {owner}: only its owner, root or the [control] group may change it"
        ));
    }
    let set = |mobile| if mobile { cgroup.attach(held.pid) } else { cgroup.detach(held.pid) };
    let before = cgroup.is_mobile(held.pid).map_err(|error| error.to_string())?;
    set(mobile).map_err(|error| error.to_string())?;
    if !held.is_alive() {
        // It ended meanwhile: whoever has its number now was not meant.
        if before != mobile
            && let Err(error) = set(before)
        {
            tracing::debug!(pid = held.pid, %error, "cannot undo the change of a process that has ended");
        }
        return Err(format!("process {} has ended", held.pid));
    }
    Ok(())
}

/// The mobile processes that the asker may see.
pub(super) fn list(
    cgroup: &MobileCgroup,
    asker: Asker,
    persistent: &[IpAddr],
) -> Result<Vec<Process>, String> {
    let pids = cgroup.pids().map_err(|error| error.to_string())?;
    Ok(process::list(&pids)
        .into_iter()
        .filter(|process| asker.privileged || process.uid == asker.uid)
        .map(|process| Process {
            pid: process.pid,
            uid: process.uid,
            user: user_name(process.uid),
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
        })
        .collect())
}

fn connection(connection: &process::Connection) -> Connection {
    Connection {
        protocol: match connection.transport {
            process::Transport::Tcp => "tcp",
            process::Transport::Udp => "udp",
        }
        .to_owned(),
        local: connection.local.to_string(),
        remote: connection.remote.to_string(),
    }
}

fn user_name(uid: u32) -> String {
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    }
}
