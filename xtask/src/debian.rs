//! Installs Debian packages only for their programs: none of their services is started, neither at
//! once nor at the next boot.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::shell;

/// Returns whether this system is Debian or derived from it, with apt-get.
pub(crate) fn is_debian() -> bool {
    fs::read_to_string("/etc/os-release").is_ok_and(|text| os_is_debian(&text))
        && shell::find("apt-get").is_some()
}

/// Runs `apt-get install`, which requires root.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    let _guard = ServiceStartBlock::new()?;
    let enabled_before = enabled_units();
    shell::run(apt().arg("update").arg("-q"))?;
    shell::run(apt().args(["install", "-y", "-q", "--no-install-recommends"]).args(packages))?;
    for unit in enabled_units() {
        if !enabled_before.contains(&unit) {
            shell::run(Command::new("systemctl").args(["disable", "--quiet", &unit]))?;
        }
    }
    Ok(())
}

/// Keeps Debian packages from starting services during installation, by a `policy-rc.d` that
/// forbids it; dropping the value removes the file.
struct ServiceStartBlock {
    /// Whether this value created the file `policy-rc.d`. A policy that the machine already had
    /// stays.
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl ServiceStartBlock {
    fn new() -> Result<Self> {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o755).open(POLICY);
        match file {
            Ok(mut file) => {
                let ours = Self { ours: true };
                // Exit code 101 means that the policy forbids the action.
                std::io::Write::write_all(&mut file, b"#!/bin/sh\nexit 101\n")
                    .with_context(|| format!("cannot write {POLICY}"))?;
                Ok(ours)
            }
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self { ours: false }),
            Err(error) => Err(error).with_context(|| format!("cannot create {POLICY}")),
        }
    }
}

impl Drop for ServiceStartBlock {
    fn drop(&mut self) {
        if self.ours
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!(
                "xtask: cannot remove {POLICY}: {error}: remove it, otherwise no package can start its services"
            );
        }
    }
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    apt
}

/// Returns the units that systemd starts at boot, or nothing if systemd is not running.
fn enabled_units() -> Vec<String> {
    if !Path::new("/run/systemd/system").is_dir() {
        return Vec::new();
    }
    let list = ["list-unit-files", "--state=enabled", "--type=service,socket", "--no-legend", "--no-pager"];
    let listed = shell::output(Command::new("systemctl").args(list)).unwrap_or_default();
    listed.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn os_is_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.strip_prefix("ID=").or_else(|| line.strip_prefix("ID_LIKE=")))
        .any(|value| value.trim_matches('"').split_whitespace().any(|id| id == "debian"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_derivatives_are_recognised() {
        assert!(os_is_debian("NAME=\"Debian GNU/Linux\"\nID=debian\n"));
        assert!(os_is_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(os_is_debian("ID=mint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!os_is_debian("ID=fedora\nHOME_URL=\"https://debian\"\n"));
    }
}
