//! Fetches Debian's kernels with apt from this machine's mirror.
//!
//! apt runs with a separate configuration, so that this machine's release does not matter and
//! nothing is installed.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::quiet;
use crate::shell::{self, step};

/// A kernel series and the Debian release it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Kernel {
    /// The series, such as `6.1`.
    pub(super) series: &'static str,
    /// The release's code name, such as `bookworm`.
    pub(super) release: &'static str,
}

/// The unpacked files of a kernel package.
pub(super) struct Unpacked {
    /// The kernel's version, such as `6.1.0-50-cloud-amd64`.
    pub(super) version: String,
    /// The kernel image that qemu boots.
    pub(super) vmlinuz: PathBuf,
    /// The folder of the kernel's modules.
    pub(super) modules: PathBuf,
}

impl Kernel {
    /// Fetches the newest kernel of the series and unpacks it in `folder`, unless it is there
    /// already.
    pub(super) fn fetch(self, folder: &Path) -> Result<Unpacked> {
        let home = folder.join(format!("linux-{}", self.series));
        let root = home.join("root");
        if let Ok(unpacked) = unpacked(&root) {
            return Ok(unpacked);
        }
        let apt = Apt::new(&home.join("apt"), self.release)?;
        apt.update()?;
        let package = newest(&apt.names(&format!("linux-image-{}.", self.series))?).with_context(|| {
            format!("Debian {} has no cloud kernel of the series {}", self.release, self.series)
        })?;
        step(&format!("fetching {package}"));
        let deb = apt.download(&package, &home)?;
        // A temporary name marks an incomplete folder.
        let half = home.join("half");
        quiet(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&half))?;
        fs::remove_file(&deb).with_context(|| format!("cannot remove {}", deb.display()))?;
        fs::rename(&half, &root).with_context(|| format!("cannot rename {}", half.display()))?;
        unpacked(&root)
    }
}

fn unpacked(root: &Path) -> Result<Unpacked> {
    // The paths in bookworm's and in trixie's packages.
    let folders = ["lib/modules", "usr/lib/modules"].map(|folder| root.join(folder));
    let modules = folders
        .iter()
        .find(|folder| folder.is_dir())
        .with_context(|| format!("no modules are in {}", root.display()))?;
    let entry = fs::read_dir(modules)
        .with_context(|| format!("cannot read {}", modules.display()))?
        .next()
        .with_context(|| format!("{} is empty", modules.display()))??;
    let version = entry.file_name().to_string_lossy().into_owned();
    let vmlinuz = root.join(format!("boot/vmlinuz-{version}"));
    if !vmlinuz.is_file() {
        bail!("{} is missing", vmlinuz.display());
    }
    Ok(Unpacked { version, vmlinuz, modules: entry.path() })
}

/// An apt with its own sources, package lists and cache, apart from the machine's.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: &Path, release: &str) -> Result<Self> {
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let source = folder.join("sources.list");
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        fs::write(&source, format!("deb [signed-by={keys}] {} {release} main\n", mirror()?))
            .with_context(|| format!("cannot write {}", source.display()))?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        for setting in [
            option("Dir::Etc::SourceList", &self.folder.join("sources.list")),
            "Dir::Etc::SourceParts=/dev/null".to_owned(),
            option("Dir::State::Lists", &self.folder.join("lists")),
            option("Dir::Cache", &self.folder.join("cache")),
            // apt's own user may be unable to enter the folder.
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ] {
            command.args(["-o", &setting]);
        }
        command
    }

    fn update(&self) -> Result<()> {
        // Without --error-on=any, lists that cannot be fetched cause only a warning, and apt then
        // reports that the kernel does not exist.
        quiet(self.command("apt-get").args(["-q", "--error-on=any", "update"]))
    }

    fn names(&self, prefix: &str) -> Result<String> {
        shell::output(self.command("apt-cache").args(["pkgnames", prefix]))
    }

    /// Downloads a Debian package's file into `folder`.
    fn download(&self, package: &str, folder: &Path) -> Result<PathBuf> {
        quiet(self.command("apt-get").current_dir(folder).args(["-q", "download", package]))?;
        let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
        entries
            .flatten()
            .map(|entry| entry.path())
            .find(|path| path.extension().is_some_and(|kind| kind == "deb"))
            .with_context(|| format!("apt-get left no package in {}", folder.display()))
    }
}

/// Returns the URL of the mirror from which this machine gets Debian's packages.
fn mirror() -> Result<String> {
    let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
    let targets = shell::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        format,
        "Created-By: Packages",
    ]))?;
    targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|")).map(str::to_owned).context(
        "apt has no Debian mirror to fetch the kernels from: run this on Debian, after `apt-get update`",
    )
}

/// Returns the newest of the signed cloud kernels among package names, one a line.
fn newest(names: &str) -> Option<String> {
    let kernels = names.lines().filter(|name| name.ends_with("-cloud-amd64"));
    kernels.max_by(|one, other| by_numbers(one, other)).map(str::to_owned)
}

/// Compares two package names by the numbers in them, from left to right.
fn by_numbers(one: &str, other: &str) -> Ordering {
    let numbers = |name: &str| -> Vec<u64> {
        name.split(|c: char| !c.is_ascii_digit()).filter_map(|part| part.parse().ok()).collect()
    };
    numbers(one).cmp(&numbers(other)).then_with(|| one.cmp(other))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_signed_cloud_kernel_is_taken() {
        let names = "linux-image-6.12.9+deb13-cloud-amd64\nlinux-image-6.12.107+deb13-cloud-amd64\n\
                     linux-image-6.12.200+deb13-amd64\nlinux-image-6.12.107+deb13-cloud-amd64-dbg\n\
                     linux-image-6.12.300+deb13-cloud-amd64-unsigned\n";
        assert_eq!(newest(names).as_deref(), Some("linux-image-6.12.107+deb13-cloud-amd64"));
        assert_eq!(newest("linux-image-6.12.200+deb13-amd64"), None);
    }
}
