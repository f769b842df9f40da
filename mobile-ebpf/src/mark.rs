//! Sets and clears the mark of the socket of a call, as the [`policy`] decides.

use aya_ebpf::{
    EbpfContext,
    bindings::{SO_MARK, SOL_SOCKET},
    helpers::{bpf_get_current_pid_tgid, generated::bpf_setsockopt},
    programs::{SockAddrContext, SockContext},
};
use aya_log_ebpf::debug;
use mobile_ebpf_common::{MarkVerdict, ProgramConfig};

use crate::{
    context, maps, mptcp,
    policy::{self, Attribute, Decision, Error},
};

/// Marks a new socket of a mobile process before any datagram, ping or raw packet can leave it. A
/// new socket of an ordinary process cannot have the mark. An MPTCP socket whose further subflows
/// could not be recognised is refused.
#[inline(always)]
pub(crate) fn on_create(ctx: &SockContext) -> Result<MarkVerdict, Error> {
    let config = maps::config().ok_or(Error::NoConfig)?;
    if context::current_attribute(config) == Attribute::Ordinary {
        return Ok(MarkVerdict::Ordinary);
    }
    // SAFETY: the context of a sock_create program is a valid bpf_sock, whose mark may be read and
    // written.
    let old = unsafe { (*ctx.sock).mark };
    match decide(config, ctx, old, Attribute::Mobile) {
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

/// Sets or clears the mark of a call's socket, and returns the decision; `name` is the hook's name
/// in the log.
#[inline(always)]
pub(crate) fn on_call(ctx: &SockAddrContext, name: &'static str) -> Result<MarkVerdict, Error> {
    let config = maps::config().ok_or(Error::NoConfig)?;
    let caller = context::current_attribute(config);
    let attribute = mptcp::subflow_attribute(ctx, caller).ok_or(Error::Subflows)?;
    let old = context::mark(ctx);
    match decide(config, ctx, old, attribute) {
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
            log(config, ctx, name, mark);
            Ok(verdict)
        }
    }
}

/// Returns whether the socket of a call has the agent's mark and is in the agent's network
/// namespace.
#[inline(always)]
pub(crate) fn is_mobile_socket(ctx: &SockAddrContext) -> bool {
    let mark = context::mark(ctx);
    maps::config().is_some_and(|config| config.is_marked(mark) && context::is_in_our_namespace(config, ctx))
}

#[inline(always)]
fn decide(config: &ProgramConfig, ctx: &impl EbpfContext, old: u32, attribute: Attribute) -> Decision {
    let is_in_our_namespace = || context::is_in_our_namespace(config, ctx);
    policy::decide(config, old, attribute, is_in_our_namespace, maps::deadline_has_passed)
}

#[inline(always)]
fn log(config: &ProgramConfig, ctx: &impl EbpfContext, hook: &'static str, mark: u32) {
    if config.log != 0 {
        let pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        debug!(ctx, "{}: pid {}: socket mark is now {:x}", hook, pid, mark);
    }
}
