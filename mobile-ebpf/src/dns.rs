//! DNS redirection: sends a mobile process's query for any resolver to the relay's resolver, and
//! gives the answer the address that the query was sent to.
//!
//! The resolver of the visited network would answer queries from its own network only, and learn
//! which names the process looks up. Queries to a stub resolver on loopback and to bypassed
//! networks stay as they are.

use aya_ebpf::programs::SockAddrContext;
use mobile_ebpf_common::{
    CountedEvent, RedirectedQuery,
    address::DNS_PORT,
    map::{IPV4, IPV6},
};

use crate::{
    context::{self, Hook},
    maps::{self, count_event},
    mark,
    policy::{self, QueryDecision},
};

/// The protocol numbers IPPROTO_TCP and IPPROTO_UDP.
const PROTOCOLS: [u32; 2] = [6, 17];

/// Redirects the connect() or datagram of a mobile process to the relay's resolver if it is a DNS
/// query.
#[inline(always)]
pub(crate) fn redirect(ctx: &SockAddrContext, hook: Hook) {
    let protocol = context::protocol(ctx);
    if !is_dns(ctx) || !PROTOCOLS.contains(&protocol) {
        return;
    }
    let queried = context::address(ctx, hook);
    let relay_resolver =
        match policy::redirection(queried, hook == Hook::Sendmsg6, maps::is_bypassed, maps::resolver) {
            QueryDecision::Leave => return,
            QueryDecision::Miss => return count_event(CountedEvent::DnsLeft),
            QueryDecision::Redirect(relay_resolver) => relay_resolver,
        };
    // The programs of an earlier agent may have redirected this query a moment ago and stored its
    // original address.
    if queried == relay_resolver && maps::has_query(ctx) {
        return;
    }
    if !maps::store_query(ctx, RedirectedQuery { original_resolver: queried, relay_resolver }) {
        return count_event(CountedEvent::DnsFailed);
    }
    if queried != relay_resolver {
        context::set_address(ctx, hook, relay_resolver);
        count_event(CountedEvent::DnsRedirected);
    }
}

/// Replaces the sender of a datagram, or the peer of a socket, by the queried address if the
/// relay's resolver answered in place of another.
#[inline(always)]
pub(crate) fn translate(ctx: &SockAddrContext, hook: Hook) {
    if !is_dns(ctx) {
        return;
    }
    let source = context::address(ctx, hook);
    match maps::query(ctx) {
        Some(RedirectedQuery { original_resolver, relay_resolver }) if relay_resolver == source => {
            if hook != Hook::Ipv4 || original_resolver.is_mapped() {
                context::set_address(ctx, hook, original_resolver);
            }
        }
        Some(_) => {}
        None => {
            let family = if source.is_mapped() { IPV4 } else { IPV6 };
            if maps::resolver(family) == Some(source) && mark::is_mobile_socket(ctx) {
                count_event(CountedEvent::DnsForgotten);
            }
        }
    }
}

#[inline(always)]
fn is_dns(ctx: &SockAddrContext) -> bool {
    // The port is 16 bits in network byte order.
    context::port(ctx) == u32::from(DNS_PORT.to_be())
}
