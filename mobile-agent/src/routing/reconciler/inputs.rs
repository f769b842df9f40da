//! The inputs of the reconciler: assignments, requests, and changes in the kernel.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use mobile_netlink::{RouteInterest, TableWatch, Watch};
use mobile_proto::PushConfig;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::{BypassChange, RouteSettings};
use crate::config::Routing;
use crate::routing::adoption::AdoptedAssignment;
use crate::routing::ingress;
use crate::uplinks::links::REMOTE_ADDRESSES;

/// The time between two checks of the host virtual device's settings in /proc/sys, whose changes
/// the kernel does not announce.
const SETTINGS_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// An event that the reconciler handles.
pub(super) enum Input {
    /// The relay pushed a configuration.
    Pushed(Option<PushConfig>),
    /// The bypassed networks are to change.
    Bypass(BypassChange),
    /// A reload changed settings.
    Configured(RouteSettings),
    /// The networks of this host changed.
    HostChanged,
    /// The settings of the host virtual device are to be checked.
    SettingsDue,
    /// An address, route or rule changed in the kernel.
    RouteChanged,
    /// A table of the ingress filter changed in the kernel.
    FilterChanged,
}

/// The sources of [`Input`]s.
pub(super) struct Inputs {
    pushed: watch::Receiver<Option<Arc<PushConfig>>>,
    bypass: mpsc::Receiver<BypassChange>,
    configured: watch::Receiver<RouteSettings>,
    route: Watch,
    tables: Option<TableWatch>,
    settings: Interval,
}

impl Inputs {
    /// Subscribes to changes of the MOBILE route; reloads send the bypassed networks and other
    /// settings, and `tables` announces those of the ingress filter.
    pub(super) fn new(
        routing: &Routing,
        pushed: watch::Receiver<Option<Arc<PushConfig>>>,
        (bypass, configured): (mpsc::Receiver<BypassChange>, watch::Receiver<RouteSettings>),
        tables: Option<TableWatch>,
    ) -> anyhow::Result<Self> {
        // Watch only the routes that matter, because a host may have any number of others.
        let interest =
            RouteInterest::Only { tables: vec![routing.table], covering: REMOTE_ADDRESSES.to_vec() };
        let route = Watch::with_interest(interest).context("cannot watch the MOBILE route")?;
        let mut settings = interval(SETTINGS_CHECK_INTERVAL);
        settings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { pushed, bypass, configured, route, tables, settings })
    }

    /// Waits for the next input; a change of the host's networks comes from `assignment`. Fails if
    /// a source has ended.
    pub(super) async fn next(&mut self, assignment: &mut AdoptedAssignment) -> anyhow::Result<Input> {
        tokio::select! {
            changed = self.pushed.changed() => match changed {
                Ok(()) => Ok(Input::Pushed(self.pushed.borrow_and_update().as_deref().cloned())),
                // The tunnel's own task ends with the reason, perhaps a moment later on another
                // thread.
                Err(_) => std::future::pending().await,
            },
            Some(change) = self.bypass.recv() => Ok(Input::Bypass(change)),
            Ok(()) = self.configured.changed() => {
                Ok(Input::Configured(self.configured.borrow_and_update().clone()))
            }
            changed = assignment.host_changed() => match changed {
                Ok(()) => Ok(Input::HostChanged),
                Err(_) => Err(anyhow::anyhow!("no longer watching the networks of this host")),
            },
            _ = self.settings.tick() => Ok(Input::SettingsDue),
            changed = ingress::changed(&mut self.tables) => {
                changed.context("no longer watching the ingress filter")?;
                Ok(Input::FilterChanged)
            }
            changed = self.route.changed() => {
                changed.context("no longer watching the MOBILE route")?;
                Ok(Input::RouteChanged)
            }
        }
    }
}
