//! Bounds the retransmission timer of mobile TCP sockets: see `mobile_ebpf_common::retries`.

use aya_ebpf::{
    EbpfContext,
    helpers::generated::{bpf_getsockopt, bpf_setsockopt},
    programs::SockAddrContext,
};
use mobile_ebpf_common::retries::{RTO_MAX_MS, syn_count};

const IPPROTO_TCP: i32 = 6;
const TCP_SYNCNT: i32 = 7;
const TCP_RTO_MAX_MS: i32 = 44;

/// Bounds the retransmission timeout of a socket that is about to connect. A kernel without
/// `TCP_RTO_MAX_MS` (before 6.15) and a socket with a shorter bound of its own are left unchanged.
#[inline(always)]
pub(crate) fn bound(ctx: &SockAddrContext) {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if protocol != IPPROTO_TCP as u32 {
        return;
    }
    let Some(rto_max) = get(ctx, TCP_RTO_MAX_MS) else { return };
    if rto_max <= RTO_MAX_MS || !set(ctx, TCP_RTO_MAX_MS, RTO_MAX_MS) {
        return;
    }
    if let Some(count) = get(ctx, TCP_SYNCNT) {
        // If the kernel refuses, connect() gives up earlier; nothing can be done about that here.
        set(ctx, TCP_SYNCNT, syn_count(count));
    }
}

#[inline(always)]
fn get(ctx: &SockAddrContext, option: i32) -> Option<i32> {
    let mut value = 0_i32;
    // SAFETY: the kernel accepts the context in place of the socket and writes four bytes of
    // `value`.
    let result = unsafe {
        bpf_getsockopt(ctx.as_ptr(), IPPROTO_TCP, option, (&raw mut value).cast(), size_of::<i32>() as i32)
    };
    (result == 0).then_some(value)
}

#[inline(always)]
fn set(ctx: &SockAddrContext, option: i32, mut value: i32) -> bool {
    // SAFETY: the kernel accepts the context in place of the socket and reads four bytes of
    // `value`.
    let result = unsafe {
        bpf_setsockopt(ctx.as_ptr(), IPPROTO_TCP, option, (&raw mut value).cast(), size_of::<i32>() as i32)
    };
    result == 0
}
