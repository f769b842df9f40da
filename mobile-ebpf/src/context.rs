//! The input of the eBPF programs from the kernel: the fields of their contexts, and the properties
//! of the calling task, which helper functions return.

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, bpf_sock},
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_sk_fullsock},
    programs::{SkBuffContext, SockAddrContext},
};
use mobile_ebpf_common::{Address, ProgramConfig};

use crate::policy::Attribute;

/// ETH_P_IP and ETH_P_IPV6 in network byte order.
pub(crate) const IPV4: u32 = 0x0800_u16.to_be() as u32;
pub(crate) const IPV6: u32 = 0x86dd_u16.to_be() as u32;

/// The protocol number of TCP, also as an IPv6 next header.
pub(crate) const IPPROTO_TCP: u32 = 6;

/// The kind of hook that a program is attached to, which determines the field of the program's
/// context that holds the address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// The hook connect4 and similar ones: the address is `user_ip4`.
    Ipv4,
    /// The hook connect6 and similar ones: the address is `user_ip6` and may be IPv4-mapped.
    Ipv6,
    /// The hook sendmsg6: as connect6, but the kernel has already chosen the link of a link-local
    /// destination.
    Sendmsg6,
}

/// Returns whether the calling process is mobile.
#[inline(always)]
pub(crate) fn current_attribute(config: &ProgramConfig) -> Attribute {
    // SAFETY: the helper takes no pointer. For a level below the task's own it returns 0, which is
    // no cgroup's ID.
    let ancestor = |level: u32| unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    if ancestor(config.cgroup_level) == config.cgroup_id
        || (config.slice_id != 0 && ancestor(config.slice_level) == config.slice_id)
    {
        Attribute::Mobile
    } else {
        Attribute::Ordinary
    }
}

/// Returns whether the program runs in the agent's network namespace. Only programs whose kind may
/// call `bpf_get_netns_cookie` may call this.
#[inline(always)]
pub(crate) fn is_in_our_namespace(config: &ProgramConfig, ctx: &impl EbpfContext) -> bool {
    // SAFETY: the helper accepts the context.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) == config.netns_cookie }
}

/// Returns the protocol number of a call's socket.
#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    unsafe { (*ctx.sock_addr).protocol }
}

/// Returns the mark of a call's socket.
#[inline(always)]
pub(crate) fn mark(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket exists for
    // the whole call.
    unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).mark }
}

/// Returns the interface index of the device that a call's socket is bound to, or 0.
#[inline(always)]
pub(crate) fn bound_device(ctx: &SockAddrContext) -> u32 {
    // SAFETY: as for the mark.
    unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).bound_dev_if }
}

/// Returns whether a call's socket is connected.
#[inline(always)]
pub(crate) fn is_connected(ctx: &SockAddrContext) -> bool {
    // SAFETY: as for the mark.
    unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).dst_port != 0 }
}

/// Returns the port that the system call passes in or out, in network byte order.
#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    unsafe { (*ctx.sock_addr).user_port }
}

/// Returns the address that the system call passes in or out, read word by word as the verifier
/// requires.
#[inline(always)]
pub(crate) fn address(ctx: &SockAddrContext, hook: Hook) -> Address {
    let addr = ctx.sock_addr;
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    unsafe {
        match hook {
            Hook::Ipv4 => Address::mapped((&raw const (*addr).user_ip4).read_volatile()),
            Hook::Ipv6 | Hook::Sendmsg6 => {
                let words = &raw const (*addr).user_ip6;
                Address([
                    (&raw const (*words)[0]).read_volatile(),
                    (&raw const (*words)[1]).read_volatile(),
                    (&raw const (*words)[2]).read_volatile(),
                    (&raw const (*words)[3]).read_volatile(),
                ])
            }
        }
    }
}

/// Replaces the address that the system call passes in or out.
#[inline(always)]
pub(crate) fn set_address(ctx: &SockAddrContext, hook: Hook, Address(address): Address) {
    let addr = ctx.sock_addr;
    // SAFETY: as above, and every hook that calls this may write the address.
    unsafe {
        match hook {
            Hook::Ipv4 => (&raw mut (*addr).user_ip4).write_volatile(address[3]),
            Hook::Ipv6 | Hook::Sendmsg6 => {
                let words = &raw mut (*addr).user_ip6;
                (&raw mut (*words)[0]).write_volatile(address[0]);
                (&raw mut (*words)[1]).write_volatile(address[1]);
                (&raw mut (*words)[2]).write_volatile(address[2]);
                (&raw mut (*words)[3]).write_volatile(address[3]);
            }
        }
    }
}

/// Returns the socket of a packet, if it has one.
#[inline(always)]
pub(crate) fn packet_socket(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
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
