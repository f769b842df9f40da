//! Marks the further subflows of a mobile MPTCP connection, whichever task is running.
//!
//! The kernel creates subflows in a kernel thread, or in the call by which a network manager
//! announces a new address, so the calling task does not show to which process they belong. The
//! mark does not show it either, because a connection's mark is copied to its further subflows only
//! if the application itself has set it. So the storage of the connection's own socket, to which
//! each subflow leads, records that the connection is mobile.

use aya_ebpf::{
    helpers::generated::bpf_skc_to_mptcp_sock,
    programs::{SockAddrContext, SockContext},
};

use crate::{
    context::{self, IPPROTO_TCP},
    maps,
    policy::Attribute,
};

/// Whether the kernel can recognise MPTCP subflows (non-zero). The agent sets the value before it
/// loads the programs, so that the verifier of a kernel without `bpf_skc_to_mptcp_sock` never sees
/// a call of that helper.
#[unsafe(no_mangle)]
static RECOGNISES_SUBFLOWS: u8 = 0;

const IPPROTO_MPTCP: u32 = 262;

/// Marks the MPTCP connection of a new socket of a mobile process as mobile; other sockets need
/// nothing. Returns false for an MPTCP connection whose further subflows could not be recognised,
/// and so could leave outside the tunnel.
#[inline(always)]
pub(crate) fn created(ctx: &SockContext) -> bool {
    // SAFETY: the context of a sock_create program is a valid bpf_sock.
    if unsafe { (*ctx.sock).protocol } != IPPROTO_MPTCP {
        return true;
    }
    // SAFETY: the helper accepts the context in place of the socket, which is new and not shared
    // yet.
    recognises_subflows() && unsafe { maps::mark_mptcp_connection(ctx.sock.cast()) }
}

/// Returns the attribute of the MPTCP connection that the socket of a call is a subflow of. For a
/// mobile process (`caller`), marks the connection as mobile first, and returns `None` if that
/// fails. Returns `caller` for a socket that is no subflow; datagram sockets are not looked up.
#[inline(always)]
pub(crate) fn subflow_attribute(ctx: &SockAddrContext, caller: Attribute) -> Option<Attribute> {
    if context::protocol(ctx) != IPPROTO_TCP || !recognises_subflows() {
        return Some(caller);
    }
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket exists for
    // the whole call.
    let connection = unsafe { bpf_skc_to_mptcp_sock((*ctx.sock_addr).__bindgen_anon_1.sk.cast()) };
    if connection.is_null() {
        return Some(caller);
    }
    // SAFETY: the helper accepts a kernel socket, which this subflow holds.
    unsafe {
        if caller == Attribute::Mobile {
            return maps::mark_mptcp_connection(connection.cast()).then_some(Attribute::Mobile);
        }
        let is_mobile = maps::is_mobile_mptcp_connection(connection.cast());
        Some(if is_mobile { Attribute::Mobile } else { Attribute::Ordinary })
    }
}

#[inline(always)]
fn recognises_subflows() -> bool {
    // SAFETY: a constant that the loader may have replaced; the read is volatile so that the
    // compiler does not assume its value.
    unsafe { (&raw const RECOGNISES_SUBFLOWS).read_volatile() != 0 }
}
