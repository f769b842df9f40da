//! The subflows that the kernel adds to an MPTCP connection: mobile if the connection is, whoever
//! happens to run then.
//!
//! It makes them in a kernel thread, or in the call by which a network manager tells of a new
//! address, so the calling task says nothing. Nor does the mark: that of a connection reaches its
//! further subflows only if the program itself has set it. So the connection's own socket
//! remembers, to which each subflow leads.

use core::ptr;

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type::BPF_MAP_TYPE_SK_STORAGE,
    },
    helpers::generated::{bpf_sk_storage_get, bpf_skc_to_mptcp_sock},
    macros::{btf_map, map},
    maps::Array,
    programs::{SockAddrContext, SockContext},
};

/// Storage at the sockets of MPTCP connections, for those of mobile processes. No other process's
/// sockets can displace it, and it goes with its socket. A connection that is accepted gets a copy
/// of what its listener has.
#[btf_map]
static MPTCP_CONNECTIONS: Connections = Connections {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// The definition of that map, which the loader reads from the types of its fields (BTF): aya's own
/// has no place for flags.
#[repr(C)]
struct Connections {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: nothing reads its pointers.
unsafe impl Sync for Connections {}

/// Not 0 once there was one: till then nobody has to ask the kernel what its sockets are.
#[map]
static ANY_MPTCP: Array<u64> = Array::with_max_entries(1, 0);

/// Non-zero where the kernel tells MPTCP subflows from other sockets. The agent sets it before the
/// programs are loaded, so that the verifier of another kernel does not see the question.
#[unsafe(no_mangle)]
static TELLS_SUBFLOWS: u8 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// A new socket of a mobile process: false if it is an MPTCP connection whose further subflows
/// could not be told, and so could leave beside the tunnel.
#[inline(always)]
pub(crate) fn created(ctx: &SockContext) -> bool {
    // SAFETY: the context of a sock_create program is a valid bpf_sock.
    if unsafe { (*ctx.sock).protocol } != IPPROTO_MPTCP {
        return true;
    }
    // SAFETY: the helper takes the context in place of the socket, which is new and nobody else's
    // yet.
    tells_subflows() && remember(|map| unsafe { create(map, ctx.sock.cast()) })
}

/// Whether any socket may be a subflow of a mobile process's connection.
#[inline(always)]
pub(crate) fn may_be_of_mobile() -> bool {
    ANY_MPTCP.get(0).is_none_or(|any| *any != 0)
}

/// Whether the socket of a call is a subflow of a mobile process's connection; with `mobile`, it is
/// from here on. `None`: it is to be, and that could not be remembered. No datagram is asked about:
/// a subflow is a TCP socket.
#[inline(always)]
pub(crate) fn is_of_mobile(ctx: &SockAddrContext, mobile: bool) -> Option<bool> {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP || !tells_subflows() {
        return Some(mobile);
    }
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket is there for
    // the whole call.
    let connection = unsafe { bpf_skc_to_mptcp_sock((*ctx.sock_addr).__bindgen_anon_1.sk.cast()) };
    if connection.is_null() {
        return Some(mobile);
    }
    if mobile {
        // SAFETY: the helper takes a kernel socket, which this subflow holds.
        return remember(|map| unsafe { create(map, connection.cast()) }).then_some(true);
    }
    // SAFETY: as above; only whether there is one is asked.
    Some(!unsafe { bpf_sk_storage_get(map(), connection.cast(), ptr::null_mut(), 0) }.is_null())
}

#[inline(always)]
fn tells_subflows() -> bool {
    // SAFETY: a constant, which the loader may have replaced; volatile, so that the compiler does
    // not know better.
    unsafe { (&raw const TELLS_SUBFLOWS).read_volatile() != 0 }
}

/// Has the programs look for subflows, before there is a connection that may have some.
#[inline(always)]
fn remember(create: impl FnOnce(*mut core::ffi::c_void) -> bool) -> bool {
    if let Some(any) = ANY_MPTCP.get_ptr_mut(0) {
        // SAFETY: points to the entry; whoever writes it writes the same.
        unsafe { any.write_volatile(1) };
    }
    create(map())
}

/// # Safety
/// `socket` is what the helper takes for a socket in the program that calls.
#[inline(always)]
unsafe fn create(map: *mut core::ffi::c_void, socket: *mut core::ffi::c_void) -> bool {
    // SAFETY: the caller's promise.
    !unsafe { bpf_sk_storage_get(map, socket, ptr::null_mut(), BPF_SK_STORAGE_GET_F_CREATE.into()) }.is_null()
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    (&raw const MPTCP_CONNECTIONS).cast_mut().cast()
}
