//! The errors of the eBPF programs, with the next step for each.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};

pub(super) type Result<T> = std::result::Result<T, BpfError>;

/// Errors of the eBPF programs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BpfError {
    /// The directory for pins is not on a BPF file system.
    #[error("{0} is not on a BPF file system; set `[bpf] pin_dir` to a directory below /sys/fs/bpf")]
    NotBpffs(PathBuf),
    /// Another user could replace the agent's eBPF maps and programs.
    #[error(
        "{path} {fault}, so another user could replace the eBPF programs; give it to root alone (chown root, chmod 755), \
         or set `[bpf] pin_dir` to another directory"
    )]
    UnsafePin {
        /// The pin, or a directory above it.
        path: PathBuf,
        /// The fault as text: which other user owns the path, or that others may write to it.
        fault: String,
    },
    /// An operation on a file or directory failed.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation, as a verb.
        action: &'static str,
        /// The path of the file or directory.
        path: PathBuf,
        /// The cause of the failure.
        source: io::Error,
    },
    /// The kernel cannot identify network namespaces.
    #[error("cannot identify the network namespace (SO_NETNS_COOKIE): {0}; Linux 5.14 or later is needed")]
    Namespace(io::Error),
    /// The object file of the eBPF programs could not be loaded.
    #[error("cannot load the eBPF programs: {0}; run `mobile check` to find the cause")]
    Load(#[from] EbpfError),
    /// The kernel's support for an eBPF helper could not be determined.
    #[error(
        "cannot determine whether the kernel has the eBPF helper {helper}: {source}; run `mobile check` to find the cause"
    )]
    Feature {
        /// The name of the helper in the kernel.
        helper: String,
        /// The cause of the failure.
        source: ProgramError,
    },
    /// One program could not be loaded or attached.
    #[error("cannot load or attach the eBPF program {name}: {source}; run `mobile check` to find the cause")]
    Program {
        /// The name of the program.
        name: &'static str,
        /// The cause of the failure.
        source: ProgramError,
    },
    /// The kernel attached the program without a link that could be pinned (Linux before 5.7).
    #[error("the eBPF program {name} cannot outlive the agent: {source}; Linux 5.7 or later is needed")]
    Link {
        /// The name of the program.
        name: &'static str,
        /// The cause of the failure.
        source: LinkError,
    },
    /// A program could not be attached and pinned by bpf(2) itself.
    #[error(
        "cannot attach the eBPF program {name} and pin it at {path}: {source}; run `mobile check` to find the cause"
    )]
    PinLink {
        /// The name of the program.
        name: &'static str,
        /// The path of the pin.
        path: PathBuf,
        /// The cause of the failure.
        source: io::Error,
    },
    /// A program, map or link could not be pinned.
    #[error("cannot pin {path}: {source}")]
    Pin {
        /// The path of the pin.
        path: PathBuf,
        /// The cause of the failure.
        source: PinError,
    },
    /// An eBPF map could not be used.
    #[error("cannot use the eBPF map {name}: {source}")]
    Map {
        /// The name of the map.
        name: &'static str,
        /// The cause of the failure.
        source: MapError,
    },
    /// An eBPF map is full.
    #[error("the eBPF map {name} is full: it holds {entries} entries; {next_step}")]
    Full {
        /// The name of the map.
        name: &'static str,
        /// The number of entries that the map holds.
        entries: u32,
        /// The step that solves the problem.
        next_step: &'static str,
    },
    /// The object file lacks a program or map.
    #[error("the eBPF object of this build has no {0}; build again with `cargo xtask build`")]
    Missing(&'static str),
    /// The log messages of the eBPF programs cannot be read.
    #[error("cannot read the messages of the eBPF programs: {0}")]
    Logs(String),
}

/// Returns a function that adds the name of an eBPF map to the map's error.
pub(super) fn map_error(name: &'static str) -> impl Fn(MapError) -> BpfError {
    move |source| BpfError::Map { name, source }
}
