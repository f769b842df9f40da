//! The agent's metrics for Prometheus: prefix `mobile_`, base units, never labelled by pid, command or destination.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use anyhow::Context;
use mobile_ebpf_common::Event;
use prometheus::core::Collector;
use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, Opts, Registry};

use crate::daemon::Agent;
use crate::status::{SessionState, Status, Uplinks};

/// A scrape that the agent does not answer in this time is empty: Prometheus waits 10 s by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// The HTTP server, on a thread of its own: a scrape never delays a packet.
pub(crate) struct Server {
    slot: Slot,
    /// Ends the thread when dropped.
    _stop: tokio::sync::oneshot::Sender<()>,
}

/// What a scrape asks, once the agent is there.
#[derive(Clone, Default)]
struct Slot(Arc<OnceLock<(Arc<Agent>, tokio::runtime::Handle)>>);

impl Server {
    /// Listens, and has nothing to tell until [`Server::show`].
    pub(crate) fn start(listen: SocketAddr) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the metrics server")?;
        let slot = Slot::default();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = {
            let _inside = runtime.enter();
            let (scraped, healthy) = (slot.clone(), slot.clone());
            mobile_io::metrics::serve(
                listen,
                move || scraped.scrape().unwrap_or_default(),
                move || healthy.health(),
            )
        };
        let server = match served {
            Ok(server) => server,
            Err(error) => {
                // The caller is on a runtime itself, where the end of another must not be waited for.
                runtime.shutdown_background();
                return Err(error.into());
            }
        };
        std::thread::Builder::new()
            .name("metrics".to_owned())
            .spawn(move || {
                let _server = server;
                // An error means that the sender is gone, which is the signal.
                let _ = runtime.block_on(stopped);
            })
            .context("cannot start the metrics server")?;
        Ok(Self { slot, _stop: stop })
    }

    /// From now on scrapes are about this agent, which runs on the current runtime.
    pub(crate) fn show(&self, agent: &Arc<Agent>) {
        // Shown once, by the one start of this process.
        let _ = self.slot.0.set((Arc::clone(agent), tokio::runtime::Handle::current()));
    }
}

impl Slot {
    fn health(&self) -> Result<(), String> {
        let (agent, _) = self.0.get().ok_or("the agent is starting")?;
        let state = agent.tunnel.state.borrow();
        if state.active.is_some() { Ok(()) } else { Err("no path to the relay is active".to_owned()) }
    }

    /// Asks the agent's own runtime and waits for it on this thread.
    fn scrape(&self) -> Option<String> {
        let (agent, main) = self.0.get()?;
        let (give, take) = mpsc::channel();
        let asked = Arc::clone(agent);
        main.spawn(async move {
            // The scrape may have been given up.
            let _ = give.send((asked.status().await, asked.uplinks().await));
        });
        let (status, uplinks) = take.recv_timeout(PATIENCE).ok()?;
        match registry(agent, &status, &uplinks) {
            Ok(registry) => Some(mobile_io::metrics::encode(&registry)),
            Err(error) => {
                tracing::error!(%error, "cannot gather metrics");
                None
            }
        }
    }
}

/// A registry for one scrape: the numbers live where they are counted, not here.
struct Metrics(Registry);

impl Metrics {
    fn add(&self, collector: impl Collector + 'static) -> prometheus::Result<()> {
        self.0.register(Box::new(collector))
    }

    fn counter(&self, name: &str, help: &str, value: u64) -> prometheus::Result<()> {
        let counter = IntCounter::new(name, help)?;
        counter.inc_by(value);
        self.add(counter)
    }

    fn gauge(&self, name: &str, help: &str, value: f64) -> prometheus::Result<()> {
        let gauge = Gauge::new(name, help)?;
        gauge.set(value);
        self.add(gauge)
    }

    fn counters<'a>(
        &self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (&'a str, u64)>,
    ) -> prometheus::Result<()> {
        let counters = IntCounterVec::new(Opts::new(name, help), &[label])?;
        for (value, count) in values {
            counters.with_label_values(&[value]).inc_by(count);
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
    let ledger = &state.ledger;

    let info = GaugeVec::new(Opts::new("mobile_build_info", "The version of the agent."), &["version"])?;
    info.with_label_values(&[&status.version]).set(1.0);
    metrics.add(info)?;
    metrics.gauge("mobile_uptime_seconds", "Time since the agent started.", status.uptime_seconds)?;
    let connected = f64::from(u8::from(status.session == SessionState::Connected));
    metrics.gauge("mobile_connected", "1 while a path to the relay is active.", connected)?;
    if let Some(rtt) = status.rtt_seconds {
        metrics.gauge(
            "mobile_rtt_seconds",
            "Smoothed round-trip time to the relay on the active path.",
            rtt,
        )?;
    }
    paths(&metrics, uplinks)?;

    metrics.add(ledger.blackouts.clone())?;
    let handovers = ledger.handovers.iter().map(|(cause, count)| (*cause, *count));
    metrics.counters(
        "mobile_handovers_total",
        "Times the tunnel moved to another path.",
        "cause",
        handovers,
    )?;
    metrics.counter("mobile_connect_attempts_total", "Attempts to reach the relay.", ledger.attempts)?;
    let failures = ledger.failures.iter().map(|(kind, count)| (*kind, *count));
    metrics.counters(
        "mobile_connect_failures_total",
        "Failed attempts to reach the relay.",
        "reason",
        failures,
    )?;

    let traffic = &status.traffic;
    metrics.counters(
        "mobile_packets_total",
        "Inner packets carried.",
        "direction",
        [("sent", traffic.sent_packets), ("received", traffic.received_packets)],
    )?;
    metrics.counters(
        "mobile_bytes_total",
        "Bytes of inner packets carried.",
        "direction",
        [("sent", traffic.sent_bytes), ("received", traffic.received_bytes)],
    )?;
    metrics.counters(
        "mobile_compressible_bytes_total",
        "Bytes of inner packets that travelled compressed.",
        "direction",
        [("sent", traffic.sent_compressible_bytes), ("received", traffic.received_compressible_bytes)],
    )?;
    metrics.counters(
        "mobile_compressed_bytes_total",
        "What they travelled as.",
        "direction",
        [("sent", traffic.sent_compressed_bytes), ("received", traffic.received_compressed_bytes)],
    )?;
    let drops = status.drops.iter().map(|(reason, count)| (reason.as_str(), *count));
    metrics.counters("mobile_dropped_packets_total", "Inner packets dropped.", "reason", drops)?;
    metrics.gauge("mobile_queued_bytes", "Bytes waiting to be sent.", status.queue.queued_bytes as f64)?;
    metrics.gauge(
        "mobile_unacknowledged_bytes",
        "Bytes sent and kept until the relay acknowledges them.",
        status.queue.unacknowledged_bytes as f64,
    )?;
    metrics.gauge(
        "mobile_processes",
        "Processes with the MOBILE attribute.",
        status.mobile_processes as f64,
    )?;
    metrics.gauge(
        "mobile_open",
        "1 while new connections of mobile processes go directly for want of a session.",
        f64::from(u8::from(status.open)),
    )?;
    metrics.counter(
        "mobile_opened_total",
        "Times that new connections of mobile processes began to go directly.",
        status.opened,
    )?;
    metrics.counter(
        "mobile_routing_restored_total",
        "Rules, routes, addresses and settings that were removed or changed by others and put back.",
        status.routing_restored,
    )?;
    metrics.gauge(
        "mobile_rival_rules",
        "Rules of others that come before ours and take the packets of mobile processes.",
        status.rival_rules as f64,
    )?;
    metrics.counter(
        "mobile_rules_moved_total",
        "Times that our rules moved before those of others, or back.",
        status.rules_moved,
    )?;
    selection(&metrics, agent)?;
    Ok(metrics.0)
}

/// The uplinks, and the path on each of them.
fn paths(metrics: &Metrics, uplinks: &Uplinks) -> prometheus::Result<()> {
    let gauges = |name, help, labels: &[&str]| GaugeVec::new(Opts::new(name, help), labels);
    let state = gauges("mobile_uplink_state", "1 for the state each uplink is in.", &["uplink", "state"])?;
    let rtt = gauges(
        "mobile_path_rtt_seconds",
        "Smoothed round-trip time to the relay on the path over each uplink.",
        &["uplink"],
    )?;
    let loss = gauges(
        "mobile_path_loss_ratio",
        "Share of the TCP segments that were sent again, since the path over each uplink was made.",
        &["uplink"],
    )?;
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

/// What the eBPF programs counted.
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
    metrics.counters(
        "mobile_selection_verdicts_total",
        "Decisions of the eBPF programs, since they were first loaded.",
        "verdict",
        verdicts.iter().map(|(verdict, count)| (verdict.name(), *count)),
    )?;
    let unaccounted =
        events.iter().find_map(|(event, count)| (*event == Event::Unaccounted).then_some(*count));
    metrics.counters(
        "mobile_map_full_total",
        "Entries refused because an eBPF map was full.",
        "map",
        [("bypass", full), ("accounts", unaccounted.unwrap_or(0))],
    )?;
    metrics.counters(
        "mobile_selection_events_total",
        "What the eBPF programs did with queries and packets of mobile processes, since they were first loaded.",
        "event",
        events.iter().map(|(event, count)| (event.name(), *count)),
    )
}
