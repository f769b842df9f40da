//! Keeps other programs from changing our bits of a socket's mark with SO_MARK.
//!
//! Since Linux 5.17 a process may set SO_MARK with CAP_NET_RAW (net: `sk_setsockopt`), which `ping`
//! and many services have. A mobile process that sets a mark of its own would leave the tunnel, and
//! an ordinary one could enter it. So on a socket with our mark SO_MARK changes only the other
//! bits, and it cannot give our mark to a socket without it.
//!
//! The kernel runs the hook for 64-bit processes only: `do_sock_setsockopt` skips it for a compat
//! system call.

#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs pass the context by value")]

use aya_ebpf::{
    EbpfContext,
    bindings::{SO_MARK, SOL_SOCKET, bpf_sockopt},
    helpers::generated::bpf_get_netns_cookie,
    macros::cgroup_sockopt,
    programs::SockoptContext,
};
use mobile_ebpf_common::{CountedEvent, ProgramConfig};

use crate::select::{ALLOW, REFUSE, config, happened};

/// The most bytes of an option's value that the kernel passes to the hook: a page, of which 4096 is
/// the smallest.
const PAGE: i32 = 4096;

/// The size of SO_MARK's value, in bytes.
const MARK_LENGTH: usize = size_of::<u32>();

#[cgroup_sockopt(setsockopt)]
fn mobile_setsockopt(ctx: SockoptContext) -> i32 {
    let call = ctx.sockopt;
    // SAFETY: the context of a setsockopt program is a valid bpf_sockopt.
    let (level, option, length) = unsafe { ((*call).level, (*call).optname, (*call).optlen) };
    if level == SOL_SOCKET as i32 && option == SO_MARK as i32 {
        return judge(&ctx);
    }
    if length > PAGE {
        // The kernel refuses a value longer than the part it passed on, unless told to use the
        // caller's own. SAFETY: as above, and the length may be written.
        unsafe { (*call).optlen = 0 };
    }
    ALLOW
}

#[inline(always)]
fn judge(ctx: &SockoptContext) -> i32 {
    let Ok(config) = config() else { return ALLOW };
    let call = ctx.sockopt;
    // SAFETY: the context of a setsockopt program is a valid bpf_sockopt, whose socket exists for
    // the whole call.
    let (value, old) =
        unsafe { ((*call).__bindgen_anon_2.optval.cast::<u32>(), (*(*call).__bindgen_anon_1.sk).mark) };
    if !has(call, MARK_LENGTH) {
        // Too short: the kernel itself refuses it.
        return ALLOW;
    }
    // SAFETY: the value has this length; volatile, so that the value is read where the verifier has
    // checked the bounds.
    let new = unsafe { value.read_volatile() };
    let was_marked = config.is_marked(old);
    if was_marked == config.is_marked(new) || is_of_agent(call, config) {
        return take(call);
    }
    // SAFETY: the helper accepts the context.
    if unsafe { bpf_get_netns_cookie(ctx.as_ptr()) } != config.netns_cookie {
        return take(call);
    }
    if !was_marked {
        happened(CountedEvent::MarkRefused);
        return REFUSE;
    }
    // SAFETY: as above, and the value may be written.
    unsafe { value.write_volatile(config.marked(new)) };
    happened(CountedEvent::MarkKept);
    take(call)
}

/// Makes the kernel use the value that was checked, whatever length the caller gives.
#[inline(always)]
fn take(call: *mut bpf_sockopt) -> i32 {
    // SAFETY: the context of a setsockopt program is a valid bpf_sockopt, and its length may be
    // written.
    unsafe { (*call).optlen = MARK_LENGTH as i32 };
    ALLOW
}

/// Returns whether the agent calls, which changes marks with a process's attribute: the programs'
/// key follows its mark.
#[inline(always)]
fn is_of_agent(call: *mut bpf_sockopt, config: &ProgramConfig) -> bool {
    if !has(call, MARK_LENGTH + size_of::<u64>()) {
        return false;
    }
    // SAFETY: the value has this length.
    let [low, high] = unsafe {
        let value = (*call).__bindgen_anon_2.optval.cast::<u32>();
        [value.add(1).read_volatile(), value.add(2).read_volatile()]
    };
    u64::from(low) | (u64::from(high) << 32) == config.key
}

/// Returns whether the value has at least this many bytes.
#[inline(always)]
fn has(call: *mut bpf_sockopt, length: usize) -> bool {
    // SAFETY: the context of a setsockopt program is a valid bpf_sockopt.
    let (start, end) = unsafe { ((*call).__bindgen_anon_2.optval, (*call).__bindgen_anon_3.optval_end) };
    start.addr() + length <= end.addr()
}
