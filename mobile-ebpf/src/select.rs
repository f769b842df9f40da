//! Route selection: the MOBILE attribute of the calling process decides about the mark of its socket.

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

/// What the kernel's cgroup hooks take for "go on", and for "operation not permitted".
pub(crate) const ALLOW: i32 = 1;
pub(crate) const REFUSE: i32 = 0;

/// Loopback has this index in every network namespace.
pub(crate) const LOOPBACK: u32 = 1;

#[cgroup_sock(sock_create)]
fn mobile_sock_create(ctx: SockContext) -> i32 {
    if is_made_ordinary() { ALLOW } else { sock_create(ctx.sock) }
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

/// Why a decision could not be carried out.
#[derive(Clone, Copy)]
pub(crate) enum Error {
    /// The configuration is not there.
    NoConfig,
    /// The kernel refused the mark: without it the call would lead beside the tunnel.
    SetMark,
    /// The kernel would not take the mark off.
    ClearMark,
    /// An MPTCP connection could not be recorded as mobile: its further subflows would leave beside
    /// the tunnel.
    Subflows,
}

/// What is to become of a socket's mark.
enum Decision {
    /// Nothing, and this is why.
    Leave(MarkVerdict),
    /// It becomes this.
    Set(u32, MarkVerdict),
}

/// Handles a new socket: it gets the mark before any datagram, ping or raw packet can leave it. A
/// new socket of an ordinary process cannot have our mark. An MPTCP connection whose further
/// subflows could not be recognised is refused.
#[inline(always)]
fn try_sock_create(ctx: &SockContext) -> Result<MarkVerdict, Error> {
    let config = config()?;
    if !current_is_mobile(config) {
        return Ok(MarkVerdict::Ordinary);
    }
    // SAFETY: the context of a sock_create program is a valid bpf_sock, and its mark may be read and written.
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

/// Whether a call is certainly an ordinary process's, of a socket that is none of ours: nothing is to be done. Most of a machine's
/// calls are such, and what they cost is the memory and the instructions that are not in the processor's cache: so this looks at
/// the least it can, and the rest is a function of its own.
#[inline(always)]
fn is_ordinary(ctx: &SockAddrContext) -> bool {
    let Ok(config) = config() else { return false };
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket is there for the whole call.
    let mark = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).mark };
    !config.is_marked(mark) && !mptcp::may_be_of_mobile() && !current_is_mobile(config)
}

/// The same of a new socket.
#[inline(always)]
fn is_made_ordinary() -> bool {
    config().is_ok_and(|config| !current_is_mobile(config))
}

/// A connect(): the route, and for a TCP socket that takes the MOBILE one, the pauses of its retransmission timer and whose
/// account it goes on.
#[inline(always)]
fn try_connect(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    let verdict = try_sock_addr(ctx, name, hook)?;
    match verdict {
        MarkVerdict::Marked | MarkVerdict::Kept => {
            retries::bound(ctx);
            account::open(ctx, hook);
        }
        MarkVerdict::Cleared | MarkVerdict::Direct => account::forget(ctx),
        _ => {}
    }
    Ok(verdict)
}

/// A datagram with an address. That of a connected socket keeps the route of its connection, whose source address it has: the
/// kernel asks here about every datagram of a socket that is connected to an IPv4-mapped address.
#[inline(always)]
fn try_sendmsg(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    // SAFETY: as in `mark`.
    let peer = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).dst_port };
    if peer == 0 {
        let verdict = try_sock_addr(ctx, name, hook)?;
        let late = verdict == MarkVerdict::Marked && !is_direct(dns::read(ctx, hook));
        return Ok(if late && !source::make_persistent(ctx, hook) { MarkVerdict::Refused } else { verdict });
    }
    if !is_ours(ctx) {
        return Ok(MarkVerdict::Ordinary);
    }
    dns::redirect(ctx, hook);
    Ok(MarkVerdict::Kept)
}

/// A connect(), or a datagram of an unconnected socket: sockets made before the process got or lost the attribute,
/// or given to it by another, follow the attribute from here on.
/// IPv4-mapped destinations of a connect() come here as IPv6 ones; the mark is the same for both. What a mobile process
/// asks a resolver goes to the relay's.
#[inline(always)]
fn try_sock_addr(ctx: &SockAddrContext, name: &'static str, hook: Hook) -> Result<MarkVerdict, Error> {
    let verdict = mark(ctx, name)?;
    match verdict {
        MarkVerdict::Marked | MarkVerdict::Kept if is_bound_elsewhere(ctx, hook)? => {
            return Ok(MarkVerdict::Refused);
        }
        MarkVerdict::Marked | MarkVerdict::Kept => dns::redirect(ctx, hook),
        MarkVerdict::Cleared | MarkVerdict::Direct => dns::forget(ctx),
        _ => {}
    }
    Ok(verdict)
}

#[inline(always)]
fn mark(ctx: &SockAddrContext, hook: &'static str) -> Result<MarkVerdict, Error> {
    let config = config()?;
    let mobile = mptcp::is_of_mobile(ctx, current_is_mobile(config)).ok_or(Error::Subflows)?;
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket is there for the whole call.
    let old = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).mark };
    match decide(config, ctx, mobile, old) {
        Decision::Leave(verdict) => Ok(verdict),
        Decision::Set(mut mark, verdict) => {
            // SAFETY: the kernel takes the context in place of the socket and reads four bytes of `mark`.
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

/// Whether what the socket sends there would leave by an uplink: it is bound to that device, and asks no route. What it sends
/// without a call that comes here is stopped by `egress`.
#[inline(always)]
fn is_bound_elsewhere(ctx: &SockAddrContext, hook: Hook) -> Result<bool, Error> {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket is there for the whole call.
    let device = unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).bound_dev_if };
    if device == 0 || device == LOOPBACK || device == config()?.device {
        return Ok(false);
    }
    Ok(!is_direct(dns::read(ctx, hook)))
}

/// Whether mobile processes, too, reach an address without the tunnel.
#[inline(always)]
pub(crate) fn is_direct(to: Address) -> bool {
    to.is_local() || to.is_link_local() || dns::is_bypassed(to)
}

/// The whole policy. The namespace is asked for last: ordinary processes, the many, do not pay for it.
#[inline(always)]
fn decide(config: &ProgramConfig, ctx: &impl EbpfContext, mobile: bool, old: u32) -> Decision {
    let marked = config.is_marked(old);
    if !mobile && !marked {
        return Decision::Leave(MarkVerdict::Ordinary);
    }
    // SAFETY: every program here has a context this helper accepts.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != config.netns_cookie {
        // Without the attribute, a mark like ours in another namespace is not ours: ordinary.
        return Decision::Leave(if mobile { MarkVerdict::OtherNamespace } else { MarkVerdict::Ordinary });
    }
    match (mobile, marked) {
        (true, false) if is_over() => Decision::Leave(MarkVerdict::Direct),
        (true, true) if is_over() => Decision::Set(config.cleared(old), MarkVerdict::Direct),
        (true, false) => Decision::Set(config.marked(old), MarkVerdict::Marked),
        (true, true) => Decision::Leave(MarkVerdict::Kept),
        (false, _) => Decision::Set(config.cleared(old), MarkVerdict::Cleared),
    }
}

/// The MOBILE attribute of the calling process.
#[inline(always)]
fn current_is_mobile(config: &ProgramConfig) -> bool {
    // SAFETY: takes no pointer; a level below the task's own gives 0, which is no cgroup's id.
    let ancestor = |level: u32| unsafe { bpf_get_current_ancestor_cgroup_id(level as i32) };
    ancestor(config.cgroup_level) == config.cgroup_id
        || (config.slice_id != 0 && ancestor(config.slice_level) == config.slice_id)
}

/// Whether mobile processes go directly for want of a session: the agent, if it lives, has not put the deadline off. The
/// clock stands still while the host is suspended, so that the tunnel has its time to come back afterwards.
#[inline(always)]
fn is_over() -> bool {
    // SAFETY: takes nothing.
    DEADLINE.get(0).is_some_and(|deadline| unsafe { bpf_ktime_get_ns() } > *deadline)
}

/// Whether the socket of a call carries our mark, and in our namespace.
#[inline(always)]
pub(crate) fn is_ours(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket is there for the whole call.
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

/// Counts an event.
#[inline(always)]
pub(crate) fn happened(event: CountedEvent) {
    if let Some(counter) = EVENTS.get_ptr_mut(event.index()) {
        // SAFETY: points into this CPU's slot; a preempting program on the same CPU can at worst lose one count.
        unsafe { *counter += 1 };
    }
}

/// Counts what was decided about a mobile process or socket, and lets the call go on, unless it would lead beside the tunnel.
/// Ordinary processes, the many, do not pay for a counter.
#[inline(always)]
fn count(result: Result<MarkVerdict, Error>) -> i32 {
    let (verdict, then) = match result {
        Ok(MarkVerdict::Ordinary) => return ALLOW,
        Ok(MarkVerdict::Refused) => (MarkVerdict::Refused, REFUSE),
        Ok(verdict) => (verdict, ALLOW),
        Err(Error::SetMark | Error::Subflows) => (MarkVerdict::Failed, REFUSE),
        Err(Error::NoConfig | Error::ClearMark) => (MarkVerdict::Failed, ALLOW),
    };
    if let Some(counter) = VERDICTS.get_ptr_mut(verdict.index()) {
        // SAFETY: points into this CPU's slot; a preempting program on the same CPU can at worst lose one count.
        unsafe { *counter += 1 };
    }
    then
}
