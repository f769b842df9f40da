//! Makes the subflows that the kernel adds to an MPTCP connection mobile if the connection is,
//! whichever task is running.
//!
//! The kernel makes subflows in a kernel thread, or in the call by which a network manager
//! announces a new address, so the calling task says nothing. Nor does the mark: a connection's
//! mark reaches its further subflows only if the program itself has set it. So the fact is stored
//! at the connection's own socket, to which each subflow leads.

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

/// Storage at the sockets of MPTCP connections, for those of mobile processes. Another process's
/// sockets cannot displace it, and it is freed with its socket. An accepted connection gets a copy
/// of its listener's.
#[btf_map]
static MPTCP_CONNECTIONS: Connections = Connections {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// The definition of that map, which the loader reads from the types of its fields (BTF); aya's own
/// definition has no field for flags.
#[repr(C)]
struct Connections {
    r#type: *const [i32; BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const u32,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; (BPF_F_NO_PREALLOC | BPF_F_CLONE) as usize],
}

// SAFETY: nothing reads the pointers.
unsafe impl Sync for Connections {}

/// Not 0 once there was one: till then nobody has to ask the kernel what its sockets are.
#[map]
static ANY_MPTCP: Array<u64> = Array::with_max_entries(1, 0);

/// Whether the kernel can recognise MPTCP subflows (non-zero). The agent sets it before loading, so
/// that the verifier of a kernel without the helper never sees the call.
#[unsafe(no_mangle)]
static RECOGNISES_SUBFLOWS: u8 = 0;

const IPPROTO_TCP: u32 = 6;
const IPPROTO_MPTCP: u32 = 262;

/// Handles a new socket of a mobile process. Returns false for an MPTCP connection whose further
/// subflows could not be recognised, and so could leave beside the tunnel.
#[inline(always)]
pub(crate) fn created(ctx: &SockContext) -> bool {
    // SAFETY: the context of a sock_create program is a valid bpf_sock.
    if unsafe { (*ctx.sock).protocol } != IPPROTO_MPTCP {
        return true;
    }
    // SAFETY: the helper takes the context in place of the socket, which is new and not shared yet.
    recognises_subflows() && remember(|map| unsafe { create(map, ctx.sock.cast()) })
}

/// Whether any socket may be a subflow of a mobile process's connection.
#[inline(always)]
pub(crate) fn may_be_of_mobile() -> bool {
    ANY_MPTCP.get(0).is_none_or(|any| *any != 0)
}

/// Returns whether the socket of a call is a subflow of a mobile process's connection; with
/// `mobile`, it becomes one. Returns `None` if that could not be stored. Datagrams are not checked:
/// a subflow is a TCP socket.
#[inline(always)]
pub(crate) fn is_of_mobile(ctx: &SockAddrContext, mobile: bool) -> Option<bool> {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP || !recognises_subflows() {
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
    // SAFETY: as above; only the presence of a value is checked.
    Some(!unsafe { bpf_sk_storage_get(map(), connection.cast(), ptr::null_mut(), 0) }.is_null())
}

#[inline(always)]
fn recognises_subflows() -> bool {
    // SAFETY: a constant that the loader may have replaced; the read is volatile so that the
    // compiler does not assume its value.
    unsafe { (&raw const RECOGNISES_SUBFLOWS).read_volatile() != 0 }
}

/// Makes the programs check for subflows, before any connection can have one.
#[inline(always)]
fn remember(create: impl FnOnce(*mut core::ffi::c_void) -> bool) -> bool {
    if let Some(any) = ANY_MPTCP.get_ptr_mut(0) {
        // SAFETY: points to the entry; all writers write the same value.
        unsafe { any.write_volatile(1) };
    }
    create(map())
}

/// Creates the storage at a connection's socket; returns whether it exists.
///
/// # Safety
/// `socket` is a valid argument of the helper in the calling program.
#[inline(always)]
unsafe fn create(map: *mut core::ffi::c_void, socket: *mut core::ffi::c_void) -> bool {
    // SAFETY: guaranteed by the caller.
    !unsafe { bpf_sk_storage_get(map, socket, ptr::null_mut(), BPF_SK_STORAGE_GET_F_CREATE.into()) }.is_null()
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    (&raw const MPTCP_CONNECTIONS).cast_mut().cast()
}
