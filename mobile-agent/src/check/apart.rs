//! What can only be known by trying, tried where nobody notices: in namespaces of its own, which go with their thread.

use std::path::{Path, PathBuf};

use anyhow::Context;
use mobile_io::tun::Tun;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::config::Config;
use crate::selection::bpf::{self, Marking, Selector};
use crate::selection::cgroup::MobileCgroup;

/// What the trial device is called; nobody else sees it.
const DEVICE: &str = "mobile-check";

/// Loads and attaches the real programs, as the agent does, and takes them away again. They are for a cgroup without
/// processes and a network namespace without sockets.
pub(super) fn try_programs(config: &Config) -> Result<(), String> {
    let (pin_dir, cgroup) = beside(config)?;
    let marking = Marking { mark: config.routing.mark, mask: config.routing.mark_mask, log: false };
    apart(move || {
        let cgroup = MobileCgroup::ensure(Some(&cgroup))?;
        let loaded = Selector::load_or_adopt(&pin_dir, &cgroup, marking).map(drop);
        let removed = bpf::remove(&pin_dir);
        let left = cgroup.remove();
        loaded?;
        removed?;
        Ok(left?)
    })
}

/// Opens a TUN as the agent does, with packets whole (IFF_VNET_HDR).
pub(super) fn try_tun() -> Result<(), String> {
    apart(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let _entered = runtime.enter();
        Ok(Tun::open(DEVICE, false).map(drop)?)
    })
}

/// Names that are this process's alone, where the configured ones are.
fn beside(config: &Config) -> Result<(PathBuf, PathBuf), String> {
    let cgroup = match &config.cgroup.path {
        Some(path) => path.clone(),
        None => {
            let cgroup2 = crate::selection::cgroup::Cgroup2::find(None).map_err(|error| error.to_string())?;
            cgroup2.mount().join("mobile")
        }
    };
    let own = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        path.with_file_name(format!("{name}-check-{}", std::process::id()))
    };
    Ok((own(&config.bpf.pin_dir), own(&cgroup)))
}

fn apart(work: impl FnOnce() -> anyhow::Result<()> + Send + 'static) -> Result<(), String> {
    let thread = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("cannot make namespaces")?;
        // What is mounted in here (a BPF file system, where there is none) is seen in here only.
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
            .context("cannot make mounts private")?;
        work()
    });
    match thread.join() {
        Ok(done) => done.map_err(|error| crate::cli::story(&error)),
        Err(_) => Err("it panicked".to_owned()),
    }
}
