//! Accepts connections on the control socket and handles their requests.
//!
//! Every connection is a task. Work that reads `/proc` or moves processes runs on a blocking
//! thread, off the runtime's own.

use std::sync::Arc;
use std::time::Duration;

use mobile_host::control::{Connection, ControlError, Listener, Peer, UserConnectionLimit};

use super::access::admit;
use super::blocking::blocking;
use super::calls;
use super::request_error::RequestError;
use crate::agent::{Agent, BypassAction, BypassOutcome, Caller};
use crate::processes::Requester;
use crate::protocol::{Reply, Request};

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
                let handled = handle(agent, Caller { pid, pidfd, requester }, request).await;
                handled.unwrap_or_else(|error| Reply::Refused(error.to_string()))
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

/// Handles a request that the caller may send.
async fn handle(agent: &Arc<Agent>, caller: Caller, request: Request) -> Result<Reply, RequestError> {
    let requester = caller.requester;
    admit(requester, &request, agent.settings().config.control.group.as_deref())?;
    let persistent = agent.persistent();
    let agent_for_job = Arc::clone(agent);
    match request {
        Request::Run => {
            blocking(move || agent_for_job.processes().make_caller_mobile(&caller)).await?;
            Ok(Reply::Done)
        }
        Request::Call(call) => calls::handle(agent, caller, call).await.map(Reply::Called),
        Request::Attach { pids } => {
            let attach = move || agent_for_job.processes().attach(pids, requester, persistent);
            blocking(attach).await.map(Reply::Changed)
        }
        Request::Detach { pids } => {
            let detach = move || agent_for_job.processes().detach(pids, requester, persistent);
            blocking(detach).await.map(Reply::Changed)
        }
        Request::Processes => {
            let list = move || agent_for_job.processes().list(requester, persistent);
            blocking(list).await.map(Reply::Processes)
        }
        Request::Status => Ok(Reply::Status(Box::new(agent.status().await))),
        Request::Session => Ok(Reply::Session(agent.no_session())),
        Request::Uplinks => Ok(Reply::Uplinks(agent.uplinks().await)),
        Request::Use { uplink } => Ok(agent.force(uplink)?.map_or(Reply::Done, Reply::Noted)),
        Request::Bypasses => Ok(Reply::Bypasses(agent.bypasses().await)),
        Request::Bypass { net, add } => {
            let action = if add { BypassAction::Add } else { BypassAction::Remove };
            Ok(match agent.change_bypass(net, action).await? {
                BypassOutcome::Changed => Reply::Done,
                BypassOutcome::AlreadyBypassed(net) => Reply::Noted(format!("{net} is already bypassed")),
            })
        }
        Request::Config => Ok(Reply::Config(agent.settings().config.file.clone())),
        Request::Reload => Ok(agent.reload().await.map(Reply::Reloaded)?),
        Request::Cleanup => Ok(agent.clean_up().await.map(|()| Reply::Done)?),
        Request::PrepareSlice => {
            blocking(move || agent_for_job.processes().prepare_slice()).await?;
            Ok(Reply::Done)
        }
    }
}

/// Returns whether the user is a member of the `[control] group`.
async fn is_member(agent: &Arc<Agent>, uid: u32, gid: u32) -> bool {
    let Some(group) = agent.settings().config.control.group.clone() else { return false };
    let agent = Arc::clone(agent);
    blocking(move || agent.processes().is_member(uid, gid, group)).await.unwrap_or(false)
}
