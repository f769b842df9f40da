//! The maps of the eBPF programs, and every access to them. `mobile_ebpf_common::map` documents
//! their contents.

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{
        BPF_F_CLONE, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE,
        bpf_map_type::BPF_MAP_TYPE_SK_STORAGE, bpf_sock,
    },
    btf_maps::SkStorage,
    helpers::generated::{bpf_ktime_get_ns, bpf_sk_storage_get},
    macros::{btf_map, map},
    maps::{Array, HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    programs::SockAddrContext,
};
use mobile_ebpf_common::{
    Account, Address, CountedEvent, MarkVerdict, ProgramConfig, RedirectedQuery, TrackedConnection,
    account::Increment,
    map::{ACCOUNTS_ENTRIES, BYPASS_ENTRIES, EVENTS_ENTRIES, VERDICTS_ENTRIES},
};

#[map]
static CONFIG: Array<ProgramConfig> = Array::with_max_entries(1, 0);

#[map]
static DEADLINE: Array<u64> = Array::with_max_entries(1, 0);

#[map]
static VERDICTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(VERDICTS_ENTRIES, 0);

#[map]
static EVENTS: PerCpuArray<u64> = PerCpuArray::with_max_entries(EVENTS_ENTRIES, 0);

/// The relay's resolvers, keyed by address family. The map is not preallocated, so that a program
/// that reads an address while the agent replaces it does not see half of the old and half of the
/// new one.
#[map]
static RESOLVERS: HashMap<u32, Address> = HashMap::with_max_entries(2, BPF_F_NO_PREALLOC);

/// The persistent addresses, keyed by address family. The map is not preallocated, for the same
/// reason as [`RESOLVERS`].
#[map]
static PERSISTENT: HashMap<u32, Address> = HashMap::with_max_entries(2, BPF_F_NO_PREALLOC);

#[map]
static BYPASS: LpmTrie<Address, u8> = LpmTrie::with_max_entries(BYPASS_ENTRIES, 0);

/// The redirected queries, each in the storage of its socket, so that other sockets cannot displace
/// them.
#[btf_map]
static QUERIES: SkStorage<RedirectedQuery> = SkStorage::new();

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

/// Not 0 once a mobile process has created an MPTCP socket. Until then no socket needs to be
/// checked for being a subflow.
#[map]
static ANY_MPTCP: Array<u64> = Array::with_max_entries(1, 0);

#[btf_map]
static OWNERS: SkStorage<TrackedConnection> = SkStorage::new();

#[map]
static ACCOUNTS: HashMap<u32, Account> = HashMap::with_max_entries(ACCOUNTS_ENTRIES, BPF_F_NO_PREALLOC);

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

/// Returns the configuration, or `None` if the agent has not written it.
#[inline(always)]
pub(crate) fn config() -> Option<&'static ProgramConfig> {
    CONFIG.get(0)
}

/// Returns whether the time in the map `DEADLINE` has passed, after which new connections of mobile
/// processes use the ordinary route. The agent extends that time while there is a session.
/// CLOCK_MONOTONIC stops while the host is suspended, so the tunnel gets time to come back
/// afterwards.
#[inline(always)]
pub(crate) fn deadline_has_passed() -> bool {
    // SAFETY: the helper takes no arguments.
    DEADLINE.get(0).is_some_and(|deadline| unsafe { bpf_ktime_get_ns() } > *deadline)
}

/// Counts a decision about a socket's mark in the map `VERDICTS`.
#[inline(always)]
pub(crate) fn count_verdict(verdict: MarkVerdict) {
    count(&VERDICTS, verdict.index());
}

/// Counts an event in the map `EVENTS`.
#[inline(always)]
pub(crate) fn count_event(event: CountedEvent) {
    count(&EVENTS, event.index());
}

#[inline(always)]
fn count(counters: &PerCpuArray<u64>, index: u32) {
    if let Some(counter) = counters.get_ptr_mut(index) {
        // SAFETY: the pointer is this CPU's counter; a preempting program on the same CPU can at
        // worst lose one count.
        unsafe { *counter += 1 };
    }
}

/// Returns the relay's resolver of an address family, if it has one.
#[inline(always)]
pub(crate) fn resolver(family: u32) -> Option<Address> {
    // SAFETY: the map is not preallocated, so the kernel frees a replaced entry only when no
    // program reads it.
    unsafe { RESOLVERS.get(&family) }.copied()
}

/// Returns the persistent address of an address family, if the host has one.
#[inline(always)]
pub(crate) fn persistent_address(family: u32) -> Option<Address> {
    // SAFETY: as for the resolvers.
    unsafe { PERSISTENT.get(&family) }.copied()
}

/// Returns whether mobile processes reach an address without the tunnel.
#[inline(always)]
pub(crate) fn is_bypassed(address: Address) -> bool {
    BYPASS.get(&Key::new(128, address)).is_some()
}

/// Returns the redirected query of a call's socket, if there is one.
#[inline(always)]
pub(crate) fn query(ctx: &SockAddrContext) -> Option<RedirectedQuery> {
    // SAFETY: the pointer is null or this socket's storage.
    unsafe { QUERIES.get_ptr_mut(ctx).as_ref() }.copied()
}

/// Returns whether a redirected query is stored for a call's socket.
#[inline(always)]
pub(crate) fn has_query(ctx: &SockAddrContext) -> bool {
    !QUERIES.get_ptr_mut(ctx).is_null()
}

/// Stores the redirected query of a call's socket. Returns false if memory is exhausted.
#[inline(always)]
pub(crate) fn store_query(ctx: &SockAddrContext, mut query: RedirectedQuery) -> bool {
    let stored = QUERIES.get_or_insert_ptr_mut(ctx, Some(&mut query));
    if stored.is_null() {
        return false;
    }
    // SAFETY: the pointer is this socket's storage. Two threads that query two resolvers through
    // one socket at the same time may mix the two addresses; one socket has one address for all
    // answers anyway.
    unsafe { *stored = query };
    true
}

/// Deletes the redirected query of a call's socket.
#[inline(always)]
pub(crate) fn delete_query(ctx: &SockAddrContext) {
    // An error means that the socket had no query.
    let _ = QUERIES.delete(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
}

/// Returns whether a mobile process may have an MPTCP connection, so that each new socket has to be
/// checked for being a subflow of one.
#[inline(always)]
pub(crate) fn any_mptcp_connection() -> bool {
    ANY_MPTCP.get(0).is_none_or(|any| *any != 0)
}

/// Makes the programs check sockets for being subflows, before any connection can have one, and
/// then marks the MPTCP connection of `socket` as mobile. Returns false if the entry could not be
/// created.
///
/// # Safety
///
/// `socket` must be a valid argument of `bpf_sk_storage_get` in the calling program.
#[inline(always)]
pub(crate) unsafe fn mark_mptcp_connection(socket: *mut c_void) -> bool {
    if let Some(any) = ANY_MPTCP.get_ptr_mut(0) {
        // SAFETY: the pointer is the entry of the map; all writers write the same value.
        unsafe { any.write_volatile(1) };
    }
    let create = BPF_SK_STORAGE_GET_F_CREATE.into();
    // SAFETY: guaranteed by the caller.
    !unsafe { bpf_sk_storage_get(mptcp_connections(), socket, ptr::null_mut(), create) }.is_null()
}

/// Returns whether the MPTCP connection of `socket` is marked as mobile.
///
/// # Safety
///
/// `socket` must be a valid argument of `bpf_sk_storage_get` in the calling program.
#[inline(always)]
pub(crate) unsafe fn is_mobile_mptcp_connection(socket: *mut c_void) -> bool {
    // SAFETY: guaranteed by the caller; only the presence of a value is checked.
    !unsafe { bpf_sk_storage_get(mptcp_connections(), socket, ptr::null_mut(), 0) }.is_null()
}

#[inline(always)]
fn mptcp_connections() -> *mut c_void {
    (&raw const MPTCP_CONNECTIONS).cast_mut().cast()
}

/// Stores the owner of a call's socket. Returns false if memory is exhausted.
#[inline(always)]
pub(crate) fn store_owner(ctx: &SockAddrContext, mut connection: TrackedConnection) -> bool {
    let stored = OWNERS.get_or_insert_ptr_mut(ctx, Some(&mut connection));
    if stored.is_null() {
        return false;
    }
    // SAFETY: the pointer is this socket's storage. It may hold the owner of an earlier connect()
    // that failed.
    unsafe { *stored = connection };
    true
}

/// Deletes the owner of a call's socket.
#[inline(always)]
pub(crate) fn delete_owner(ctx: &SockAddrContext) {
    // An error means that the socket was not tracked.
    let _ = OWNERS.delete(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
}

/// Returns the tracked connection of a socket, if there is one. The reference is exclusive, because
/// the kernel sends the packets of one socket on one CPU at a time.
#[inline(always)]
pub(crate) fn tracked_connection<'a>(socket: *mut bpf_sock) -> Option<&'a mut TrackedConnection> {
    let owners = (&raw const OWNERS).cast_mut().cast();
    // SAFETY: the helper accepts a socket and returns this socket's storage.
    unsafe {
        bpf_sk_storage_get(owners, socket.cast(), ptr::null_mut(), 0).cast::<TrackedConnection>().as_mut()
    }
}

/// The account of a process, an entry of the map `ACCOUNTS`.
pub(crate) struct AccountEntry(*mut Account);

impl AccountEntry {
    /// Returns the account of a process, created if necessary with the time `since`, or `None` if
    /// it cannot be created.
    #[inline(always)]
    pub(crate) fn of(process: u32, since: u64) -> Option<Self> {
        if let Some(account) = ACCOUNTS.get_ptr_mut(&process) {
            return Some(Self(account));
        }
        // An error means that another connection created it meanwhile, or that the map is full.
        let _ = ACCOUNTS.insert(&process, &Account { since, ..Account::default() }, BPF_NOEXIST.into());
        ACCOUNTS.get_ptr_mut(&process).map(Self)
    }

    /// Adds an increment to the account.
    #[inline(always)]
    pub(crate) fn add(&self, more: Increment) {
        // SAFETY: the pointer is an entry of the map, whose fields are aligned.
        unsafe {
            add(&raw mut (*self.0).connections, more.connections);
            add(&raw mut (*self.0).sent, more.sent);
            add(&raw mut (*self.0).received, more.received);
        }
    }
}

/// Adds to a counter atomically, because connections of one process may send on several CPUs at the
/// same time. The target has an atomic addition but no compare-and-exchange, so `core` offers no
/// `AtomicU64::fetch_add`.
///
/// # Safety
///
/// `to` must be valid and aligned.
#[inline(always)]
unsafe fn add(to: *mut u64, count: u64) {
    // SAFETY: guaranteed by the caller.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, count) };
}
