//! The first datagram of a socket that has just got the mark: the kernel took the old mark before it asked, and looks for the
//! route by that. With the persistent address as its source it takes the MOBILE route all the same.

use aya_ebpf::{bindings::BPF_F_NO_PREALLOC, macros::map, maps::HashMap, programs::SockAddrContext};
use mobile_ebpf_common::{
    Address,
    map::{IPV4, IPV6},
};

use crate::dns::Hook;

/// Not preallocated: see `RESOLVERS`.
#[map]
static PERSISTENT: HashMap<u32, Address> = HashMap::with_max_entries(2, BPF_F_NO_PREALLOC);

/// Gives the datagram the persistent address. False: there is none, or the socket is bound to another.
#[inline(always)]
pub(crate) fn make_persistent(ctx: &SockAddrContext, hook: Hook) -> bool {
    let family = if hook == Hook::Ipv4 { IPV4 } else { IPV6 };
    // SAFETY: the map is not preallocated, so an entry that is replaced is freed only when nobody reads it.
    let Some(Address(own)) = (unsafe { PERSISTENT.get(&family) }).copied() else { return false };
    let addr = ctx.sock_addr;
    // Each word by itself: what the verifier allows.
    // SAFETY: the context of a sendmsg program is a valid bpf_sock_addr whose source may be read and written.
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
