//! The relay's end of the admin socket: accepts connections and answers requests.

use std::sync::Arc;
use std::time::Duration;

use mobile_host::control::{Connection, ControlError, Listener, UserConnectionLimit};
use tracing::{debug, info, warn};

use super::ACCEPT_RETRY_DELAY;
use super::relay::Relay;
use crate::admin::{AdminReply, Request};
use crate::store::NewClient;

/// The largest number of simultaneous connections of one user to the admin socket; a person needs
/// one, a script a few. Root is counted separately, so members of the socket's group cannot lock
/// root out.
const MAX_PER_USER: usize = 32;

/// The largest number of rows of the store in one reply: rows have at most a few kilobytes, and a
/// reply has 16 MiB.
const ROWS_PER_REPLY: usize = 2048;

/// Accepts connections to the admin socket and answers their requests until the task is dropped.
pub(super) async fn run(listener: Listener, relay: Arc<Relay>) {
    let slots = UserConnectionLimit::new(MAX_PER_USER);
    loop {
        let mut connection = match listener.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                warn!("cannot accept a connection on the admin socket: {error}");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                continue;
            }
        };
        let uid = connection.peer.uid;
        let Some(slot) = slots.take(uid) else {
            debug!(uid, "admin connection refused: too many open connections of this user");
            let busy = format!("user {uid} has {MAX_PER_USER} connections to this socket: close some first");
            // The send buffer of a new socket is empty, so this does not block.
            let _ = connection.send(&AdminReply::Error(busy)).await;
            continue;
        };
        let relay = Arc::clone(&relay);
        tokio::spawn(async move {
            if let Err(error) = serve(connection, &relay).await {
                debug!("admin connection failed: {error}");
            }
            drop(slot);
        });
    }
}

async fn serve(mut connection: Connection, relay: &Relay) -> Result<(), ControlError> {
    loop {
        let reply = match connection.recv::<Request>().await {
            Ok(Some(request)) => {
                // The socket's mode admits only root and members of the configured group.
                let (uid, pid) = (connection.peer.uid, connection.peer.pid);
                match &request {
                    Request::Authorize { clients } => {
                        for NewClient { name, public_key, wanted, reach } in clients {
                            info!(uid, pid, name, %public_key, %wanted, ?reach, "admin request: authorize");
                        }
                    }
                    Request::Invite { name, lifetime, wanted, .. } => {
                        info!(uid, pid, name, lifetime, %wanted, "admin request: invite");
                    }
                    Request::Revoke { name } => info!(uid, pid, name, "admin request: revoke"),
                    Request::Reload => info!(uid, pid, "admin request: reload"),
                    Request::RereadKeys => info!(uid, pid, "admin request: reread keys"),
                    Request::Move { endpoint } => info!(uid, pid, ?endpoint, "admin request: move"),
                    Request::Forward(forward) => info!(uid, pid, "admin request: forward add: {forward}"),
                    Request::Unforward { protocol, port } => {
                        info!(uid, pid, %protocol, port, "admin request: forward del");
                    }
                    Request::Snapshot => info!(uid, pid, "admin request: backup"),
                    Request::Status
                    | Request::Clients
                    | Request::Sessions
                    | Request::Identity
                    | Request::Forwards
                    | Request::Reconcile
                    | Request::Config
                    | Request::AppliedConfig => {
                        debug!(uid, pid, ?request, "admin request");
                    }
                }
                match request {
                    Request::Snapshot => send_snapshot(&mut connection, relay).await?,
                    request => handle_request(request, relay).await,
                }
            }
            Ok(None) => return Ok(()),
            Err(error @ ControlError::BadMessage(_)) => AdminReply::Error(error.to_string()),
            Err(error) => return Err(error),
        };
        connection.send(&reply).await?;
    }
}

/// Sends the content of the store but for the last part, which is the returned reply.
async fn send_snapshot(connection: &mut Connection, relay: &Relay) -> Result<AdminReply, ControlError> {
    let snapshot = match relay.snapshot().await {
        Ok(snapshot) => snapshot,
        Err(error) => return Ok(AdminReply::Error(error.to_string())),
    };
    let mut parts = snapshot.split(ROWS_PER_REPLY);
    let last = parts.pop().unwrap_or_default();
    for part in parts {
        connection.send(&AdminReply::Snapshot { part, more: true }).await?;
    }
    Ok(AdminReply::Snapshot { part: last, more: false })
}

async fn handle_request(request: Request, relay: &Relay) -> AdminReply {
    let result = match request {
        Request::Authorize { clients } => relay.authorize(clients).await.map(AdminReply::Authorized),
        Request::Invite { name, token, lifetime, wanted } => {
            let entry = relay.invite(name, token, Duration::from_secs(lifetime), wanted).await;
            entry.map(|entry| AdminReply::Invited { relay: relay.public_key(), entry })
        }
        Request::Revoke { name } => relay.revoke(name).await.map(AdminReply::Revoked),
        Request::Clients => relay.clients().await.map(AdminReply::Clients),
        Request::Status => relay.status().await.map(|status| AdminReply::Status(Box::new(status))),
        // The caller sends the parts.
        Request::Snapshot => relay.snapshot().await.map(|part| AdminReply::Snapshot { part, more: false }),
        Request::Sessions => return AdminReply::Sessions(relay.registry().sessions().await),
        Request::Reload => return to_reply(relay.reload().await, AdminReply::Reloaded),
        Request::Reconcile => {
            return to_reply(relay.reconcile_all().await.map_err(anyhow::Error::new), AdminReply::Reconciled);
        }
        Request::Config => return AdminReply::Config(relay.file().to_owned()),
        Request::AppliedConfig => return AdminReply::AppliedConfig(Box::new(relay.applied_config().await)),
        Request::Forward(forward) => return to_reply(relay.forward(forward).await, AdminReply::Forward),
        Request::Unforward { protocol, port } => {
            return to_reply(relay.unforward(protocol, port).await, AdminReply::Forward);
        }
        Request::Identity => return to_reply(relay.identity_state().await, AdminReply::Identity),
        Request::RereadKeys => return to_reply(relay.reread_keys().await, AdminReply::Identity),
        Request::Move { endpoint } => {
            return to_reply(relay.move_to(endpoint).await, AdminReply::Identity);
        }
        Request::Forwards => return to_reply(relay.forwards().await, AdminReply::Forwards),
    };
    result.unwrap_or_else(|error| AdminReply::Error(error.to_string()))
}

fn to_reply<T>(result: anyhow::Result<T>, reply: impl FnOnce(T) -> AdminReply) -> AdminReply {
    result.map_or_else(|error| AdminReply::Error(format!("{error:#}")), reply)
}
