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
    bpf_error::{BpfError, Result, map_error},
};

/// The eBPF map of the networks that mobile processes reach without the tunnel.
pub(super) struct BypassMap {
    map: LpmTrie<MapData, Address, u8>,
    /// The number of networks that were refused because the map was full.
    refused: u64,
}

impl BypassMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf.take_map(map::BYPASS).ok_or(BpfError::Missing(map::BYPASS))?;
        let map = LpmTrie::try_from(map).map_err(map_error(map::BYPASS))?;
        Ok(Self { map, refused: 0 })
    }

    pub(super) fn add(&mut self, net: IpNet) -> Result<()> {
        self.map.insert(&prefix(net), &1, 0).map_err(|error| match &error {
            MapError::SyscallError(call) if call.io_error.raw_os_error() == Some(nix::libc::ENOSPC) => {
                self.refused += 1;
                BpfError::Full {
                    name: map::BYPASS,
                    entries: map::BYPASS_ENTRIES,
                    next_step: "bypass larger networks instead of many small ones",
                }
            }
            _ => map_error(map::BYPASS)(error),
        })
    }

    pub(super) fn remove(&mut self, net: IpNet) -> Result<()> {
        self.map.remove(&prefix(net)).map_err(map_error(map::BYPASS))
    }

    /// Returns how many networks were refused since the map was loaded, because it was full.
    pub(super) fn refused(&self) -> u64 {
        self.refused
    }
}

fn prefix(net: IpNet) -> Key<Address> {
    // The first 96 bits of an IPv4-mapped address are always the same.
    let length = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
    Key::new(length, packed(net.network()))
}
