//! Stops packets of mobile sockets from leaving by another device than the tunnel's.
//!
//! The MOBILE route takes care of every socket whose packets are routed. Packets of a socket that
//! is bound to an uplink's device, and datagrams that name one (IP_PKTINFO), are not routed,
//! because the kernel assumes that the destination is on that link.

#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs pass the context by value")]

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_netns_cookie, bpf_sk_fullsock},
    macros::cgroup_skb,
    programs::SkBuffContext,
};
use mobile_ebpf_common::{Address, CountedEvent, ProgramConfig};

use crate::select::{LOOPBACK, config, count_event, is_direct};

/// Verdicts of the kernel's egress hook: send the packet; report EPERM to the sender; drop it as a
/// full queue would.
pub(crate) const KEEP: i32 = 1;
const REFUSE: i32 = 0;
const DROP: i32 = 2;

/// ETH_P_IP and ETH_P_IPV6 in network byte order, and the offset of the destination in their
/// headers.
pub(crate) const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV4_DESTINATION: usize = 16;
pub(crate) const IPV6: u32 = 0x86dd_u16.to_be() as u32;
const IPV6_DESTINATION: usize = 24;

/// Stops packets of marked sockets that would leave outside the tunnel, for all processes. The
/// program is attached at the root of the cgroup2 hierarchy, and so covers sockets created before
/// their process became mobile.
#[cgroup_skb(egress)]
fn mobile_egress(ctx: SkBuffContext) -> i32 {
    judge(&ctx, |config| {
        // SAFETY: the helper accepts the context.
        unsafe { bpf_get_netns_cookie(ctx.as_ptr()) == config.netns_cookie }
    })
}

/// Stops packets that would leave outside the tunnel, for sockets that mobile processes created.
/// The program is attached at the mobile cgroup, where only sockets of the agent's network
/// namespace have the agent's mark.
#[cgroup_skb(egress)]
fn mobile_egress_own(ctx: SkBuffContext) -> i32 {
    judge(&ctx, |_| true)
}

#[inline(always)]
fn judge(ctx: &SkBuffContext, in_our_namespace: impl FnOnce(&ProgramConfig) -> bool) -> i32 {
    match try_egress(ctx, in_our_namespace) {
        None => KEEP,
        Some(event @ CountedEvent::EgressLate) => {
            count_event(event);
            DROP
        }
        Some(event) => {
            count_event(event);
            REFUSE
        }
    }
}

/// Returns the event to count if a packet must not leave, or `None` if it may. An ordinary socket,
/// which most are, costs one comparison.
#[inline(always)]
fn try_egress(
    ctx: &SkBuffContext,
    in_our_namespace: impl FnOnce(&ProgramConfig) -> bool,
) -> Option<CountedEvent> {
    let config = config().ok()?;
    let socket = socket(ctx)?;
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context of a cgroup_skb program is a valid __sk_buff, and `socket` is its socket.
    let (mark, device) = unsafe { ((*socket).mark, (*skb).ifindex) };
    if !config.is_marked(mark) || device == LOOPBACK || device == config.device {
        return None;
    }
    if !in_our_namespace(config) {
        return None;
    }
    // SAFETY: as above.
    let (protocol, packet_mark) = unsafe { ((*skb).protocol, (*skb).mark) };
    let destination = match protocol {
        IPV4 => Address::mapped(ctx.load::<u32>(IPV4_DESTINATION).ok()?),
        IPV6 => Address(ctx.load::<[u32; 4]>(IPV6_DESTINATION).ok()?),
        _ => return None,
    };
    if is_direct(destination) {
        return None;
    }
    Some(if config.is_marked(packet_mark) { CountedEvent::EgressRefused } else { CountedEvent::EgressLate })
}

/// Returns the socket of a packet, if it has one.
#[inline(always)]
pub(crate) fn socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context of a cgroup_skb program is a valid __sk_buff; the helper accepts its
    // socket if there is one.
    unsafe {
        let socket = (*skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let socket = bpf_sk_fullsock(socket);
        (!socket.is_null()).then_some(socket)
    }
}
