//! The agent's metrics for Prometheus.
//!
//! Names begin with `mobile_` and values have base units. No metric is labelled by process ID,
//! command or destination. [`declared_metrics`] declares the metrics; a scrape fills a new registry
//! from the counters where they are kept.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, mpsc};
use std::time::Duration;

use anyhow::Context;
use mobile_ebpf_common::CountedEvent;
use mobile_host::metrics::Metric;
use prometheus::Registry;
use prometheus::core::Collector;

use crate::agent::{Agent, KernelReads};
use crate::declared_metrics;
use crate::routing::objection::Objection;
use crate::status::{FilterKind, SessionState, Status, Uplinks};
use crate::tunnel::TunnelState;

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

/// The reason why `/healthz` answers 503.
#[derive(Debug, thiserror::Error)]
enum Unhealthy {
    /// The agent has not started yet.
    #[error("the agent is starting")]
    Starting,
    /// The tunnel carries no packets.
    #[error("no path to the relay is active")]
    NoPath,
}

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
    fn health(&self) -> Result<(), Unhealthy> {
        let (agent, _) = self.0.get().ok_or(Unhealthy::Starting)?;
        if agent.tunnel_state().active.is_some() { Ok(()) } else { Err(Unhealthy::NoPath) }
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

fn registry(agent: &Agent, status: &Status, uplinks: &Uplinks) -> prometheus::Result<Registry> {
    let metrics = Metrics(Registry::new());
    metrics.session(status)?;
    metrics.paths(uplinks)?;
    metrics.handovers(&agent.tunnel_state())?;
    metrics.add(agent.blackouts())?;
    metrics.packets(status)?;
    metrics.processes(status)?;
    metrics.route(agent, status)?;
    metrics.programs(agent)?;
    Ok(metrics.0)
}

impl Metrics {
    fn session(&self, status: &Status) -> prometheus::Result<()> {
        let info = declared_metrics::BUILD_INFO.gauges()?;
        info.with_label_values(&[&status.version]).set(1.0);
        self.add(info)?;
        self.gauge(declared_metrics::UPTIME, status.uptime_seconds)?;
        let connected = status.session == SessionState::Connected;
        self.gauge(declared_metrics::CONNECTED, f64::from(u8::from(connected)))?;
        if let Some(rtt) = status.rtt_seconds {
            self.gauge(declared_metrics::RTT, rtt)?;
        }
        Ok(())
    }

    /// Adds the state of each uplink, and the round-trip time and loss of its path.
    fn paths(&self, uplinks: &Uplinks) -> prometheus::Result<()> {
        let state = declared_metrics::UPLINK_STATE.gauges()?;
        let rtt = declared_metrics::PATH_RTT.gauges()?;
        let loss = declared_metrics::PATH_LOSS.gauges()?;
        for uplink in &uplinks.uplinks {
            state.with_label_values(&[&uplink.name, &uplink.state]).set(1.0);
            if let Some(seconds) = uplink.rtt_seconds {
                rtt.with_label_values(&[&uplink.name]).set(seconds);
            }
            if let Some(ratio) = uplink.loss_ratio {
                loss.with_label_values(&[&uplink.name]).set(ratio);
            }
        }
        self.add(state)?;
        self.add(rtt)?;
        self.add(loss)
    }

    fn handovers(&self, state: &TunnelState) -> prometheus::Result<()> {
        let history = &state.history;
        let handovers = history.handovers.iter().map(|(cause, count)| (*cause, *count));
        self.counters(declared_metrics::HANDOVERS, handovers)?;
        self.counter(declared_metrics::CONNECT_ATTEMPTS, history.attempts)?;
        self.counter(declared_metrics::ASSIGNMENTS_DEFERRED, state.assignments_deferred)?;
        let failures = history.failures.iter().map(|(kind, count)| (*kind, *count));
        self.counters(declared_metrics::CONNECT_FAILURES, failures)
    }

    /// Adds the counters of the inner traffic, and the bytes of it that the agent holds.
    #[expect(
        clippy::cast_precision_loss,
        reason = "gauges of Prometheus are f64; bytes in memory stay far below 2^53"
    )]
    fn packets(&self, status: &Status) -> prometheus::Result<()> {
        let traffic = &status.traffic;
        let compressible = (traffic.sent_compressible_bytes, traffic.received_compressible_bytes);
        let compressed = (traffic.sent_compressed_bytes, traffic.received_compressed_bytes);
        for (metric, (sent, received)) in [
            (declared_metrics::PACKETS, (traffic.sent_packets, traffic.received_packets)),
            (declared_metrics::BYTES, (traffic.sent_bytes, traffic.received_bytes)),
            (declared_metrics::COMPRESSIBLE_BYTES, compressible),
            (declared_metrics::COMPRESSED_BYTES, compressed),
        ] {
            self.counters(metric, [("sent", sent), ("received", received)])?;
        }
        let drops = status.drops.iter().map(|(reason, count)| (reason.as_str(), *count));
        self.counters(declared_metrics::DROPPED_PACKETS, drops)?;
        self.gauge(declared_metrics::QUEUED_BYTES, status.queue.queued_bytes as f64)?;
        self.gauge(declared_metrics::UNACKNOWLEDGED_BYTES, status.queue.unacknowledged_bytes as f64)
    }

    #[expect(
        clippy::cast_precision_loss,
        reason = "gauges of Prometheus are f64; the number of processes stays far below 2^53"
    )]
    fn processes(&self, status: &Status) -> prometheus::Result<()> {
        self.gauge(declared_metrics::PROCESSES, status.mobile_processes as f64)?;
        self.gauge(declared_metrics::OPEN, f64::from(u8::from(status.open)))?;
        self.counter(declared_metrics::OPENED, status.opened)
    }

    /// Adds the counters of the MOBILE route, its claims and its ingress filter.
    #[expect(
        clippy::cast_precision_loss,
        reason = "gauges of Prometheus are f64; the number of rules stays far below 2^53"
    )]
    fn route(&self, agent: &Agent, status: &Status) -> prometheus::Result<()> {
        self.counter(declared_metrics::ROUTING_RESTORED, status.routing_restored)?;
        let refused = agent.refusals();
        let refused = Objection::WORDS.iter().map(|word| (*word, refused.get(word).copied().unwrap_or(0)));
        self.counters(declared_metrics::CLAIMS_REFUSED, refused)?;
        let KernelReads { uplinks, route } = agent.kernel_reads();
        self.counters(declared_metrics::KERNEL_LOOKS, [("uplinks", uplinks), ("route", route)])?;
        self.gauge(declared_metrics::RIVAL_RULES, status.rival_rules as f64)?;
        self.counter(declared_metrics::RULES_MOVED, status.rules_moved)?;
        let filter = declared_metrics::INGRESS_FILTER.gauges()?;
        filter.with_label_values(&[filter_name(status.ingress.filter)]).set(1.0);
        self.add(filter)?;
        self.counter(declared_metrics::INGRESS_DROPPED, status.ingress.dropped_packets)
    }

    /// Adds the counters of the eBPF programs.
    fn programs(&self, agent: &Agent) -> prometheus::Result<()> {
        let counters = match agent.processes().counters() {
            Ok(counters) => counters,
            Err(error) => {
                tracing::warn!(%error, "cannot read the counters of the eBPF programs");
                return Ok(());
            }
        };
        let verdicts = counters.verdicts.iter().map(|(verdict, count)| (verdict.name(), *count));
        self.counters(declared_metrics::SELECTION_VERDICTS, verdicts)?;
        let unaccounted = counters.count(CountedEvent::Unaccounted);
        let full = [("bypass", counters.bypass_full), ("accounts", unaccounted.unwrap_or(0))];
        self.counters(declared_metrics::MAP_FULL, full)?;
        let events = counters.events.iter().map(|(event, count)| (event.name(), *count));
        self.counters(declared_metrics::SELECTION_EVENTS, events)
    }
}

/// Returns the metrics' label for a kind of ingress filter, which is also its name in JSON.
fn filter_name(filter: FilterKind) -> &'static str {
    match filter {
        FilterKind::Nftables => "nftables",
        FilterKind::Ebpf => "ebpf",
        FilterKind::None => "none",
    }
}
