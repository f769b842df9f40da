//! Keeps the session with the relay on the best uplink.
//!
//! - `machine` decides which paths to open, use and close. It performs no I/O.
//! - `manager` carries out these decisions and reports events back to the machine.
//! - `connect` opens one TLS connection to the relay; `io` adapts the host virtual device for the
//!   session driver.
//! - `known_relay` keeps the key and endpoint that the relay announces.
//! - `config_limiter` passes the configuration that the relay pushes on to `routing`.
//! - `history` counts and logs handovers and failures for `status` and `metrics`.

pub(crate) mod cause;
mod config_limiter;
pub(crate) mod connect;
pub(crate) mod history;
pub(crate) mod io;
pub(crate) mod known_relay;
pub(crate) mod machine;
mod manager;
mod suspend;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use mobile_proto::{Limits, PathId, PushConfig, Session, SessionId};
use mobile_transport::driver::{self, Handle};
use mobile_transport::keys::PrivateKey;
use tokio::sync::{mpsc, watch};

use crate::uplinks::Uplinks;
use crate::uplinks::policy::{Decision, Uplink};
use connect::Dialer;
use history::HandoverHistory;
use io::TunIo;
use known_relay::KnownRelay;
use machine::{ActivePath, Preferences};
use manager::Manager;

/// The handle by which the rest of the agent uses the tunnel.
#[derive(Clone)]
pub(crate) struct Tunnel {
    /// The handle of the running session driver.
    pub(crate) driver: Handle,
    /// The latest state of the tunnel (paths, uplinks and handovers) that its manager published.
    pub(crate) state: watch::Receiver<Arc<TunnelState>>,
    /// The latest configuration that the relay pushed, updated at a limited rate.
    pub(crate) pushed_config: watch::Receiver<Option<Arc<PushConfig>>>,
    /// The relay's endpoints and keys.
    pub(crate) known: Arc<watch::Sender<KnownRelay>>,
    commands: mpsc::UnboundedSender<TunnelCommand>,
}

/// A command to the manager of the tunnel.
enum TunnelCommand {
    /// Force the tunnel onto an uplink, or restore automatic choice (`mobile use`).
    Force(Option<String>),
    /// Use other settings from now on.
    Configure(Box<TunnelSettings>),
}

/// The settings of the tunnel that a reload can change.
pub(crate) struct TunnelSettings {
    /// The settings of `[uplink]`.
    pub(crate) preferences: Preferences,
    /// The relay and the key of this host for new paths, and what happens to the present paths;
    /// `None` if neither has changed.
    pub(crate) identity: Option<(KnownRelay, PrivateKey, PresentPaths)>,
}

/// What happens to the present paths when a key or the relay changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PresentPaths {
    /// The paths stay; only new ones use the new key of this host.
    Keep,
    /// The paths carry the session until the relay of the new settings has accepted a path.
    Replace,
}

/// A snapshot of the tunnel's paths, uplinks and handovers, for status and metrics.
#[derive(Debug, PartialEq)]
pub(crate) struct TunnelState {
    /// The path in use and the relay's address on it; `None` while no path works.
    pub(crate) active: Option<(ActivePath, SocketAddr)>,
    /// When the present session began; `None` before the first.
    pub(crate) session_since: Option<Instant>,
    /// When the outage began, if there is one.
    pub(crate) outage_since: Option<Instant>,
    /// The paths that the relay has accepted by WELCOME, each with its uplink.
    pub(crate) ready: Vec<(PathId, String)>,
    /// The uplinks with a connection attempt in progress.
    pub(crate) connecting: Vec<String>,
    /// The properties of every known uplink.
    pub(crate) uplinks: Vec<Uplink>,
    /// The policy's ranking of the uplinks.
    pub(crate) decision: Decision,
    /// The uplink that `mobile use` named; `None` for automatic choice.
    pub(crate) forced: Option<String>,
    /// The handovers and connection failures so far.
    pub(crate) history: HandoverHistory,
    /// The number of configurations of the relay that were deferred because they changed too often.
    pub(crate) assignments_deferred: u64,
}

impl Tunnel {
    /// Starts the session with the relay, and the manager that opens and closes its paths.
    ///
    /// The returned future ends only when the session ends, with the reason.
    pub(crate) fn start(
        dialer: Dialer,
        preferences: Preferences,
        limits: Limits,
        device: TunIo,
        uplinks: Uplinks,
    ) -> (Self, impl Future<Output = anyhow::Error>) {
        let known = Arc::clone(dialer.known());
        let session = Session::client(SessionId(rand::random()), limits);
        let (driver, events) = driver::spawn(session, device);
        let (commands, received) = mpsc::unbounded_channel();
        let (publish_config, pushed_config) = watch::channel(None);
        let manager = Manager::new(preferences, dialer, driver.clone(), uplinks, publish_config);
        let (publish, state) = watch::channel(Arc::new(manager.state()));
        (Self { driver, state, pushed_config, known, commands }, manager.run(events, received, publish))
    }

    /// Learns what the relay announces, and stores it in the directory `dir`. Does not end.
    pub(crate) fn follow_announcements(&self, dir: PathBuf) -> impl Future<Output = anyhow::Error> + use<> {
        let (known, pushed) = (Arc::clone(&self.known), self.pushed_config.clone());
        known_relay::follow(known, pushed, self.driver.clone(), dir)
    }

    /// Forces the tunnel onto an uplink (`mobile use`); `None` restores automatic choice.
    pub(crate) fn force(&self, uplink: Option<String>) {
        // The receiver is gone only while the agent stops.
        let _ = self.commands.send(TunnelCommand::Force(uplink));
    }

    /// Uses other settings from now on, after a reload of the configuration.
    pub(crate) fn configure(&self, settings: TunnelSettings) {
        // The receiver is gone only while the agent stops.
        let _ = self.commands.send(TunnelCommand::Configure(Box::new(settings)));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::publish::publish_if_changed;
    use cause::HandoverCause;
    use machine::Handover;

    fn state(history: &HandoverHistory) -> TunnelState {
        TunnelState {
            active: None,
            session_since: None,
            outage_since: None,
            ready: vec![(PathId(1), "eth0".into())],
            connecting: Vec::new(),
            uplinks: Vec::new(),
            decision: Decision::default(),
            forced: None,
            history: history.clone(),
            assignments_deferred: 0,
        }
    }

    #[test]
    fn an_unchanged_state_is_not_published_again() {
        let mut history = HandoverHistory::new();
        let (publish, published) = watch::channel(Arc::new(state(&history)));
        assert!(!publish_if_changed(&publish, state(&history)));
        let handover = Handover {
            cause: HandoverCause::CarrierLost,
            from: "eth0".into(),
            to: "wlan0".into(),
            blackout: Duration::from_millis(20),
            replayed: 3,
            dropped: 0,
        };
        history.record_handover(Instant::now(), handover);
        assert!(publish_if_changed(&publish, state(&history)), "a handover changes the state");
        assert!(!publish_if_changed(&publish, state(&history)));
        history.attempts += 1;
        assert!(publish_if_changed(&publish, state(&history)), "an attempt changes the state");
        let forced = || TunnelState { forced: Some("eth0".into()), ..state(&history) };
        assert!(publish_if_changed(&publish, forced()));
        assert!(!publish_if_changed(&publish, forced()));
        assert_eq!(published.borrow().history.handover_count(), 1);
    }
}
