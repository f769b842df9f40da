//! `cargo xtask dist`: builds Debian packages of both programs, archives of the relay for each
//! architecture, and OpenWrt's files.
//!
//! The build is reproducible: the same commit gives the same bytes.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::musl::{self, Arch};
use crate::shell::{self, step};

mod archive;
mod deb;
#[cfg(test)]
mod monitoring;
mod sums;
mod tree;
pub(crate) mod verify;

/// Arguments of `cargo xtask dist`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Gives the packages this version instead of the workspace's
    #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
    version: String,
    /// Packs the two programs in DIR into Debian packages, and builds nothing
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,
    /// Writes everything to this folder instead of target/dist
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Builds the packages and archives and writes their checksums.
pub(crate) fn run(args: &Args) -> Result<()> {
    let out = match &args.out {
        Some(folder) => folder.clone(),
        None => shell::target_dir()?.join("dist"),
    };
    let made = match &args.from {
        Some(folder) => debian(folder, "amd64", &args.version, &out)?,
        None => build_all(&args.version, &out)?,
    };
    sums::write(&made, &out)?;
    for path in made {
        step(&path.display().to_string());
    }
    Ok(())
}

/// Builds Debian packages of both programs for x86_64, and archives of the relay for every
/// architecture, because the relay also runs on routers. Returns the files' paths.
fn build_all(version: &str, out: &Path) -> Result<Vec<PathBuf>> {
    let mut made = Vec::new();
    for arch in [Arch::X86_64, Arch::Aarch64, Arch::Armv7] {
        let only = (arch != Arch::X86_64).then_some("home-relay");
        let built = musl::build(arch, only)?;
        let folder = built.first().and_then(|program| program.parent()).context("nothing was built")?;
        if only.is_none() {
            made.extend(debian(folder, "amd64", version, out)?);
        }
        made.push(archive::build(&PACKAGES[1], arch, folder, version, out)?);
    }
    Ok(made)
}

/// The contents of an installable package of one program, besides the binary.
pub(crate) struct Package {
    /// The package's name in Debian.
    pub(crate) name: &'static str,
    /// The name of the package's program.
    pub(crate) program: &'static str,
    /// The crate's folder, whose `dist/` contains the other installed files.
    pub(crate) folder: &'static str,
    /// The files of the crate's `dist/`, each with the path at which it is installed.
    files: &'static [(&'static str, &'static str)],
}

const UNITS: &str = "usr/lib/systemd/system";

/// The directories in which examples of alert rules and dashboards are installed.
const AGENT_EXAMPLES: &str = "usr/share/doc/mobile-agent/examples";
const RELAY_EXAMPLES: &str = "usr/share/doc/home-relay/examples";

/// The packages of `mobile` and `home-relay`.
pub(crate) const PACKAGES: [Package; 2] = [
    Package {
        name: "mobile-agent",
        program: "mobile",
        folder: "mobile-agent",
        files: &[
            ("mobile.service", UNITS),
            ("mobile-cleanup.service", UNITS),
            ("mobile.slice", UNITS),
            ("mobile-slice.service", UNITS),
            ("alerts.yml", AGENT_EXAMPLES),
            ("dashboard.json", AGENT_EXAMPLES),
        ],
    },
    Package {
        name: "home-relay",
        program: "home-relay",
        folder: "home-relay",
        files: &[
            ("home-relay.service", UNITS),
            ("home-relay-cleanup.service", UNITS),
            ("sysusers.conf", "usr/lib/sysusers.d/home-relay.conf"),
            ("tmpfiles.conf", "usr/lib/tmpfiles.d/home-relay.conf"),
            ("alerts.yml", RELAY_EXAMPLES),
            ("dashboard.json", RELAY_EXAMPLES),
        ],
    },
];

/// Builds Debian packages of the programs in `binaries`, and returns their paths in the order of
/// [`PACKAGES`].
pub(crate) fn debian(binaries: &Path, architecture: &str, version: &str, out: &Path) -> Result<Vec<PathBuf>> {
    PACKAGES
        .iter()
        .map(|package| {
            let root = tree::stage(package, &binaries.join(package.program), out)?;
            deb::build(package, &root, architecture, version, out)
        })
        .collect()
}

/// Returns whether a program is for this machine's architecture, by the e_machine field of its ELF
/// header.
fn is_for_this_machine(program: &Path) -> Result<bool> {
    let machine = |path: &Path| -> Result<[u8; 2]> {
        let mut header = [0; 20];
        std::fs::File::open(path)
            .and_then(|mut file| file.read_exact(&mut header))
            .with_context(|| format!("cannot read {}", path.display()))?;
        Ok([header[18], header[19]])
    };
    Ok(machine(program)? == machine(&std::env::current_exe().context("xtask itself has no path")?)?)
}

/// Returns the time of the git commit in seconds since 1970, which archives use for all their
/// files.
///
/// The environment variable SOURCE_DATE_EPOCH overrides it (see reproducible-builds.org).
fn source_date() -> Result<String> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(given) => Ok(given),
        Err(_) => {
            shell::output(Command::new("git").current_dir(shell::root()).args(["log", "-1", "--format=%ct"]))
                .context("cannot read the commit's time: build in a git clone, or set SOURCE_DATE_EPOCH")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dist(package: &str, file: &str) -> PathBuf {
        shell::root().join(package).join("dist").join(file)
    }

    #[test]
    fn the_units_exposure_scores_are_low() {
        // systemd's exposure score times ten: 0 is the best, 100 the worst.
        for (package, unit, at_most) in
            [("mobile-agent", "mobile.service", 40), ("home-relay", "home-relay.service", 25)]
        {
            let mut analyze = Command::new("systemd-analyze");
            analyze.args(["security", "--offline=yes", "--no-pager", &format!("--threshold={at_most}")]);
            shell::output(analyze.arg(dist(package, unit))).unwrap();
        }
    }

    /// Replacements for the functions of OpenWrt's rc.common that the init script uses: settings
    /// come from the shipped file, and calls to procd are printed.
    const OPENWRT: &str = r#"
        config_load() { :; }
        config_foreach() { "$1" main; }
        config_get_bool() { export -n "$1=${ENABLED:-$4}"; }
        config_get() {
            value=$(sed -n "s/^\toption $3 '\(.*\)'/\1/p" "$SETTINGS")
            export -n "$1=${CONFIG:-${value:-$4}}"
        }
        logger() { echo "logger $*"; }
        procd_open_instance() { echo "open $*"; }
        procd_set_param() { echo "set $*"; }
        procd_close_instance() { echo "close"; }
        . "$SCRIPT"
        start_service
    "#;

    fn openwrt(enabled: &str, config: &Path) -> String {
        // OpenWrt's shell is busybox's.
        let mut shell = Command::new("busybox");
        shell.args(["sh", "-e", "-c", OPENWRT]);
        shell.env("SCRIPT", dist("home-relay", "openwrt/files/home-relay.init"));
        shell.env("SETTINGS", dist("home-relay", "openwrt/files/home-relay.config"));
        shell.env("ENABLED", enabled).env("CONFIG", config);
        let out = shell.output().unwrap();
        String::from_utf8(out.stdout).unwrap() + &String::from_utf8(out.stderr).unwrap()
    }

    #[test]
    fn openwrt_starts_the_relay_once_it_is_enabled_and_configured() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("relay.toml");
        assert_eq!(openwrt("0", &config), "");
        let missing = openwrt("1", &config);
        assert!(
            missing.starts_with("logger -t home-relay") && missing.contains("home-relay init"),
            "{missing}"
        );
        std::fs::write(&config, "").unwrap();
        let started = openwrt("1", &config);
        let command = format!("set command /usr/sbin/home-relay serve --config {}", config.display());
        assert!(started.starts_with("open main\n") && started.contains(&command), "{started}");
        assert!(started.ends_with("close\n"), "{started}");
    }
}
