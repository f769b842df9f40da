//! Answers the control socket. Every connection is a task; what reads /proc or moves processes runs off the runtime's thread.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use mobile_io::control::{Connection, ControlError, Listener, Peer};

use super::access::{Asker, Held, admit, is_privileged};
use super::processes;
use super::protocol::{Answer, Request};
use crate::daemon::Agent;

/// After a failed accept (no descriptors left, say): long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts for ever.
pub(crate) async fn serve(listener: Listener, agent: Arc<Agent>) {
    loop {
        match listener.accept().await {
            Ok(connection) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
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
    let group = agent.config.control.group.clone();
    let privileged = blocking(move || Ok(is_privileged(uid, gid, group.as_deref()))).await.unwrap_or(false);
    let asker = Asker { uid, privileged };
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
        connection.send(&answer).await?;
    }
}

async fn answer(
    agent: &Arc<Agent>,
    asker: Asker,
    (pid, pidfd): (i32, Option<OwnedFd>),
    request: Request,
) -> Result<Answer, String> {
    let cgroup = agent.cgroup.clone();
    let persistent = agent.persistent();
    match request {
        Request::Run => {
            blocking(move || {
                let held = match pidfd {
                    Some(pidfd) => Held::identify(pid, pidfd)?,
                    None => Held::open(pid)?,
                };
                processes::change_one(&cgroup, asker, &held, true)?;
                Ok(Answer::Done)
            })
            .await
        }
        Request::Attach { pids } => {
            blocking(move || Ok(Answer::Changed(processes::change(&cgroup, asker, &pids, true, &persistent))))
                .await
        }
        Request::Detach { pids } => {
            blocking(move || {
                Ok(Answer::Changed(processes::change(&cgroup, asker, &pids, false, &persistent)))
            })
            .await
        }
        Request::Processes => {
            blocking(move || processes::list(&cgroup, asker, &persistent).map(Answer::Processes)).await
        }
        Request::Status => Ok(Answer::Status(Box::new(agent.status().await))),
        Request::Uplinks => Ok(Answer::Uplinks(agent.uplinks())),
        Request::Use { uplink } => agent.force(uplink),
        Request::Cleanup => agent.clean_up().await,
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(format!("the agent failed: {error}")))
}
