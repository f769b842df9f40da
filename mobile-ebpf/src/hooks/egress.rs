//! Stops packets of mobile sockets from leaving by another device than the tunnel's.
//!
//! The MOBILE route takes care of every socket whose packets are routed. Packets of a socket that
//! is bound to an uplink's device, and datagrams that name one (IP_PKTINFO), are not routed,
//! because the kernel assumes that the destination is on that link.

use aya_ebpf::{EbpfContext, bindings::__sk_buff, macros::cgroup_skb, programs::SkBuffContext};
use mobile_ebpf_common::{Address, CountedEvent, ProgramConfig};

use super::DROP;
use crate::{
    context::{self, IPV4, IPV6},
    maps,
    policy::{self, ALLOW, REFUSE},
};

/// The offset of the destination in the headers of IPv4 and IPv6.
const IPV4_DESTINATION: usize = 16;
const IPV6_DESTINATION: usize = 24;

/// Stops packets of marked sockets that would leave outside the tunnel, for all processes. The
/// program is attached at the root of the cgroup2 hierarchy, and so covers sockets created before
/// their process became mobile.
#[cgroup_skb(egress)]
fn mobile_egress(ctx: SkBuffContext) -> i32 {
    judge(&ctx, |config| context::is_in_our_namespace(config, &ctx))
}

/// Stops packets that would leave outside the tunnel, for sockets that mobile processes created.
/// The program is attached at the mobile cgroup, where only sockets of the agent's network
/// namespace have the agent's mark.
#[cgroup_skb(egress)]
fn mobile_egress_own(ctx: SkBuffContext) -> i32 {
    judge(&ctx, |_| true)
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, is_in_our_namespace: impl FnOnce(&ProgramConfig) -> bool) -> i32 {
    let Some(event) = stopped(ctx, is_in_our_namespace) else { return ALLOW };
    maps::count_event(event);
    if event == CountedEvent::EgressLate { DROP } else { REFUSE }
}

/// Returns the event to count if a packet must not leave, or `None` if it may. An ordinary socket,
/// which most are, costs one comparison.
#[inline(always)]
fn stopped(
    ctx: &SkBuffContext,
    is_in_our_namespace: impl FnOnce(&ProgramConfig) -> bool,
) -> Option<CountedEvent> {
    let config = maps::config()?;
    let socket = context::packet_socket(ctx)?;
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context of a cgroup_skb program is a valid __sk_buff, and `socket` is its socket.
    let (mark, device) = unsafe { ((*socket).mark, (*skb).ifindex) };
    if !config.is_marked(mark) || policy::is_own_device(config, device) {
        return None;
    }
    if !is_in_our_namespace(config) {
        return None;
    }
    // SAFETY: as above.
    let (protocol, packet_mark) = unsafe { ((*skb).protocol, (*skb).mark) };
    let destination = match protocol {
        IPV4 => Address::mapped(ctx.load::<u32>(IPV4_DESTINATION).ok()?),
        IPV6 => Address(ctx.load::<[u32; 4]>(IPV6_DESTINATION).ok()?),
        _ => return None,
    };
    if policy::is_direct(destination, maps::is_bypassed) {
        return None;
    }
    Some(policy::stopped_packet(config, packet_mark))
}
