//! Judges the kernel, and the kernel objects that the agent needs.

use mobile_host::check::Finding;

use super::needs_root;
use crate::check::facts::{Bpffs, Occupied, Platform};
use crate::selection::oldest_kernel::{OLDEST, OLDEST_LONGTERM};

/// The first kernel with the socket option `TCP_RTO_MAX_MS`, with which mobile sockets retransmit
/// within 10 s after an outage.
const BOUNDED_RTO_KERNEL: (u32, u32) = (6, 15);

const NO_BPF: &str = "check that the kernel has CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF, and that neither a container \
                      nor kernel lockdown forbids bpf(2) to root";

/// Judges the kernel objects that the agent needs; `root` tells whether root runs the check.
pub(super) fn objects(platform: &Platform, root: bool) -> Vec<Finding> {
    let mut findings = vec![match &platform.cgroup2 {
        Ok(mount) => Finding::ok("cgroup2", format!("mounted at {}", mount.display())),
        Err(error) => {
            Finding::fail("cgroup2", error, "correct this as the message says: the agent needs it to start")
        }
    }];
    findings.push(bpffs(platform.bpffs));
    findings.push(programs(platform, root));
    findings.extend(platform.control.as_ref().map(|error| {
        Finding::fail("control", error, "correct [control] socket or group: the agent needs it to start")
    }));
    findings.extend(platform.metrics.as_ref().map(metrics));
    findings.push(match &platform.tun {
        Some(Ok(())) => Finding::ok("TUN", "a device with segmentation offload (IFF_VNET_HDR) can be opened"),
        Some(Err(error)) => {
            Finding::fail("TUN", error, "correct this as the message says: the agent needs it to start")
        }
        None => needs_root("TUN", "the TUN device"),
    });
    findings.extend(in_use(platform));
    findings
}

fn metrics(occupied: &Occupied) -> Finding {
    let Occupied { address, error } = occupied;
    match error {
        None => Finding::fail(
            "metrics",
            format!("{address} is in use by another program"),
            "stop that program, or choose another port in [metrics] listen",
        ),
        Some(error) => Finding::fail(
            "metrics",
            format!("cannot listen on {address}: {}", error.as_str()),
            "set [metrics] listen to an address of this host",
        ),
    }
}

/// Judges what the configuration shares with running agents of other configurations.
fn in_use(platform: &Platform) -> Vec<Finding> {
    match &platform.in_use {
        Some(Ok(running)) => {
            running.iter().map(|agent| Finding::fail("agents", agent.what(), agent.next_step())).collect()
        }
        Some(Err(error)) => vec![Finding::warn(
            "agents",
            format!("cannot find out which agents run on this machine: {error}"),
            "correct this as the message says: the agent needs it to start",
        )],
        None => Vec::new(),
    }
}

fn programs(platform: &Platform, root: bool) -> Finding {
    match &platform.programs {
        Some(Ok(())) => Finding::ok("eBPF", "the programs load and attach"),
        Some(Err(error)) => Finding::fail("eBPF", error, NO_BPF),
        None if root => {
            let next = "mount cgroup2, then run `mobile check` again";
            Finding::warn("eBPF", "not checked, because cgroup2 is not mounted", next)
        }
        None => needs_root("eBPF", "whether the programs load and attach"),
    }
}

/// Judges the release of the running kernel.
pub(super) fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Finding::warn(
            "kernel",
            format!("the kernel release {release:?} has no version number, such as 6.12"),
            format!("check that it is Linux {OLDEST_LONGTERM} or later"),
        );
    };
    let version = (major, minor);
    if version < OLDEST {
        let seen = format!(
            "Linux {release} is too old: it cannot identify network namespaces (SO_NETNS_COOKIE, 5.14)"
        );
        let next = format!("install Linux {OLDEST_LONGTERM} or later");
        return Finding::fail("kernel", seen, next);
    }
    let slow = if version < BOUNDED_RTO_KERNEL {
        "; before 6.15 a mobile TCP connection may stay silent for up to two minutes after a long outage"
    } else {
        ""
    };
    let oldest =
        format!("the oldest supported series is {OLDEST_LONGTERM}, because of SO_NETNS_COOKIE (5.14)");
    Finding::ok("kernel", format!("Linux {release}; {oldest}{slow}"))
}

fn bpffs(bpffs: Bpffs) -> Finding {
    match bpffs {
        Bpffs::Mounted => Finding::ok("bpffs", "mounted"),
        Bpffs::Mountable => Finding::ok("bpffs", "not mounted yet: the agent mounts it at /sys/fs/bpf"),
        Bpffs::Elsewhere => Finding::fail(
            "bpffs",
            "[bpf] pin_dir is not on a BPF file system",
            "set [bpf] pin_dir to a directory below /sys/fs/bpf",
        ),
        Bpffs::Missing => Finding::fail(
            "bpffs",
            "the kernel has no BPF file system",
            "use a kernel with CONFIG_BPF_SYSCALL",
        ),
    }
}
