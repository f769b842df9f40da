//! The ingress filter: drops packets to a persistent address that arrive on another device than the
//! host virtual device or `lo`, before they are routed. nftables does so, or, where it does not
//! work, the eBPF classifier of [`selection::ingress`](crate::selection::ingress).
//!
//! Linux accepts a packet for any of its addresses on any device (the weak host model). Without the
//! filter, a visited network could reach persistent addresses beside the tunnel. It could find out
//! which host has one, and forge segments and resets (CVE-2019-14899). Like rules and routes, the
//! filter stays in the kernel when the agent ends.

mod ruleset;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use mobile_host::nft::{self, NftError};
use mobile_netlink::{Netlink, NetlinkError, TableWatch};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};

use self::ruleset::{COUNTER, Ruleset, table};
use crate::config::Config;
use crate::selection::ingress::{self as classifier, Classifier, Counter};
use crate::status::{FilterKind, Ingress};

/// The time between attempts to install the filter while nftables does not work.
const RETRY_INTERVAL: Duration = Duration::from_secs(30);

/// The time for which a reading of the counter of dropped packets is reused, so that frequent
/// status requests do not run nft each time.
const COUNTER_MAX_AGE: Duration = Duration::from_millis(500);

/// The longest time to wait until nft has read the counter of dropped packets.
const COUNTER_TIMEOUT: Duration = Duration::from_secs(1);

/// The ingress filter in the kernel, which [`IngressFilter::ensure`] installs and keeps up to date.
pub(super) struct IngressFilter {
    device: String,
    netlink: Netlink,
    /// The directory `[bpf] pin_dir`, where the eBPF classifier is pinned.
    pin_dir: PathBuf,
    installed: Option<InstalledRuleset>,
    /// The eBPF classifier, used where nftables does not work.
    classifier: Option<Classifier>,
    /// Whether the nftables tables may have changed since they were last verified.
    stale: bool,
    /// The earliest time to retry a failed installation.
    retry: Option<Instant>,
    monitor: IngressMonitor,
}

/// The nftables ruleset that this agent has installed in the kernel.
struct InstalledRuleset {
    ruleset: Ruleset,
    /// The tables as nft lists them; `None` until they are listed for the first time.
    listing: Option<String>,
}

/// A handle to the shared state of the ingress filter, for status and metrics.
#[derive(Clone)]
pub(crate) struct IngressMonitor(Arc<MonitorInner>);

struct MonitorInner {
    table: String,
    dropped: AtomicU64,
    state: Mutex<FilterState>,
}

struct FilterState {
    filter: FilterKind,
    /// The reason why nftables does not filter, if it does not.
    problem: Option<String>,
    /// The reason why the eBPF classifier, which stands in for nftables, does not filter either.
    failure: Option<String>,
    /// The eBPF classifier's packet counter, while the classifier filters.
    counter: Option<Counter>,
    /// When the nftables counter was last read.
    counted: Option<Instant>,
}

impl IngressFilter {
    /// Creates a filter for the host virtual device without installing it.
    pub(super) fn new(config: &Config, netlink: Netlink) -> Self {
        let device = config.tunnel.device.clone();
        let state = FilterState {
            filter: FilterKind::None,
            problem: None,
            failure: None,
            counter: None,
            counted: None,
        };
        let shared =
            MonitorInner { table: table(&device), dropped: AtomicU64::new(0), state: Mutex::new(state) };
        Self {
            device,
            netlink,
            pin_dir: config.bpf.pin_dir.clone(),
            installed: None,
            classifier: None,
            stale: false,
            retry: None,
            monitor: IngressMonitor(Arc::new(shared)),
        }
    }

    /// Returns a handle to the state of the filter, for status and metrics.
    pub(super) fn monitor(&self) -> IngressMonitor {
        self.monitor.clone()
    }

    /// Subscribes to changes of the filter's nftables tables. Returns `None` on a kernel without
    /// nftables.
    pub(super) fn watch(&self) -> Option<TableWatch> {
        TableWatch::new(&self.monitor.0.table).ok()
    }

    /// Marks the filter's nftables tables as possibly changed, so that the next [`Self::ensure`]
    /// verifies them.
    pub(super) fn mark_stale(&mut self) {
        self.stale = true;
    }

    /// Installs the filter for `addresses` in one transaction. Returns how many objects were
    /// restored because another program had removed or changed them.
    ///
    /// A failure does not stop the agent. It is logged once and shown by `mobile status`.
    pub(super) async fn ensure(&mut self, addresses: BTreeSet<IpAddr>) -> u64 {
        let wanted = Ruleset { device: self.device.clone(), addresses };
        let known = self.installed.take_if(|it| it.ruleset == wanted);
        if let Some(known) = known {
            return self.verify(known).await;
        }
        if self.retry.is_some_and(|retry| Instant::now() < retry) {
            if self.classifier.is_some() {
                self.classify(&wanted.addresses).await;
            }
            return 0;
        }
        // The next verification sees changes from this point on.
        self.stale = true;
        // A filter without addresses has counted nothing, so the first assignment need not wait for
        // a reading.
        let counts = self.installed.take().is_none_or(|it| !it.ruleset.addresses.is_empty());
        self.install(wanted, counts).await;
        0
    }

    /// Verifies that the nftables tables are as installed, if they may have changed, and installs
    /// them again if they are not. Returns how many times they were installed again (0 or 1).
    async fn verify(&mut self, known: InstalledRuleset) -> u64 {
        if !std::mem::take(&mut self.stale) {
            self.installed = Some(known);
            return 0;
        }
        let name = self.monitor.0.table.clone();
        let list = move || nft::list(&[("inet", &name), ("arp", &name)]);
        let InstalledRuleset { ruleset, listing } = known;
        match spawn_blocking(list).await {
            Ok(Ok(Some(now))) if listing.as_ref().is_none_or(|before| *before == now) => {
                self.installed = Some(InstalledRuleset { ruleset, listing: Some(now) });
                0
            }
            Ok(Ok(_)) => {
                self.stale = true;
                self.install(ruleset, true).await;
                1
            }
            Ok(Err(error)) => self.fall_back(&error.to_string(), &ruleset.addresses).await,
            Err(error) => self.fall_back(&error.to_string(), &ruleset.addresses).await,
        }
    }

    /// Replaces the present nftables tables by `ruleset`. The counter of dropped packets keeps its
    /// value; `counts` says whether it may have changed and has to be read first.
    async fn install(&mut self, ruleset: Ruleset, counts: bool) {
        let (script, monitor) = (ruleset.clone(), self.monitor.clone());
        let apply = move || {
            // A table that was removed has no counter to read.
            let counted = counts.then(|| monitor.count().ok()).flatten();
            let dropped = counted.unwrap_or_else(|| monitor.0.dropped.load(Ordering::Relaxed));
            nft::apply(&script.script(dropped))
        };
        match spawn_blocking(apply).await {
            Ok(Ok(())) => {
                tracing::debug!(addresses = ?ruleset.addresses, "ingress filter installed");
                self.installed = Some(InstalledRuleset { ruleset, listing: None });
                self.retry = None;
                self.monitor.set(FilterKind::Nftables, None);
                self.drop_classifier();
            }
            Ok(Err(error)) => {
                self.fall_back(&error.to_string(), &ruleset.addresses).await;
            }
            Err(error) => {
                self.fall_back(&error.to_string(), &ruleset.addresses).await;
            }
        }
    }

    /// Filters with the eBPF classifier, because nftables fails with the error `problem`. Returns
    /// 0, the number of objects that were restored.
    async fn fall_back(&mut self, problem: &str, addresses: &BTreeSet<IpAddr>) -> u64 {
        self.installed = None;
        self.retry = Some(Instant::now() + RETRY_INTERVAL);
        if self.monitor.state().problem.as_deref() != Some(problem) {
            tracing::warn!(
                problem,
                "ingress filter cannot use nftables: using an eBPF classifier, which misses devices that appear while no \
                 agent runs; see `mobile check`"
            );
            self.monitor.set(FilterKind::None, Some(problem.to_owned()));
        }
        self.classify(addresses).await;
        0
    }

    /// Attaches the eBPF classifier, which drops packets to `addresses`, on every present device
    /// except loopback and the host virtual device.
    async fn classify(&mut self, addresses: &BTreeSet<IpAddr>) {
        let failure = self.try_classify(addresses).await.err().map(|error| mobile_host::error_chain(&error));
        let mut state = self.monitor.state();
        if let Some(error) = failure.as_ref().filter(|_| state.failure != failure) {
            tracing::warn!(
                error,
                "ingress filter not installed: visited networks can probe for persistent addresses \
                and forge packets to them"
            );
        }
        state.filter = if failure.is_some() { FilterKind::None } else { FilterKind::Ebpf };
        state.failure = failure;
    }

    async fn try_classify(&mut self, addresses: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
        let links = self.netlink.links().await?;
        let foreign = links.iter().filter(|link| !link.loopback && link.name != self.device);
        let devices: BTreeSet<u32> = foreign.map(|link| link.index).collect();
        let classifier = match &mut self.classifier {
            Some(classifier) => classifier,
            none => {
                let (loaded, counter) = Classifier::load(&self.pin_dir)?;
                self.monitor.state().counter = Some(counter);
                none.insert(loaded)
            }
        };
        classifier.ensure(addresses, &devices)
    }

    /// Removes the eBPF classifier of this agent or an earlier one, once nftables filters instead.
    fn drop_classifier(&mut self) {
        self.classifier = None;
        let counter = self.monitor.state().counter.take();
        if let Some(counter) = counter {
            self.monitor.0.dropped.fetch_add(classifier::sum(&counter), Ordering::Relaxed);
        }
        if let Err(error) = classifier::remove(&self.pin_dir) {
            tracing::warn!(error = mobile_host::error_chain(&error), "cannot remove the ingress classifier");
        }
    }
}

impl IngressMonitor {
    /// Returns the state of the filter. Reads the counter of dropped packets unless the last
    /// reading is recent.
    pub(crate) async fn read(&self) -> Ingress {
        let (filter, counted) = {
            let state = self.state();
            (state.filter, state.counted)
        };
        if filter == FilterKind::Nftables && counted.is_none_or(|at| at.elapsed() >= COUNTER_MAX_AGE) {
            self.state().counted = Some(Instant::now());
            let monitor = self.clone();
            let counted = spawn_blocking(move || monitor.count());
            // On a failure or a timeout, report the last reading.
            if let Ok(Ok(Err(error))) = timeout(COUNTER_TIMEOUT, counted).await {
                tracing::debug!(%error, "cannot read the counter of the ingress filter");
            }
        }
        let state = self.state();
        let classified = state.counter.as_ref().map_or(0, classifier::sum);
        let dropped_packets = self.0.dropped.load(Ordering::Relaxed) + classified;
        let problems: Vec<&str> =
            [&state.problem, &state.failure].into_iter().filter_map(Option::as_deref).collect();
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        Ingress { filter, problem, dropped_packets }
    }

    /// Reads the nftables counter of dropped packets. Returns the last reading if it is larger,
    /// because a ruleset that was saved and restored has its old counter values.
    fn count(&self) -> Result<u64, NftError> {
        let listing = nft::query(&["list", "counter", "inet", &self.0.table, COUNTER])?;
        let counted = packets(&listing).unwrap_or(0);
        Ok(self.0.dropped.fetch_max(counted, Ordering::Relaxed).max(counted))
    }

    fn state(&self) -> MutexGuard<'_, FilterState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, filter: FilterKind, problem: Option<String>) {
        let mut state = self.state();
        (state.filter, state.problem, state.failure) = (filter, problem, None);
    }
}

impl std::fmt::Debug for IngressMonitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IngressMonitor").field("table", &self.0.table).finish_non_exhaustive()
    }
}

/// Waits for a change of the filter's nftables tables, or for ever on a kernel without nftables.
pub(super) async fn changed(watch: &mut Option<TableWatch>) -> Result<(), NetlinkError> {
    match watch {
        Some(watch) => watch.changed().await,
        None => std::future::pending().await,
    }
}

/// Removes the filter of the agent with this configuration.
pub(super) fn remove(config: &Config) -> Vec<anyhow::Error> {
    let table = table(&config.tunnel.device);
    let tables = ["inet", "arp"].map(|family| {
        nft::delete((family, &table))
            .with_context(|| format!("cannot delete table {family} {table}"))
            .map(drop)
    });
    let classifier = classifier::remove(&config.bpf.pin_dir).context("cannot remove the ingress classifier");
    tables.into_iter().chain([classifier]).filter_map(Result::err).collect()
}

/// Checks, without installing it, that nftables accepts a filter on this host.
pub(crate) fn check_nftables() -> Result<(), NftError> {
    let addresses = ["192.0.2.1", "2001:db8::1"].iter().filter_map(|address| address.parse().ok()).collect();
    nft::check(&Ruleset { device: "mobile-check".to_owned(), addresses }.script(0))
}

/// Returns the number of packets in the listing of a counter by nft.
fn packets(listing: &str) -> Option<u64> {
    let mut words = listing.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listed_counter_is_read() {
        let listing = "table inet mobile_agent {\n\tcounter dropped {\n\t\tpackets 51 bytes 6000\n\t}\n}\n";
        assert_eq!(packets(listing), Some(51));
        assert_eq!(packets(""), None);
    }
}
