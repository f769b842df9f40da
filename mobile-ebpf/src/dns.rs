//! DNS that follows: a mobile process's query to any resolver is answered by the relay's, under the address it was sent to.
//!
//! The resolver of the visited network answers its own network only, and knows what the process asks. Queries to a stub
//! resolver on loopback, and to networks in the bypass, stay as they are.

#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs pass the context by value")]

use aya_ebpf::{
    bindings::BPF_F_NO_PREALLOC,
    btf_maps::SkStorage,
    macros::{btf_map, cgroup_sock_addr, map},
    maps::{HashMap, LpmTrie, lpm_trie::Key},
    programs::SockAddrContext,
};
use mobile_ebpf_common::{
    Address, CountedEvent, RedirectedQuery,
    address::DNS_PORT,
    map::{BYPASS_ENTRIES, IPV4, IPV6},
};

use crate::select::{ALLOW, happened, is_ours};

/// Not preallocated: a program that reads an address while the agent replaces it must not see half of each.
#[map]
static RESOLVERS: HashMap<u32, Address> = HashMap::with_max_entries(2, BPF_F_NO_PREALLOC);

#[map]
static BYPASS: LpmTrie<Address, u8> = LpmTrie::with_max_entries(BYPASS_ENTRIES, 0);

/// The queries, each stored at the socket that asked, so that other sockets cannot displace them.
#[btf_map]
static QUERIES: SkStorage<RedirectedQuery> = SkStorage::new();

/// IPPROTO_TCP and IPPROTO_UDP.
const PROTOCOLS: [u32; 2] = [6, 17];

/// Which hook a program is attached to, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// connect4 and its kind: `user_ip4` is the address.
    Ipv4,
    /// connect6 and its kind: `user_ip6` is, perhaps IPv4-mapped.
    Ipv6,
    /// sendmsg6: as above, and the kernel has chosen the link of a link-local destination by now.
    Sendmsg6,
}

#[cgroup_sock_addr(recvmsg4)]
fn mobile_recvmsg4(ctx: SockAddrContext) -> i32 {
    translate(&ctx, Hook::Ipv4);
    ALLOW
}

#[cgroup_sock_addr(recvmsg6)]
fn mobile_recvmsg6(ctx: SockAddrContext) -> i32 {
    translate(&ctx, Hook::Ipv6);
    ALLOW
}

#[cgroup_sock_addr(getpeername4)]
fn mobile_getpeername4(ctx: SockAddrContext) -> i32 {
    translate(&ctx, Hook::Ipv4);
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
fn mobile_getpeername6(ctx: SockAddrContext) -> i32 {
    translate(&ctx, Hook::Ipv6);
    ALLOW
}

/// Whether mobile processes reach an address directly.
#[inline(always)]
pub(crate) fn is_bypassed(address: Address) -> bool {
    BYPASS.get(&Key::new(128, address)).is_some()
}

/// A connect() or datagram of a mobile process: if it is a query, it goes to the relay's resolver.
#[inline(always)]
pub(crate) fn redirect(ctx: &SockAddrContext, hook: Hook) {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if !is_dns(ctx) || !PROTOCOLS.contains(&protocol) {
        return;
    }
    let asked = read(ctx, hook);
    if asked.is_local() || is_bypassed(asked) {
        return;
    }
    let (own, other) = if asked.is_mapped() { (IPV4, IPV6) } else { (IPV6, IPV4) };
    let Some(answers) = resolver(own) else {
        if resolver(other).is_some() {
            happened(CountedEvent::DnsLeft);
        }
        return;
    };
    // Written in, an address of the bypass would be looked for in the visited network.
    if is_bypassed(answers) || (hook == Hook::Sendmsg6 && asked.is_link_local()) {
        return happened(CountedEvent::DnsLeft);
    }
    // The programs of an earlier agent may have redirected this query a moment ago: they recorded
    // what was asked.
    if asked == answers && !QUERIES.get_ptr_mut(ctx).is_null() {
        return;
    }
    let mut query = RedirectedQuery { original_resolver: asked, relay_resolver: answers };
    let kept = QUERIES.get_or_insert_ptr_mut(ctx, Some(&mut query));
    if kept.is_null() {
        return happened(CountedEvent::DnsFailed);
    }
    // SAFETY: points to this socket's storage. Threads that ask two resolvers through one socket at
    // once can at worst mix the two addresses; one socket has one address for all answers.
    unsafe { *kept = query };
    if asked != answers {
        write(ctx, hook, answers);
        happened(CountedEvent::DnsRedirected);
    }
}

/// Forgets what a socket asked: it is in the hands of an ordinary process.
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    // An error means that there was nothing.
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr, whose socket exists for
    // the whole call.
    let _ = QUERIES.delete(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
}

/// The sender of a datagram, or the peer of a socket: if it answers in the place of another, it goes by that one's address.
#[inline(always)]
fn translate(ctx: &SockAddrContext, hook: Hook) {
    if !is_dns(ctx) {
        return;
    }
    let source = read(ctx, hook);
    // SAFETY: null, or this socket's storage.
    let remembered = unsafe { QUERIES.get_ptr_mut(ctx).as_ref() }.copied();
    match remembered {
        Some(RedirectedQuery { original_resolver: asked, relay_resolver: answers }) if answers == source => {
            if hook != Hook::Ipv4 || asked.is_mapped() {
                write(ctx, hook, asked);
            }
        }
        Some(_) => {}
        None => {
            let family = if source.is_mapped() { IPV4 } else { IPV6 };
            if resolver(family) == Some(source) && is_ours(ctx) {
                happened(CountedEvent::DnsForgotten);
            }
        }
    }
}

#[inline(always)]
fn resolver(family: u32) -> Option<Address> {
    // SAFETY: the map is not preallocated, so an entry that is replaced is freed only when nobody reads it.
    unsafe { RESOLVERS.get(&family) }.copied()
}

#[inline(always)]
fn is_dns(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr. The port is 16 bits in network byte order.
    unsafe { (*ctx.sock_addr).user_port == u32::from(DNS_PORT.to_be()) }
}

/// The address of the call. Each word by itself: what the verifier allows.
#[inline(always)]
pub(crate) fn read(ctx: &SockAddrContext, hook: Hook) -> Address {
    let addr = ctx.sock_addr;
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    unsafe {
        match hook {
            Hook::Ipv4 => Address::mapped((&raw const (*addr).user_ip4).read_volatile()),
            Hook::Ipv6 | Hook::Sendmsg6 => {
                let words = &raw const (*addr).user_ip6;
                Address([
                    (&raw const (*words)[0]).read_volatile(),
                    (&raw const (*words)[1]).read_volatile(),
                    (&raw const (*words)[2]).read_volatile(),
                    (&raw const (*words)[3]).read_volatile(),
                ])
            }
        }
    }
}

#[inline(always)]
fn write(ctx: &SockAddrContext, hook: Hook, Address(address): Address) {
    let addr = ctx.sock_addr;
    // SAFETY: as above, and the address may be written in every hook that comes here.
    unsafe {
        match hook {
            Hook::Ipv4 => (&raw mut (*addr).user_ip4).write_volatile(address[3]),
            Hook::Ipv6 | Hook::Sendmsg6 => {
                let words = &raw mut (*addr).user_ip6;
                (&raw mut (*words)[0]).write_volatile(address[0]);
                (&raw mut (*words)[1]).write_volatile(address[1]);
                (&raw mut (*words)[2]).write_volatile(address[2]);
                (&raw mut (*words)[3]).write_volatile(address[3]);
            }
        }
    }
}
