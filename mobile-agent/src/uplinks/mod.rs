//! The uplinks: what the kernel knows of them, watched. `policy` chooses among them.

pub(crate) mod detour;
pub(crate) mod look;
pub(crate) mod policy;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use globset::GlobMatcher;
use mobile_io::netlink::{Netlink, NetlinkError, RouteInterest, Watch};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::processes::{Job, ProcessHelper};
use detour::Detours;
use look::{Found, Targets};
use policy::Uplink;

/// The least time between two looks: a storm of events costs at most this rate, a single event
/// waits for nothing.
const SPACING: Duration = Duration::from_millis(5);
/// A look that takes long, on a host with many links, is followed by a pause this many times
/// longer.
const REST: u32 = 4;
/// The least time between two looks because somebody doubts a path: a relay could make us do it without end.
const LOOK_SPACING: Duration = Duration::from_millis(250);

/// The uplinks, kept up to date.
pub(crate) struct Uplinks {
    /// What is known of them.
    pub(crate) known: watch::Receiver<Vec<Uplink>>,
    /// The number of times that the kernel was asked for the uplinks.
    pub(crate) looks: Arc<AtomicU64>,
    look: Arc<Notify>,
    helper: Arc<OnceLock<ProcessHelper>>,
}

/// The settings that decide which links are uplinks.
pub(crate) struct Settings {
    /// Our own device.
    pub(crate) own_device: String,
    /// `[routing] relay_table`.
    pub(crate) relay_table: u32,
    /// `[uplink] prefer`.
    pub(crate) prefer: Vec<GlobMatcher>,
}

impl Uplinks {
    /// Asks the kernel now. It announces a lost carrier up to a second late (`linkwatch_do_dev`), but knows of it at once.
    pub(crate) fn refresh(&self) {
        self.look.notify_one();
    }

    /// Sets the process helper, which finds the process that reads a TUN. Before that no loop is
    /// recognised.
    pub(crate) fn set_helper(&self, helper: ProcessHelper) {
        // Set only once, after the start of the helper.
        let _ = self.helper.set(helper);
        self.refresh();
    }
}

/// Reads the uplinks and keeps them up to date. The returned future ends only when it cannot, with the reason.
///
/// Both are for the runtime of the network, so that a look does not delay a packet.
pub(crate) async fn watch(
    settings: Settings,
    relay: watch::Receiver<Vec<SocketAddr>>,
) -> anyhow::Result<(Uplinks, impl Future<Output = anyhow::Error> + Send + 'static)> {
    let targets = Targets::new(&relay.borrow());
    // Subscribed before the first look, so no change is missed in between.
    let watch = Watch::with_interest(interest(&settings, &targets)).context("cannot watch the uplinks")?;
    // A socket of its own, so that the keeper's changes do not delay the news of a lost uplink.
    let netlink = Netlink::new().context("cannot read the uplinks")?;
    let looks = Arc::new(AtomicU64::new(0));
    let detours = Detours::new(settings.relay_table);
    let helper = Arc::new(OnceLock::new());
    let mut watcher = Watcher {
        netlink,
        settings,
        targets,
        detours,
        looks: Arc::clone(&looks),
        helper: Arc::clone(&helper),
        told: None,
    };
    let first = watcher.look().await.context("cannot read the uplinks")?;
    let (publish, known) = watch::channel(first);
    let look = Arc::new(Notify::new());
    let uplinks = Uplinks { known, looks, look: Arc::clone(&look), helper };
    Ok((uplinks, watcher.follow(watch, look, relay, publish)))
}

/// Returns the routes of interest: in any table those that cover the relay, and all of our own
/// table.
fn interest(settings: &Settings, targets: &Targets) -> RouteInterest {
    RouteInterest::Only { tables: vec![settings.relay_table], covering: targets.all() }
}

struct Watcher {
    netlink: Netlink,
    settings: Settings,
    targets: Targets,
    detours: Detours,
    looks: Arc<AtomicU64>,
    helper: Arc<OnceLock<ProcessHelper>>,
    /// The loops that were logged.
    told: Option<Vec<(String, String)>>,
}

impl Watcher {
    async fn follow(
        mut self,
        mut watch: Watch,
        look: Arc<Notify>,
        mut relay: watch::Receiver<Vec<SocketAddr>>,
        publish: watch::Sender<Vec<Uplink>>,
    ) -> anyhow::Error {
        let (mut next, mut next_look) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                changes = watch.changed() => match changes {
                    Ok(_) => {}
                    Err(error) => return anyhow::Error::new(error).context("cannot watch the uplinks any more"),
                },
                () = look.notified() => {
                    if Instant::now() < next_look {
                        continue;
                    }
                    next_look = Instant::now() + LOOK_SPACING;
                }
                Ok(()) = relay.changed() => {
                    self.targets = Targets::new(&relay.borrow_and_update());
                    watch.set_interest(interest(&self.settings, &self.targets));
                }
            }
            sleep_until(next).await;
            let begun = Instant::now();
            match self.look().await {
                Ok(now) => {
                    publish.send_if_modified(|known| {
                        let new = *known != now;
                        *known = now;
                        new
                    });
                }
                // A change during the dump can interrupt it; the event of that change follows.
                Err(error) => tracing::warn!(%error, "cannot read the uplinks"),
            }
            next = Instant::now() + SPACING.max(begun.elapsed() * REST);
        }
    }

    async fn look(&mut self) -> Result<Vec<Uplink>, NetlinkError> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        let Self { netlink, settings, targets, detours, helper, .. } = self;
        let (mut found, snapshot) = look::look(netlink, &settings.own_device, targets).await?;
        detours.apply(netlink, &mut found, &snapshot, targets).await?;
        for link in found.iter_mut().filter(|link| link.by_process && link.uplink.up) {
            if !link.uplink.tunnel || policy::is_named(&link.uplink, &settings.prefer) {
                link.uplink.fed_by = feeder(helper.get(), &link.uplink.name).await;
            }
        }
        self.tell_loops(&found);
        Ok(found.into_iter().map(|link| link.uplink).collect())
    }

    /// Logs once for each link whose packets come back through our device that it is no uplink.
    fn tell_loops(&mut self, found: &[Found]) {
        let loops: Vec<(String, String)> = found
            .iter()
            .filter_map(|link| Some((link.uplink.name.clone(), link.uplink.fed_by.clone()?)))
            .collect();
        let told = self.told.replace(loops.clone()).unwrap_or_default();
        for (uplink, process) in loops.iter().filter(|one| !told.contains(one)) {
            tracing::warn!(
                uplink,
                process,
                "refused as an uplink: a mobile process reads its packets, which would come back through the tunnel; \
                 `mobile detach` it, or take the uplink out of [uplink] prefer"
            );
        }
    }
}

/// Returns the mobile process that has the device open; `None` before the helper runs.
async fn feeder(helper: Option<&ProcessHelper>, device: &str) -> Option<String> {
    let (helper, job) = (helper?.clone(), Job::FindFeeder { device: device.to_owned() });
    let found = tokio::task::spawn_blocking(move || helper.run(&job, None)).await;
    match found {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            // Without the helper the agent ends, and says so.
            tracing::debug!(%error, device, "cannot tell which process reads the device");
            None
        }
        Err(_) => None,
    }
}
