//! The calls of the C library: what the verbs do as well, answered with an error number.

use std::os::fd::OwnedFd;

use mobile_control::Call;

use super::access::{Asker, Held};
use super::processes;
use super::unchanged::Unchanged;
use crate::daemon::Agent;
use crate::selection::cgroup::MobileCgroup;

/// Does it, and says 0 or why not.
pub(super) async fn answer(
    agent: &Agent,
    asker: Asker,
    caller: (i32, Option<OwnedFd>),
    call: Call,
) -> Result<i32, String> {
    let done = match call {
        Call::SetMobile { pid, mobile } => {
            let cgroup = agent.cgroup.clone();
            let set = move || set_mobile(&cgroup, asker, caller, pid, mobile);
            match super::server::blocking(move || Ok(set())).await? {
                Ok(()) => Ok(()),
                Err(error) => {
                    tracing::debug!(%error, "inet_setmobile");
                    Err(error.errno())
                }
            }
        }
        Call::SetRoute { gateway } => agent.set_route(gateway).await,
    };
    Ok(done.map_or_else(|errno| errno as i32, |()| 0))
}

fn set_mobile(
    cgroup: &MobileCgroup,
    asker: Asker,
    (caller, pidfd): (i32, Option<OwnedFd>),
    pid: i32,
    mobile: bool,
) -> Result<(), Unchanged> {
    let held = if pid == 0 { Held::caller(caller, pidfd)? } else { Held::open(pid)? };
    processes::change_one(cgroup, asker, &held, mobile)
}
