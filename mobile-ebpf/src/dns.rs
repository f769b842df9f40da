//! DNS redirection: sends a mobile process's query for any resolver to the relay's resolver, and
//! gives the answer the address that the query was sent to.
//!
//! The resolver of the visited network would answer queries from its own network only, and learn
//! which names the process looks up. Queries to a stub resolver on loopback and to bypassed
//! networks stay as they are.

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

use crate::select::{ALLOW, count_event, is_mobile_socket};

/// The relay's resolvers, keyed by address family. The map is not preallocated, so that a program
/// that reads an address while the agent replaces it does not see half of the old and half of the
/// new one.
#[map]
static RESOLVERS: HashMap<u32, Address> = HashMap::with_max_entries(2, BPF_F_NO_PREALLOC);

#[map]
static BYPASS: LpmTrie<Address, u8> = LpmTrie::with_max_entries(BYPASS_ENTRIES, 0);

/// The redirected queries, each in the storage of its socket, so that other sockets cannot displace
/// them.
#[btf_map]
static QUERIES: SkStorage<RedirectedQuery> = SkStorage::new();

/// The protocol numbers IPPROTO_TCP and IPPROTO_UDP.
const PROTOCOLS: [u32; 2] = [6, 17];

/// The kind of hook that a program is attached to, which determines the field of the program's
/// context that holds the address.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    /// The hook connect4 and similar ones: the address is `user_ip4`.
    Ipv4,
    /// The hook connect6 and similar ones: the address is `user_ip6` and may be IPv4-mapped.
    Ipv6,
    /// The hook sendmsg6: as connect6, but the kernel has already chosen the link of a link-local
    /// destination.
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

/// Returns whether mobile processes reach an address without the tunnel.
#[inline(always)]
pub(crate) fn is_bypassed(address: Address) -> bool {
    BYPASS.get(&Key::new(128, address)).is_some()
}

/// Redirects the connect() or datagram of a mobile process to the relay's resolver if it is a DNS
/// query.
#[inline(always)]
pub(crate) fn redirect(ctx: &SockAddrContext, hook: Hook) {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr.
    let protocol = unsafe { (*ctx.sock_addr).protocol };
    if !is_dns(ctx) || !PROTOCOLS.contains(&protocol) {
        return;
    }
    let queried = read(ctx, hook);
    if queried.is_local() || is_bypassed(queried) {
        return;
    }
    let (own, other) = if queried.is_mapped() { (IPV4, IPV6) } else { (IPV6, IPV4) };
    let Some(relay_resolver) = resolver(own) else {
        if resolver(other).is_some() {
            count_event(CountedEvent::DnsLeft);
        }
        return;
    };
    // A bypassed resolver would be looked up in the visited network.
    if is_bypassed(relay_resolver) || (hook == Hook::Sendmsg6 && queried.is_link_local()) {
        return count_event(CountedEvent::DnsLeft);
    }
    // The programs of an earlier agent may have redirected this query a moment ago and stored its
    // original address.
    if queried == relay_resolver && !QUERIES.get_ptr_mut(ctx).is_null() {
        return;
    }
    let mut query = RedirectedQuery { original_resolver: queried, relay_resolver };
    let stored = QUERIES.get_or_insert_ptr_mut(ctx, Some(&mut query));
    if stored.is_null() {
        return count_event(CountedEvent::DnsFailed);
    }
    // SAFETY: the pointer is this socket's storage. Two threads that query two resolvers through
    // one socket at the same time may mix the two addresses; one socket has one address for all
    // answers anyway.
    unsafe { *stored = query };
    if queried != relay_resolver {
        write(ctx, hook, relay_resolver);
        count_event(CountedEvent::DnsRedirected);
    }
}

/// Deletes the redirected query stored for a socket that takes the ordinary route now.
#[inline(always)]
pub(crate) fn forget(ctx: &SockAddrContext) {
    // An error means that the socket had no query.
    let _ = QUERIES.delete(unsafe { (*ctx.sock_addr).__bindgen_anon_1.sk });
}

/// Replaces the sender of a datagram, or the peer of a socket, by the queried address if the
/// relay's resolver answered in place of another.
#[inline(always)]
fn translate(ctx: &SockAddrContext, hook: Hook) {
    if !is_dns(ctx) {
        return;
    }
    let source = read(ctx, hook);
    // SAFETY: the pointer is null or this socket's storage.
    let query = unsafe { QUERIES.get_ptr_mut(ctx).as_ref() }.copied();
    match query {
        Some(RedirectedQuery { original_resolver, relay_resolver }) if relay_resolver == source => {
            if hook != Hook::Ipv4 || original_resolver.is_mapped() {
                write(ctx, hook, original_resolver);
            }
        }
        Some(_) => {}
        None => {
            let family = if source.is_mapped() { IPV4 } else { IPV6 };
            if resolver(family) == Some(source) && is_mobile_socket(ctx) {
                count_event(CountedEvent::DnsForgotten);
            }
        }
    }
}

/// Returns the relay's resolver of an address family, if it has one.
#[inline(always)]
fn resolver(family: u32) -> Option<Address> {
    // SAFETY: the map is not preallocated, so the kernel frees a replaced entry only when no
    // program reads it.
    unsafe { RESOLVERS.get(&family) }.copied()
}

#[inline(always)]
fn is_dns(ctx: &SockAddrContext) -> bool {
    // SAFETY: the context of a sock_addr program is a valid bpf_sock_addr. The port is 16 bits in
    // network byte order.
    unsafe { (*ctx.sock_addr).user_port == u32::from(DNS_PORT.to_be()) }
}

/// Returns the address that the system call passes in or out, read word by word as the verifier
/// requires.
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
    // SAFETY: as above, and every hook that calls this may write the address.
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
