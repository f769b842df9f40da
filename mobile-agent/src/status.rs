//! The output of `mobile status --json` and `mobile uplinks --json`.
//!
//! Scripts read these structures, so their JSON keys and values are stable. docs/use/json.md lists
//! them. The reply that `mobile ps --json` prints is in `protocol`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::config::OnFailure;

// Larger than the bound: it is one JSON object, whose keys scripts read at the top level.
/// The output of `mobile status --json`. Durations are in seconds; counters are 0 when the agent
/// starts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The version of the running agent.
    pub(crate) version: String,
    /// The process ID of the agent.
    pub(crate) agent_pid: u32,
    /// The time since the agent started, in seconds.
    pub(crate) uptime_seconds: f64,
    /// The state of the session.
    pub(crate) session: SessionState,
    /// The problem that keeps the session from working, if there is one.
    pub(crate) problem: Option<Problem>,
    /// The home relay as this host knows it.
    pub(crate) relay: RelayStatus,
    /// The public key of this host, as `home-relay authorize` takes it.
    pub(crate) public_key: String,
    /// The name of the host virtual device.
    pub(crate) device: String,
    /// The persistent addresses in force. Empty until the relay has been reached once, and while
    /// this host refuses all that the relay assigned.
    pub(crate) addresses: Vec<IpAddr>,
    /// The MTU of the host virtual device, in bytes, if it is known.
    pub(crate) mtu: Option<u16>,
    /// The resolvers that the relay offers.
    pub(crate) dns: Vec<IpAddr>,
    /// The parts of the relay's assignment that this host refuses.
    pub(crate) refused: Vec<Refusal>,
    /// The uplink that carries the tunnel; `None` while no path is active.
    pub(crate) active_uplink: Option<String>,
    /// The uplink that `mobile use` prefers; `None` under the configured policy.
    pub(crate) forced_uplink: Option<String>,
    /// The smoothed round-trip time to the relay over the active uplink, in seconds, once measured.
    pub(crate) rtt_seconds: Option<f64>,
    /// The time since the session began, in seconds, including handovers and outages that it
    /// survived; `None` before the first session of a run.
    #[serde(default)]
    pub(crate) session_seconds: Option<f64>,
    /// The time since the active path was activated, or since the last one was lost, in seconds.
    pub(crate) since_seconds: Option<f64>,
    /// The number of times the tunnel moved to another path. The first path of a run does not
    /// count.
    pub(crate) handovers: u64,
    /// The most recent handover.
    pub(crate) last_handover: Option<Handover>,
    /// The last 32 handovers, newest first.
    pub(crate) recent_handovers: Vec<Handover>,
    /// The inner packets and bytes in both directions.
    pub(crate) traffic: Traffic,
    /// `off`, `zstd`, or `refused` if the relay does not agree to `[tunnel] compression`.
    pub(crate) compression: String,
    /// The dropped inner packets, by reason. A reason that never occurred is listed with 0.
    pub(crate) drops: BTreeMap<String, u64>,
    /// The bytes of inner packets that the agent holds, unsent or unacknowledged.
    pub(crate) queue: Queue,
    /// The number of processes with the MOBILE attribute.
    pub(crate) mobile_processes: u64,
    /// The setting `[routing] on_failure`: `closed` or `open`.
    pub(crate) on_failure: OnFailure,
    /// Whether new connections of mobile processes go direct at the moment because there is no
    /// session.
    pub(crate) open: bool,
    /// The number of times that new connections of mobile processes began to go direct for lack of
    /// a session.
    pub(crate) opened: u64,
    /// The number of rules (including nftables rules), routes and addresses that another program
    /// removed and the agent restored.
    pub(crate) routing_restored: u64,
    /// The number of routing rules of other programs that have precedence over the agent's and
    /// route the packets of mobile processes elsewhere.
    pub(crate) rival_rules: u64,
    /// The number of times the agent's routing rules moved to a priority before those of other
    /// programs, or back.
    pub(crate) rules_moved: u64,
    /// The filter that keeps packets of visited networks from reaching the persistent addresses.
    pub(crate) ingress: Ingress,
}

/// The state of the ingress filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ingress {
    /// The kind of filter in force.
    pub(crate) filter: FilterKind,
    /// The reason why nftables does not filter; `None` if it does.
    pub(crate) problem: Option<String>,
    /// The number of packets that the filter dropped.
    pub(crate) dropped_packets: u64,
}

/// The kind of ingress filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FilterKind {
    /// A set of nftables rules.
    Nftables,
    /// An eBPF classifier on each device, where nftables does not work.
    Ebpf,
    /// No filter is in force.
    None,
}

/// The state of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionState {
    /// A path is active, and the relay's assignment is in force or refused.
    Connected,
    /// An uplink is usable, but there is no path or no assignment yet.
    Connecting,
    /// No uplink can carry the tunnel. Connections of mobile processes wait.
    NoUplink,
    /// The relay was reached, but one side does not accept the other's key.
    Refused,
}

/// A problem of the session and its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// The cause of the problem.
    pub(crate) cause: String,
    /// The step that solves the problem.
    pub(crate) next_step: String,
}

/// A part of the relay's assignment that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// The kind of the refused part: `address`, `resolver`, or `assignment` for the assignment as a
    /// whole.
    pub(crate) kind: String,
    /// The refused address or resolver.
    pub(crate) claim: String,
    /// The reason as one word, which docs/use/metrics.md explains: `unusable`, `not_allowed`,
    /// `local`, `connected`, `next_hop`, `resolver`, `relay`, `persistent`, `mtu` or `empty`.
    pub(crate) reason: String,
    /// The reason for the refusal in a sentence.
    pub(crate) cause: String,
    /// The step that makes this host accept the refused part.
    pub(crate) next_step: String,
}

/// The home relay as this host knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelayStatus {
    /// The setting `[relay] endpoint`.
    pub(crate) endpoint: String,
    /// The endpoint that the relay announced, which is tried before `endpoint`.
    #[serde(default)]
    pub(crate) announced_endpoint: Option<String>,
    /// The address of the relay that the active path is connected to; `None` while no path is
    /// active.
    pub(crate) address: Option<SocketAddr>,
    /// The public key that the relay must prove to have.
    pub(crate) public_key: String,
    /// The public key that the relay announced, and may prove instead.
    #[serde(default)]
    pub(crate) next_public_key: Option<String>,
    /// Whether `public_key` was announced and has replaced `[relay] public_key`.
    #[serde(default)]
    pub(crate) configured_key_replaced: bool,
}

/// A move of the tunnel from one path to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Handover {
    /// The cause of the move as one word, which docs/use/metrics.md explains: `carrier_lost`,
    /// `link_down`, `link_gone`, `address_lost`, `route_lost`, `silent`, `transport_failed`,
    /// `relay_closed`, `better_uplink`, `forced` or `reloaded`.
    pub(crate) cause: String,
    /// The uplink of the old path.
    pub(crate) from: String,
    /// The uplink of the new path; the same uplink if only the connection was replaced.
    pub(crate) to: String,
    /// The time from the end of the old path, or the best estimate of it, to the relay's first
    /// answer on the new path, in seconds; 0 if the old path worked until then.
    pub(crate) blackout_seconds: f64,
    /// The number of records retransmitted on the new path.
    pub(crate) replayed_records: u64,
    /// The number of packets that the agent dropped since the previous handover.
    pub(crate) dropped_packets: u64,
    /// The time since the handover, in seconds.
    pub(crate) age_seconds: f64,
}

/// Counters of the inner traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    /// The number of packets sent for mobile processes.
    pub(crate) sent_packets: u64,
    /// The bytes of the packets sent for mobile processes.
    pub(crate) sent_bytes: u64,
    /// The number of packets delivered to mobile processes.
    pub(crate) received_packets: u64,
    /// The bytes of the packets delivered to mobile processes.
    pub(crate) received_bytes: u64,
    /// The bytes, before compression, of the packets that were sent compressed, including
    /// retransmissions.
    pub(crate) sent_compressible_bytes: u64,
    /// The bytes, after compression, of the packets that were sent compressed, including
    /// retransmissions.
    pub(crate) sent_compressed_bytes: u64,
    /// The bytes, after decompression, of the packets that arrived compressed.
    pub(crate) received_compressible_bytes: u64,
    /// The bytes, before decompression, of the packets that arrived compressed.
    pub(crate) received_compressed_bytes: u64,
}

/// The bytes of inner packets that the agent holds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    /// The bytes that the agent has not sent yet.
    pub(crate) queued_bytes: u64,
    /// The bytes sent and kept until the relay acknowledges them.
    pub(crate) unacknowledged_bytes: u64,
}

/// The output of `mobile uplinks --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Uplinks {
    /// The uplink that `mobile use` prefers; `None` under the configured policy.
    pub(crate) forced: Option<String>,
    /// Every link: the usable ones first, in the policy's order of preference.
    pub(crate) uplinks: Vec<UplinkStatus>,
}

/// The state of one link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UplinkStatus {
    /// The name of the interface.
    pub(crate) name: String,
    /// The state of the link: `active` (carries the tunnel), `standby` (has a path and could carry
    /// the tunnel at once), `silent` (has a path that does not answer), `connecting` (opens a
    /// path), `usable` (could open a path, but has none), `failing` (usable, but the relay was not
    /// reached over this link) or `unusable` (cannot carry the tunnel).
    pub(crate) state: String,
    /// The reason why the link is unusable, silent or failing; `None` in the other states.
    pub(crate) reason: Option<String>,
    /// The step that makes the link usable, if one is known.
    pub(crate) next_step: Option<String>,
    /// The addresses of the link.
    pub(crate) addresses: Vec<IpAddr>,
    /// The lower metric of the link's IPv4 and IPv6 routes to the relay; `None` without a route.
    pub(crate) metric: Option<u32>,
    /// The smoothed round-trip time to the relay on the link's path, in seconds; `None` without a
    /// path.
    pub(crate) rtt_seconds: Option<f64>,
    /// The share of TCP segments retransmitted since the link's path was opened, 0 to 1; `None`
    /// without a path.
    pub(crate) loss_ratio: Option<f64>,
}
