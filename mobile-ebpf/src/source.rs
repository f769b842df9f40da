//! Sets the source address of the first datagram of a socket that has just got the mark.
//!
//! The kernel read the old mark before it ran the program, and routes the datagram by the old mark.
//! With a persistent address as its source, the datagram takes the MOBILE route all the same.

use aya_ebpf::programs::SockAddrContext;
use mobile_ebpf_common::{
    Address,
    map::{IPV4, IPV6},
};

use crate::{context::Hook, maps};

/// Sets the source of the datagram to the persistent address. Returns false if the host has none of
/// this address family, or if the socket is bound to another address.
#[inline(always)]
pub(crate) fn make_persistent(ctx: &SockAddrContext, hook: Hook) -> bool {
    let family = if hook == Hook::Ipv4 { IPV4 } else { IPV6 };
    let Some(Address(own)) = maps::persistent_address(family) else { return false };
    let addr = ctx.sock_addr;
    // Each word is read by itself, as the verifier requires.
    unsafe {
        if hook == Hook::Ipv4 {
            let source = &raw mut (*addr).msg_src_ip4;
            let chosen = source.read_volatile();
            if chosen == 0 {
                source.write_volatile(own[3]);
            }
            return chosen == 0 || chosen == own[3];
        }
        let words = &raw mut (*addr).msg_src_ip6;
        let source = [&raw mut (*words)[0], &raw mut (*words)[1], &raw mut (*words)[2], &raw mut (*words)[3]];
        let chosen = source.map(|word| word.read_volatile());
        if chosen == [0; 4] {
            source[0].write_volatile(own[0]);
            source[1].write_volatile(own[1]);
            source[2].write_volatile(own[2]);
            source[3].write_volatile(own[3]);
        }
        chosen == [0; 4] || chosen == own
    }
}
