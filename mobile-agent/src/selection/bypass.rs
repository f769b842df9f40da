//! The eBPF map of the networks that mobile processes reach without the tunnel: see `is_bypassed`
//! in `mobile-ebpf/src/maps.rs`.

use aya::{
    Ebpf,
    maps::{LpmTrie, MapData, MapError, lpm_trie::Key},
};
use ipnet::IpNet;
use mobile_ebpf_common::{Address, map};

use super::{
    addresses::packed,
    bpf_error::{BpfError, Result},
};

/// The eBPF map of the networks that mobile processes reach without the tunnel.
pub(super) struct BypassMap(LpmTrie<MapData, Address, u8>);

impl BypassMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf.take_map(map::BYPASS).ok_or(BpfError::Missing(map::BYPASS))?;
        LpmTrie::try_from(map).map(Self).map_err(failed(map::BYPASS))
    }

    pub(super) fn add(&mut self, net: IpNet) -> Result<()> {
        self.0.insert(&prefix(net), &1, 0).map_err(|error| match &error {
            MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                BpfError::Full {
                    name: map::BYPASS,
                    entries: map::BYPASS_ENTRIES,
                    next_step: "bypass larger networks instead of many small ones",
                }
            }
            _ => failed(map::BYPASS)(error),
        })
    }

    pub(super) fn remove(&mut self, net: IpNet) -> Result<()> {
        self.0.remove(&prefix(net)).map_err(failed(map::BYPASS))
    }
}

fn prefix(net: IpNet) -> Key<Address> {
    // The first 96 bits of an IPv4-mapped address are always the same.
    let length = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
    Key::new(length, packed(net.network()))
}

fn failed(name: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { name, source }
}
