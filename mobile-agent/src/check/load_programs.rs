//! Checks whether the eBPF programs load and attach, by loading them in a namespace where they
//! affect no process.

use std::path::{Path, PathBuf};

use mobile_host::isolation::run_isolated;

use super::fact_error::FactError;
use crate::config::{Config, OnFailure};
use crate::selection::addresses::Addresses;
use crate::selection::bpf::{self, Marking, Selector};
use crate::selection::cgroup::{Cgroup2, CgroupError, MobileCgroup};

/// Loads and attaches the eBPF programs as the agent does, and removes them again. The programs
/// apply to a new cgroup without processes and a new network namespace without sockets.
pub(super) fn try_load(config: &Config) -> Result<(), FactError> {
    let (pin_dir, cgroup) = unique_names(config).map_err(|error| FactError::of(&error))?;
    let (mark, mask) = (config.routing.mark, config.routing.mark_mask);
    let configured = config.bpf.pin_dir.clone();
    let result = run_isolated(move || -> anyhow::Result<()> {
        // No packet is sent in that namespace, so the destinations and the addresses do not matter.
        let marking = Marking {
            mark,
            mask,
            log: false,
            device: 1,
            bypass: &[],
            resolvers: Addresses::default(),
            persistent: Addresses::default(),
            on_failure: OnFailure::Closed,
        };
        // A directory created beside `pin_dir` may be safe although `pin_dir` itself is not, so
        // check `pin_dir` too.
        bpf::assert_pins_are_ours(&configured)?;
        let cgroup = MobileCgroup::ensure(Some(&cgroup))?;
        let loaded = Selector::load_or_adopt(&pin_dir, &cgroup, marking).map(drop);
        // Remove both whatever the result of loading, which is the first error to report.
        let removed = bpf::remove(&pin_dir);
        let left = cgroup.remove();
        loaded?;
        removed?;
        Ok(left?)
    });
    match result {
        Ok(result) => result.map_err(|error| mobile_host::error_chain(&error).into()),
        Err(error) => Err(format!("cannot create namespaces for the test: {error}").into()),
    }
}

/// Returns a pin directory and a cgroup with names that contain the process ID and are thus unique,
/// beside the configured ones.
fn unique_names(config: &Config) -> Result<(PathBuf, PathBuf), CgroupError> {
    let cgroup = match &config.cgroup.path {
        Some(path) => path.clone(),
        None => Cgroup2::find(None)?.mount().join("mobile"),
    };
    let own = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!("{name}-check-{}", std::process::id()))
    };
    Ok((own(&config.bpf.pin_dir), own(&cgroup)))
}
