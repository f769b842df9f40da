//! Processor time and memory of processes, from /proc.

use std::fs;

use anyhow::{Context as _, Result};

/// The processor time and the context switches of a process since its start.
pub(crate) struct CpuUsage {
    /// The number of context switches, which happen when a thread waits or is preempted.
    pub(crate) switches: u64,
    pub(crate) nanoseconds: u64,
}

impl CpuUsage {
    /// Reads the processor usage of one process.
    pub(crate) fn of(pid: i32) -> Result<Self> {
        let mut cpu_usage = Self { switches: 0, nanoseconds: 0 };
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let task = task?.path();
            cpu_usage.switches += switches(&fs::read_to_string(task.join("status"))?);
            let schedstat =
                fs::read_to_string(task.join("schedstat")).context("this kernel has no schedstat")?;
            let first = schedstat.split_whitespace().next().context("an empty schedstat")?;
            cpu_usage.nanoseconds += first.parse::<u64>()?;
        }
        Ok(cpu_usage)
    }

    /// Returns the processor time in nanoseconds since `then`.
    pub(crate) fn nanoseconds_since(&self, then: &Self) -> f64 {
        self.nanoseconds.saturating_sub(then.nanoseconds) as f64
    }

    /// Reads the sum of the processor usage of a process and all its running descendants.
    pub(crate) fn of_tree(pid: i32) -> Result<Self> {
        let mut cpu_usage = Self::of(pid)?;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            for child in children.split_whitespace() {
                // The child may have ended meanwhile.
                let Ok(child) = Self::of_tree(child.parse()?) else { continue };
                cpu_usage.switches += child.switches;
                cpu_usage.nanoseconds += child.nanoseconds;
            }
        }
        Ok(cpu_usage)
    }
}

/// Returns the sum of the peak resident memory of a process and its descendants, in bytes.
pub(crate) fn peak_of_tree(pid: i32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("VmHWM:{line}"))?;
    let mut bytes = kib * 1024;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace() {
            // The child may have ended meanwhile.
            bytes += peak_of_tree(child.parse()?).unwrap_or(0);
        }
    }
    Ok(bytes)
}

/// Returns the sum of voluntary and involuntary context switches in the text of /proc/PID/status.
fn switches(status: &str) -> u64 {
    let lines = status.lines().filter_map(|line| line.split_once("voluntary_ctxt_switches:"));
    lines.filter_map(|(_, count)| count.trim().parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn voluntary_and_involuntary_switches_count() {
        assert_eq!(switches("Name:\tx\nvoluntary_ctxt_switches:\t40\nnonvoluntary_ctxt_switches:\t2\n"), 42);
    }

    #[test]
    fn the_usage_of_this_process_can_be_read_and_grows() {
        let own = i32::try_from(std::process::id()).unwrap();
        let before = CpuUsage::of(own).unwrap();
        sleep(Duration::from_millis(2));
        let after = CpuUsage::of(own).unwrap();
        assert!(after.switches > before.switches, "{} {}", before.switches, after.switches);
        assert!(after.nanoseconds >= before.nanoseconds);
    }

    #[test]
    fn memory_is_more_than_a_megabyte_and_less_than_all() {
        let peak = peak_of_tree(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!((1 << 20..1 << 34).contains(&peak), "{peak}");
    }

    #[test]
    fn the_usage_of_a_tree_includes_its_children() {
        let own = i32::try_from(std::process::id()).unwrap();
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        sleep(Duration::from_millis(50));
        let (alone, both) = (CpuUsage::of(own).unwrap(), CpuUsage::of_tree(own).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(
            both.nanoseconds > alone.nanoseconds + 1_000_000,
            "{} {}",
            both.nanoseconds,
            alone.nanoseconds
        );
    }
}
