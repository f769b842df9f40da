//! Reloads the configuration while connections continue (`mobile reload`, SIGHUP).
//!
//! The process helper reads the files, because the confined agent may not. If the configuration is
//! invalid, or a change cannot be applied, the reload fails and changes nothing. A setting that
//! cannot change at run time keeps its value and is reported. The key of this host counts as
//! changed when the content of its file has changed.

mod plan;

use std::sync::Arc;

use mobile_transport::keys::PrivateKey;
use tokio::sync::{Mutex, watch};

use self::plan::Plan;
use super::{Agent, BypassError, Identity, Settings};
use crate::config::Config;
use crate::processes::{Job, JobError, LoadedConfig};
use crate::protocol::Reloaded;
use crate::routing::RouteSettings;
use crate::tunnel::known_relay::KnownRelay;
use crate::tunnel::machine::Preferences;
use crate::tunnel::{PresentPaths, TunnelSettings};

/// The part of the agent that only reloads use.
pub(super) struct Reload {
    /// Passes settings to the route reconciler.
    route: watch::Sender<RouteSettings>,
    /// Held during a reload, so that two at a time do not mix.
    running: Mutex<()>,
}

/// The reason why the configuration was not reloaded.
#[derive(Debug, thiserror::Error)]
#[error("cannot reload the configuration, the old one stays in force: {0}")]
pub(crate) enum ReloadError {
    /// The process helper could not read the files, or they are invalid.
    Load(#[from] JobError),
    /// The thread that waited for the process helper panicked.
    Thread(#[from] tokio::task::JoinError),
    /// The bypassed networks could not be changed.
    Bypass(#[from] BypassError),
    /// The configuration cannot be used by a running agent, for the reason in this text.
    Unusable(String),
}

impl Reload {
    pub(super) fn new(route: watch::Sender<RouteSettings>) -> Self {
        Self { route, running: Mutex::new(()) }
    }
}

impl Agent {
    /// Reads the configuration file and the private key again, applies every change that can take
    /// effect at once, and logs the outcome. An error leaves everything unchanged.
    pub(crate) async fn reload(self: &Arc<Self>) -> Result<Reloaded, ReloadError> {
        let _running = self.reload.running.lock().await;
        let done = self.try_reload().await;
        match &done {
            Ok(Reloaded { changed, kept }) => {
                tracing::info!(changed = changed.join(", "), "configuration reloaded");
                if !kept.is_empty() {
                    tracing::warn!("these settings changed but need a restart: {}", kept.join(", "));
                }
            }
            Err(error) => tracing::warn!("{error}"),
        }
        done
    }

    async fn try_reload(self: &Arc<Self>) -> Result<Reloaded, ReloadError> {
        let (wanted, key) = self.load().await?;
        let former = self.settings();
        let is_new_key = key.public() != former.identity.own_key;
        let unusable = |error: anyhow::Error| ReloadError::Unusable(mobile_host::error_chain(&error));
        let Plan { config, reloaded } = plan::plan(&former.config, &wanted, is_new_key).map_err(unusable)?;
        let relay = config.relay_identity().map_err(unusable)?;
        let preferences = Preferences::of(&config.uplink).map_err(unusable)?;

        // The only step that can fail comes first.
        let bypass = (&former.config.routing.bypass[..], &config.routing.bypass[..]);
        self.bypass.reconfigure(bypass, &self.processes).await?;
        self.reload.route.send_replace(RouteSettings::of(&config, &relay));
        let present = if relay == former.identity.relay { PresentPaths::Keep } else { PresentPaths::Replace };
        let own_key = key.public();
        let is_new = is_new_key || present == PresentPaths::Replace;
        let identity = is_new.then(|| (KnownRelay::load(&config.state.dir, &relay), key, present));
        self.session.tunnel.configure(TunnelSettings { preferences, identity });
        self.settings.send_replace(Arc::new(Settings { config, identity: Identity { relay, own_key } }));
        Ok(reloaded)
    }

    /// Has the process helper read the configuration file and the private key.
    async fn load(self: &Arc<Self>) -> Result<(Config, PrivateKey), ReloadError> {
        let agent = Arc::clone(self);
        let load = move || agent.processes.helper().run::<LoadedConfig>(&Job::LoadConfig, None);
        let LoadedConfig { config, private_key } = tokio::task::spawn_blocking(load).await??;
        let key = private_key.parse::<PrivateKey>();
        Ok((config, key.map_err(|error| ReloadError::Unusable(format!("the private key: {error}")))?))
    }
}
