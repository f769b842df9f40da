//! The eBPF programs that choose the MOBILE route, attached to cgroups.
//!
//! The programs for socket calls are attached at the root of the cgroup2 hierarchy and look up the
//! calling *task*: the cgroup of a socket is fixed at its creation, while a process may become
//! mobile later. If a program cannot decide, the program leaves the socket unchanged and counts the
//! event. A program refuses only calls and packets that would leave outside the tunnel.
//!
//! | module | job |
//! | --- | --- |
//! | `hooks` | the programs: one function for each hook of the kernel |
//! | `dns` | redirects DNS queries of mobile processes to the relay's resolver |
//! | `mark` | sets and clears the mark of a socket |
//! | `mptcp` | marks further subflows of a mobile MPTCP connection |
//! | `source` | sets the source address of the first datagram of a newly marked socket |
//! | `retries` | bounds the retransmission timer of mobile TCP sockets |
//! | `context` | reads and changes what the kernel passes to the programs |
//! | `maps` | holds the maps and every access to them |
//! | `policy` | decides, as pure functions: the ordinary route, the MOBILE route, or a refusal |
//!
//! Each module imports only from modules below it in the table. The programs for packets
//! (`hooks::egress`, `hooks::account`) are attached to the root only while it is necessary: see
//! `mobile-agent/src/selection/attach_scope.rs`.
#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(core_intrinsics))]
#![cfg_attr(
    target_arch = "bpf",
    expect(internal_features, reason = "the only way to an atomic addition: see maps.rs")
)]
#![cfg_attr(
    target_arch = "bpf",
    allow(linker_messages, reason = "bpf-linker says which copies of LLVM it tried before the one it uses")
)]

#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod dns;
#[cfg(target_arch = "bpf")]
mod hooks;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod mark;
#[cfg(target_arch = "bpf")]
mod mptcp;
#[cfg(target_arch = "bpf")]
mod policy;
#[cfg(target_arch = "bpf")]
mod retries;
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
