//! The eBPF map with the configuration of the programs.

use std::path::PathBuf;

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
};
use mobile_ebpf_common::{ProgramConfig, map};

use super::{
    bpf_error::{BpfError, Result, map_error},
    pins,
};

/// The configuration of the eBPF programs and the map that holds it.
pub(super) struct ConfigMap {
    config: ProgramConfig,
    map: Array<MapData, ProgramConfig>,
}

impl ConfigMap {
    /// Takes the map out of the loaded object and writes the configuration to it.
    pub(super) fn take(ebpf: &mut Ebpf, config: ProgramConfig) -> Result<Self> {
        let map = ebpf.take_map(map::CONFIG).ok_or(BpfError::Missing(map::CONFIG))?;
        let map = Array::try_from(map).map_err(map_error(map::CONFIG))?;
        let mut this = Self { config, map };
        this.write()?;
        Ok(this)
    }

    /// Returns the key by which the eBPF programs recognise the agent when it sets a mark.
    pub(super) fn key(&self) -> u64 {
        self.config.key
    }

    /// Returns the kernel ID of the cgroup of systemd's slice; 0 means no cgroup.
    pub(super) fn slice_id(&self) -> u64 {
        self.config.slice_id
    }

    /// Sets the kernel ID of the cgroup of systemd's slice; 0 means no cgroup.
    pub(super) fn set_slice_id(&mut self, id: u64) -> Result<()> {
        self.config.slice_id = id;
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        self.map.set(0, &self.config, 0).map_err(map_error(map::CONFIG))
    }
}

/// Returns the key by which the last agent's eBPF programs recognise the agent. The new programs
/// get the same key, because the old ones are still in force when the new ones are attached.
/// Returns `None` if there are no old programs or their key cannot be read.
pub(super) fn key_of(older: &[PathBuf]) -> Option<u64> {
    let config = MapData::from_pin(pins::pin(older.last()?, "map", map::CONFIG)).ok()?;
    let config = Array::<_, ProgramConfig>::try_from(Map::Array(config)).ok()?;
    Some(config.get(&0, 0).ok()?.key)
}
