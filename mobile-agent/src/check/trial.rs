//! Whether the eBPF programs load and attach is known by doing it, where nobody notices.

use std::path::{Path, PathBuf};

use mobile_io::isolation::run_isolated;

use crate::config::{Config, OnFailure};
use crate::selection::addresses::Addresses;
use crate::selection::bpf::{self, Marking, Selector};
use crate::selection::cgroup::{Cgroup2, CgroupError, MobileCgroup};

/// Loads and attaches the real programs, as the agent does, and takes them away again. They are for a cgroup without
/// processes and a network namespace without sockets.
pub(super) fn try_programs(config: &Config) -> Result<(), String> {
    let (pin_dir, cgroup) = beside(config).map_err(|error| error.to_string())?;
    let (mark, mask) = (config.routing.mark, config.routing.mark_mask);
    let configured = config.bpf.pin_dir.clone();
    let tried = run_isolated(move || -> anyhow::Result<()> {
        // Nothing is sent there, so it is all the same where it may go.
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
        // A directory made beside `pin_dir` may be safe although `pin_dir` itself is not, so check
        // `pin_dir`.
        bpf::assert_pins_are_ours(&configured)?;
        let cgroup = MobileCgroup::ensure(Some(&cgroup))?;
        let loaded = Selector::load_or_adopt(&pin_dir, &cgroup, marking).map(drop);
        // Both go whatever came of it; and what came of it is the answer.
        let removed = bpf::remove(&pin_dir);
        let left = cgroup.remove();
        loaded?;
        removed?;
        Ok(left?)
    });
    match tried {
        Ok(tried) => tried.map_err(|error| crate::cli::story(&error)),
        Err(error) => Err(format!("cannot make namespaces to try in: {error}")),
    }
}

/// Names that are this process's alone, where the configured ones are.
fn beside(config: &Config) -> Result<(PathBuf, PathBuf), CgroupError> {
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
