//! Accepts connections on the control socket and handles their requests.
//!
//! Every connection is a task. Work that reads `/proc` or moves processes runs on a blocking
//! thread, off the runtime's own.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use mobile_host::control::{Connection, ControlError, Listener, Peer, UserConnectionLimit};
use serde::de::DeserializeOwned;

use super::access::admit;
use super::calls;
use super::protocol::{Reply, Request};
use crate::daemon::Agent;
use crate::processes::{Job, Requester};

/// The pause after a failed accept, for example when no file descriptor is left: long enough not to
/// spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The maximum number of simultaneous connections of one user. Every user may connect, and no one
/// may use up the file descriptors that the agent needs for its paths to the relay; a person's
/// scripts run a few commands at once.
const MAX_PER_USER: usize = 32;

/// Accepts connections on the control socket until the task is aborted.
pub(crate) async fn serve(listener: Listener, agent: Arc<Agent>) {
    let slots = UserConnectionLimit::new(MAX_PER_USER);
    loop {
        match listener.accept().await {
            Ok(connection) => {
                let agent = Arc::clone(&agent);
                let uid = connection.peer.uid;
                let Some(slot) = slots.take(uid) else {
                    tracing::debug!(uid, "refused a control connection: this user has too many open");
                    continue;
                };
                tokio::spawn(async move {
                    let _slot = slot;
                    if let Err(error) = serve_connection(connection, &agent).await {
                        tracing::debug!(%error, "control connection failed");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection on the control socket");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve_connection(mut connection: Connection, agent: &Arc<Agent>) -> Result<(), ControlError> {
    let Peer { pid, uid, gid, .. } = connection.peer;
    let requester = Requester { uid, privileged: uid == 0 || is_member(agent, uid, gid).await };
    loop {
        let reply = match connection.recv::<Request>().await {
            Ok(None) => return Ok(()),
            Ok(Some(request)) => {
                tracing::debug!(pid, uid, ?request, "control request");
                let pidfd = connection.peer.pidfd.as_ref().and_then(|pidfd| pidfd.try_clone().ok());
                match admit(requester, &request) {
                    Ok(()) => {
                        handle(agent, requester, (pid, pidfd), request).await.unwrap_or_else(Reply::Refused)
                    }
                    Err(reason) => Reply::Refused(reason),
                }
            }
            Err(ControlError::BadMessage(error)) => {
                Reply::Refused(format!("cannot decode the request: {error}"))
            }
            Err(error) => return Err(error),
        };
        match connection.send(&reply).await {
            Err(error @ ControlError::TooLong) => {
                connection.send(&Reply::Refused(error.to_string())).await?;
            }
            sent => sent?,
        }
    }
}

async fn handle(
    agent: &Arc<Agent>,
    requester: Requester,
    (pid, pidfd): (i32, Option<OwnedFd>),
    request: Request,
) -> Result<Reply, String> {
    let persistent = agent.persistent();
    let agent_for_job = Arc::clone(agent);
    match request {
        Request::Run => {
            blocking(move || run(&agent_for_job, requester, pid, pidfd.as_ref().map(OwnedFd::as_fd))).await
        }
        Request::Call(call) => calls::handle(agent, requester, (pid, pidfd), call).await.map(Reply::Called),
        Request::Attach { pids } => {
            blocking(move || {
                let _scope = agent_for_job.attach_to_root()?;
                let job = Job::Change { pids, requester, persistent, mobile: true };
                ask_helper(&agent_for_job, &job).map(Reply::Changed)
            })
            .await
        }
        Request::Detach { pids } => {
            let job = Job::Change { pids, requester, persistent, mobile: false };
            blocking(move || ask_helper(&agent_for_job, &job).map(Reply::Changed)).await
        }
        Request::Processes => {
            let job = Job::List { requester, persistent };
            blocking(move || ask_helper(&agent_for_job, &job).map(Reply::Processes)).await
        }
        Request::Status => Ok(Reply::Status(Box::new(agent.status().await))),
        Request::Uplinks => Ok(Reply::Uplinks(agent.uplinks().await)),
        Request::Use { uplink } => agent.force(uplink),
        Request::Bypasses => Ok(Reply::Bypasses(agent.bypass.lock().await.clone())),
        Request::Bypass { net, add } => agent.change_bypass(net, add).await,
        Request::Cleanup => agent.clean_up().await,
        Request::PrepareSlice => blocking(move || agent_for_job.prepare_slice().map(|()| Reply::Done)).await,
    }
}

/// Returns whether the user is a member of the `[control] group`. Asks the process helper, because
/// the user database may be a service that only the helper may query.
async fn is_member(agent: &Arc<Agent>, uid: u32, gid: u32) -> bool {
    let Some(group) = agent.config.control.group.clone() else { return false };
    let agent = Arc::clone(agent);
    blocking(move || ask_helper(&agent, &Job::IsPrivileged { uid, gid, group })).await.unwrap_or(false)
}

/// Makes the process that sent the request mobile, with the sockets that it holds.
fn run(
    agent: &Agent,
    requester: Requester,
    caller: i32,
    pidfd: Option<BorrowedFd<'_>>,
) -> Result<Reply, String> {
    let helper = |job: &Job| agent.processes.run(job, pidfd).map_err(|error| error.to_string());
    let holds: Result<bool, _> = agent.processes.run(&Job::HoldsSockets { caller }, pidfd);
    let with_sockets = holds.map_err(|error| error.to_string())?;
    let _scope = with_sockets.then(|| agent.attach_to_root()).transpose()?;
    helper(&Job::SetMobile { pid: None, caller, requester, mobile: true, with_sockets }).map(|()| Reply::Done)
}

fn ask_helper<T: DeserializeOwned>(agent: &Agent, job: &Job) -> Result<T, String> {
    agent.processes.run(job, None).map_err(|error| error.to_string())
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(format!("the agent failed while it handled the request: {error}")))
}
