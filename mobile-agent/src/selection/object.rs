//! Loads the object file of the eBPF programs, with the maps that the programs of the last agent
//! leave to the new ones.

use std::path::PathBuf;

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{MapData, MapError},
};
use mobile_ebpf_common::map;

use super::{
    bpf_error::{BpfError, Result},
    pins::{self, Generation},
};

/// The object file built from the crate `mobile-ebpf`.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mobile-ebpf"));

/// The name of a constant in the object file: whether the kernel can recognise MPTCP subflows.
const RECOGNISES_SUBFLOWS: &str = "RECOGNISES_SUBFLOWS";

/// The eBPF maps that a new agent's programs take over from those of the last agent.
const INHERITED_MAPS: [&str; 7] = [
    map::VERDICTS,
    map::EVENTS,
    map::QUERIES,
    map::MPTCP_CONNECTIONS,
    map::ANY_MPTCP,
    map::OWNERS,
    map::ACCOUNTS,
];

/// Loads the object file. Its programs get the maps of [`INHERITED_MAPS`] from the last of the
/// generations `older`, and pins for these maps in `generation`.
pub(super) fn load(older: &[PathBuf], generation: &Generation, recognises_subflows: bool) -> Result<Ebpf> {
    for name in INHERITED_MAPS {
        inherit_map(name, older, generation);
    }
    load_object(generation, recognises_subflows)
}

/// Pins the eBPF map `name` of the last agent's programs among the pins of the new programs, so
/// that the loader reuses it.
fn inherit_map(name: &str, older: &[PathBuf], generation: &Generation) {
    let to = generation.path("map", name);
    // A generation of an earlier version may lack the map.
    for from in older.iter().rev().map(|dir| pins::pin(dir, "map", name)).filter(|from| from.exists()) {
        match MapData::from_pin(&from)
            .map_err(|e| e.to_string())
            .and_then(|m| m.pin(&to).map_err(|e| e.to_string()))
        {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(map = %from.display(), error, "cannot take over a map of the earlier agent");
            }
        }
    }
}

fn load_object(generation: &Generation, recognises_subflows: bool) -> Result<Ebpf> {
    let pins = INHERITED_MAPS.map(|name| (name, generation.path("map", name)));
    let subflows = u8::from(recognises_subflows);
    let load = || {
        let mut loader = EbpfLoader::new();
        loader.override_global(RECOGNISES_SUBFLOWS, &subflows, true);
        for (name, path) in &pins {
            loader.map_pin_path(name, path.as_path());
        }
        loader.load(OBJECT)
    };
    // Each of the maps may have another layout.
    for _ in INHERITED_MAPS {
        match load() {
            Err(EbpfError::MapError(MapError::IncompatiblePinnedMap { name, property, .. })) => {
                tracing::warn!("discarding pinned map {name}: incompatible {property}");
                let path = generation.path("map", &name);
                std::fs::remove_file(&path).map_err(|source| BpfError::Io {
                    action: "remove",
                    path,
                    source,
                })?;
            }
            result => return Ok(result?),
        }
    }
    Ok(load()?)
}
