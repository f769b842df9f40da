//! Describes the machine on which figures were measured.

use std::fs;
use std::num::NonZero;
use std::thread::available_parallelism;

/// Returns the machine's processor, number of cores and kernel as text.
pub(crate) fn describe() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = available_parallelism().map_or(1, NonZero::get);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let model = model.unwrap_or(std::env::consts::ARCH);
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

/// Returns the machine's load average of the last minute.
pub(crate) fn load() -> String {
    let loads = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    loads.split(' ').next().unwrap_or_default().to_owned()
}
