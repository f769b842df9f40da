//! Limits of a session's memory and timeouts.

use std::time::Duration;

// Larger than the bound: a flat table of independent values, each with its unit and default.
/// Limits of one session. The defaults suit a laptop and a small relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory for records sent and not yet acknowledged, in bytes. When it is full, transmission
    /// waits. Default: 16 MiB.
    pub replay_bytes: usize,
    /// Memory for packets not yet sent, in bytes. When it is full, the newest packet of the flow
    /// that has the most queued is dropped. In an outage, the oldest packet that is no segment of a
    /// tracked inner TCP flow is dropped instead. Default: 4 MiB.
    pub queue_bytes: usize,
    /// Memory for packets not yet sent, in bytes, beyond which
    /// [`Session::has_room`](crate::Session::has_room) asks the driver to stop reading while a path
    /// is active. Default: 256 KiB.
    pub active_queue_bytes: usize,
    /// Whether the session's queue is fair: flows take turns, which works only if little is queued
    /// in the transport below. Otherwise packets are sent in the order they arrived, and none is
    /// dropped for its delay. Default: true.
    pub fair: bool,
    /// Delay in the session's queue that a flow's packets may have. A flow that exceeds it for 100
    /// ms sends faster than the path carries its packets, and some are dropped to slow the sender
    /// down. [`Duration::MAX`] disables the drops. Default: 5 ms.
    pub target_delay: Duration,
    /// Age at which packets are dropped while no path is active, except for segments of tracked TCP
    /// flows. Default: 60 s.
    pub max_age: Duration,
    /// Time without an active path after which a relay thins what it holds: of the segments of each
    /// TCP flow that are older than this, only the oldest data is kept. Default: 5 minutes.
    pub thin_after: Duration,
    /// Duration of an outage after which inner TCP senders are frozen, that is, answered with a
    /// zero window. Default: 250 ms.
    pub freeze_grace: Duration,
    /// Time without received data after which a client pings a path. Default: 45 s.
    pub keepalive: Duration,
    /// Number of keepalive intervals without received data after which a relay frees a path.
    /// Default: 5.
    pub idle_keepalives: u32,
    /// Minimum silence before a path without transport samples (TCP statistics), or without
    /// WELCOME, is unresponsive, however short its RTT is. Default: 1 s.
    pub silence_floor: Duration,
    /// Minimum number of smoothed RTTs of silence before a path is unresponsive for its silence. If
    /// transport samples show only few unanswered segments, the time without progress has to be as
    /// long, too. Default: 4.
    pub silence_rtts: u32,
    /// Bytes of delivered packets after which the session acknowledges them at once. Default: 64
    /// KiB.
    pub ack_bytes: usize,
    /// Maximum time that an acknowledgement waits for other data to be sent with. Default: 20 ms.
    pub ack_delay: Duration,
    /// Maximum number of paths of a session. Default: 16.
    pub max_paths: usize,
    /// Whether inner packets may be compressed, in both directions, if the peer wants it too. The
    /// length of records then reveals something about their content: see
    /// docs/understand/security.md. Default: false.
    pub compression: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The bandwidth-delay product of 1 Gbit/s at 128 ms. More would only increase what a
            // handover has to send again.
            replay_bytes: 16 << 20,
            // An outage stops each inner TCP after a window; this holds dozens of first windows.
            queue_bytes: 4 << 20,
            // Four of the kernel's largest packets: enough to fill a write, and short enough that
            // the inner senders notice congestion in the TUN's own queue.
            active_queue_bytes: 256 << 10,
            fair: true,
            // RFC 8289, 4.4: 5 to 10 % of an ordinary round trip costs a bulk transfer nothing.
            target_delay: Duration::from_millis(5),
            // An inner TCP whose oldest segment arrives after a minute still resumes at once.
            // Longer outages usually outlast the user's patience.
            max_age: Duration::from_secs(60),
            // Tunnels, lifts and walks between two networks take less. A client that stays away
            // longer may be asleep until tomorrow, as most of a relay's clients are at night, and
            // 20 MiB for each is too much.
            thin_after: Duration::from_secs(300),
            // Above an ordinary handover (100 ms), which inner TCP should not notice at all, and
            // short enough that a sender's second retransmission (after at least 600 ms) is
            // answered.
            freeze_grace: Duration::from_millis(250),
            // An exchange is three packets, so an idle path costs four a minute, and a phone's
            // radio may sleep between them. The strictest NATs forget a TCP connection after a
            // minute or two; most wait for many minutes.
            keepalive: Duration::from_secs(45),
            // A client pings every keepalive interval: after 3 min 45 s without data it is gone.
            idle_keepalives: 5,
            // Beyond one outer retransmission timeout (200 ms) and its first back-offs.
            silence_floor: Duration::from_secs(1),
            // The outer TCP needs one or two RTTs to repair a loss; four leave room for jitter.
            silence_rtts: 4,
            // One of the kernel's largest packets: an acknowledgement costs the sender less than
            // 0.1 % of it.
            ack_bytes: 64 << 10,
            // Below the 40 ms of TCP's own delayed acknowledgement, so inner acknowledgements and
            // echoes usually carry it, and little is sent again if the path dies meanwhile.
            ack_delay: Duration::from_millis(20),
            // A machine has a few uplinks, each with at most a dying and a new path.
            max_paths: 16,
            // Compression reveals something about the content to an observer, and costs time.
            compression: false,
        }
    }
}
