//! Marks the further subflows of a mobile MPTCP connection, whichever task is running.
//!
//! The kernel creates subflows in a kernel thread, or in the call by which a network manager
//! announces a new address, so the calling task does not show to which process they belong. The
//! mark does not show it either, because a connection's mark is copied to its further subflows only
//! if the application itself has set it. So the storage of the connection's own socket, to which
//! each subflow leads, records that the connection is mobile.

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

/// Socket storage whose presence marks an MPTCP connection as mobile. Sockets of other processes
/// cannot displace an entry, the kernel frees the entry with its socket, and an accepted connection
/// gets a copy of its listener's entry.
#[btf_map]
static MPTCP_CONNECTIONS: Connections = Connections {
    r#type: ptr::null(),
    key: ptr::null(),
    value: ptr::null(),
    max_entries: ptr::null(),
    map_flags: ptr::null(),
};

/// The definition of the map `MPTCP_CONNECTIONS`, which the loader reads from the types of the
/// fields (BTF). aya's own definition has no field for flags.
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

/// Not 0 once a mobile process has created an MPTCP socket. Until then no socket needs to be
/// checked for being a subflow.
#[map]
static ANY_MPTCP: Array<u64> = Array::with_max_entries(1, 0);

/// Whether the kernel can recognise MPTCP subflows (non-zero). The agent sets the value before it
/// loads the programs, so that the verifier of a kernel without `bpf_skc_to_mptcp_sock` never sees
/// a call of that helper.
#[unsafe(no_mangle)]
static RECOGNISES_SUBFLOWS: u8 = 0;

const IPPROTO_TCP: u32 = 6;
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
    recognises_subflows() && remember(|map| unsafe { create(map, ctx.sock.cast()) })
}

/// Returns whether a mobile process may have an MPTCP connection, so that each new socket has to be
/// checked for being a subflow of one.
#[inline(always)]
pub(crate) fn any_mobile_connection() -> bool {
    ANY_MPTCP.get(0).is_none_or(|any| *any != 0)
}

/// Returns whether the socket of a call belongs to a mobile MPTCP connection. For a mobile process
/// (`mobile`), marks the connection as mobile first, and returns `None` if that fails. Returns
/// `mobile` for a socket that is no subflow; datagram sockets are not looked up.
#[inline(always)]
pub(crate) fn is_mobile_subflow(ctx: &SockAddrContext, mobile: bool) -> Option<bool> {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP || !recognises_subflows() {
        return Some(mobile);
    }
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket exists for
    // the whole call.
    let connection = unsafe { bpf_skc_to_mptcp_sock((*ctx.sock_addr).__bindgen_anon_1.sk.cast()) };
    if connection.is_null() {
        return Some(mobile);
    }
    if mobile {
        // SAFETY: the helper accepts a kernel socket, which this subflow holds.
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

/// Makes the programs check sockets for being subflows, before any connection can have one, then
/// calls `create` with the socket storage to mark a connection as mobile. Returns whether that
/// succeeded.
#[inline(always)]
fn remember(create: impl FnOnce(*mut core::ffi::c_void) -> bool) -> bool {
    if let Some(any) = ANY_MPTCP.get_ptr_mut(0) {
        // SAFETY: the pointer is the entry of the map; all writers write the same value.
        unsafe { any.write_volatile(1) };
    }
    create(map())
}

/// Marks the MPTCP connection of `socket` as mobile, by an entry in the socket storage `map`.
/// Returns false if the entry could not be created.
///
/// # Safety
///
/// `socket` must be a valid argument of `bpf_sk_storage_get` in the calling program.
#[inline(always)]
unsafe fn create(map: *mut core::ffi::c_void, socket: *mut core::ffi::c_void) -> bool {
    // SAFETY: guaranteed by the caller.
    !unsafe { bpf_sk_storage_get(map, socket, ptr::null_mut(), BPF_SK_STORAGE_GET_F_CREATE.into()) }.is_null()
}

#[inline(always)]
fn map() -> *mut core::ffi::c_void {
    (&raw const MPTCP_CONNECTIONS).cast_mut().cast()
}
