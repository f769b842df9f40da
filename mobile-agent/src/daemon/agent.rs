//! The state and the operations of the running agent, for the control socket and the metrics.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use mobile_proto::{PathId, PathStats};
use mobile_transport::keys::PublicKey;
use mobile_transport::tunnel_options::Compression;
use nix::errno::Errno;
use tokio::sync::{mpsc, oneshot};

use super::attach_scope::AttachLock;
use super::on_failure::DirectFallback;
use crate::config::{Config, RelayIdentity};
use crate::control::protocol::Reply;
use crate::processes::{Job, ProcessHelper};
use crate::routing::assignment::Assignment;
use crate::routing::claim::Refusal;
use crate::routing::delivery_filter::DeliveryFilter;
use crate::routing::{BypassChange, RouteStatus};
use crate::selection::bpf::Selector;
use crate::selection::cgroup::MobileCgroup;
use crate::status::{
    Handover, Problem, Queue, RelayStatus, SessionState, Status, Traffic, UplinkStatus, Uplinks,
};
use crate::tunnel::{Tunnel, TunnelState, machine};

/// The shared state of the running agent.
pub(crate) struct Agent {
    /// The configuration in force.
    pub(crate) config: Config,
    /// The relay's endpoint and public key.
    pub(crate) relay: RelayIdentity,
    /// The public key of this host.
    pub(crate) own_key: PublicKey,
    /// The cgroup of the mobile processes.
    pub(crate) cgroup: MobileCgroup,
    /// The handle of the tunnel.
    pub(crate) tunnel: Tunnel,
    /// The state of the MOBILE route.
    pub(crate) route: RouteStatus,
    /// The number of times that the uplinks were read from the kernel.
    pub(crate) uplink_reads: Arc<AtomicU64>,
    /// The filter for packets from the relay, with counters of those that were not delivered to the
    /// host virtual device.
    pub(crate) delivery: Arc<DeliveryFilter>,
    /// The loaded eBPF programs and their maps.
    pub(crate) selector: Mutex<Selector>,
    /// The lock that the agent holds while processes that may have open sockets become mobile.
    pub(crate) attach_lock: AttachLock,
    /// The process helper, which inspects and changes other processes for the agent.
    pub(crate) processes: ProcessHelper,
    /// When the agent started.
    pub(crate) started: Instant,
    /// Whether new connections of mobile processes use the ordinary route because there is no
    /// session.
    pub(crate) direct_fallback: DirectFallback,
    /// Sends requests to the daemon to remove every kernel object and end; each request holds the
    /// channel for the result.
    pub(crate) clean_up: mpsc::Sender<oneshot::Sender<Result<(), String>>>,
    /// The networks that mobile processes reach directly. The lock is held during a change.
    pub(crate) bypass: tokio::sync::Mutex<Vec<IpNet>>,
    /// Sends changes of the bypassed networks to the route reconciler, which applies them.
    pub(crate) route_bypass: mpsc::Sender<BypassChange>,
}

impl Agent {
    /// Returns the persistent addresses in force.
    pub(crate) fn persistent(&self) -> Vec<IpAddr> {
        self.route.assignment.borrow().as_ref().map(Assignment::addresses).unwrap_or_default()
    }

    /// Forces the tunnel onto an uplink, or back to automatic choice (`mobile use`).
    pub(crate) fn force(&self, uplink: Option<String>) -> Result<Reply, String> {
        let note = {
            let state = self.tunnel.state.borrow();
            match &uplink {
                Some(name) => note_on_forced(&state, name)?,
                None => None,
            }
        };
        self.tunnel.force(uplink);
        Ok(note.map_or(Reply::Done, Reply::Noted))
    }

    /// Adds or removes a bypassed network (`mobile bypass add` and `del`). The change is in force
    /// when this returns, and lasts until the agent ends.
    pub(crate) async fn change_bypass(&self, net: IpNet, add: bool) -> Result<Reply, String> {
        let net = net.trunc();
        let mut nets = self.bypass.lock().await;
        match (add, nets.contains(&net)) {
            (true, true) => return Ok(Reply::Noted(format!("{net} is already bypassed"))),
            (false, false) => {
                return Err(format!(
                    "{net} is not bypassed; `mobile bypass list` lists the networks that are"
                ));
            }
            _ => {}
        }
        let mut wanted = nets.clone();
        if add {
            wanted.push(net);
            // Update the eBPF programs before a route leads there, so that they drop nothing on it.
            self.selector().add_bypass(net).map_err(|error| {
                tracing::warn!(
                    %error, %net,
                    "cannot add the network to the bypass map of the eBPF programs"
                );
                error.to_string()
            })?;
        } else {
            wanted.retain(|other| *other != net);
        }
        let routed = self.reroute(wanted.clone()).await;
        // The eBPF programs may block the network again once no route leads there, or because
        // adding the route failed.
        if routed.is_ok() != add
            && let Err(error) = self.selector().remove_bypass(net)
        {
            tracing::warn!(
                %error, %net,
                "cannot remove the network from the bypass map of the eBPF programs; no route \
                leads to it"
            );
        }
        routed?;
        *nets = wanted;
        tracing::info!(%net, add, "bypassed networks changed");
        Ok(Reply::Done)
    }

    /// Verifies and repairs the MOBILE route (`inet_setmroute` of `libmobile`). Fails with
    /// `EADDRNOTAVAIL` if `gateway` is neither the persistent address nor the relay's.
    pub(crate) async fn set_route(&self, gateway: Option<Ipv4Addr>) -> Result<(), Errno> {
        let assignment = self.route.assignment.borrow().clone();
        let assignment = assignment.filter(|it| !it.addresses().is_empty()).ok_or(Errno::ENETDOWN)?;
        let relay = self.tunnel.state.borrow().active.as_ref().map(|(_, address)| address.ip());
        let is_endpoint = |to: Ipv4Addr| assignment.ipv4 == Some(to) || relay == Some(to.into());
        if !gateway.is_none_or(is_endpoint) {
            return Err(Errno::EADDRNOTAVAIL);
        }
        let nets = self.bypass.lock().await;
        self.reroute(nets.clone()).await.map_err(|error| {
            tracing::warn!(error, "inet_setmroute failed");
            Errno::EIO
        })
    }

    async fn reroute(&self, wanted: Vec<IpNet>) -> Result<(), String> {
        let stopping = || "the agent is stopping".to_owned();
        let (reply, done) = oneshot::channel();
        self.route_bypass.send((wanted, reply)).await.map_err(|_| stopping())?;
        done.await.map_err(|_| stopping())?.map_err(|error| crate::cli::error_chain(&error))
    }

    pub(super) fn selector(&self) -> std::sync::MutexGuard<'_, Selector> {
        self.selector.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ensures that the systemd slice of mobile processes exists and is known to the eBPF programs,
    /// so that processes in it are mobile (`mobile prepare-slice`).
    pub(crate) fn prepare_slice(&self) -> Result<(), String> {
        let slice = self.cgroup.slice();
        let dir = slice.dir().display();
        let id = self.processes.run(&Job::EnsureSlice, None).map_err(|error| error.to_string())?;
        self.selector().set_slice(id).map_err(|error| error.to_string())?;
        tracing::debug!(slice = %dir, id, "slice ready: processes started in it are mobile");
        Ok(())
    }

    /// Asks the daemon to remove every kernel object, and waits for the result (`mobile cleanup`).
    pub(crate) async fn clean_up(&self) -> Result<Reply, String> {
        let (reply, done) = oneshot::channel();
        self.clean_up.send(reply).await.map_err(|_| "the agent is stopping already".to_owned())?;
        match done.await {
            Ok(result) => result.map(|()| Reply::Done),
            Err(_) => Err("the agent ended before everything was removed: try again".to_owned()),
        }
    }

    /// Returns the report of `mobile status`.
    pub(crate) async fn status(&self) -> Status {
        let snapshot = self.tunnel.driver.snapshot().await;
        let cgroup = self.cgroup.clone();
        let pids = tokio::task::spawn_blocking(move || cgroup.pids()).await;
        let ingress = self.route.ingress.read().await;
        let state = self.tunnel.state.borrow().clone();
        let assignment = self.route.assignment.borrow().clone();
        let history = &state.history;
        let now = Instant::now();
        let path = state.active.as_ref().map(|(active, _)| active.path);
        let active_stats = snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.paths.iter().find(|(id, _)| Some(*id) == path))
            .map(|(_, path)| path);
        let stats = snapshot.as_ref().map(|snapshot| snapshot.stats.clone()).unwrap_or_default();
        let addresses = assignment.as_ref().map(Assignment::addresses).unwrap_or_default();
        let refused: Vec<_> = self.route.refused.now().iter().map(Refusal::to_status).collect();
        let (session, problem) = session_state(&state, !addresses.is_empty() || !refused.is_empty());
        let problem = problem.or_else(|| self.route.refused.problem(&addresses));
        let recent: Vec<Handover> = history
            .recent
            .iter()
            .rev()
            .map(|(handover, when)| handover_status(handover, now.saturating_duration_since(*when)))
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
            mtu: self.config.tunnel.mtu.or(assignment.as_ref().map(|assignment| assignment.mtu)),
            dns: assignment.map(|assignment| assignment.dns).unwrap_or_default(),
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
            handovers: history.handover_count(),
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
            open: self.direct_fallback.now(),
            opened: self.direct_fallback.times(),
            routing_restored: self.route.restored.load(Ordering::Relaxed),
            rival_rules: self.route.conflicts.before.load(Ordering::Relaxed),
            rules_moved: self.route.conflicts.moves.load(Ordering::Relaxed),
            ingress,
        }
    }

    /// Returns the numbers of packets that were dropped or lost, by reason.
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
            ("device_refused", self.delivery.refused.load(Ordering::Relaxed)),
            ("misaddressed", self.delivery.misaddressed.load(Ordering::Relaxed)),
        ]
        .map(|(reason, count)| (reason.to_owned(), count))
        .into()
    }

    /// Returns the report of `mobile uplinks`.
    pub(crate) async fn uplinks(&self) -> Uplinks {
        let paths = self.tunnel.driver.snapshot().await.map(|snapshot| snapshot.paths).unwrap_or_default();
        let state = self.tunnel.state.borrow();
        Uplinks { forced: state.forced.clone(), uplinks: list_uplinks(&state, &paths) }
    }
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

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
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

fn list_uplinks(state: &TunnelState, paths: &[(PathId, PathStats)]) -> Vec<UplinkStatus> {
    // An uplink has two paths while one replaces the other.
    let path_on = |uplink: &str| {
        let ready = state.ready.iter().filter(|(_, on)| on == uplink);
        let stats = ready.filter_map(|(id, _)| paths.iter().find(|(path, _)| path == id));
        stats.map(|(_, stats)| stats).min_by_key(|stats| stats.unresponsive)
    };
    let place = |name: &str| state.decision.usable.iter().position(|candidate| candidate == name);
    let mut list: Vec<(usize, UplinkStatus)> = state
        .uplinks
        .iter()
        .zip(&state.decision.verdicts)
        .map(|(uplink, verdict)| {
            let active = state.active.as_ref().is_some_and(|(active, _)| active.uplink == uplink.name);
            let failed = state.history.problem(&uplink.name).map(|(problem, _)| problem);
            let path = path_on(&uplink.name);
            let (word, reason, next_step) = match (active, verdict.obstacle, failed) {
                (true, ..) => ("active", None, None),
                (_, Some(obstacle), _) => {
                    let next_step = obstacle.next_step().map(str::to_owned);
                    ("unusable", Some(obstacle.description().to_owned()), next_step)
                }
                _ if path.is_some_and(|path| !path.unresponsive) => ("standby", None, None),
                _ if path.is_some() => ("silent", Some("its path does not answer".to_owned()), None),
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

/// Returns a note for the user of `mobile use` if the named uplink is unusable at present, and an
/// error if no uplink has this name.
fn note_on_forced(state: &TunnelState, name: &str) -> Result<Option<String>, String> {
    let Some(verdict) = state.decision.verdicts.iter().find(|verdict| verdict.name == name) else {
        let known: Vec<&str> = state.decision.verdicts.iter().map(|verdict| verdict.name.as_str()).collect();
        return Err(format!("no uplink is named {name}; the known uplinks are: {}", known.join(", ")));
    };
    Ok(verdict.obstacle.map(|obstacle| {
        format!(
            "{name} cannot carry the tunnel at present ({}{}): it is used as soon as it can, and \
            other uplinks until then",
            obstacle.description(),
            obstacle.next_step().map(|step| format!("; {step}")).unwrap_or_default()
        )
    }))
}
