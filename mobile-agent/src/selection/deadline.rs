//! Until when mobile processes go by the tunnel, whatever becomes of it: `[routing] on_failure = "open"`.
//!
//! The programs compare a time in a map with the clock. The agent puts it off while there is a session; when it does not,
//! because there is none, or because nobody is alive to do it, new connections go directly, until it does again.

use std::{path::Path, time::Duration};

use aya::{
    Ebpf,
    maps::{Array, Map, MapData},
};
use mobile_ebpf_common::map;
use nix::time::{ClockId, clock_gettime};

use super::{
    bpf_error::{BpfError, Result},
    pins,
};
use crate::config::OnFailure;

/// How long there may be no session before new connections go directly: more than a handover takes, also one that has to
/// wait for DHCP, and less than a person at a browser.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// How often the deadline is put off: so that a killed agent leaves half of [`GRACE`] at least, and an idle host sleeps.
pub(crate) const RENEWAL: Duration = Duration::from_secs(5);

/// The programs' map.
pub(super) struct DeadlineMap(Array<MapData, u64>);

impl DeadlineMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf.take_map(map::DEADLINE).ok_or(BpfError::Missing(map::DEADLINE))?;
        let array = Array::try_from(map).map_err(failed)?;
        Ok(Self(array))
    }

    /// From now on for [`GRACE`], or for ever.
    pub(super) fn put_off(&mut self, on_failure: OnFailure) -> Result<()> {
        let deadline = match on_failure {
            OnFailure::Closed => map::NO_DEADLINE,
            OnFailure::Open => now()?.saturating_add(GRACE.as_nanos() as u64),
        };
        self.0.set(0, &deadline, 0).map_err(failed)
    }
}

/// Whether mobile processes go directly now, by the programs in force; `None`: there are none, or this user may not see.
pub(crate) fn is_over(pin_dir: &Path) -> Option<bool> {
    let latest = pins::generations(pin_dir).ok()?.pop()?;
    let data = MapData::from_pin(pins::pin(&latest, "map", map::DEADLINE)).ok()?;
    let array = Array::<_, u64>::try_from(Map::Array(data)).ok()?;
    Some(now().ok()? > array.get(&0, 0).ok()?)
}

/// What `bpf_ktime_get_ns` gives.
fn now() -> Result<u64> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(|errno| BpfError::Io {
        action: "read",
        path: "CLOCK_MONOTONIC".into(),
        source: errno.into(),
    })?;
    Ok(Duration::from(time).as_nanos() as u64)
}

fn failed(source: aya::maps::MapError) -> BpfError {
    BpfError::Map { name: map::DEADLINE, source }
}
