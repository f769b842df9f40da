//! The report of `mobile status`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use mobile_proto::{PathStats, Stats};
use mobile_transport::driver::SessionSnapshot;
use mobile_transport::tunnel_options::Compression;

use super::Agent;
use crate::protocol::NoSession;
use crate::routing::assignment::Assignment;
use crate::routing::claim::Refusal;
use crate::status::{self, Handover, Problem, Queue, RelayStatus, SessionState, Status, Traffic};
use crate::tunnel::history::HandoverHistory;
use crate::tunnel::{TunnelState, machine};

impl Agent {
    /// Returns the report of `mobile status`.
    pub(crate) async fn status(&self) -> Status {
        let snapshot = self.session.tunnel.driver.snapshot().await;
        let mobile_processes = self.processes.count().await;
        let ingress = self.route.ingress.read().await;
        let state = self.tunnel_state();
        let assignment = self.route.assignment.borrow().clone();
        let path = snapshot.as_ref().and_then(|snapshot| active_path(snapshot, &state));
        let stats = snapshot.as_ref().map(|snapshot| snapshot.stats.clone()).unwrap_or_default();
        let addresses = assignment.as_deref().map(Assignment::addresses).unwrap_or_default();
        let refused: Vec<_> = self.route.refused.now().iter().map(Refusal::to_status).collect();
        let (session, problem) = self.session(&state, &addresses, &refused);
        let settings = self.settings();
        let config = &settings.config;
        let now = Instant::now();
        let recent = recent_handovers(&state.history, now);
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            session,
            problem,
            relay: self.relay(&state),
            public_key: settings.identity.own_key.to_string(),
            device: config.tunnel.device.clone(),
            addresses,
            mtu: config.tunnel.mtu.or(assignment.as_ref().map(|assignment| assignment.mtu)),
            dns: assignment.map(|assignment| assignment.dns.clone()).unwrap_or_default(),
            refused,
            active_uplink: state.active.as_ref().map(|(active, _)| active.uplink.clone()),
            forced_uplink: state.forced.clone(),
            rtt_seconds: path.and_then(|path| path.srtt).map(|rtt| rtt.as_secs_f64()),
            session_seconds: state
                .session_since
                .map(|since| now.saturating_duration_since(since).as_secs_f64()),
            since_seconds: since(&state).map(|since| now.saturating_duration_since(since).as_secs_f64()),
            handovers: state.history.handover_count(),
            last_handover: recent.first().cloned(),
            recent_handovers: recent,
            traffic: traffic(&stats),
            compression: compression(config.tunnel.compression, path).to_owned(),
            drops: self.drops(&stats),
            queue: snapshot.as_ref().map_or_else(Queue::default, queue),
            mobile_processes,
            on_failure: config.routing.on_failure,
            open: self.direct_fallback.now(),
            opened: self.direct_fallback.times(),
            routing_restored: self.route.restored.load(Ordering::Relaxed),
            rival_rules: self.route.conflicts.before.load(Ordering::Relaxed),
            rules_moved: self.route.conflicts.moves.load(Ordering::Relaxed),
            ingress,
        }
    }

    /// Returns why connections of mobile processes have no session; `None` if they have one.
    pub(crate) fn no_session(&self) -> Option<NoSession> {
        let addresses = self.persistent();
        let refused: Vec<_> = self.route.refused.now().iter().map(Refusal::to_status).collect();
        let (session, problem) = self.session(&self.tunnel_state(), &addresses, &refused);
        if session == SessionState::Connected && !addresses.is_empty() {
            return None;
        }
        let problem = problem.unwrap_or_else(|| Problem {
            cause: "the agent is still connecting to the relay".to_owned(),
            next_step: "`mobile status` shows the progress".to_owned(),
        });
        Some(NoSession { problem, open: self.direct_fallback.now() })
    }

    /// Returns the state of the session, and the problem that prevents one or a part of it.
    fn session(
        &self,
        state: &TunnelState,
        addresses: &[IpAddr],
        refused: &[status::Refusal],
    ) -> (SessionState, Option<Problem>) {
        let (session, problem) = session_state(state, !addresses.is_empty() || !refused.is_empty());
        (session, problem.or_else(|| self.route.refused.problem(addresses)))
    }

    fn relay(&self, state: &TunnelState) -> RelayStatus {
        let known = self.session.tunnel.known.borrow();
        RelayStatus {
            endpoint: known.configured_endpoint().to_owned(),
            announced_endpoint: known.announced_endpoint().map(str::to_owned),
            address: state.active.as_ref().map(|(_, address)| *address),
            public_key: known.keys().current.to_string(),
            next_public_key: known.keys().next.map(|key| key.to_string()),
            configured_key_replaced: known.has_new_key(),
        }
    }

    /// Returns the numbers of packets that were dropped or lost, by reason.
    fn drops(&self, stats: &Stats) -> BTreeMap<String, u64> {
        let delivery = &self.session.delivery;
        [
            ("queue_full", stats.dropped_queue_full),
            ("displaced", stats.dropped_displaced),
            ("delayed", stats.dropped_delayed),
            ("duplicate", stats.dropped_duplicate),
            ("aged", stats.dropped_aged),
            ("bad_length", stats.dropped_bad_length),
            ("given_up", stats.given_up),
            ("lost_by_peer", stats.lost),
            ("segments", stats.dropped_segments),
            ("device_refused", delivery.refused.load(Ordering::Relaxed)),
            ("misaddressed", delivery.misaddressed.load(Ordering::Relaxed)),
        ]
        .map(|(reason, count)| (reason.to_owned(), count))
        .into()
    }
}

/// Returns the statistics of the path that the tunnel uses.
fn active_path<'a>(snapshot: &'a SessionSnapshot, state: &TunnelState) -> Option<&'a PathStats> {
    let active = state.active.as_ref().map(|(active, _)| active.path);
    snapshot.paths.iter().find(|(id, _)| Some(*id) == active).map(|(_, path)| path)
}

/// Returns when the active path was activated, or when the outage began.
fn since(state: &TunnelState) -> Option<Instant> {
    state.active.as_ref().map(|(active, _)| active.since).or(state.outage_since)
}

/// Returns the remembered handovers, the newest first.
fn recent_handovers(history: &HandoverHistory, now: Instant) -> Vec<Handover> {
    let newest_first = history.recent.iter().rev();
    newest_first
        .map(|(handover, when)| handover_status(handover, now.saturating_duration_since(*when)))
        .collect()
}

fn handover_status(handover: &machine::Handover, age: Duration) -> Handover {
    Handover {
        cause: handover.cause.word().to_owned(),
        from: handover.from.clone(),
        to: handover.to.clone(),
        blackout_seconds: handover.blackout.as_secs_f64(),
        replayed_records: handover.replayed,
        dropped_packets: handover.dropped,
        age_seconds: age.as_secs_f64(),
    }
}

fn traffic(stats: &Stats) -> Traffic {
    Traffic {
        sent_packets: stats.tx_packets,
        sent_bytes: stats.tx_bytes,
        received_packets: stats.rx_packets,
        received_bytes: stats.rx_bytes,
        sent_compressible_bytes: stats.tx_compressible_bytes,
        sent_compressed_bytes: stats.tx_compressed_bytes,
        received_compressible_bytes: stats.rx_compressible_bytes,
        received_compressed_bytes: stats.rx_compressed_bytes,
    }
}

fn queue(snapshot: &SessionSnapshot) -> Queue {
    let count = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
    Queue { queued_bytes: count(snapshot.queued_bytes), unacknowledged_bytes: count(snapshot.unacked_bytes) }
}

/// Returns whether the active path is compressed: `off`, `zstd`, or `refused` by the relay. Before
/// the relay has answered, the configured mode counts.
fn compression(configured: Compression, active: Option<&PathStats>) -> &'static str {
    match (configured, active) {
        (Compression::Off, _) => "off",
        (Compression::Zstd, Some(path)) if path.ready && !path.compression => "refused",
        (Compression::Zstd, _) => "zstd",
    }
}

/// Returns the state of the session and, if there is none, the problem that prevents it.
/// `is_assignment_known` says that the relay's assignment is in force or refused.
fn session_state(state: &TunnelState, is_assignment_known: bool) -> (SessionState, Option<Problem>) {
    if state.active.is_some() {
        let session = if is_assignment_known { SessionState::Connected } else { SessionState::Connecting };
        return (session, None);
    }
    let Some(best) = state.decision.usable.first() else {
        let problem = Problem {
            cause: "no uplink can carry the tunnel".to_owned(),
            next_step: "`mobile uplinks` lists the obstacle of each".to_owned(),
        };
        return (SessionState::NoUplink, Some(problem));
    };
    // A refused key is more informative than any other failure of an uplink.
    let problems: Vec<_> =
        state.decision.usable.iter().filter_map(|name| state.history.problem(name)).collect();
    match problems.iter().find(|(_, refused)| *refused) {
        Some((problem, _)) => (SessionState::Refused, Some((*problem).clone())),
        None => (SessionState::Connecting, state.history.problem(best).map(|(problem, _)| problem.clone())),
    }
}
