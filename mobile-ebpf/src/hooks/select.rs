//! Route selection: marks the sockets of mobile processes at socket(), connect() and sendmsg(), and
//! clears the mark from sockets of ordinary ones.

use aya_ebpf::{
    bindings::{bpf_sock, bpf_sock_addr},
    helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext},
};
use mobile_ebpf_common::{CountedEvent, MarkVerdict, TrackedConnection};

use crate::{
    context::{self, Hook, IPPROTO_TCP},
    dns, maps, mark,
    policy::{self, ALLOW, Attribute, Error},
    retries, source,
};

#[cgroup_sock(sock_create)]
fn mobile_sock_create(ctx: SockContext) -> i32 {
    if creator_is_ordinary() { ALLOW } else { sock_create(ctx.sock) }
}

#[cold]
#[inline(never)]
fn sock_create(socket: *mut bpf_sock) -> i32 {
    count(mark::on_create(&SockContext::new(socket)))
}

#[cgroup_sock_addr(connect4)]
fn mobile_connect4(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { connect4(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn connect4(call: *mut bpf_sock_addr) -> i32 {
    count(connect(&SockAddrContext::new(call), "connect4", Hook::Ipv4))
}

#[cgroup_sock_addr(connect6)]
fn mobile_connect6(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { connect6(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn connect6(call: *mut bpf_sock_addr) -> i32 {
    count(connect(&SockAddrContext::new(call), "connect6", Hook::Ipv6))
}

#[cgroup_sock_addr(sendmsg4)]
fn mobile_sendmsg4(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { sendmsg4(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn sendmsg4(call: *mut bpf_sock_addr) -> i32 {
    count(sendmsg(&SockAddrContext::new(call), "sendmsg4", Hook::Ipv4))
}

#[cgroup_sock_addr(sendmsg6)]
fn mobile_sendmsg6(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { sendmsg6(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn sendmsg6(call: *mut bpf_sock_addr) -> i32 {
    count(sendmsg(&SockAddrContext::new(call), "sendmsg6", Hook::Sendmsg6))
}

/// Returns whether a call is certainly one of an ordinary process on an unmarked socket, for which
/// nothing is to be done.
///
/// Most calls on a host are of this kind, and their cost is memory and code that the CPU's cache
/// does not hold. So this function reads as little as possible, and all else is in functions of its
/// own.
#[inline(always)]
fn is_ordinary(ctx: &SockAddrContext) -> bool {
    let Some(config) = maps::config() else { return false };
    !config.is_marked(context::mark(ctx))
        && !maps::any_mptcp_connection()
        && context::current_attribute(config) == Attribute::Ordinary
}

/// Returns whether a new socket is certainly one of an ordinary process.
#[inline(always)]
fn creator_is_ordinary() -> bool {
    maps::config().is_some_and(|config| context::current_attribute(config) == Attribute::Ordinary)
}

/// Handles a connect(): chooses the route and, for a TCP socket that takes the MOBILE route, bounds
/// the retransmission timer and records the owner of the traffic.
#[inline(always)]
fn connect(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    let verdict = choose_route(ctx, name, hook)?;
    match verdict {
        MarkVerdict::Marked | MarkVerdict::Kept => {
            retries::bound(ctx);
            track(ctx, hook);
        }
        MarkVerdict::Cleared | MarkVerdict::Direct => maps::delete_owner(ctx),
        _ => {}
    }
    Ok(verdict)
}

/// Decides about the mark of a socket that sends a datagram with a destination address: an
/// unconnected socket gets or loses the mark as at a connect().
///
/// A connected socket keeps its mark, because its source address belongs to the route of its
/// connection. The kernel runs this program for such sockets, too: for every datagram of a socket
/// that is connected to an IPv4-mapped address.
#[inline(always)]
fn sendmsg(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    if !context::is_connected(ctx) {
        let verdict = choose_route(ctx, name, hook)?;
        let newly_marked = verdict == MarkVerdict::Marked && !is_direct(ctx, hook);
        return Ok(if newly_marked && !source::make_persistent(ctx, hook) {
            MarkVerdict::Refused
        } else {
            verdict
        });
    }
    if !mark::is_mobile_socket(ctx) {
        return Ok(MarkVerdict::Ordinary);
    }
    dns::redirect(ctx, hook);
    Ok(MarkVerdict::Kept)
}

/// Handles a connect(), or a datagram of an unconnected socket.
///
/// A socket that was created before its process became mobile or ordinary, or that was passed on by
/// another process, gets or loses the mark here. IPv4-mapped destinations of a connect() come here
/// as IPv6 ones; the mark is the same for both. DNS queries of a mobile process are redirected to
/// the relay's resolver.
#[inline(always)]
fn choose_route(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    let verdict = mark::on_call(ctx, name)?;
    match verdict {
        MarkVerdict::Marked | MarkVerdict::Kept if is_bound_to_uplink(ctx, hook)? => {
            return Ok(MarkVerdict::Refused);
        }
        MarkVerdict::Marked | MarkVerdict::Kept => dns::redirect(ctx, hook),
        MarkVerdict::Cleared | MarkVerdict::Direct => maps::delete_query(ctx),
        _ => {}
    }
    Ok(verdict)
}

/// Returns whether the call's socket is bound to an uplink's device, so that the packets of the
/// call would leave by the uplink without being routed. Packets sent without such a call are
/// stopped by `egress`.
#[inline(always)]
fn is_bound_to_uplink(ctx: &SockAddrContext, hook: Hook) -> Result<bool, Error> {
    let device = context::bound_device(ctx);
    if device == 0 || policy::is_own_device(maps::config().ok_or(Error::NoConfig)?, device) {
        return Ok(false);
    }
    Ok(!is_direct(ctx, hook))
}

/// Returns whether even mobile processes reach the address of a call without the tunnel.
#[inline(always)]
fn is_direct(ctx: &SockAddrContext, hook: Hook) -> bool {
    policy::is_direct(context::address(ctx, hook), maps::is_bypassed)
}

/// Tracks the connection of a mobile socket that is about to connect. A connection that does not
/// leave by the tunnel is not counted.
#[inline(always)]
fn track(ctx: &SockAddrContext, hook: Hook) {
    if context::protocol(ctx) != IPPROTO_TCP {
        return;
    }
    if is_direct(ctx, hook) {
        return maps::delete_owner(ctx);
    }
    let connection = TrackedConnection {
        // SAFETY: the helper takes no arguments.
        since: unsafe { bpf_ktime_get_boot_ns() },
        process: (bpf_get_current_pid_tgid() >> 32) as u32,
        ..TrackedConnection::default()
    };
    if !maps::store_owner(ctx, connection) {
        maps::count_event(CountedEvent::Unaccounted);
    }
}

/// Counts a decision about a mobile process or socket, and returns the hook's verdict.
#[inline(always)]
fn count(result: Result<MarkVerdict, Error>) -> i32 {
    let Some((verdict, outcome)) = policy::outcome(result) else { return ALLOW };
    maps::count_verdict(verdict);
    outcome
}
