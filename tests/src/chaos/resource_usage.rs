//! The memory and the file descriptors that a process uses over time.

use std::fs;

use anyhow::{Context, Result, ensure};

/// The allowed growth of a process's memory, as a factor and as an addition in bytes. The factor
/// covers memory that the allocator keeps after a burst, since bursts differ; 8 MiB cover a queue
/// that happened to be full at the last measurements.
const MEMORY_FACTOR: f64 = 1.2;
const MEMORY_SLACK: u64 = 8 << 20;

/// The allowed growth of a process's count of file descriptors: three uplinks, each with a new path
/// beside a dying one.
const DESCRIPTOR_SLACK: u64 = 6;

/// One measurement of a process: its resident memory in bytes and its count of file descriptors.
#[derive(Debug, Clone, Copy)]
struct Sample {
    rss: u64,
    descriptors: u64,
}

/// The measurements of one process over time.
#[derive(Debug)]
pub(super) struct ResourceUsage {
    name: &'static str,
    pid: Option<i32>,
    samples: Vec<Sample>,
}

impl ResourceUsage {
    /// Creates a series of measurements, still empty, for the program `name`.
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, pid: None, samples: Vec::new() }
    }

    /// Measures the process `pid`. Fails if it is gone or is another process than at the last
    /// measurement.
    pub(super) fn sample(&mut self, pid: Option<i32>) -> Result<()> {
        let pid = pid.with_context(|| format!("{} is not running", self.name))?;
        ensure!(
            *self.pid.get_or_insert(pid) == pid,
            "{} was restarted: its process id has changed",
            self.name
        );
        let sample = read_sample(pid).with_context(|| format!("{} is gone", self.name))?;
        self.samples.push(sample);
        Ok(())
    }

    /// Compares the medians of the first and the last quarter of the measurements.
    ///
    /// Returns a description of both medians, or an error if memory or descriptors have grown
    /// beyond the allowed growth.
    pub(super) fn check_growth(&self) -> Result<String> {
        let quarter = self.samples.len() / 4;
        ensure!(quarter > 0, "{} has too few samples: {}", self.name, self.samples.len());
        let (first, last) = (&self.samples[..quarter], &self.samples[self.samples.len() - quarter..]);
        let (rss, descriptors) = (
            [first, last].map(|part| median(part, |sample| sample.rss)),
            [first, last].map(|part| median(part, |sample| sample.descriptors)),
        );
        let words = format!(
            "{}: memory {} -> {} KiB, descriptors {} -> {}",
            self.name,
            rss[0] >> 10,
            rss[1] >> 10,
            descriptors[0],
            descriptors[1]
        );
        ensure!(rss[1] <= (rss[0] as f64 * MEMORY_FACTOR) as u64 + MEMORY_SLACK, "memory grew: {words}");
        ensure!(descriptors[1] <= descriptors[0] + DESCRIPTOR_SLACK, "descriptors grew: {words}");
        Ok(words)
    }
}

fn read_sample(pid: i32) -> Result<Sample> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB"))
        // A zombie has no VmRSS line.
        .context("no VmRSS: the process has ended")?;
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
    Ok(Sample { rss: rss.trim().parse::<u64>()? << 10, descriptors })
}

fn median(samples: &[Sample], value: impl Fn(&Sample) -> u64) -> u64 {
    let mut values: Vec<u64> = samples.iter().map(value).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource_usage(samples: impl IntoIterator<Item = (u64, u64)>) -> ResourceUsage {
        let samples = samples.into_iter().map(|(rss, descriptors)| Sample { rss: rss << 20, descriptors });
        ResourceUsage { name: "it", pid: Some(1), samples: samples.collect() }
    }

    #[test]
    fn a_leak_is_growth_and_a_burst_is_not() {
        resource_usage((0..100).map(|number| (if number % 10 == 0 { 60 } else { 20 }, 12)))
            .check_growth()
            .unwrap();
        let error = resource_usage((0..100).map(|number| (20 + number / 4, 12))).check_growth().unwrap_err();
        assert!(error.to_string().starts_with("memory grew"), "{error}");
        let error = resource_usage((0..100).map(|number| (20, 12 + number / 10))).check_growth().unwrap_err();
        assert!(error.to_string().starts_with("descriptors grew"), "{error}");
        resource_usage([]).check_growth().unwrap_err();
    }

    #[test]
    fn sampling_a_dead_or_replaced_process_fails() {
        let mut own = ResourceUsage::new("this");
        let pid = i32::try_from(std::process::id()).unwrap();
        own.sample(Some(pid)).unwrap();
        assert!(own.samples[0].rss > 1 << 20 && own.samples[0].descriptors >= 3);
        own.sample(Some(1)).unwrap_err();
        own.sample(None).unwrap_err();
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = i32::try_from(child.id()).unwrap();
        crate::wait::until("its end", || read_sample(dead).is_err()).unwrap();
        child.wait().unwrap();
    }
}
