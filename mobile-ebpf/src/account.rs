//! Counts the traffic of each mobile process's TCP connections: see `mobile_ebpf_common::account`.
//!
//! The storage of a socket that takes the MOBILE route records the process that made it. Each
//! packet that leaves the socket carries the current sequence number; the difference to the
//! previous one is added to the process's account. Received data is missing if the peer resets the
//! connection before a packet acknowledges the data.
//!
//! The kernel would notify a program of type SOCK_OPS when a connection ends, but it runs such
//! programs several times in every connect() on the machine, whatever cgroup they are attached to.

#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs pass the context by value")]

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    EbpfContext,
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, BPF_NOEXIST, bpf_sock},
    btf_maps::SkStorage,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_ktime_get_boot_ns, bpf_sk_storage_get, bpf_tcp_sock},
    },
    macros::{btf_map, cgroup_skb, map},
    maps::HashMap,
    programs::{SkBuffContext, SockAddrContext},
};
use mobile_ebpf_common::{
    Account, CountedEvent, TrackedConnection,
    account::{OutgoingSegment, stage},
    map::ACCOUNTS_ENTRIES,
};

use crate::{
    dns::{self, Hook},
    egress::{IPV4, IPV6, KEEP, socket},
    select::{config, count_event, is_direct},
};

#[btf_map]
static OWNERS: SkStorage<TrackedConnection> = SkStorage::new();

#[map]
static ACCOUNTS: HashMap<u32, Account> = HashMap::with_max_entries(ACCOUNTS_ENTRIES, BPF_F_NO_PREALLOC);

/// The protocol number of TCP, also as an IPv6 next header, and the next header of hop-by-hop
/// options.
const IPPROTO_TCP: u32 = 6;
const IPPROTO_HOPOPTS: u32 = 0;

/// Flags in the fourth 32-bit word of a TCP header.
const FIN: u32 = 1 << 16;
const SYN: u32 = 1 << 17;

/// Tracks the connection of a mobile socket that is about to connect. A connection that does not
/// leave by the tunnel is not counted.
#[inline(always)]
pub(crate) fn track(ctx: &SockAddrContext, hook: Hook) {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP {
        return;
    }
    if is_direct(dns::read(ctx, hook)) {
        return untrack(ctx);
    }
    let mut connection = TrackedConnection {
        // SAFETY: takes nothing.
        since: unsafe { bpf_ktime_get_boot_ns() },
        process: (bpf_get_current_pid_tgid() >> 32) as u32,
        ..TrackedConnection::default()
    };
    let stored = OWNERS.get_or_insert_ptr_mut(ctx, Some(&mut connection));
    if stored.is_null() {
        return count_event(CountedEvent::Unaccounted);
    }
    // SAFETY: the pointer is this socket's storage. It may hold the owner of an earlier connect()
    // that failed.
    unsafe { *stored = connection };
}

/// Stops tracking a socket that is about to connect without the MOBILE route.
#[inline(always)]
pub(crate) fn untrack(ctx: &SockAddrContext) {
    // An error means that the socket was not tracked.
    let _ = OWNERS.delete(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
}

/// Adds the traffic shown by a packet that leaves a mobile TCP socket to its process's account.
#[cgroup_skb(egress)]
fn mobile_account(ctx: SkBuffContext) -> i32 {
    account_packet(&ctx);
    KEEP
}

#[inline(always)]
fn account_packet(ctx: &SkBuffContext) -> Option<()> {
    let config = config().ok()?;
    let socket = socket(ctx)?;
    // SAFETY: a valid bpf_sock.
    let (mark, protocol, state) = unsafe { ((*socket).mark, (*socket).protocol, (*socket).state) };
    if !config.is_marked(mark) || protocol != IPPROTO_TCP {
        return None;
    }
    let connection = tracked_connection(socket)?;
    let segment = segment(ctx)?;
    // SAFETY: the helper accepts a socket and returns the counters of a TCP socket.
    let received = unsafe { bpf_tcp_sock(socket).as_ref() }?.bytes_received;
    let more = connection.on_outgoing(segment, state, received)?;
    let Some(account) = account(connection.process, connection.since) else {
        if connection.stage != stage::MISSING {
            connection.stage = stage::MISSING;
            count_event(CountedEvent::Unaccounted);
        }
        return None;
    };
    connection.commit(more);
    // SAFETY: `account` points to an entry of the map, whose fields are aligned.
    unsafe {
        add(&raw mut (*account).connections, more.connections);
        add(&raw mut (*account).sent, more.sent);
        add(&raw mut (*account).received, more.received);
    }
    None
}

/// Parses the TCP header of a packet. Returns `None` if another header is in its place, for example
/// of IPsec.
#[inline(always)]
fn segment(ctx: &SkBuffContext) -> Option<OutgoingSegment> {
    let skb: *mut __sk_buff = ctx.as_ptr().cast();
    // SAFETY: the context of a cgroup_skb program is a valid __sk_buff.
    let (protocol, length) = unsafe { ((*skb).protocol, (*skb).len) };
    let start = match protocol {
        IPV4 if u32::from(ctx.load::<u8>(9).ok()?) == IPPROTO_TCP => {
            u32::from(ctx.load::<u8>(0).ok()? & 15) * 4
        }
        IPV6 => match ctx.load::<u8>(6).ok()?.into() {
            IPPROTO_TCP => 40,
            // The jumbo payload option, which the kernel adds to packets of more than 64 KiB.
            IPPROTO_HOPOPTS if u32::from(ctx.load::<u8>(40).ok()?) == IPPROTO_TCP => {
                48 + u32::from(ctx.load::<u8>(41).ok()?) * 8
            }
            _ => return None,
        },
        _ => return None,
    };
    let [_, seq, _, offset_and_flags] = ctx.load::<[u32; 4]>(start as usize).ok()?.map(u32::from_be);
    let end = start + (offset_and_flags >> 28) * 4;
    Some(OutgoingSegment {
        seq,
        length: length.saturating_sub(end),
        syn: offset_and_flags & SYN != 0,
        fin: offset_and_flags & FIN != 0,
    })
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

/// Returns the account of a process, created if necessary, or `None` if it cannot be created.
#[inline(always)]
fn account(process: u32, since: u64) -> Option<*mut Account> {
    if let Some(account) = ACCOUNTS.get_ptr_mut(&process) {
        return Some(account);
    }
    // An error means that another connection created it meanwhile, or that the map is full.
    let _ = ACCOUNTS.insert(&process, &Account { since, ..Account::default() }, BPF_NOEXIST.into());
    ACCOUNTS.get_ptr_mut(&process)
}

/// Returns the tracked connection of a socket, if there is one. The reference is exclusive, because
/// the kernel sends the packets of one socket on one CPU at a time.
#[inline(always)]
fn tracked_connection<'a>(socket: *mut bpf_sock) -> Option<&'a mut TrackedConnection> {
    let owners = (&raw const OWNERS).cast_mut().cast();
    // SAFETY: the helper accepts a socket and returns this socket's storage.
    unsafe {
        bpf_sk_storage_get(owners, socket.cast(), ptr::null_mut(), 0).cast::<TrackedConnection>().as_mut()
    }
}
