//! Keeps applications from changing the agent's bits of a socket's mark with SO_MARK.
//!
//! Since Linux 5.17 a process needs only CAP_NET_RAW to set SO_MARK (`sk_setsockopt`), which `ping`
//! and many services have. A mobile process that set a mark of its own would leave the tunnel, and
//! an ordinary one could enter it. So on a socket with the agent's mark, SO_MARK changes only the
//! other bits, and it cannot give the agent's mark to another socket.
//!
//! The kernel runs the hook for 64-bit processes only: `do_sock_setsockopt` skips it for compat
//! system calls.

use aya_ebpf::{
    bindings::{SO_MARK, SOL_SOCKET, bpf_sockopt},
    macros::cgroup_sockopt,
    programs::SockoptContext,
};
use mobile_ebpf_common::{CountedEvent, ProgramConfig};

use crate::{
    context, maps,
    policy::{self, ALLOW, MarkChange, REFUSE},
};

/// The number of bytes of an option's value that the kernel passes to the hook: a page, which has
/// at least 4096 bytes.
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
        // The kernel refuses a value that is longer than the part it passed on, unless the program
        // sets the length to 0, which means the caller's own value. SAFETY: as above, and the
        // length may be written.
        unsafe { (*call).optlen = 0 };
    }
    ALLOW
}

#[inline(always)]
fn judge(ctx: &SockoptContext) -> i32 {
    let Some(config) = maps::config() else { return ALLOW };
    let call = ctx.sockopt;
    // SAFETY: the context of a setsockopt program is a valid bpf_sockopt, whose socket exists for
    // the whole call.
    let (value, old) =
        unsafe { ((*call).__bindgen_anon_2.optval.cast::<u32>(), (*(*call).__bindgen_anon_1.sk).mark) };
    if !has(call, MARK_LENGTH) {
        // The value is too short: the kernel itself refuses it.
        return ALLOW;
    }
    // SAFETY: the value has this length; volatile, so that the value is read where the verifier has
    // checked the bounds.
    let new = unsafe { value.read_volatile() };
    let is_of_agent = || is_of_agent(call, config);
    let is_in_our_namespace = || context::is_in_our_namespace(config, ctx);
    match policy::mark_change(config, old, new, is_of_agent, is_in_our_namespace) {
        MarkChange::AsAsked => {}
        MarkChange::Refused => {
            maps::count_event(CountedEvent::MarkRefused);
            return REFUSE;
        }
        MarkChange::Kept(mark) => {
            // SAFETY: as above, and the value may be written.
            unsafe { value.write_volatile(mark) };
            maps::count_event(CountedEvent::MarkKept);
        }
    }
    use_checked_value(call)
}

/// Allows the call, and makes the kernel use the four bytes that were checked, whatever length the
/// caller gave.
#[inline(always)]
fn use_checked_value(call: *mut bpf_sockopt) -> i32 {
    // SAFETY: the context of a setsockopt program is a valid bpf_sockopt, and its length may be
    // written.
    unsafe { (*call).optlen = MARK_LENGTH as i32 };
    ALLOW
}

/// Returns whether the agent made the call: only the agent appends the secret
/// [`ProgramConfig::key`] to the mark. The agent changes the marks of open sockets when it changes
/// the MOBILE attribute of their process.
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

/// Returns whether the option's value has at least `length` bytes.
#[inline(always)]
fn has(call: *mut bpf_sockopt, length: usize) -> bool {
    // SAFETY: the context of a setsockopt program is a valid bpf_sockopt.
    let (start, end) = unsafe { ((*call).__bindgen_anon_2.optval, (*call).__bindgen_anon_3.optval_end) };
    start.addr() + length <= end.addr()
}
