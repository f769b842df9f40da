//! The running agent as the control socket and the metrics see it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mobile_io::keys::PublicKey;
use mobile_io::tunnel_options::Compression;
use mobile_proto::{PathId, PathStats};
use nix::errno::Errno;
use tokio::sync::{mpsc, oneshot};

use super::extent::Joining;
use super::failure::Opening;
use crate::config::{Config, RelayIdentity};
use crate::control::protocol::Answer;
use crate::processes::{Job, ProcessHelper};
use crate::routing::claim::Refusal;
use crate::routing::lease::Assigned;
use crate::routing::{BypassChange, Report};
use crate::selection::bpf::Selector;
use crate::selection::cgroup::MobileCgroup;
use crate::status::{
    Handover, Problem, Queue, RelayStatus, SessionState, Status, Traffic, UplinkStatus, Uplinks,
};
use crate::tunnel::io::DeviceSide;
use crate::tunnel::{State, Tunnel, machine};

/// Everything a question can be about.
pub(crate) struct Agent {
    /// The configuration in force.
    pub(crate) config: Config,
    /// The relay.
    pub(crate) relay: RelayIdentity,
    /// Who we are.
    pub(crate) own_key: PublicKey,
    /// The mobile cgroup.
    pub(crate) cgroup: MobileCgroup,
    /// The session.
    pub(crate) tunnel: Tunnel,
    /// The MOBILE route.
    pub(crate) route: Report,
    /// The number of times that the kernel was asked for the uplinks.
    pub(crate) looks: Arc<AtomicU64>,
    /// What the device did not take.
    pub(crate) side: Arc<DeviceSide>,
    /// The programs.
    pub(crate) selector: Mutex<Selector>,
    /// Who is becoming mobile.
    pub(crate) joining: Joining,
    /// The process that looks into and changes other processes.
    pub(crate) processes: ProcessHelper,
    /// When the agent started.
    pub(crate) started: Instant,
    /// What new connections do without a session.
    pub(crate) opening: Opening,
    /// Asks the daemon to remove everything and end.
    pub(crate) clean_up: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
    /// What mobile processes reach directly. Held while it changes.
    pub(crate) bypass: tokio::sync::Mutex<Vec<IpNet>>,
    /// Asks the keeper of the MOBILE route to make it so.
    pub(crate) route_bypass: mpsc::Sender<BypassChange>,
}

impl Agent {
    /// The persistent addresses.
    pub(crate) fn persistent(&self) -> Vec<IpAddr> {
        self.route.assigned.borrow().as_ref().map(Assigned::addresses).unwrap_or_default()
    }

    /// `mobile use`.
    pub(crate) fn force(&self, uplink: Option<String>) -> Result<Answer, String> {
        let note = {
            let state = self.tunnel.state.borrow();
            match &uplink {
                Some(name) => note_on_forced(&state, name)?,
                None => None,
            }
        };
        self.tunnel.force(uplink);
        Ok(note.map_or(Answer::Done, Answer::Noted))
    }

    /// `mobile bypass add` and `del`: in force when it is answered, and until the agent ends.
    pub(crate) async fn change_bypass(&self, net: IpNet, add: bool) -> Result<Answer, String> {
        let net = net.trunc();
        let mut nets = self.bypass.lock().await;
        match (add, nets.contains(&net)) {
            (true, true) => return Ok(Answer::Noted(format!("{net} is bypassed already"))),
            (false, false) => {
                return Err(format!("{net} is not bypassed; `mobile bypass list` says what is"));
            }
            _ => {}
        }
        let mut wanted = nets.clone();
        if add {
            wanted.push(net);
            // Before a route leads there, so that nothing on it is refused.
            self.selector().add_bypass(net).map_err(|error| {
                tracing::warn!(%error, %net, "cannot be bypassed");
                error.to_string()
            })?;
        } else {
            wanted.retain(|other| *other != net);
        }
        let routed = self.reroute(wanted.clone()).await;
        // After no route leads there any more, or because none does.
        if routed.is_ok() != add
            && let Err(error) = self.selector().remove_bypass(net)
        {
            tracing::warn!(%error, %net, "no route leads there, but it would be let through");
        }
        routed?;
        *nets = wanted;
        tracing::info!(%net, add, "bypass changed");
        Ok(Answer::Done)
    }

    /// `inet_setmroute` of the C library: whole and in force when it is answered, if it leads to that gateway.
    pub(crate) async fn set_route(&self, gateway: Option<Ipv4Addr>) -> Result<(), Errno> {
        let assigned = self.route.assigned.borrow().clone();
        let assigned = assigned.filter(|it| !it.addresses().is_empty()).ok_or(Errno::ENETDOWN)?;
        let relay = self.tunnel.state.borrow().active.as_ref().map(|(_, address)| address.ip());
        let leads = |to: Ipv4Addr| assigned.ipv4 == Some(to) || relay == Some(to.into());
        if !gateway.is_none_or(leads) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let nets = self.bypass.lock().await;
        self.reroute(nets.clone()).await.map_err(|error| {
            tracing::warn!(error, "inet_setmroute");
            Errno::EIO
        })
    }

    async fn reroute(&self, wanted: Vec<IpNet>) -> Result<(), String> {
        let stopping = || "the agent is stopping".to_owned();
        let (reply, done) = oneshot::channel();
        self.route_bypass.send((wanted, reply)).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?
    }

    pub(super) fn selector(&self) -> std::sync::MutexGuard<'_, Selector> {
        self.selector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers `mobile prepare-slice` once the eBPF programs take processes in the slice for
    /// mobile.
    pub(crate) fn prepare_slice(&self) -> Result<(), String> {
        let slice = self.cgroup.slice();
        let dir = slice.dir().display();
        let id = self.processes.run(&Job::EnsureSlice, None).map_err(|error| error.to_string())?;
        self.selector().set_slice(id).map_err(|error| error.to_string())?;
        tracing::debug!(slice = %dir, id, "the slice is ready: what starts in it is mobile");
        Ok(())
    }

    /// `mobile cleanup`: answered when everything is removed.
    pub(crate) async fn clean_up(&self) -> Result<Answer, String> {
        let (reply, done) = oneshot::channel();
        self.clean_up.send(reply).await.map_err(|_| "the agent is stopping already".to_owned())?;
        match done.await {
            Ok(result) => result.map(|()| Answer::Done),
            Err(_) => Err("the agent ended before everything was removed: try again".to_owned()),
        }
    }

    /// `mobile status`.
    pub(crate) async fn status(&self) -> Status {
        let snapshot = self.tunnel.driver.snapshot().await;
        let cgroup = self.cgroup.clone();
        let pids = tokio::task::spawn_blocking(move || cgroup.pids()).await;
        let ingress = self.route.ingress.read().await;
        let state = self.tunnel.state.borrow().clone();
        let assigned = self.route.assigned.borrow().clone();
        let ledger = &state.ledger;
        let now = Instant::now();
        let path = state.active.as_ref().map(|(active, _)| active.path);
        let active_stats = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.paths.iter().find(|(id, _)| Some(*id) == path))
            .map(|(_, path)| path);
        let stats = snapshot.as_ref().map(|snapshot| snapshot.stats.clone()).unwrap_or_default();
        let addresses = assigned.as_ref().map(Assigned::addresses).unwrap_or_default();
        let refused: Vec<_> = self.route.refused.now().iter().map(Refusal::told).collect();
        let (session, problem) = judge(&state, !addresses.is_empty() || !refused.is_empty());
        let problem = problem.or_else(|| self.route.refused.problem(&addresses));
        let recent: Vec<Handover> = ledger
            .recent
            .iter()
            .rev()
            .map(|(handover, when)| told(handover, now.saturating_duration_since(*when)))
            .collect();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            agent_pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            session,
            problem,
            relay: RelayStatus {
                endpoint: self.relay.endpoint.clone(),
                address: state.active.as_ref().map(|(_, address)| *address),
                public_key: self.relay.public_key.to_string(),
            },
            public_key: self.own_key.to_string(),
            device: self.config.tunnel.device.clone(),
            addresses,
            mtu: self.config.tunnel.mtu.or(assigned.as_ref().map(|assigned| assigned.mtu)),
            dns: assigned.map(|assigned| assigned.dns).unwrap_or_default(),
            refused,
            active_uplink: state.active.as_ref().map(|(active, _)| active.uplink.clone()),
            forced_uplink: state.forced.clone(),
            rtt_seconds: active_stats.and_then(|path| path.srtt).map(|rtt| rtt.as_secs_f64()),
            since_seconds: state
                .active
                .as_ref()
                .map(|(active, _)| active.since)
                .or(state.outage_since)
                .map(|since| now.saturating_duration_since(since).as_secs_f64()),
            handovers: ledger.handover_count(),
            last_handover: recent.first().cloned(),
            recent_handovers: recent,
            traffic: Traffic {
                sent_packets: stats.tx_packets,
                sent_bytes: stats.tx_bytes,
                received_packets: stats.rx_packets,
                received_bytes: stats.rx_bytes,
                sent_compressible_bytes: stats.tx_compressible_bytes,
                sent_compressed_bytes: stats.tx_compressed_bytes,
                received_compressible_bytes: stats.rx_compressible_bytes,
                received_compressed_bytes: stats.rx_compressed_bytes,
            },
            compression: compression(self.config.tunnel.compression, active_stats).to_owned(),
            drops: self.drops(&stats),
            queue: snapshot.map_or_else(Queue::default, |snapshot| Queue {
                queued_bytes: count(snapshot.queued_bytes),
                unacknowledged_bytes: count(snapshot.unacked_bytes),
            }),
            mobile_processes: pids.ok().and_then(Result::ok).map_or(0, |pids| count(pids.len())),
            on_failure: self.config.routing.on_failure,
            open: self.opening.now(),
            opened: self.opening.times(),
            routing_restored: self.route.restored.load(Ordering::Relaxed),
            rival_rules: self.route.rivals.before.load(Ordering::Relaxed),
            rules_moved: self.route.rivals.moves.load(Ordering::Relaxed),
            ingress,
        }
    }

    /// Packets lost on our side, by reason.
    fn drops(&self, stats: &mobile_proto::Stats) -> BTreeMap<String, u64> {
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
            ("device_refused", self.side.refused.load(Ordering::Relaxed)),
            ("misaddressed", self.side.misaddressed.load(Ordering::Relaxed)),
        ]
        .map(|(reason, count)| (reason.to_owned(), count))
        .into()
    }

    /// `mobile uplinks`.
    pub(crate) async fn uplinks(&self) -> Uplinks {
        let paths = self.tunnel.driver.snapshot().await.map(|snapshot| snapshot.paths).unwrap_or_default();
        let state = self.tunnel.state.borrow();
        Uplinks { forced: state.forced.clone(), uplinks: list_uplinks(&state, &paths) }
    }
}

fn told(handover: &machine::Handover, age: Duration) -> Handover {
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

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// What has become of the wish for compression. Before the relay has answered, a wish is a wish.
fn compression(wish: Compression, active: Option<&PathStats>) -> &'static str {
    match (wish, active) {
        (Compression::Off, _) => "off",
        (Compression::Zstd, Some(path)) if path.ready && !path.compression => "refused",
        (Compression::Zstd, _) => "zstd",
    }
}

/// Returns the state of the session and what stands in its way. `is_assigned`: the relay's
/// assignment is in force or refused.
fn judge(state: &State, is_assigned: bool) -> (SessionState, Option<Problem>) {
    if state.active.is_some() {
        let session = if is_assigned { SessionState::Connected } else { SessionState::Connecting };
        return (session, None);
    }
    let Some(best) = state.decision.candidates.first() else {
        let problem = Problem {
            cause: "no uplink can carry the tunnel".to_owned(),
            next_step: "`mobile uplinks` says what each of them lacks".to_owned(),
        };
        return (SessionState::NoUplink, Some(problem));
    };
    // A refused key says more than an uplink that fails otherwise.
    let problems: Vec<_> =
        state.decision.candidates.iter().filter_map(|name| state.ledger.problem(name)).collect();
    match problems.iter().find(|(_, refused)| *refused) {
        Some((problem, _)) => (SessionState::Refused, Some((*problem).clone())),
        None => (SessionState::Connecting, state.ledger.problem(best).map(|(problem, _)| problem.clone())),
    }
}

fn list_uplinks(state: &State, paths: &[(PathId, PathStats)]) -> Vec<UplinkStatus> {
    // Two for an uplink: one is about to replace the other.
    let path_on = |uplink: &str| {
        let ready = state.ready.iter().filter(|(_, on)| on == uplink);
        let stats = ready.filter_map(|(id, _)| paths.iter().find(|(path, _)| path == id));
        stats.map(|(_, stats)| stats).min_by_key(|stats| stats.unresponsive)
    };
    let place = |name: &str| state.decision.candidates.iter().position(|candidate| candidate == name);
    let mut list: Vec<(usize, UplinkStatus)> = state
        .uplinks
        .iter()
        .zip(&state.decision.verdicts)
        .map(|(uplink, verdict)| {
            let active = state.active.as_ref().is_some_and(|(active, _)| active.uplink == uplink.name);
            let failed = state.ledger.problem(&uplink.name).map(|(problem, _)| problem);
            let path = path_on(&uplink.name);
            let (word, reason, next_step) = match (active, verdict.obstacle, failed) {
                (true, ..) => ("active", None, None),
                (_, Some(obstacle), _) => {
                    let next_step = obstacle.next_step().map(str::to_owned);
                    ("unusable", Some(obstacle.words().to_owned()), next_step)
                }
                _ if path.is_some_and(|path| !path.unresponsive) => ("standby", None, None),
                _ if path.is_some() => ("silent", Some("its path does not answer any more".to_owned()), None),
                (.., Some(problem)) => {
                    ("failing", Some(problem.cause.clone()), Some(problem.next_step.clone()))
                }
                _ if state.connecting.contains(&uplink.name) => ("connecting", None, None),
                _ => ("usable", None, None),
            };
            let status = UplinkStatus {
                name: uplink.name.clone(),
                state: word.to_owned(),
                reason,
                next_step,
                addresses: uplink.addresses.clone(),
                metric: uplink.ipv4_route.into_iter().chain(uplink.ipv6_route).min(),
                rtt_seconds: path.and_then(|path| path.srtt).map(|rtt| rtt.as_secs_f64()),
                loss_ratio: path.and_then(|path| path.loss),
            };
            (place(&uplink.name).unwrap_or(usize::MAX), status)
        })
        .collect();
    list.sort_by(|(left, a), (right, b)| left.cmp(right).then_with(|| a.name.cmp(&b.name)));
    list.into_iter().map(|(_, status)| status).collect()
}

/// An unknown name is a mistake; an unusable link is a wish for later.
fn note_on_forced(state: &State, name: &str) -> Result<Option<String>, String> {
    let Some(verdict) = state.decision.verdicts.iter().find(|verdict| verdict.name == name) else {
        let known: Vec<&str> = state.decision.verdicts.iter().map(|verdict| verdict.name.as_str()).collect();
        return Err(format!("there is no uplink {name}; there are: {}", known.join(", ")));
    };
    Ok(verdict.obstacle.map(|obstacle| {
        format!(
            "{name} cannot carry the tunnel now ({}{}): it will as soon as it can, until then the others do",
            obstacle.words(),
            obstacle.next_step().map(|step| format!("; {step}")).unwrap_or_default()
        )
    }))
}
