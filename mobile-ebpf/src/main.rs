//! The eBPF programs that choose the MOBILE route, attached to cgroups.
//!
//! The programs for socket calls (module `select`) are attached at the root of the cgroup2
//! hierarchy and look up the calling *task*: the cgroup of a socket is fixed at its creation, while
//! a process may become mobile later. If a program cannot decide, it leaves the socket unchanged
//! and counts that. It refuses only calls and packets that would leave outside the tunnel.
//!
//! | module | job |
//! | --- | --- |
//! | `select` | marks the sockets of mobile processes at socket(), connect() and sendmsg() |
//! | `source` | sets the source address of the first datagram of a newly marked socket |
//! | `dns` | redirects DNS queries of mobile processes to the relay's resolver |
//! | `mptcp` | marks further subflows of a mobile MPTCP connection |
//! | `retries` | bounds the retransmission timer of mobile TCP sockets |
//! | `so_mark` | protects the agent's bits of a mark from SO_MARK |
//! | `egress` | stops packets of mobile sockets from leaving by another device than the tunnel's |
//! | `account` | counts the traffic of mobile processes' TCP connections |
//!
//! The programs for packets (`egress`, `account`) are attached to the root only while it is
//! necessary: see `mobile-agent/src/selection/attach_scope.rs`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "the only way to an atomic addition: see account.rs")
)]
#![cfg_attr(
    target_arch = "bpf",
    allow(linker_messages, reason = "bpf-linker says which copies of LLVM it tried before the one it uses")
)]

#[cfg(target_arch = "bpf")]
mod account;
#[cfg(target_arch = "bpf")]
mod dns;
#[cfg(target_arch = "bpf")]
mod egress;
#[cfg(target_arch = "bpf")]
mod mptcp;
#[cfg(target_arch = "bpf")]
mod retries;
#[cfg(target_arch = "bpf")]
mod select;
#[cfg(target_arch = "bpf")]
mod so_mark;
#[cfg(target_arch = "bpf")]
mod source;

/// An empty program for the host, where the eBPF programs do not exist, so that `cargo check
/// --workspace` passes.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that could get here.
    loop {}
}

/// The licence of the programs: some helpers require a GPL-compatible one.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
