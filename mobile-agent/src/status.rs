//! What `mobile status --json` and `mobile uplinks --json` print: stable, documented here, field by field.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::config::OnFailure;

/// `mobile status --json`. Durations are seconds, counters start with the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Status {
    /// The agent's version.
    pub(crate) version: String,
    /// The agent's process id.
    pub(crate) agent_pid: u32,
    /// Seconds since the agent started.
    pub(crate) uptime_seconds: f64,
    /// What the session is doing.
    pub(crate) session: SessionState,
    /// What stands in the way, when anything does.
    pub(crate) problem: Option<Problem>,
    /// The relay.
    pub(crate) relay: RelayStatus,
    /// This host's public key, as `home-relay authorize` takes it.
    pub(crate) public_key: String,
    /// The host virtual device.
    pub(crate) device: String,
    /// The persistent addresses in force; empty until the relay has ever been reached, and while
    /// all it pushed is refused.
    pub(crate) addresses: Vec<IpAddr>,
    /// The MTU of the host virtual device.
    pub(crate) mtu: Option<u16>,
    /// Resolvers the relay offers.
    pub(crate) dns: Vec<IpAddr>,
    /// The claims that the relay pushed and this host refuses.
    pub(crate) refused: Vec<Refusal>,
    /// The uplink that carries the tunnel.
    pub(crate) active_uplink: Option<String>,
    /// The uplink that `mobile use` put first.
    pub(crate) forced_uplink: Option<String>,
    /// Smoothed round-trip time to the relay over the active uplink.
    pub(crate) rtt_seconds: Option<f64>,
    /// Seconds since the active path was activated, or since there is none.
    pub(crate) since_seconds: Option<f64>,
    /// How often the tunnel moved to another path (the first one of a run does not count).
    pub(crate) handovers: u64,
    /// The last of them.
    pub(crate) last_handover: Option<Handover>,
    /// The last 32 of them, the newest first.
    pub(crate) recent_handovers: Vec<Handover>,
    /// Inner packets and bytes, both directions.
    pub(crate) traffic: Traffic,
    /// `off`, `zstd`, or `refused`: the relay does not agree to what `[tunnel] compression` asks for.
    pub(crate) compression: String,
    /// Inner packets dropped, by reason; a reason that never happened is 0.
    pub(crate) drops: BTreeMap<String, u64>,
    /// Bytes waiting to be sent, and sent but not acknowledged.
    pub(crate) queue: Queue,
    /// How many processes have the MOBILE attribute.
    pub(crate) mobile_processes: u64,
    /// `[routing] on_failure`: `closed` or `open`.
    pub(crate) on_failure: OnFailure,
    /// Whether new connections of mobile processes go directly now, for want of a session.
    pub(crate) open: bool,
    /// How often they began to.
    pub(crate) opened: u64,
    /// Rules (nftables' too), routes and addresses that somebody removed and the agent put back.
    pub(crate) routing_restored: u64,
    /// Rules of others that come before ours and take the packets of mobile processes.
    pub(crate) rival_rules: u64,
    /// How often our rules moved before those of others, or back.
    pub(crate) rules_moved: u64,
    /// The filter that keeps visited networks from reaching the persistent addresses.
    pub(crate) ingress: Ingress,
}

/// The ingress filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ingress {
    /// The kind of filter in force.
    pub(crate) filter: FilterKind,
    /// Why nftables does not filter.
    pub(crate) problem: Option<String>,
    /// Packets dropped because they came by another device than the tunnel's.
    pub(crate) dropped_packets: u64,
}

/// The kind of ingress filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FilterKind {
    /// nftables rules.
    Nftables,
    /// An eBPF classifier on each device, where nftables does not work.
    Ebpf,
    /// No filter.
    None,
}

/// What the session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SessionState {
    /// A path is active, and the relay's assignment is in force or refused.
    Connected,
    /// There is a usable uplink, and no path or no assignment yet.
    Connecting,
    /// No uplink can carry the tunnel. Connections of mobile processes wait.
    NoUplink,
    /// The relay is reached, and one side does not accept the other's key.
    Refused,
}

/// What stands in the way, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Problem {
    /// What is the matter.
    pub(crate) cause: String,
    /// What to do about it.
    pub(crate) next_step: String,
}

/// A part of the relay's assignment that is not in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// `address`, `resolver` or `assignment`.
    pub(crate) kind: String,
    /// The address or resolver.
    pub(crate) claim: String,
    /// `unusable`, `not_allowed`, `local`, `connected`, `next_hop`, `resolver`, `relay`,
    /// `persistent`, `mtu` or `empty`.
    pub(crate) reason: String,
    /// The reason, in words.
    pub(crate) cause: String,
    /// The next step of a person to have the claim accepted.
    pub(crate) next_step: String,
}

/// The relay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RelayStatus {
    /// `[relay] endpoint`.
    pub(crate) endpoint: String,
    /// The address the active path leads to.
    pub(crate) address: Option<SocketAddr>,
    /// The key it has to show.
    pub(crate) public_key: String,
}

/// One handover.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Handover {
    /// Why: `carrier_lost`, `link_down`, `link_gone`, `address_lost`, `route_lost`, `silent`, `transport_failed`,
    /// `relay_closed`, `better_uplink` or `forced`.
    pub(crate) cause: String,
    /// The uplink it left.
    pub(crate) from: String,
    /// The uplink it went to; the same one when only the connection was replaced.
    pub(crate) to: String,
    /// From the end of the old path, as far as it is known, until the relay answered on the new one; 0 when the old one
    /// worked until then.
    pub(crate) blackout_seconds: f64,
    /// Records sent again on the new path.
    pub(crate) replayed_records: u64,
    /// Packets dropped by the agent since the handover before.
    pub(crate) dropped_packets: u64,
    /// How long ago.
    pub(crate) age_seconds: f64,
}

/// Inner traffic.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    /// Packets from mobile processes, sent.
    pub(crate) sent_packets: u64,
    /// Their bytes.
    pub(crate) sent_bytes: u64,
    /// Packets delivered to mobile processes.
    pub(crate) received_packets: u64,
    /// Their bytes.
    pub(crate) received_bytes: u64,
    /// Bytes of packets that were compressed to be sent, those sent again included.
    pub(crate) sent_compressible_bytes: u64,
    /// What they became.
    pub(crate) sent_compressed_bytes: u64,
    /// Bytes of packets that came compressed.
    pub(crate) received_compressible_bytes: u64,
    /// What they came as.
    pub(crate) received_compressed_bytes: u64,
}

/// What waits in the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Queue {
    /// Not sent yet.
    pub(crate) queued_bytes: u64,
    /// Sent, and kept until the relay acknowledges them.
    pub(crate) unacknowledged_bytes: u64,
}

/// `mobile uplinks --json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Uplinks {
    /// The uplink that `mobile use` put first.
    pub(crate) forced: Option<String>,
    /// Every link, usable ones first, in the order the policy would choose them.
    pub(crate) uplinks: Vec<UplinkStatus>,
}

/// One link.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct UplinkStatus {
    /// The interface's name.
    pub(crate) name: String,
    /// `active` carries the tunnel; `standby` could at once; `silent`: its path does not answer any more; `connecting`;
    /// `usable`; `failing`: usable, but the relay was not reached over it; `unusable`.
    pub(crate) state: String,
    /// Why it is not usable, or what failed on it.
    pub(crate) reason: Option<String>,
    /// What to do about a failure.
    pub(crate) next_step: Option<String>,
    /// Its addresses.
    pub(crate) addresses: Vec<IpAddr>,
    /// The better metric of its routes to the relay.
    pub(crate) metric: Option<u32>,
    /// Smoothed round-trip time to the relay on its path.
    pub(crate) rtt_seconds: Option<f64>,
    /// The share of its path's TCP segments that had to be sent again, 0 to 1, since the path was made.
    pub(crate) loss_ratio: Option<f64>,
}
