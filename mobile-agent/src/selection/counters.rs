//! The counters of the eBPF programs: their decisions about marks, and other events.

use aya::{
    Ebpf,
    maps::{MapData, PerCpuArray},
};
use mobile_ebpf_common::{CountedEvent, MarkVerdict, map};

use super::bpf_error::{BpfError, Result, map_error};

/// The eBPF maps of the counters, each with one value for each CPU.
pub(super) struct Counters {
    verdicts: PerCpuArray<MapData, u64>,
    events: PerCpuArray<MapData, u64>,
}

impl Counters {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self { verdicts: counters(ebpf, map::VERDICTS)?, events: counters(ebpf, map::EVENTS)? })
    }

    /// Returns how many times the eBPF programs made each decision about a socket's mark since they
    /// were first loaded.
    pub(super) fn verdicts(&self) -> Result<Vec<(MarkVerdict, u64)>> {
        let sum = |verdict: MarkVerdict| Ok((verdict, sum(&self.verdicts, verdict.index(), map::VERDICTS)?));
        MarkVerdict::COUNTED.into_iter().map(sum).collect()
    }

    /// Returns how many times each event that the eBPF programs count occurred since they were
    /// first loaded.
    pub(super) fn events(&self) -> Result<Vec<(CountedEvent, u64)>> {
        let sum = |event: CountedEvent| Ok((event, sum(&self.events, event.index(), map::EVENTS)?));
        CountedEvent::ALL.into_iter().map(sum).collect()
    }
}

fn counters(ebpf: &mut Ebpf, name: &'static str) -> Result<PerCpuArray<MapData, u64>> {
    let map = ebpf.take_map(name).ok_or(BpfError::Missing(name))?;
    PerCpuArray::try_from(map).map_err(map_error(name))
}

fn sum(counters: &PerCpuArray<MapData, u64>, index: u32, name: &'static str) -> Result<u64> {
    Ok(counters.get(&index, 0).map_err(map_error(name))?.iter().sum())
}
