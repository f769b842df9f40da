//! The ingress filter for a host without nftables: a classifier on every device but `lo` and the
//! tunnel's.
//!
//! The classifier drops packets to a persistent address, ICMP errors that quote one, and ARP
//! requests for one. It has an object file of its own, because few hosts need it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    allow(linker_messages, reason = "bpf-linker says which copies of LLVM it tried before the one it uses")
)]

/// An empty program for the host, where the eBPF program does not exist, so that `cargo check
/// --workspace` passes.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod program {
    use core::mem::{MaybeUninit, size_of};

    use aya_ebpf::{
        EbpfContext,
        bindings::{__sk_buff, bpf_hdr_start_off::BPF_HDR_START_NET},
        helpers::generated::bpf_skb_load_bytes_relative,
        macros::{classifier, map},
        maps::{HashMap, PerCpuArray},
        programs::TcContext,
    };
    use mobile_ebpf_common::{Address, map::GUARDED_ENTRIES};

    /// The persistent addresses; an IPv4 address is IPv4-mapped.
    #[map]
    static GUARDED: HashMap<Address, u8> = HashMap::with_max_entries(GUARDED_ENTRIES, 0);

    /// The number of dropped packets.
    #[map]
    static DROPPED: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

    /// The verdict TCX_NEXT: continue with other classifiers.
    const NEXT: i32 = -1;
    /// The verdict TCX_DROP: drop the packet.
    const DROP: i32 = 2;

    /// The EtherTypes, in network byte order.
    const IPV4: u32 = 0x0800_u16.to_be() as u32;
    const IPV6: u32 = 0x86dd_u16.to_be() as u32;
    const ARP: u32 = 0x0806_u16.to_be() as u32;

    const IPPROTO_HOPOPTS: u8 = 0;
    const IPPROTO_ICMP: u8 = 1;
    const IPPROTO_ROUTING: u8 = 43;
    const IPPROTO_FRAGMENT: u8 = 44;
    const IPPROTO_ICMPV6: u8 = 58;
    const IPPROTO_DSTOPTS: u8 = 60;

    /// The maximum number of IPv6 extension headers that are skipped.
    const HEADERS: u32 = 6;

    /// The length of an ICMP or ICMPv6 error's header before the quoted packet, in bytes.
    const ERROR: u32 = 8;

    #[classifier]
    fn mobile_ingress(ctx: TcContext) -> i32 {
        // SAFETY: the context of a classifier is a valid __sk_buff.
        let foreign = match unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).protocol } {
            IPV4 => is_foreign_ipv4(&ctx),
            IPV6 => is_foreign_ipv6(&ctx),
            ARP => is_foreign_arp(&ctx),
            _ => None,
        };
        if foreign != Some(true) {
            return NEXT;
        }
        if let Some(count) = DROPPED.get_ptr_mut(0) {
            // SAFETY: the pointer is this CPU's counter, and classifiers do not preempt each other.
            unsafe { *count += 1 };
        }
        DROP
    }

    /// Returns whether to drop an IPv4 packet: one to a persistent address, or an ICMP error that
    /// quotes such an address. Returns `None` if the packet is too short; the kernel then drops it.
    #[inline(always)]
    fn is_foreign_ipv4(ctx: &TcContext) -> Option<bool> {
        if is_guarded(Address::mapped(load(ctx, 16)?)) {
            return Some(true);
        }
        if load::<u8>(ctx, 9)? != IPPROTO_ICMP {
            return Some(false);
        }
        let fragment = u16::from_be(load(ctx, 6)?);
        // Destination unreachable, source quench, redirect, time exceeded, parameter problem.
        let header = u32::from(load::<u8>(ctx, 0)? & 0xf) * 4;
        if fragment & 0x1fff != 0 || !matches!(load::<u8>(ctx, header)?, 3 | 4 | 5 | 11 | 12) {
            return Some(false);
        }
        // The quoted source may be in a later fragment, so drop a fragmented error. ICMPv6 errors
        // fit the smallest MTU, so only a forger fragments them.
        let more = fragment & 0x2000 != 0;
        Some(more || is_guarded(Address::mapped(load(ctx, header + ERROR + 12)?)))
    }

    /// Returns whether to drop an IPv6 packet: one to a persistent address, or an ICMPv6 error that
    /// quotes such an address. Returns `None` if the packet is too short; the kernel then drops it.
    #[inline(always)]
    fn is_foreign_ipv6(ctx: &TcContext) -> Option<bool> {
        if is_guarded(Address(load(ctx, 24)?)) {
            return Some(true);
        }
        let (mut next, mut at, mut fragment) = (load::<u8>(ctx, 6)?, 40, false);
        for _ in 0..HEADERS {
            let length = match next {
                IPPROTO_HOPOPTS | IPPROTO_ROUTING | IPPROTO_DSTOPTS => {
                    (u32::from(load::<u8>(ctx, at + 1)?) + 1) * 8
                }
                IPPROTO_FRAGMENT => {
                    if u16::from_be(load(ctx, at + 2)?) & 0xfff8 != 0 {
                        return Some(false);
                    }
                    fragment = true;
                    8
                }
                _ => break,
            };
            next = load(ctx, at)?;
            at += length;
        }
        if next != IPPROTO_ICMPV6 || !matches!(load::<u8>(ctx, at)?, 1..=4) {
            return Some(false);
        }
        Some(fragment || is_guarded(Address(load(ctx, at + ERROR + 8)?)))
    }

    /// Returns whether to drop an ARP packet: one for IPv4 over Ethernet whose target is a
    /// persistent address.
    #[inline(always)]
    fn is_foreign_arp(ctx: &TcContext) -> Option<bool> {
        let lengths: [u8; 2] = load(ctx, 4)?;
        Some(lengths == [6, 4] && is_guarded(Address::mapped(load(ctx, 24)?)))
    }

    #[inline(always)]
    fn is_guarded(address: Address) -> bool {
        // SAFETY: the value is not read.
        unsafe { GUARDED.get(&address) }.is_some()
    }

    /// Reads a value at `offset` from the network header. The start of the packet would not do,
    /// because some devices have no link-layer header.
    #[inline(always)]
    fn load<T: Copy>(ctx: &TcContext, offset: u32) -> Option<T> {
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: the helper takes the context and writes as many bytes as the value has.
        let result = unsafe {
            bpf_skb_load_bytes_relative(
                ctx.as_ptr(),
                offset,
                value.as_mut_ptr().cast(),
                size_of::<T>() as u32,
                BPF_HDR_START_NET,
            )
        };
        // SAFETY: all bytes were written, and every caller's T is made of integers.
        (result == 0).then(|| unsafe { value.assume_init() })
    }
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier rejects a program that could get here.
    loop {}
}

/// The licence of the program: some helpers require a GPL-compatible one.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
