//! The rules of the socket matrix: by which device the packets of each kind of socket may leave.

use mobile_tests::matrix::AttachTiming;

use super::{Cell, State};

/// Kinds of sockets that send to a link-local destination.
const LOCAL: [&str; 2] = ["udp-multicast", "udp-link-local"];
/// Kinds of sockets whose route is chosen when they connect, and does not change later.
const CONNECTED: [&str; 6] =
    ["tcp", "tcp-fastopen-sendto", "tcp-fastopen-connect", "mptcp", "tcp-on-device", "udp-connected"];
/// Kinds of sockets that name a persistent address as their source, which by itself routes their
/// packets into the tunnel.
const OF_SOURCE: [&str; 4] = ["tcp-listening", "udp-of-source", "udp-pktinfo-source", "raw-hdrincl"];

/// Returns whether a socket's packets left by a device by which they may not leave in this state,
/// or left by an uplink with a persistent source address.
pub(super) fn is_broken(state: State, cell: &Cell) -> bool {
    let Cell { timing, kind, left, .. } = cell;
    let is = |kinds: &[&str]| kinds.contains(&kind.as_str());
    let cleaned = matches!(state, State::NobodyMobile | State::RouteGone);
    let connected_before = is(&CONNECTED)
        && matches!(timing, AttachTiming::AttachedAfterConnect | AttachTiming::DetachedAfterConnect);
    let (may_tunnel, may_direct) = match timing {
        // After a cleanup no process is mobile, but sockets may still have the mark.
        AttachTiming::Mobile | AttachTiming::AttachedAfterSocket | AttachTiming::AttachedAfterConnect
            if cleaned =>
        {
            (true, true)
        }
        AttachTiming::Mobile | AttachTiming::AttachedAfterSocket => (true, is(&LOCAL)),
        AttachTiming::AttachedAfterConnect => (!connected_before, is(&LOCAL) || connected_before),
        // The subflows of an MPTCP socket follow the process that made or connected it.
        AttachTiming::DetachedAfterSocket => (is(&OF_SOURCE) || kind == "mptcp", true),
        AttachTiming::DetachedAfterConnect => (is(&OF_SOURCE) || connected_before, !connected_before),
        AttachTiming::Ordinary => (kind == "tcp-listening", true),
    };
    let tunnel = left.contains_key("mobile0");
    let direct = left.keys().any(|device| device == "eth0" || device == "wlan0");
    // Ordinary processes that write the header themselves; and, once that route is gone, those that
    // insist on the address.
    let ordinary = cleaned
        || !matches!(
            timing,
            AttachTiming::Mobile | AttachTiming::AttachedAfterSocket | AttachTiming::AttachedAfterConnect
        );
    let insists = (ordinary && kind == "raw-hdrincl") || (state == State::RouteGone && is(&OF_SOURCE));
    let astray = cell.astray && !insists;
    (tunnel && !may_tunnel) || (direct && !may_direct) || astray
}
