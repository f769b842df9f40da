//! What may leave by which device.

use mobile_tests::matrix::Order;

use super::{Cell, State};

/// What is on the link by its nature.
const LOCAL: [&str; 2] = ["udp-multicast", "udp-link-local"];
/// These have a route once they are connected, and keep it.
const CONNECTED: [&str; 6] =
    ["tcp", "tcp-fastopen-sendto", "tcp-fastopen-connect", "mptcp", "tcp-on-device", "udp-connected"];
/// These name a persistent address as their source: whoever does, replies from it go where requests to it come from.
const OF_SOURCE: [&str; 4] = ["tcp-listening", "udp-of-source", "udp-pktinfo-source", "raw-hdrincl"];

/// Whether packets of a cell left by a device that they must not leave by.
pub(super) fn is_broken(state: State, cell: &Cell) -> bool {
    let Cell { order, kind, left, .. } = cell;
    let is = |kinds: &[&str]| kinds.contains(&kind.as_str());
    let cleaned = matches!(state, State::NobodyMobile | State::RouteGone);
    let connected_before =
        is(&CONNECTED) && matches!(order, Order::AttachedAfterConnect | Order::DetachedAfterConnect);
    let (may_tunnel, may_direct) = match order {
        // Nobody is mobile any more, but sockets that were marked may still be.
        Order::Mobile | Order::AttachedAfterSocket | Order::AttachedAfterConnect if cleaned => (true, true),
        Order::Mobile | Order::AttachedAfterSocket => (true, is(&LOCAL)),
        Order::AttachedAfterConnect => (!connected_before, is(&LOCAL) || connected_before),
        // The subflows of an MPTCP socket go by who made it, or connected it.
        Order::DetachedAfterSocket => (is(&OF_SOURCE) || kind == "mptcp", true),
        Order::DetachedAfterConnect => (is(&OF_SOURCE) || connected_before, !connected_before),
        Order::Ordinary => (kind == "tcp-listening", true),
    };
    let tunnel = left.contains_key("mobile0");
    let direct = left.keys().any(|device| device == "eth0" || device == "wlan0");
    // Whoever writes the header himself, and is not mobile; and where there is no such route any more, who insists on the address.
    let ordinary =
        cleaned || !matches!(order, Order::Mobile | Order::AttachedAfterSocket | Order::AttachedAfterConnect);
    let insists = (ordinary && kind == "raw-hdrincl") || (state == State::RouteGone && is(&OF_SOURCE));
    let astray = cell.astray && !insists;
    (tunnel && !may_tunnel) || (direct && !may_direct) || astray
}
