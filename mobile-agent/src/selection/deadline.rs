//! The deadline after which new connections of mobile processes go direct: `[routing] on_failure =
//! "open"`.
//!
//! The eBPF programs compare the deadline, a time in a map, with the clock. The agent extends the
//! deadline while there is a session. Without a session, or without a living agent, the deadline
//! passes, and new connections go direct until the agent extends it again.

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

/// The time without a session after which new connections of mobile processes go direct: longer
/// than a handover that has to wait for DHCP, shorter than a person at a browser waits.
pub(crate) const GRACE_PERIOD: Duration = Duration::from_secs(10);

/// The interval at which the agent extends the deadline after which new connections go direct:
/// short enough that a killed agent leaves at least half of [`GRACE_PERIOD`], long enough that an
/// idle host may sleep.
pub(crate) const RENEWAL_INTERVAL: Duration = Duration::from_secs(5);

/// The eBPF map that holds the time after which new connections of mobile processes use the
/// ordinary route.
pub(super) struct DeadlineMap(Array<MapData, u64>);

impl DeadlineMap {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        let map = ebpf.take_map(map::DEADLINE).ok_or(BpfError::Missing(map::DEADLINE))?;
        let array = Array::try_from(map).map_err(failed)?;
        Ok(Self(array))
    }

    /// Sets the time after which new connections go direct to [`GRACE_PERIOD`] from now, or to
    /// never if `on_failure` is `closed`.
    pub(super) fn extend(&mut self, on_failure: OnFailure) -> Result<()> {
        let deadline = match on_failure {
            OnFailure::Closed => map::NO_DEADLINE,
            OnFailure::Open => now()?.saturating_add(GRACE_PERIOD.as_nanos() as u64),
        };
        self.0.set(0, &deadline, 0).map_err(failed)
    }
}

/// Returns whether the deadline has passed that the running agent keeps extending, so that new
/// connections of mobile processes use the ordinary route (`on_failure = "open"`). Returns `None`
/// if no eBPF programs are in force, or if the user of this process may not read their pins.
pub(crate) fn has_passed(pin_dir: &Path) -> Option<bool> {
    let latest = pins::generations(pin_dir).ok()?.pop()?;
    let data = MapData::from_pin(pins::pin(&latest, "map", map::DEADLINE)).ok()?;
    let array = Array::<_, u64>::try_from(Map::Array(data)).ok()?;
    Some(now().ok()? > array.get(&0, 0).ok()?)
}

/// Returns the time in nanoseconds of CLOCK_MONOTONIC, as the eBPF helper `bpf_ktime_get_ns` does.
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
