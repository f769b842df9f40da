//! Answers the control socket. Every connection is a task; what reads /proc or moves processes runs off the runtime's thread.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mobile_io::control::{Connection, ControlError, Listener, Peer, UserConnectionLimit};
use serde::de::DeserializeOwned;

use super::access::admit;
use super::calls;
use super::protocol::{Answer, Request};
use crate::daemon::Agent;
use crate::processes::{Asker, Job};

/// After a failed accept (no descriptors left, say): long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections of one user at a time. The socket is everybody's: nobody may use up the descriptors that the next
/// path needs. A person's scripts run a few commands at once.
const MAX_PER_USER: usize = 32;

/// Accepts for ever.
pub(crate) async fn serve(listener: Listener, agent: Arc<Agent>) {
    let slots = UserConnectionLimit::new(MAX_PER_USER);
    loop {
        match listener.accept().await {
            Ok(connection) => {
                let agent = Arc::clone(&agent);
                let uid = connection.peer.uid;
                let Some(slot) = slots.take(uid) else {
                    tracing::debug!(uid, "too many control connections of one user: closed");
                    continue;
                };
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(error) = converse(connection, &agent).await {
                        tracing::debug!(%error, "control connection");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept on the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn converse(mut connection: Connection, agent: &Arc<Agent>) -> Result<(), ControlError> {
    let Peer { pid, uid, gid, .. } = connection.peer;
    let asker = Asker { uid, privileged: uid == 0 || is_member(agent, uid, gid).await };
    loop {
        let answer = match connection.recv::<Request>().await {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => {
                tracing::debug!(pid, uid, ?request, "asked");
                let pidfd = connection.peer.pidfd.as_ref().and_then(|pidfd| pidfd.try_clone().ok());
                match admit(asker, &request) {
                    Ok(()) => {
                        answer(agent, asker, (pid, pidfd), request).await.unwrap_or_else(Answer::Refused)
                    }
                    Err(reason) => Answer::Refused(reason),
                }
            }
            Err(ControlError::BadMessage(error)) => Answer::Refused(format!("not understood: {error}")),
            Err(error) => return Err(error),
        };
        match connection.send(&answer).await {
            Err(error @ ControlError::TooLong) => {
                connection.send(&Answer::Refused(error.to_string())).await?;
            }
            sent => sent?,
        }
    }
}

async fn answer(
    agent: &Arc<Agent>,
    asker: Asker,
    (pid, pidfd): (i32, Option<OwnedFd>),
    request: Request,
) -> Result<Answer, String> {
    let persistent = agent.persistent();
    let agent_for_job = Arc::clone(agent);
    match request {
        Request::Run => {
            blocking(move || run(&agent_for_job, asker, pid, pidfd.as_ref().map(OwnedFd::as_fd))).await
        }
        Request::Call(call) => calls::answer(agent, asker, (pid, pidfd), call).await.map(Answer::Called),
        Request::Attach { pids } => {
            blocking(move || {
                let _watched = agent_for_job.watch_everybody()?;
                let job = Job::Change { pids, asker, persistent, mobile: true };
                ask_helper(&agent_for_job, &job).map(Answer::Changed)
            })
            .await
        }
        Request::Detach { pids } => {
            let job = Job::Change { pids, asker, persistent, mobile: false };
            blocking(move || ask_helper(&agent_for_job, &job).map(Answer::Changed)).await
        }
        Request::Processes => {
            let job = Job::List { asker, persistent };
            blocking(move || ask_helper(&agent_for_job, &job).map(Answer::Processes)).await
        }
        Request::Status => Ok(Answer::Status(Box::new(agent.status().await))),
        Request::Uplinks => Ok(Answer::Uplinks(agent.uplinks().await)),
        Request::Use { uplink } => agent.force(uplink),
        Request::Bypasses => Ok(Answer::Bypasses(agent.bypass.lock().await.clone())),
        Request::Bypass { net, add } => agent.change_bypass(net, add).await,
        Request::Cleanup => agent.clean_up().await,
        Request::PrepareSlice => blocking(move || agent_for_job.prepare_slice().map(|()| Answer::Done)).await,
    }
}

/// Returns whether the user is in the `[control] group`. The user database may be a service that
/// only the process helper may query.
async fn is_member(agent: &Arc<Agent>, uid: u32, gid: u32) -> bool {
    let Some(group) = agent.config.control.group.clone() else { return false };
    let agent = Arc::clone(agent);
    blocking(move || ask_helper(&agent, &Job::IsPrivileged { uid, gid, group })).await.unwrap_or(false)
}

/// Sets the attribute of the calling process.
fn run(agent: &Agent, asker: Asker, caller: i32, pidfd: Option<BorrowedFd<'_>>) -> Result<Answer, String> {
    let helper = |job: &Job| agent.processes.run(job, pidfd).map_err(|error| error.to_string());
    let holds: Result<bool, _> = agent.processes.run(&Job::HoldsSockets { caller }, pidfd);
    let with_sockets = holds.map_err(|error| error.to_string())?;
    let _watched = with_sockets.then(|| agent.watch_everybody()).transpose()?;
    helper(&Job::SetMobile { pid: None, caller, asker, mobile: true, with_sockets }).map(|()| Answer::Done)
}

fn ask_helper<T: DeserializeOwned>(agent: &Agent, job: &Job) -> Result<T, String> {
    agent.processes.run(job, None).map_err(|error| error.to_string())
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(format!("the agent failed: {error}")))
}
