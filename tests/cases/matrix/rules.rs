//! The rules of the matrix: which packets may leave by which device.

use mobile_tests::matrix::AttachTiming;

use super::{Cell, State};

/// Kinds whose destination is link-local.
const LOCAL: [&str; 2] = ["udp-multicast", "udp-link-local"];
/// Kinds that have a route once connected, and keep it.
const CONNECTED: [&str; 6] =
    ["tcp", "tcp-fastopen-sendto", "tcp-fastopen-connect", "mptcp", "tcp-on-device", "udp-connected"];
/// Kinds that name a persistent address as their source; their packets take the tunnel because of
/// it.
const OF_SOURCE: [&str; 4] = ["tcp-listening", "udp-of-source", "udp-pktinfo-source", "raw-hdrincl"];

/// Returns whether packets of a cell left by a device that the rules forbid.
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
