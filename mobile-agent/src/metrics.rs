//! The agent's metrics for Prometheus.
//!
//! Names begin with `mobile_` and values have base units. No metric is labelled by process ID,
//! command or destination. [`declared`] declares the metrics; a scrape fills a new registry from
//! the counters where they are kept.

pub(crate) mod declared;

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context;
use mobile_ebpf_common::CountedEvent;
use mobile_host::metrics::Metric;
use prometheus::Registry;
use prometheus::core::Collector;

use crate::daemon::Agent;
use crate::routing::objection::Objection;
use crate::status::{FilterKind, SessionState, Status, Uplinks};

/// Timeout of a scrape; the answer is empty afterwards. Prometheus waits 10 s by default.
const SCRAPE_TIMEOUT: Duration = Duration::from_secs(5);

/// The HTTP server for metrics, which has a thread of its own, so that a scrape does not delay
/// packets.
pub(crate) struct Server {
    target: ScrapeTarget,
    /// Dropping the sender ends the thread.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// The agent whose state a scrape reports, with the agent's runtime; empty until the agent has
/// started.
#[derive(Clone, Default)]
struct ScrapeTarget(Arc<OnceLock<(Arc<Agent>, tokio::runtime::Handle)>>);

impl Server {
    /// Starts the HTTP server on the address `listen`. Scrapes are empty until
    /// [`Server::set_agent`] is called.
    pub(crate) fn start(listen: SocketAddr, hosts: &[String]) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the metrics server")?;
        let target = ScrapeTarget::default();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = {
            let _inside = runtime.enter();
            let (scraped, healthy) = (target.clone(), target.clone());
            mobile_host::metrics::serve(
                listen,
                hosts,
                move || scraped.scrape().unwrap_or_default(),
                move || healthy.health(),
            )
        };
        let server = match served {
            Ok(server) => server,
            Err(error) => {
                // The caller runs on a runtime, and dropping another runtime there would block.
                runtime.shutdown_background();
                return Err(error.into());
            }
        };
        std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                let _server = server;
                // An error means that the sender was dropped, which is the signal to stop.
                let _ = runtime.block_on(stopped);
            })
            .context("cannot start the metrics server")?;
        Ok(Self { target, _stop: stop })
    }

    /// Makes scrapes report the metrics of this agent, which runs on the current runtime.
    pub(crate) fn set_agent(&self, agent: &Arc<Agent>) {
        // Each process starts one agent, so the target is set once.
        let _ = self.target.0.set((Arc::clone(agent), tokio::runtime::Handle::current()));
    }
}

impl ScrapeTarget {
    fn health(&self) -> Result<(), String> {
        let (agent, _) = self.0.get().ok_or("the agent is starting")?;
        let state = agent.tunnel.state.borrow();
        if state.active.is_some() { Ok(()) } else { Err("no path to the relay is active".to_owned()) }
    }

    /// Returns the metrics as text, or `None` before the agent has started or if it does not answer
    /// in time. The state is collected on the agent's runtime while this thread waits.
    fn scrape(&self) -> Option<String> {
        let (agent, main) = self.0.get()?;
        let (sender, receiver) = mpsc::channel();
        let agent_for_task = Arc::clone(agent);
        main.spawn(async move {
            // The scrape may have timed out.
            let _ = sender.send((agent_for_task.status().await, agent_for_task.uplinks().await));
        });
        let (status, uplinks) = receiver.recv_timeout(SCRAPE_TIMEOUT).ok()?;
        match registry(agent, &status, &uplinks) {
            Ok(registry) => Some(mobile_host::metrics::encode(&registry)),
            Err(error) => {
                tracing::error!(%error, "cannot gather metrics");
                None
            }
        }
    }
}

/// A Prometheus registry for one scrape, filled from counters that are kept elsewhere.
struct Metrics(Registry);

impl Metrics {
    fn add(&self, collector: impl Collector + 'static) -> prometheus::Result<()> {
        self.0.register(Box::new(collector))
    }

    fn counter(&self, metric: Metric, value: u64) -> prometheus::Result<()> {
        let counters = metric.counters()?;
        counters.with_label_values::<&str>(&[]).inc_by(value);
        self.add(counters)
    }

    fn gauge(&self, metric: Metric, value: f64) -> prometheus::Result<()> {
        let gauges = metric.gauges()?;
        gauges.with_label_values::<&str>(&[]).set(value);
        self.add(gauges)
    }

    fn counters<'a>(
        &self,
        metric: Metric,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> prometheus::Result<()> {
        let counters = metric.counters()?;
        for (label, count) in values {
            counters.with_label_values(&[label]).inc_by(count);
        }
        self.add(counters)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "gauges of Prometheus are f64; bytes in memory stay far below 2^53"
)]
fn registry(agent: &Agent, status: &Status, uplinks: &Uplinks) -> prometheus::Result<Registry> {
    let metrics = Metrics(Registry::new());
    let state = agent.tunnel.state.borrow().clone();
    let history = &state.history;

    let info = declared::BUILD_INFO.gauges()?;
    info.with_label_values(&[&status.version]).set(1.0);
    metrics.add(info)?;
    metrics.gauge(declared::UPTIME, status.uptime_seconds)?;
    let connected = status.session == SessionState::Connected;
    metrics.gauge(declared::CONNECTED, f64::from(u8::from(connected)))?;
    if let Some(rtt) = status.rtt_seconds {
        metrics.gauge(declared::RTT, rtt)?;
    }
    paths(&metrics, uplinks)?;

    metrics.add(history.blackouts.clone())?;
    metrics.counters(declared::HANDOVERS, history.handovers.iter().map(|(cause, count)| (*cause, *count)))?;
    metrics.counter(declared::CONNECT_ATTEMPTS, history.attempts)?;
    metrics.counter(declared::ASSIGNMENTS_DEFERRED, state.assignments_deferred)?;
    metrics
        .counters(declared::CONNECT_FAILURES, history.failures.iter().map(|(kind, count)| (*kind, *count)))?;

    let traffic = &status.traffic;
    for (metric, sent, received) in [
        (declared::PACKETS, traffic.sent_packets, traffic.received_packets),
        (declared::BYTES, traffic.sent_bytes, traffic.received_bytes),
        (declared::COMPRESSIBLE_BYTES, traffic.sent_compressible_bytes, traffic.received_compressible_bytes),
        (declared::COMPRESSED_BYTES, traffic.sent_compressed_bytes, traffic.received_compressed_bytes),
    ] {
        metrics.counters(metric, [("sent", sent), ("received", received)])?;
    }
    let drops = status.drops.iter().map(|(reason, count)| (reason.as_str(), *count));
    metrics.counters(declared::DROPPED_PACKETS, drops)?;
    metrics.gauge(declared::QUEUED_BYTES, status.queue.queued_bytes as f64)?;
    metrics.gauge(declared::UNACKNOWLEDGED_BYTES, status.queue.unacknowledged_bytes as f64)?;
    metrics.gauge(declared::PROCESSES, status.mobile_processes as f64)?;
    metrics.gauge(declared::OPEN, f64::from(u8::from(status.open)))?;
    metrics.counter(declared::OPENED, status.opened)?;
    metrics.counter(declared::ROUTING_RESTORED, status.routing_restored)?;
    let refused = agent.route.refused.counts();
    let refused = Objection::WORDS.iter().map(|word| (*word, refused.get(word).copied().unwrap_or(0)));
    metrics.counters(declared::CLAIMS_REFUSED, refused)?;
    let reads = [("uplinks", &agent.uplink_reads), ("route", &agent.route.passes)];
    let reads = reads.map(|(what, count)| (what, count.load(Ordering::Relaxed)));
    metrics.counters(declared::KERNEL_LOOKS, reads)?;
    metrics.gauge(declared::RIVAL_RULES, status.rival_rules as f64)?;
    metrics.counter(declared::RULES_MOVED, status.rules_moved)?;
    let filter = declared::INGRESS_FILTER.gauges()?;
    filter.with_label_values(&[filter_name(status.ingress.filter)]).set(1.0);
    metrics.add(filter)?;
    metrics.counter(declared::INGRESS_DROPPED, status.ingress.dropped_packets)?;
    selection(&metrics, agent)?;
    Ok(metrics.0)
}

/// Adds the state of each uplink, and the round-trip time and loss of its path.
fn paths(metrics: &Metrics, uplinks: &Uplinks) -> prometheus::Result<()> {
    let state = declared::UPLINK_STATE.gauges()?;
    let rtt = declared::PATH_RTT.gauges()?;
    let loss = declared::PATH_LOSS.gauges()?;
    for uplink in &uplinks.uplinks {
        state.with_label_values(&[&uplink.name, &uplink.state]).set(1.0);
        if let Some(seconds) = uplink.rtt_seconds {
            rtt.with_label_values(&[&uplink.name]).set(seconds);
        }
        if let Some(ratio) = uplink.loss_ratio {
            loss.with_label_values(&[&uplink.name]).set(ratio);
        }
    }
    metrics.add(state)?;
    metrics.add(rtt)?;
    metrics.add(loss)
}

/// Adds the counters of the eBPF programs.
fn selection(metrics: &Metrics, agent: &Agent) -> prometheus::Result<()> {
    let counted = {
        let selector = agent.selector.lock().unwrap_or_else(PoisonError::into_inner);
        let full = selector.bypass_full();
        selector.verdicts().and_then(|verdicts| Ok((verdicts, selector.events()?, full)))
    };
    let (verdicts, events, full) = match counted {
        Ok(counted) => counted,
        Err(error) => {
            tracing::warn!(%error, "cannot read the counters of the eBPF programs");
            return Ok(());
        }
    };
    let verdicts = verdicts.iter().map(|(verdict, count)| (verdict.name(), *count));
    metrics.counters(declared::SELECTION_VERDICTS, verdicts)?;
    let unaccounted =
        events.iter().find_map(|(event, count)| (*event == CountedEvent::Unaccounted).then_some(*count));
    let full = [("bypass", full), ("accounts", unaccounted.unwrap_or(0))];
    metrics.counters(declared::MAP_FULL, full)?;
    let events = events.iter().map(|(event, count)| (event.name(), *count));
    metrics.counters(declared::SELECTION_EVENTS, events)
}

/// Returns the metrics' label for a kind of ingress filter, which is also its name in JSON.
fn filter_name(filter: FilterKind) -> &'static str {
    match filter {
        FilterKind::Nftables => "nftables",
        FilterKind::Ebpf => "ebpf",
        FilterKind::None => "none",
    }
}
