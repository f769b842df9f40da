//! What the TCP connections of each mobile process carry: see `mobile_ebpf_common::account`.
//!
//! A connection that takes the MOBILE route remembers, at its socket, who made it. Each packet that leaves says how far it has
//! come, and what is new is added to that process's account. What the other end sent and did not wait to see acknowledged, before
//! it reset the connection, is not on it.
//!
//! A hook for the changes of TCP sockets would tell their end itself, but the kernel goes through it several times in every
//! connect() of the machine, whatever cgroup it is attached to.

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
    select::{config, happened, is_direct},
};

#[btf_map]
static OWNERS: SkStorage<TrackedConnection> = SkStorage::new();

#[map]
static ACCOUNTS: HashMap<u32, Account> = HashMap::with_max_entries(ACCOUNTS_ENTRIES, BPF_F_NO_PREALLOC);

/// Also what an IPv6 header calls what follows it, as it does a header with options for every hop.
const IPPROTO_TCP: u32 = 6;
const IPPROTO_HOPOPTS: u32 = 0;

/// In the second half of the fourth word of a TCP header.
const FIN: u32 = 1 << 16;
const SYN: u32 = 1 << 17;

/// A mobile socket is about to connect. One that does not leave by the tunnel is not counted.
#[inline(always)]
pub(crate) fn open(ctx: &SockAddrContext, hook: Hook) {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    if unsafe { (*ctx.sock_addr).protocol } != IPPROTO_TCP {
        return;
    }
    if is_direct(dns::read(ctx, hook)) {
        return forget(ctx);
    }
    let mut owner = TrackedConnection {
        // SAFETY: takes nothing.
        since: unsafe { bpf_ktime_get_boot_ns() },
        process: (bpf_get_current_pid_tgid() >> 32) as u32,
        ..TrackedConnection::default()
    };
    let kept = OWNERS.get_or_insert_ptr_mut(ctx, Some(&mut owner));
    if kept.is_null() {
        return happened(CountedEvent::Unaccounted);
    }
    // SAFETY: points to this socket's storage. A connect() that failed may have left another owner there.
    unsafe { *kept = owner };
}

/// A socket is about to connect without the MOBILE route.
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    // An error means that there was nothing.
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr whose socket is there for the whole call.
    let _ = OWNERS.delete(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
}

/// Called for every packet that leaves.
#[cgroup_skb(egress)]
fn mobile_account(ctx: SkBuffContext) -> i32 {
    follow(&ctx);
    KEEP
}

#[inline(always)]
fn follow(ctx: &SkBuffContext) -> Option<()> {
    let config = config().ok()?;
    let socket = socket(ctx)?;
    // SAFETY: a valid bpf_sock.
    let (mark, protocol, state) = unsafe { ((*socket).mark, (*socket).protocol, (*socket).state) };
    if !config.is_marked(mark) || protocol != IPPROTO_TCP {
        return None;
    }
    let owner = owner(socket)?;
    let segment = segment(ctx)?;
    // SAFETY: the helper takes a socket, and gives the counters of one that is TCP's.
    let received = unsafe { bpf_tcp_sock(socket).as_ref() }?.bytes_received;
    let more = owner.on_outgoing(segment, state, received)?;
    let Some(account) = account(owner.process, owner.since) else {
        if owner.stage != stage::MISSING {
            owner.stage = stage::MISSING;
            happened(CountedEvent::Unaccounted);
        }
        return None;
    };
    owner.commit(more);
    // SAFETY: `account` points to an entry of the map, whose fields are aligned.
    unsafe {
        add(&raw mut (*account).connections, more.connections);
        add(&raw mut (*account).sent, more.sent);
        add(&raw mut (*account).received, more.received);
    }
    None
}

/// The TCP header of a packet, if it is where it is to be expected. A packet of a TCP socket need not be TCP's: IPsec has been there.
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
            // The kernel's own, of packets of more than 64 KiB.
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

/// Connections of one process may send on several processors at once. The target can add atomically, but not compare and
/// exchange, for want of which `core` gives it no `AtomicU64::fetch_add`.
///
/// # Safety
/// `to` is valid and aligned.
#[inline(always)]
unsafe fn add(to: *mut u64, count: u64) {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(to, count) };
}

/// The account of a process, opened if need be.
#[inline(always)]
fn account(process: u32, since: u64) -> Option<*mut Account> {
    if let Some(account) = ACCOUNTS.get_ptr_mut(&process) {
        return Some(account);
    }
    // An error: another connection has opened it meanwhile, or there is no place.
    let _ = ACCOUNTS.insert(&process, &Account { since, ..Account::default() }, BPF_NOEXIST.into());
    ACCOUNTS.get_ptr_mut(&process)
}

/// The owner of a socket, if it has one. The kernel sends what is one socket's on one processor at a time.
#[inline(always)]
fn owner<'a>(socket: *mut bpf_sock) -> Option<&'a mut TrackedConnection> {
    let owners = (&raw const OWNERS).cast_mut().cast();
    // SAFETY: the helper takes a socket, and gives this socket's storage.
    unsafe {
        bpf_sk_storage_get(owners, socket.cast(), ptr::null_mut(), 0).cast::<TrackedConnection>().as_mut()
    }
}
