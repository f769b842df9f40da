//! The subflows that the kernel adds to an MPTCP connection: mobile if the connection is, whoever happens to run then.
//!
//! It makes them in a kernel thread, or in the call by which a network manager tells of a new address, so the calling task says
//! nothing. Nor does the mark: that of a connection reaches its further subflows only if the program itself has set it.

use aya_ebpf::{
    helpers::generated::bpf_skc_to_mptcp_sock,
    macros::map,
    maps::{Array, LruHashMap},
    programs::{SockAddrContext, SockContext},
};
use mobile_ebpf_common::map::MPTCP_ENTRIES;

/// The MPTCP sockets of mobile processes, by their address in the kernel, which a socket made later may be given: so each is
/// looked at when it is made.
#[map]
static MPTCP: LruHashMap<u64, u8> = LruHashMap::with_max_entries(MPTCP_ENTRIES, 0);

/// Not 0 once there was one: till then nobody has to ask the kernel what its sockets are.
#[map]
static ANY_MPTCP: Array<u64> = Array::with_max_entries(1, 0);

/// Non-zero where the kernel tells MPTCP subflows from other sockets. The agent sets it before the programs are loaded, so
/// that the verifier of another kernel does not see the question.
#[unsafe(no_mangle)]
static TELLS_SUBFLOWS: u8 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// Whether a new socket is an MPTCP connection's.
#[inline(always)]
pub(crate) fn is_mptcp(ctx: &SockContext) -> bool {
    // SAFETY: the context of a sock_create program is a valid bpf_sock.
    unsafe { (*ctx.sock).protocol == IPPROTO_MPTCP }
}

/// A new socket, of a mobile process or another.
#[inline(always)]
pub(crate) fn created(ctx: &SockContext, mobile: bool) {
    if is_mptcp(ctx) {
        let connection = ctx.sock as u64;
        if mobile {
            remember(connection);
        } else {
            // An error means that there was nothing.
            let _ = MPTCP.remove(&connection);
        }
    }
}

/// Whether any socket may be a subflow of a mobile process's connection.
#[inline(always)]
pub(crate) fn may_be_of_mobile() -> bool {
    ANY_MPTCP.get(0).is_none_or(|any| *any != 0)
}

/// Whether the socket of a call is a subflow of a mobile process's connection; with `mobile`, it is from here on. No datagram
/// is asked about: a subflow is a TCP socket.
#[inline(always)]
pub(crate) fn is_of_mobile(ctx: &SockAddrContext, mobile: bool) -> bool {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP {
        return mobile;
    }
    // SAFETY: a constant, which the loader may have replaced; volatile, so that the compiler does not know better.
    if unsafe { (&raw const TELLS_SUBFLOWS).read_volatile() } == 0 {
        return mobile;
    }
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket is there for the whole call.
    let connection = unsafe { bpf_skc_to_mptcp_sock((*ctx.sock_addr).__bindgen_anon_1.sk.cast()) };
    if connection.is_null() {
        return mobile;
    }
    let connection = connection as u64;
    if mobile {
        remember(connection);
        return true;
    }
    // SAFETY: only whether there is one is asked.
    unsafe { MPTCP.get(&connection) }.is_some()
}

#[inline(always)]
fn remember(connection: u64) {
    if let Some(any) = ANY_MPTCP.get_ptr_mut(0) {
        // SAFETY: points to the entry; whoever writes it writes the same. Before the connection: what is there is looked for.
        unsafe { any.write_volatile(1) };
    }
    // An LRU map makes room; without memory further subflows go by the task, as they would without this.
    let _ = MPTCP.insert(&connection, &1, 0);
}
