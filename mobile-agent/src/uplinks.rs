//! Watches the links of this host and decides which of them can carry the tunnel.
//!
//! - `links` reads each link with its addresses and its routes to the relay. This module adds what
//!   only a function of the caller can find out: whether a mobile process reads from the link.
//! - `detour` adds routes to the relay where a VPN has replaced a link's default route.
//! - `policy` ranks the uplinks. It performs no I/O.
//!
//! The result goes to `tunnel` through [`Uplinks::known`].

pub(crate) mod detour;
pub(crate) mod links;
pub(crate) mod policy;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use anyhow::Context;
use globset::GlobMatcher;
use mobile_netlink::{Netlink, NetlinkError, RouteInterest, Watch};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until};

use crate::publish::publish_if_changed;
use detour::Detours;
use links::{ObservedLink, RouteTargets};
use policy::Uplink;

/// The shortest time between two reads of the links, which bounds the cost of many events. A single
/// event is handled at once.
const MIN_READ_INTERVAL: Duration = Duration::from_millis(5);
/// The pause after a read, as a multiple of the time that the read took. Reads of the links take
/// long on hosts with many of them.
const PAUSE_FACTOR: u32 = 4;
/// The shortest time between two reads of the links that the tunnel requests. Each probe of a path
/// requests one, and a relay could cause probes without end.
const MIN_REFRESH_INTERVAL: Duration = Duration::from_millis(250);

/// The uplinks, kept up to date by [`watch()`].
pub(crate) struct Uplinks {
    /// The latest properties of the uplinks.
    pub(crate) known: watch::Receiver<Arc<Vec<Uplink>>>,
    /// The number of times that the uplinks were read from the kernel.
    pub(crate) reads: Arc<AtomicU64>,
    refresh: Arc<Notify>,
    prefer: watch::Sender<Vec<GlobMatcher>>,
    reader_lookup: Arc<OnceLock<ReaderLookup>>,
}

/// Finds the mobile process that reads the packets of the TUN device of this name, if there is one.
/// The call blocks.
type ReaderLookup = Arc<dyn Fn(&str) -> anyhow::Result<Option<String>> + Send + Sync>;

/// The settings that decide which links are uplinks.
pub(crate) struct UplinkSettings {
    /// The name of the host virtual device.
    pub(crate) own_device: String,
    /// The routing table `[routing] relay_table`, for the agent's own routes to the relay around
    /// VPNs.
    pub(crate) relay_table: u32,
    /// The globs of `[uplink] prefer`; a VPN that matches one may carry the tunnel.
    pub(crate) prefer: Vec<GlobMatcher>,
}

impl Uplinks {
    /// Requests a read of the uplinks. The kernel announces a lost carrier up to a second late
    /// (`linkwatch_do_dev`), but reports it at once when asked.
    pub(crate) fn refresh(&self) {
        self.refresh.notify_one();
    }

    /// Replaces the globs of `[uplink] prefer` after a reload, and reads the uplinks again.
    pub(crate) fn set_prefer(&self, prefer: Vec<GlobMatcher>) {
        self.prefer.send_replace(prefer);
    }

    /// Sets the function that finds the mobile process that reads the packets of a TUN device.
    /// Until the function is set, a link whose packets would come back through the tunnel is not
    /// detected.
    pub(crate) fn set_reader_lookup(
        &self,
        lookup: impl Fn(&str) -> anyhow::Result<Option<String>> + Send + Sync + 'static,
    ) {
        // Set only once, after the process helper has started.
        let _ = self.reader_lookup.set(Arc::new(lookup));
        self.refresh();
    }
}

/// Reads the uplinks, and returns them with a future that keeps them up to date. The future ends
/// only on an error, with the reason.
///
/// The caller runs this future and the returned one on the network thread's runtime, so that a read
/// does not delay packets.
pub(crate) async fn watch(
    settings: UplinkSettings,
    relay: watch::Receiver<Arc<[SocketAddr]>>,
) -> anyhow::Result<(Uplinks, impl Future<Output = anyhow::Error> + Send + 'static)> {
    let targets = RouteTargets::new(&relay.borrow());
    // Subscribe before the first read, so that no change is missed in between.
    let watch = Watch::with_interest(interest(&settings, &targets)).context("cannot watch the uplinks")?;
    // Use a separate socket, so that changes by the route reconciler do not delay the news of a
    // lost uplink.
    let netlink = Netlink::new().context("cannot read the uplinks")?;
    let reads = Arc::new(AtomicU64::new(0));
    let detours = Detours::new(settings.relay_table);
    let reader_lookup = Arc::new(OnceLock::new());
    let mut watcher = Watcher {
        netlink,
        settings,
        targets,
        detours,
        reads: Arc::clone(&reads),
        reader_lookup: Arc::clone(&reader_lookup),
        logged_loops: None,
    };
    let first = watcher.read_links().await.context("cannot read the uplinks")?;
    let (publish, known) = watch::channel(Arc::new(first));
    let refresh = Arc::new(Notify::new());
    let (prefer, preferences) = watch::channel(watcher.settings.prefer.clone());
    let uplinks = Uplinks { known, reads, refresh: Arc::clone(&refresh), prefer, reader_lookup };
    Ok((uplinks, watcher.follow(watch, refresh, (relay, preferences), publish)))
}

/// Returns which routes to watch for changes: in any table those that cover an address of the
/// relay, and all routes in the table `[routing] relay_table`.
fn interest(settings: &UplinkSettings, targets: &RouteTargets) -> RouteInterest {
    RouteInterest::Only { tables: vec![settings.relay_table], covering: targets.all() }
}

struct Watcher {
    netlink: Netlink,
    settings: UplinkSettings,
    targets: RouteTargets,
    detours: Detours,
    reads: Arc<AtomicU64>,
    reader_lookup: Arc<OnceLock<ReaderLookup>>,
    /// The uplinks that were logged because a mobile process reads their packets, each with that
    /// process.
    logged_loops: Option<Vec<(String, String)>>,
}

impl Watcher {
    async fn follow(
        mut self,
        mut watch: Watch,
        refresh: Arc<Notify>,
        (mut relay, mut prefer): (watch::Receiver<Arc<[SocketAddr]>>, watch::Receiver<Vec<GlobMatcher>>),
        publish: watch::Sender<Arc<Vec<Uplink>>>,
    ) -> anyhow::Error {
        let (mut next, mut next_refresh) = (Instant::now(), Instant::now());
        loop {
            tokio::select! {
                changes = watch.changed() => match changes {
                    Ok(_) => {}
                    Err(error) => return anyhow::Error::new(error).context("no longer watching the uplinks"),
                },
                () = refresh.notified() => {
                    if Instant::now() < next_refresh {
                        continue;
                    }
                    next_refresh = Instant::now() + MIN_REFRESH_INTERVAL;
                }
                Ok(()) = relay.changed() => {
                    self.targets = RouteTargets::new(&relay.borrow_and_update());
                    watch.set_interest(interest(&self.settings, &self.targets));
                }
                Ok(()) = prefer.changed() => self.settings.prefer = prefer.borrow_and_update().clone(),
            }
            sleep_until(next).await;
            let begun = Instant::now();
            match self.read_links().await {
                Ok(now) => {
                    publish_if_changed(&publish, now);
                }
                // A change during a dump can interrupt it. The event of that change triggers
                // another read.
                Err(error) => tracing::warn!(%error, "cannot read the uplinks"),
            }
            next = Instant::now() + MIN_READ_INTERVAL.max(begun.elapsed() * PAUSE_FACTOR);
        }
    }

    async fn read_links(&mut self) -> Result<Vec<Uplink>, NetlinkError> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let Self { netlink, settings, targets, detours, reader_lookup, .. } = self;
        let (mut links, snapshot) = links::read_links(netlink, &settings.own_device, targets).await?;
        detours.apply(netlink, &mut links, &snapshot, targets).await?;
        for link in links.iter_mut().filter(|link| link.is_tun && link.uplink.up) {
            if !link.uplink.tunnel || policy::is_named(&link.uplink, &settings.prefer) {
                link.uplink.mobile_reader = mobile_reader(reader_lookup.get(), &link.uplink.name).await;
            }
        }
        self.log_loops(&links);
        Ok(links.into_iter().map(|link| link.uplink).collect())
    }

    /// Logs each link that is newly refused as an uplink because its packets would come back
    /// through the host virtual device.
    fn log_loops(&mut self, links: &[ObservedLink]) {
        let loops: Vec<(String, String)> = links
            .iter()
            .filter_map(|link| Some((link.uplink.name.clone(), link.uplink.mobile_reader.clone()?)))
            .collect();
        let logged = self.logged_loops.replace(loops.clone()).unwrap_or_default();
        for (uplink, process) in loops.iter().filter(|one| !logged.contains(one)) {
            tracing::warn!(
                uplink,
                process,
                "refused as an uplink: a mobile process reads its packets, which would come back through the tunnel; \
                 `mobile detach` it, or remove the uplink from [uplink] prefer"
            );
        }
    }
}

/// Returns the mobile process that has the TUN device open, if there is one; always `None` before
/// the look-up is set.
async fn mobile_reader(lookup: Option<&ReaderLookup>, device: &str) -> Option<String> {
    let (lookup, name) = (Arc::clone(lookup?), device.to_owned());
    match tokio::task::spawn_blocking(move || lookup(&name)).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => {
            // If the helper is gone, the agent ends and logs the reason.
            tracing::debug!(%error, device, "cannot find the process that reads from the device");
            None
        }
        Err(_) => None,
    }
}
