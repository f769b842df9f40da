//! Runs other programs, looks them up in PATH, and prints the current step of xtask.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// Prints the current step of xtask on stderr, so that minutes of building are explained.
pub(crate) fn step(what: &str) {
    if std::io::stderr().is_terminal() {
        eprintln!("\x1b[1;36m==>\x1b[0m \x1b[1m{what}\x1b[0m");
    } else {
        eprintln!("==> {what}");
    }
}

/// Runs `command` with the inherited stdout and stderr. Fails with its name unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {}", show(command)))?;
    if !status.success() {
        bail!("{} failed: {status}", show(command));
    }
    Ok(())
}

/// Runs `command` and returns its trimmed stdout.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let out =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {}", show(command)))?;
    if !out.status.success() {
        let complaint = String::from_utf8_lossy(&out.stderr);
        bail!("{} failed: {}: {}", show(command), out.status, complaint.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).trim().to_owned())
}

/// Returns a command of the cargo that started xtask, which runs in the workspace with bpf-linker
/// in its PATH.
pub(crate) fn cargo() -> Command {
    cargo_named(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Returns a command of `program`, which is used like cargo, in the workspace with bpf-linker in
/// its PATH.
pub(crate) fn cargo_named(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).env("PATH", path_with_tools());
    // `cargo run` sets these variables for xtask. Build scripts (ring's, for example) watch them,
    // and would run again after each change between `cargo xtask` and plain cargo.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Returns the workspace's root, the parent of xtask's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a package of the workspace has a parent folder")
}

/// Returns cargo's target directory, which is two levels above xtask's own binary.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot find the path of xtask itself")?;
    let dir = own.ancestors().nth(2).context("xtask was not started by cargo: run `cargo xtask`")?;
    Ok(dir.to_owned())
}

/// Returns the directory in which `setup` installs a bpf-linker if PATH has another version.
pub(crate) fn tools_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("tools"))
}

/// Returns the path of the first executable `program` in PATH, or in the sbin directories that an
/// ordinary user's PATH lacks.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    env::split_paths(&path_with_tools())
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|candidate| is_executable(candidate))
}

/// Returns whether xtask runs as root, which is required for creating namespaces, devices and eBPF
/// programs.
pub(crate) fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}

/// Fails unless xtask runs as root; the error names the command to run instead.
pub(crate) fn require_root() -> Result<()> {
    if is_root() {
        return Ok(());
    }
    let verb = env::args().skip(1).collect::<Vec<_>>().join(" ");
    bail!(
        "this creates network namespaces, devices and BPF programs and therefore needs root: \
         run `sudo -E env \"PATH=$PATH\" cargo xtask {verb}`"
    )
}

fn path_with_tools() -> OsString {
    let old = env::var_os("PATH").unwrap_or_default();
    let tools = tools_dir().ok().map(|tools| tools.join("bin")).filter(|bin| bin.is_dir());
    let folders = tools.into_iter().chain(env::split_paths(&old));
    env::join_paths(folders).unwrap_or(old)
}

fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn show(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_failing_program_has_its_name_and_stderr() {
        let error = output(Command::new("sh").args(["-c", "echo no such luck >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("sh -c"), "{text}");
        assert!(text.contains("exit status: 3") && text.ends_with("no such luck"), "{text}");
    }

    #[test]
    fn programs_are_found_and_absent_ones_are_not() {
        assert!(find("sh").is_some());
        assert!(find("no-program-has-this-name").is_none());
    }

    #[test]
    fn the_root_is_the_workspace() {
        assert!(root().join("rust-toolchain.toml").is_file());
    }
}
