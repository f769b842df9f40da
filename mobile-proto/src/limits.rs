//! What bounds a session's memory and patience.

use std::time::Duration;

/// Bounds of one session: every one of them has a default that suits a laptop and a small relay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory for records sent and not yet acknowledged. When it is full, transmission waits.
    pub replay_bytes: usize,
    /// Memory for packets not yet sent. Beyond it the newest is dropped; in an outage the oldest that is no segment of a
    /// known TCP flow.
    pub queue_bytes: usize,
    /// Memory for packets not yet sent beyond which [`Session::has_room`](crate::Session::has_room)
    /// asks the shell to stop reading while a path is active.
    pub active_queue_bytes: usize,
    /// Flows take turns, and little is to stand below the queue. Otherwise packets go in the order they came, and none is
    /// dropped for its delay.
    pub fair: bool,
    /// A flow whose packets wait for longer than this, for 100 ms on end, sends faster than the path takes it: one is dropped
    /// now and then to say so. [`Duration::MAX`]: never.
    pub target_delay: Duration,
    /// Without an active path, packets older than this are given up, but for segments of known TCP flows.
    pub max_age: Duration,
    /// A relay that had no active path for this long keeps, of each TCP flow, only the oldest data that is older than this.
    pub thin_after: Duration,
    /// Inner TCP is not frozen before nothing has got through for this long.
    pub freeze_grace: Duration,
    /// A client's path on which nothing was heard for this long is pinged.
    pub keepalive: Duration,
    /// A relay frees a path on which nothing was heard for this many `keepalive`s.
    pub idle_keepalives: u32,
    /// Where silence is all there is to judge by, a path is not suspected before this much of it,
    /// however short its RTT is.
    pub silence_floor: Duration,
    /// Nor, there, before this many smoothed RTTs of it.
    pub silence_rtts: u32,
    /// Delivered bytes after which an acknowledgement is sent at once.
    pub ack_bytes: usize,
    /// An acknowledgement waits at most this long for something to ride on.
    pub ack_delay: Duration,
    /// Paths that one session may have at a time.
    pub max_paths: usize,
    /// Inner packets may be compressed, in both directions, if the peer wants it too. How long records are then tells of what
    /// is in them: see docs/understand/security.md.
    pub compression: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // The bandwidth-delay product of 1 Gbit/s at 128 ms: more would only grow what a
            // handover has to send again.
            replay_bytes: 16 << 20,
            // An outage stops each inner TCP after a window; this holds dozens of first windows.
            queue_bytes: 4 << 20,
            // Four of the kernel's largest packets: enough to fill a write, short enough that
            // the inner senders notice congestion in the TUN's own queue.
            active_queue_bytes: 256 << 10,
            fair: true,
            // RFC 8289, 4.4: 5 to 10 % of an ordinary round trip cost a bulk transfer nothing.
            target_delay: Duration::from_millis(5),
            // An inner TCP whose oldest segment comes back after a minute still resumes at once;
            // after that its user has usually gone.
            max_age: Duration::from_secs(60),
            // A train's tunnel, a lift, a walk between two networks are shorter. After more, the client may as well be
            // asleep until tomorrow, as most of a relay's clients are at night, and 20 MiB for each would be too much.
            thin_after: Duration::from_secs(300),
            // Above an ordinary handover (100 ms), which is better not noticed at all, and so short that a sender's second
            // repetition (after 600 ms at the least) is answered.
            freeze_grace: Duration::from_millis(250),
            // An exchange is three packets, so an idle path costs four a minute, and a phone's
            // radio may sleep between them. Below the minute or two after which the meanest NATs
            // forget a TCP connection; most wait for many minutes.
            keepalive: Duration::from_secs(45),
            // A client pings every keepalive: after 3 min 45 s without a word it is gone.
            idle_keepalives: 5,
            // Beyond one outer retransmission timeout (200 ms) and its first back-offs.
            silence_floor: Duration::from_secs(1),
            // The outer TCP needs one or two RTTs to repair a loss; four leave room for jitter.
            silence_rtts: 4,
            // One of the kernel's largest packets: an ack costs the sender less than 0.1 % of it.
            ack_bytes: 64 << 10,
            // Below the 40 ms of TCP's own delayed ack, so inner acks and echoes usually carry it,
            // and little is sent again if the path dies meanwhile.
            ack_delay: Duration::from_millis(20),
            // A machine has a few uplinks, each with at most a dying and a fresh path.
            max_paths: 16,
            // It tells a listener something of what is sent, and costs time.
            compression: false,
        }
    }
}
