//! Route selection: marks the sockets of mobile processes at socket(), connect() and sendmsg(), and
//! clears the mark from sockets of ordinary ones.

#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs pass the context by value")]

use aya_ebpf::{
    EbpfContext,
    bindings::{SO_MARK, SOL_SOCKET, bpf_sock, bpf_sock_addr},
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{
            bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_setsockopt,
        },
    },
    macros::{cgroup_sock, cgroup_sock_addr, map},
    maps::{Array, PerCpuArray},
    programs::{SockAddrContext, SockContext},
};
use aya_log_ebpf::debug;
use mobile_ebpf_common::{
    Address, CountedEvent, MarkVerdict, ProgramConfig,
    map::{EVENTS_ENTRIES, VERDICTS_ENTRIES},
};

use crate::{
    account,
    dns::{self, Hook},
    mptcp, retries, source,
};

#[map]
static CONFIG: Array<ProgramConfig> = Array::with_max_entries(1, 0);

#[map]
static DEADLINE: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(VERDICTS_ENTRIES, 0);

#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENTS_ENTRIES, 0);

/// Verdicts of the kernel's cgroup hooks: continue the call, or fail it with EPERM.
pub(crate) const ALLOW: i32 = 1;
pub(crate) const REFUSE: i32 = 0;

/// The interface index of the loopback device in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

#[cgroup_sock(sock_create)]
fn mobile_sock_create(ctx: SockContext) -> i32 {
    if creator_is_ordinary() { ALLOW } else { sock_create(ctx.sock) }
}

#[cold]
#[inline(never)]
fn sock_create(socket: *mut bpf_sock) -> i32 {
    count(try_sock_create(&SockContext::new(socket)))
}

#[cgroup_sock_addr(connect4)]
fn mobile_connect4(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { connect4(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn connect4(call: *mut bpf_sock_addr) -> i32 {
    count(try_connect(&SockAddrContext::new(call), "connect4", Hook::Ipv4))
}

#[cgroup_sock_addr(connect6)]
fn mobile_connect6(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { connect6(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn connect6(call: *mut bpf_sock_addr) -> i32 {
    count(try_connect(&SockAddrContext::new(call), "connect6", Hook::Ipv6))
}

#[cgroup_sock_addr(sendmsg4)]
fn mobile_sendmsg4(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { sendmsg4(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn sendmsg4(call: *mut bpf_sock_addr) -> i32 {
    count(try_sendmsg(&SockAddrContext::new(call), "sendmsg4", Hook::Ipv4))
}

#[cgroup_sock_addr(sendmsg6)]
fn mobile_sendmsg6(ctx: SockAddrContext) -> i32 {
    if is_ordinary(&ctx) { ALLOW } else { sendmsg6(ctx.sock_addr) }
}

#[cold]
#[inline(never)]
fn sendmsg6(call: *mut bpf_sock_addr) -> i32 {
    count(try_sendmsg(&SockAddrContext::new(call), "sendmsg6", Hook::Sendmsg6))
}

/// The reason why a decision about a socket's mark could not be made or carried out.
#[derive(Clone, Copy)]
pub(crate) enum Error {
    /// The configuration map is empty.
    NoConfig,
    /// The kernel refused to set the mark. Without the mark the call would leave outside the
    /// tunnel.
    SetMark,
    /// The kernel refused to clear the mark.
    ClearMark,
    /// An MPTCP connection could not be recorded as mobile, so its further subflows would leave
    /// outside the tunnel.
    Subflows,
}

/// A decision about a socket's mark.
enum Decision {
    /// Leave the mark as it is, for this reason.
    Leave(MarkVerdict),
    /// Set the mark to this value, for this reason.
    Set(u32, MarkVerdict),
}

/// Handles a new socket: a mobile process's socket gets the mark before any datagram, ping or raw
/// packet can leave it. A new socket of an ordinary process cannot have the mark. An MPTCP socket
/// whose further subflows could not be recognised is refused.
#[inline(always)]
fn try_sock_create(ctx: &SockContext) -> Result<MarkVerdict, Error> {
    let config = config()?;
    if !current_is_mobile(config) {
        return Ok(MarkVerdict::Ordinary);
    }
    // SAFETY: the context of a sock_create program is a valid bpf_sock, whose mark may be read and
    // written.
    let old = unsafe { (*ctx.sock).mark };
    match decide(config, ctx, true, old) {
        Decision::Leave(verdict @ MarkVerdict::OtherNamespace) => Ok(verdict),
        _ if !mptcp::created(ctx) => Ok(MarkVerdict::Refused),
        Decision::Leave(verdict) => Ok(verdict),
        Decision::Set(mark, verdict) => {
            // SAFETY: as above.
            unsafe { (*ctx.sock).mark = mark };
            log(config, ctx, "sock_create", mark);
            Ok(verdict)
        }
    }
}

/// Returns whether a call is certainly one of an ordinary process on an unmarked socket, for which
/// nothing is to be done.
///
/// Most calls on a host are of this kind, and their cost is memory and code that the CPU's cache
/// does not hold. So this function reads as little as possible, and all else is in functions of its
/// own.
#[inline(always)]
fn is_ordinary(ctx: &SockAddrContext) -> bool {
    let Ok(config) = config() else { return false };
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket exists for
    // the whole call.
    let mark = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).mark };
    !config.is_marked(mark) && !mptcp::any_mobile_connection() && !current_is_mobile(config)
}

/// Returns whether a new socket is certainly one of an ordinary process.
#[inline(always)]
fn creator_is_ordinary() -> bool {
    config().is_ok_and(|config| !current_is_mobile(config))
}

/// Handles a connect(): chooses the route and, for a TCP socket that takes the MOBILE route, bounds
/// the retransmission timer and records the owner of the traffic.
#[inline(always)]
fn try_connect(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    let verdict = try_sock_addr(ctx, name, hook)?;
    match verdict {
        MarkVerdict::Marked | MarkVerdict::Kept => {
            retries::bound(ctx);
            account::track(ctx, hook);
        }
        MarkVerdict::Cleared | MarkVerdict::Direct => account::untrack(ctx),
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
fn try_sendmsg(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    // SAFETY: as in `mark`.
    let peer = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).dst_port };
    if peer == 0 {
        let verdict = try_sock_addr(ctx, name, hook)?;
        let newly_marked = verdict == MarkVerdict::Marked && !is_direct(dns::read(ctx, hook));
        return Ok(if newly_marked && !source::make_persistent(ctx, hook) {
            MarkVerdict::Refused
        } else {
            verdict
        });
    }
    if !is_mobile_socket(ctx) {
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
fn try_sock_addr(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    let verdict = mark(ctx, name)?;
    match verdict {
        MarkVerdict::Marked | MarkVerdict::Kept if is_bound_to_uplink(ctx, hook)? => {
            return Ok(MarkVerdict::Refused);
        }
        MarkVerdict::Marked | MarkVerdict::Kept => dns::redirect(ctx, hook),
        MarkVerdict::Cleared | MarkVerdict::Direct => dns::forget(ctx),
        _ => {}
    }
    Ok(verdict)
}

/// Sets or clears the mark of a call's socket as the policy in [`decide`] says, and returns the
/// decision.
#[inline(always)]
fn mark(ctx: &SockAddrContext, hook: &'static str) -> Result<MarkVerdict, Error> {
    let config = config()?;
    let mobile = mptcp::is_mobile_subflow(ctx, current_is_mobile(config)).ok_or(Error::Subflows)?;
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket exists for
    // the whole call.
    let old = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).mark };
    match decide(config, ctx, mobile, old) {
        Decision::Leave(verdict) => Ok(verdict),
        Decision::Set(mut mark, verdict) => {
            // SAFETY: the kernel accepts the context in place of the socket and reads four bytes of
            // `mark`.
            let result = unsafe {
                bpf_setsockopt(
                    ctx.as_ptr(),
                    SOL_SOCKET as i32,
                    SO_MARK as i32,
                    (&raw mut mark).cast(),
                    size_of::<u32>() as i32,
                )
            };
            if result != 0 {
                return Err(if config.is_marked(mark) { Error::SetMark } else { Error::ClearMark });
            }
            log(config, ctx, hook, mark);
            Ok(verdict)
        }
    }
}

/// Returns whether the call's socket is bound to an uplink's device, so that the packets of the
/// call would leave by the uplink without being routed. Packets sent without such a call are
/// stopped by `egress`.
#[inline(always)]
fn is_bound_to_uplink(ctx: &SockAddrContext, hook: Hook) -> Result<bool, Error> {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket exists for
    // the whole call.
    let device = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).bound_dev_if };
    if device == 0 || device == LOOPBACK || device == config()?.device {
        return Ok(false);
    }
    Ok(!is_direct(dns::read(ctx, hook)))
}

/// Returns whether even mobile processes reach an address without the tunnel.
#[inline(always)]
pub(crate) fn is_direct(to: Address) -> bool {
    to.is_local() || to.is_link_local() || dns::is_bypassed(to)
}

/// Decides whether to set, keep or clear the mark in `old`, the mark of a socket: the whole policy.
/// Reads the network namespace last, so that ordinary processes, which most are, do not pay for it.
#[inline(always)]
fn decide(config: &ProgramConfig, ctx: &impl EbpfContext, mobile: bool, old: u32) -> Decision {
    let marked = config.is_marked(old);
    if !mobile && !marked {
        return Decision::Leave(MarkVerdict::Ordinary);
    }
    // SAFETY: every program here has a context that this helper accepts.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != config.netns_cookie {
        // A mark in another namespace is not the agent's, even if its value is the same.
        return Decision::Leave(if mobile { MarkVerdict::OtherNamespace } else { MarkVerdict::Ordinary });
    }
    match (mobile, marked) {
        (true, false) if deadline_has_passed() => Decision::Leave(MarkVerdict::Direct),
        (true, true) if deadline_has_passed() => Decision::Set(config.cleared(old), MarkVerdict::Direct),
        (true, false) => Decision::Set(config.marked(old), MarkVerdict::Marked),
        (true, true) => Decision::Leave(MarkVerdict::Kept),
        (false, _) => Decision::Set(config.cleared(old), MarkVerdict::Cleared),
    }
}

/// Returns whether the calling process is mobile.
#[inline(always)]
fn current_is_mobile(config: &ProgramConfig) -> bool {
    // SAFETY: the helper takes no pointer. For a level below the task's own it returns 0, which is
    // no cgroup's ID.
    let ancestor = |level: u32| unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    ancestor(config.cgroup_level) == config.cgroup_id
        || (config.slice_id != 0 && ancestor(config.slice_level) == config.slice_id)
}

/// Returns whether the time in the map `DEADLINE` has passed, after which new connections of mobile
/// processes use the ordinary route. The agent extends that time while there is a session.
/// CLOCK_MONOTONIC stops while the host is suspended, so the tunnel gets time to come back
/// afterwards.
#[inline(always)]
fn deadline_has_passed() -> bool {
    // SAFETY: the helper takes no arguments.
    DEADLINE.get(0).is_some_and(|deadline| unsafe { bpf_ktime_get_ns() } > *deadline)
}

/// Returns whether the socket of a call has the agent's mark and is in the agent's network
/// namespace.
#[inline(always)]
pub(crate) fn is_mobile_socket(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket exists for
    // the whole call.
    let mark = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).mark };
    // SAFETY: the helper accepts the context.
    let netns = || unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    config().is_ok_and(|config| config.is_marked(mark) && netns() == config.netns_cookie)
}

#[inline(always)]
pub(crate) fn config() -> Result<&'static ProgramConfig, Error> {
    CONFIG.get(0).ok_or(Error::NoConfig)
}

#[inline(always)]
fn log(config: &ProgramConfig, ctx: &impl EbpfContext, hook: &'static str, mark: u32) {
    if config.log != 0 {
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        debug!(ctx, "{}: pid {}: socket mark is now {:x}", hook, pid, mark);
    }
}

/// Counts an event in the map `EVENTS`.
#[inline(always)]
pub(crate) fn count_event(event: CountedEvent) {
    if let Some(counter) = EVENTS.get_ptr_mut(event.index()) {
        // SAFETY: the pointer is this CPU's counter; a preempting program on the same CPU can at
        // worst lose one count.
        unsafe { *counter += 1 };
    }
}

/// Counts a decision about a mobile process or socket, and returns the hook's verdict: the call
/// fails only if it would leave outside the tunnel. Decisions about ordinary processes, the great
/// majority, are not counted.
#[inline(always)]
fn count(result: Result<MarkVerdict, Error>) -> i32 {
    let (verdict, outcome) = match result {
        Ok(MarkVerdict::Ordinary) => return ALLOW,
        Ok(MarkVerdict::Refused) => (MarkVerdict::Refused, REFUSE),
        Ok(verdict) => (verdict, ALLOW),
        Err(Error::SetMark | Error::Subflows) => (MarkVerdict::Failed, REFUSE),
        Err(Error::NoConfig | Error::ClearMark) => (MarkVerdict::Failed, ALLOW),
    };
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict.index()) {
        // SAFETY: the pointer is this CPU's counter; a preempting program on the same CPU can at
        // worst lose one count.
        unsafe { *counter += 1 };
    }
    outcome
}
