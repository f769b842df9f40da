//! The cgroup programs that choose the MOBILE route.
//!
//! They are attached at the root of the cgroup2 hierarchy and ask what the calling *task* is, because the cgroup of
//! a socket is fixed when it is created, while the MOBILE attribute of a process is not. A decision that cannot be made
//! leaves the socket as it was and is counted. Only calls and packets that would leave beside the tunnel are refused.
//! What runs for packets and connections (`egress`, `account`) is there only while somebody's sockets need it.
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

/// The programs exist on the bpf target only; this lets `cargo check --workspace` pass on the host.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that could get here.
    loop {}
}

/// Some helpers are for programs under a GPL-compatible licence.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
