//! The tunnel: keeps the session on the best uplink. `machine` decides, `manager` does, `history` remembers.

pub(crate) mod cause;
mod config_limiter;
pub(crate) mod connect;
pub(crate) mod history;
pub(crate) mod io;
pub(crate) mod machine;
mod manager;
mod suspend;

use std::net::SocketAddr;
use std::time::Instant;

use mobile_io::driver::{self, Handle};
use mobile_proto::{Limits, PathId, PushConfig, Session, SessionId};
use tokio::sync::{mpsc, watch};

use crate::uplinks::Uplinks;
use crate::uplinks::policy::{Decision, Uplink};
use connect::Dialer;
use history::HandoverHistory;
use io::TunIo;
use machine::{ActivePath, Preferences};
use manager::Manager;

/// What the rest of the agent asks of the tunnel.
#[derive(Clone)]
pub(crate) struct Tunnel {
    /// The running session.
    pub(crate) driver: Handle,
    /// What the manager knows.
    pub(crate) state: watch::Receiver<State>,
    /// What the relay pushed_config, whenever it says so.
    pub(crate) pushed_config: watch::Receiver<Option<PushConfig>>,
    force: mpsc::UnboundedSender<Option<String>>,
}

/// What the manager knows, for status and metrics.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// The path in use, and the relay's address on it.
    pub(crate) active: Option<(ActivePath, SocketAddr)>,
    /// Since when there is none, if there was one.
    pub(crate) outage_since: Option<Instant>,
    /// The paths the relay has welcomed, each with its uplink.
    pub(crate) ready: Vec<(PathId, String)>,
    /// The uplinks being tried.
    pub(crate) connecting: Vec<String>,
    /// What is known of the uplinks.
    pub(crate) uplinks: Vec<Uplink>,
    /// The policy's choice.
    pub(crate) decision: Decision,
    /// The uplink `mobile use` named.
    pub(crate) forced: Option<String>,
    /// What happened.
    pub(crate) history: HandoverHistory,
    /// The number of the relay's configurations that were deferred.
    pub(crate) assignments_deferred: u64,
}

impl Tunnel {
    /// Starts the session and its manager. The returned future ends only when the session does, with the reason.
    pub(crate) fn start(
        dialer: Dialer,
        preferences: Preferences,
        limits: Limits,
        device: TunIo,
        uplinks: Uplinks,
    ) -> (Self, impl Future<Output = anyhow::Error>) {
        let session = Session::client(SessionId(rand::random()), limits);
        let (driver, events) = driver::spawn(session, device);
        let (force, forces) = mpsc::unbounded_channel();
        let (publish_config, pushed_config) = watch::channel(None);
        let manager = Manager::new(preferences, dialer, driver.clone(), uplinks, publish_config);
        let (publish, state) = watch::channel(manager.state());
        (Self { driver, state, pushed_config, force }, manager.run(events, forces, publish))
    }

    /// `mobile use`.
    pub(crate) fn force(&self, uplink: Option<String>) {
        // The manager ends only together with the agent.
        let _ = self.force.send(uplink);
    }
}
