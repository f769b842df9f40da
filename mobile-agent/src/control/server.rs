//! Answers the control socket. Every connection is a task; what reads /proc or moves processes runs off the runtime's thread.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mobile_io::control::{Connection, ControlError, Listener, Peer};

use super::access::{Asker, Held, admit, is_privileged};
use super::calls;
use super::processes;
use super::protocol::{Answer, Request};
use crate::daemon::Agent;
use crate::selection::sockets;

/// After a failed accept (no descriptors left, say): long enough not to spin, short enough not to be noticed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Connections of one user at a time. The socket is everybody's: nobody may use up the descriptors that the next
/// path needs. A person's scripts run a few commands at once.
const MAX_PER_USER: usize = 32;

/// How long a connection may wait before it asks. Commands ask at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// The connections that are open, by user.
type Open = Arc<Mutex<HashMap<u32, usize>>>;

/// One connection's place among its user's.
struct Place {
    uid: u32,
    open: Open,
}

impl Place {
    fn take(open: &Open, uid: u32) -> Option<Self> {
        let mut users = open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(uid).or_default();
        (*count < MAX_PER_USER).then(|| {
            *count += 1;
            Self { uid, open: Arc::clone(open) }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut users = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

/// Accepts for ever.
pub(crate) async fn serve(listener: Listener, agent: Arc<Agent>) {
    let open = Open::default();
    loop {
        match listener.accept().await {
            Ok(connection) => {
                let agent = Arc::clone(&agent);
                let uid = connection.peer.uid;
                let Some(place) = Place::take(&open, uid) else {
                    tracing::debug!(uid, "too many control connections of one user: closed");
                    continue;
                };
                tokio::spawn(async move {
                    let _place = place;
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
        let Ok(request) = tokio::time::timeout(PATIENCE, connection.recv::<Request>()).await else {
            return Ok(());
        };
        let answer = match request {
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
    let cgroup = agent.cgroup.clone();
    let persistent = agent.persistent();
    match request {
        Request::Run => {
            let agent = Arc::clone(agent);
            blocking(move || {
                let held = Held::caller(pid, pidfd).map_err(|error| error.to_string())?;
                // Its stdin perhaps, or what its parent left it.
                let inherits = sockets::has_any(pid, held.pidfd());
                let _watched = inherits.then(|| agent.watch_everybody()).transpose()?;
                let done = if inherits {
                    processes::change_with_sockets(&agent, asker, &held, true)
                } else {
                    processes::change_one(&agent.cgroup, asker, &held, true)
                };
                done.map(|()| Answer::Done).map_err(|error| error.to_string())
            })
            .await
        }
        Request::Call(call) => calls::answer(agent, asker, (pid, pidfd), call).await.map(Answer::Called),
        Request::Attach { pids } => {
            let agent = Arc::clone(agent);
            blocking(move || {
                let _watched = agent.watch_everybody()?;
                Ok(Answer::Changed(processes::change(&agent, asker, &pids, true)))
            })
            .await
        }
        Request::Detach { pids } => {
            let agent = Arc::clone(agent);
            blocking(move || Ok(Answer::Changed(processes::change(&agent, asker, &pids, false)))).await
        }
        Request::Processes => {
            let accounts = Arc::clone(&agent.accounts);
            blocking(move || processes::list(&cgroup, asker, &persistent, &accounts).map(Answer::Processes))
                .await
        }
        Request::Status => Ok(Answer::Status(Box::new(agent.status().await))),
        Request::Uplinks => Ok(Answer::Uplinks(agent.uplinks().await)),
        Request::Use { uplink } => agent.force(uplink),
        Request::Bypasses => Ok(Answer::Bypasses(agent.bypass.lock().await.clone())),
        Request::Bypass { net, add } => agent.change_bypass(net, add).await,
        Request::Cleanup => agent.clean_up().await,
        Request::PrepareSlice => agent.prepare_slice().map(|()| Answer::Done),
    }
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(format!("the agent failed: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_take_the_places_of_others() {
        let open = Open::default();
        let mut taken: Vec<_> = (0..MAX_PER_USER).map(|_| Place::take(&open, 1000).unwrap()).collect();
        assert!(Place::take(&open, 1000).is_none());
        assert!(Place::take(&open, 0).is_some());
        taken.pop();
        assert!(Place::take(&open, 1000).is_some());
        taken.clear();
        assert!(open.lock().unwrap().is_empty());
    }
}
