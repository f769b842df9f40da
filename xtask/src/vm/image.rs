//! The initramfs of a virtual machine: this machine's programs and their libraries, the programs
//! under test, and the kernel's network modules.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use super::kernel::Unpacked;
use super::quiet;
use crate::shell;

/// The programs of this machine that the end-to-end cases start; busybox provides all others.
const PROGRAMS: &[&str] = &[
    "curl", "ethtool", "getent", "ip", "iperf3", "login", "modprobe", "nft", "ping", "setpriv", "ss",
    "sysctl", "tc", "tcpdump", "telnet", "telnetd",
];

/// The directories of the kernel modules for networks, and of the modules that these depend on.
const MODULES: &[&str] = &["arch/x86/crypto", "crypto", "drivers/net", "lib", "net"];

/// Files in the virtual machine's `/etc` that programs read, each with its contents.
const FILES: &[(&str, &str)] = &[
    ("etc/passwd", "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"),
    ("etc/group", "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"),
    ("etc/hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    (
        "etc/nsswitch.conf",
        "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\nservices: files\n",
    ),
];

/// Builds the part of the initramfs that is the same for every kernel, and returns its folder,
/// which is emptied first, since old files could be out of date.
pub(super) fn base(folder: &Path, ours: &[(&str, PathBuf)], commands: &str) -> Result<PathBuf> {
    let root = folder.join("base");
    remove(&root)?;
    for dir in ["dev", "etc", "mobile", "proc", "root", "run", "sys", "tmp", "var", "usr/bin", "usr/sbin"] {
        create_dir(&root.join(dir))?;
    }
    // As on Debian: the old paths are links to the new ones.
    for dir in ["bin", "lib", "lib64", "sbin"] {
        create_dir(&root.join("usr").join(dir))?;
        link(&format!("usr/{dir}"), &root.join(dir))?;
    }
    for (path, text) in FILES {
        write(&root.join(path), text)?;
    }
    for path in ["/etc/protocols", "/etc/services"].map(Path::new).into_iter().filter(|path| path.exists()) {
        copy(path, &inside(&root, path))?;
    }
    // The socket matrix compares its result with this file.
    copy(&shell::root().join("docs/understand/security.md"), &root.join("mobile/security.md"))?;
    let mut libraries = BTreeSet::new();
    let busybox = find("busybox")?;
    copy(&busybox, &root.join("usr/bin/busybox"))?;
    let applets = shell::output(Command::new(&busybox).arg("--list"))?;
    // busybox lists itself too.
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        link("busybox", &root.join("usr/bin").join(applet))?;
    }
    for name in PROGRAMS {
        let path = find(name)?;
        // Real programs replace busybox's, at the path they have on this machine: cases name some
        // by their full path.
        let _ = fs::remove_file(root.join("usr/bin").join(name));
        let to = if path.parent().is_some_and(|dir| dir.ends_with("sbin")) { "usr/sbin" } else { "usr/bin" };
        copy(&path, &root.join(to).join(name))?;
        libraries.extend(libraries_of(&path)?);
    }
    for (name, path) in ours {
        // These programs are static and need no library.
        copy(path, &root.join("mobile").join(name))?;
    }
    for library in libraries {
        copy(&library, &inside(&root, &library))?;
    }
    link("mobile/vm-init", &root.join("init"))?;
    write(&root.join("mobile/commands"), commands)?;
    Ok(root)
}

/// Builds the initramfs for a kernel: a packed copy of the folder `base` with the kernel's modules.
pub(super) fn with_modules(folder: &Path, base: &Path, kernel: &Unpacked) -> Result<PathBuf> {
    let root = folder.join("root");
    remove(&root)?;
    // Hard links are enough, since nothing below is changed.
    quiet(Command::new("cp").args(["-al"]).arg(base).arg(&root))?;
    let (from, to) = (&kernel.modules, root.join("lib/modules").join(&kernel.version));
    for kind in MODULES {
        let parent = to.join("kernel").join(kind);
        create_dir(parent.parent().context("a kind of modules has a folder above it")?)?;
        quiet(Command::new("cp").arg("-al").arg(from.join("kernel").join(kind)).arg(&parent))?;
    }
    for list in ["modules.builtin", "modules.builtin.modinfo", "modules.order"] {
        copy(&from.join(list), &to.join(list))?;
    }
    quiet(Command::new(find("depmod")?).arg("-b").arg(&root).arg(&kernel.version))?;
    let image = folder.join("initramfs");
    pack(&root, &image)?;
    remove(&root)?;
    Ok(image)
}

/// Packs a folder into an initramfs as the kernel expects: cpio's "new" format, everything owned by
/// root.
///
/// The image is not compressed, because for an emulated processor decompressing takes longer than
/// reading.
fn pack(root: &Path, image: &Path) -> Result<()> {
    let list = shell::output(Command::new("find").arg(".").current_dir(root))?;
    let names = root.with_extension("names");
    write(&names, &(list + "\n"))?;
    let open = |path: &Path| File::open(path).with_context(|| format!("cannot open {}", path.display()));
    let output = File::create(image).with_context(|| format!("cannot create {}", image.display()))?;
    let status = Command::new("cpio")
        .args(["--create", "--format=newc", "--owner=0:0", "--quiet"])
        .current_dir(root)
        .stdin(open(&names)?)
        .stdout(output)
        .stderr(Stdio::inherit())
        .status()
        .context("cannot start cpio")?;
    if !status.success() {
        bail!("cpio failed: {status}");
    }
    Ok(())
}

/// Returns the paths of a program's shared libraries and of its dynamic linker; nothing for a
/// static program.
fn libraries_of(program: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let (said, complaint) = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    if !out.status.success() && !format!("{said}{complaint}").contains("not a dynamic executable") {
        bail!("ldd {} failed: {}", program.display(), complaint.trim());
    }
    if let Some(line) = said.lines().find(|line| line.contains("not found")) {
        bail!("{} needs {}", program.display(), line.trim());
    }
    Ok(library_paths(&said))
}

/// Returns the paths in ldd's output: `libc.so.6 => /lib/libc.so.6 (0x…)`,
/// `/lib64/ld-linux-x86-64.so.2 (0x…)`.
fn library_paths(said: &str) -> Vec<PathBuf> {
    said.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

fn find(program: &str) -> Result<PathBuf> {
    shell::find(program).with_context(|| format!("{program} is missing: run `cargo xtask setup`"))
}

fn inside(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    create_dir(to.parent().context("a file has a folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    // Set-user-ID bits and the like are of no use in the virtual machine.
    let mode =
        if to.metadata().is_ok_and(|meta| meta.permissions().mode() & 0o111 != 0) { 0o755 } else { 0o644 };
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot set the mode of {}", to.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

fn create_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))
}

fn link(to: &str, at: &Path) -> Result<()> {
    symlink(to, at).with_context(|| format!("cannot make the link {}", at.display()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_read_from_the_output_of_ldd() {
        let said = "\tlinux-vdso.so.1 (0x00007ffc)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(library_paths(said), paths);
        assert_eq!(library_paths("\tstatically linked\n"), Vec::<PathBuf>::new());
    }
}
