//! Counts the traffic of each mobile process's TCP connections: see `mobile_ebpf_common::account`.
//!
//! The storage of a socket that takes the MOBILE route records the process that made it. Each
//! packet that leaves the socket carries the current sequence number; the difference to the
//! previous one is added to the process's account. Received data is missing if the peer resets the
//! connection before a packet acknowledges the data.
//!
//! The kernel would notify a program of type SOCK_OPS when a connection ends, but it runs such
//! programs several times in every connect() on the machine, whatever cgroup they are attached to.

use aya_ebpf::{
    EbpfContext, bindings::__sk_buff, helpers::generated::bpf_tcp_sock, macros::cgroup_skb,
    programs::SkBuffContext,
};
use mobile_ebpf_common::{
    CountedEvent,
    account::{OutgoingSegment, stage},
};

use crate::{
    context::{self, IPPROTO_TCP, IPV4, IPV6},
    maps::{self, AccountEntry},
    policy::ALLOW,
};

/// The next header of IPv6 hop-by-hop options.
const IPPROTO_HOPOPTS: u32 = 0;

/// Flags in the fourth 32-bit word of a TCP header.
const FIN: u32 = 1 << 16;
const SYN: u32 = 1 << 17;

/// Adds the traffic shown by a packet that leaves a mobile TCP socket to its process's account.
#[cgroup_skb(egress)]
fn mobile_account(ctx: SkBuffContext) -> i32 {
    account_packet(&ctx);
    ALLOW
}

#[inline(always)]
fn account_packet(ctx: &SkBuffContext) -> Option<()> {
    let config = maps::config()?;
    let socket = context::packet_socket(ctx)?;
    // SAFETY: a valid bpf_sock.
    let (mark, protocol, state) = unsafe { ((*socket).mark, (*socket).protocol, (*socket).state) };
    if !config.is_marked(mark) || protocol != IPPROTO_TCP {
        return None;
    }
    let connection = maps::tracked_connection(socket)?;
    let segment = segment(ctx)?;
    // SAFETY: the helper accepts a socket and returns the counters of a TCP socket.
    let received = unsafe { bpf_tcp_sock(socket).as_ref() }?.bytes_received;
    let more = connection.on_outgoing(segment, state, received)?;
    let Some(account) = AccountEntry::of(connection.process, connection.since) else {
        if connection.stage != stage::MISSING {
            connection.stage = stage::MISSING;
            maps::count_event(CountedEvent::Unaccounted);
        }
        return None;
    };
    connection.commit(more);
    account.add(more);
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
