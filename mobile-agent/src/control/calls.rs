//! Handles the calls of the C library `libmobile`, such as `inet_setmobile`, and answers with error
//! numbers.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use mobile_control::Call;

use crate::daemon::Agent;
use crate::processes::{Job, JobError, Requester};

/// Executes a function call that a process made in `libmobile`. Returns the result that the process
/// gets: 0, or an error number (errno). Returns `Err` if the agent itself failed.
pub(super) async fn handle(
    agent: &Arc<Agent>,
    requester: Requester,
    caller: (i32, Option<OwnedFd>),
    call: Call,
) -> Result<i32, String> {
    let done = match call {
        Call::SetMobile { pid, mobile } => {
            let agent = Arc::clone(agent);
            let set = move || set_mobile(&agent, requester, &caller, pid, mobile);
            match super::server::blocking(set).await? {
                Ok(()) => Ok(()),
                Err(error) => {
                    tracing::debug!(%error, "inet_setmobile failed");
                    Err(error.errno())
                }
            }
        }
        Call::SetRoute { gateway } => agent.set_route(gateway).await,
    };
    Ok(done.map_or_else(|errno| errno as i32, |()| 0))
}

fn set_mobile(
    agent: &Agent,
    requester: Requester,
    (caller, pidfd): &(i32, Option<OwnedFd>),
    pid: i32,
    mobile: bool,
) -> Result<Result<(), JobError>, String> {
    let _scope = mobile.then(|| agent.attach_to_root()).transpose()?;
    let pid = (pid != 0).then_some(pid);
    let job = Job::SetMobile { pid, caller: *caller, requester, mobile, with_sockets: true };
    Ok(agent.processes.run(&job, pidfd.as_ref().map(|pidfd| pidfd.as_fd())))
}
