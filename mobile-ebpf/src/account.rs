//! What the TCP connections of each mobile process carry: see `mobile_ebpf_common::account`.
//!
//! A connection that takes the MOBILE route remembers, at its socket, who made it. When it is over, what the kernel counted is
//! added to that process's account. Nothing runs for a packet, and the sockets of ordinary processes, which have no such
//! memory, are not followed.

#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs pass the context by value")]

use core::{
    intrinsics::{AtomicOrdering, atomic_xadd},
    ptr,
};

use aya_ebpf::{
    bindings::{
        BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock,
    },
    btf_maps::SkStorage,
    helpers::{
        bpf_get_current_pid_tgid,
        generated::{bpf_ktime_get_boot_ns, bpf_sk_storage_get},
    },
    macros::{btf_map, map, sock_ops},
    maps::HashMap,
    programs::{SockAddrContext, SockOpsContext},
};
use mobile_ebpf_common::{
    Account, Event, Owner,
    account::{is_made, received, sent, state},
    map::ACCOUNTS_ENTRIES,
};

use crate::{
    dns::{self, Hook},
    select::{happened, is_direct},
};

#[btf_map]
static OWNERS: SkStorage<Owner> = SkStorage::new();

#[map]
static ACCOUNTS: HashMap<u32, Account> = HashMap::with_max_entries(ACCOUNTS_ENTRIES, BPF_F_NO_PREALLOC);

const IPPROTO_TCP: u32 = 6;

/// What the kernel's sock_ops hook takes for "go on". No reply is given: it would displace another program's.
const GO_ON: u32 = 1;

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
    let mut owner = Owner {
        // SAFETY: takes nothing.
        since: unsafe { bpf_ktime_get_boot_ns() },
        half_closed_at: 0,
        process: bpf_get_current_pid_tgid() >> 32,
    };
    let kept = OWNERS.get_or_insert_ptr_mut(ctx, Some(&mut owner));
    if kept.is_null() {
        return happened(Event::Unaccounted);
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

/// Called for every TCP socket when it connects, and for those that asked for it when their state changes.
#[sock_ops]
fn mobile_account(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => follow(&ctx),
        BPF_SOCK_OPS_STATE_CB => changed(&ctx, ctx.arg(0), ctx.arg(1)),
        _ => {}
    }
    GO_ON
}

/// Asks the kernel to tell of the changes of a socket that has an owner.
#[inline(always)]
fn follow(ctx: &SockOpsContext) {
    if owner(ctx).is_some() && ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32).is_err()
    {
        happened(Event::Unaccounted);
    }
}

#[inline(always)]
fn changed(ctx: &SockOpsContext, before: u32, now: u32) {
    if now != state::CLOSE && now != state::FIN_WAIT2 {
        return;
    }
    let Some((socket, owner)) = owner(ctx) else { return };
    // SAFETY: the context of a sock_ops program is a valid bpf_sock_ops, and these are those of a TCP connection.
    let (acked_bytes, received_bytes, all) = unsafe {
        let ops = ctx.ops;
        ((*ops).bytes_acked, (*ops).bytes_received, (*ops).snd_una == (*ops).snd_nxt)
    };
    if now == state::FIN_WAIT2 {
        // SAFETY: points to this socket's storage.
        unsafe { (*owner).half_closed_at = received_bytes };
        return;
    }
    // SAFETY: as above. A copy: what follows removes it, so that the programs of the next agent, which are in force for a moment
    // beside these, do not count it again.
    let Owner { since, half_closed_at, process } = unsafe { *owner };
    if OWNERS.delete(socket).is_err() || !is_made(before) {
        return;
    }
    let Some(account) = account(process as u32, since) else { return happened(Event::Unaccounted) };
    // SAFETY: `account` points to an entry of the map, whose fields are aligned.
    unsafe {
        add(&raw mut (*account).connections, 1);
        add(&raw mut (*account).sent, sent(before, acked_bytes, all));
        add(&raw mut (*account).received, received(before, received_bytes, half_closed_at));
    }
}

/// Connections of one process may end on several processors at once. The target can add atomically, but not compare and
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

/// The socket of a call, and its owner if it has one.
#[inline(always)]
fn owner(ctx: &SockOpsContext) -> Option<(*mut bpf_sock, *mut Owner)> {
    // SAFETY: the context of a sock_ops program is a valid bpf_sock_ops; the helper takes its socket when there is one.
    unsafe {
        let socket = (*ctx.ops).__bindgen_anon_2.sk;
        if socket.is_null() {
            return None;
        }
        let owners = (&raw const OWNERS).cast_mut().cast();
        let owner: *mut Owner = bpf_sk_storage_get(owners, socket.cast(), ptr::null_mut(), 0).cast();
        (!owner.is_null()).then_some((socket, owner))
    }
}
