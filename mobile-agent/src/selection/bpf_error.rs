//! What can go wrong with the programs, and what to do about it.

use std::{io, path::PathBuf};

use aya::{
    EbpfError,
    maps::MapError,
    pin::PinError,
    programs::{ProgramError, links::LinkError},
};

pub(super) type Result<T> = std::result::Result<T, BpfError>;

/// What can go wrong with the programs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BpfError {
    /// The place for pins cannot hold any.
    #[error("{0} is not on a BPF file system; name a directory below /sys/fs/bpf in `[bpf] pin_dir`")]
    NotBpffs(PathBuf),
    /// Another user could replace the agent's maps and programs.
    #[error(
        "{path} {fault}, so another user could replace the eBPF programs; make it root's alone (chown root, chmod 755), \
         or name another directory in `[bpf] pin_dir`"
    )]
    UnsafePin {
        /// The pin, or a directory above it.
        path: PathBuf,
        /// The user who owns it or may write to it.
        fault: String,
    },
    /// A failure outside the BPF system call.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel does not tell one network namespace from another.
    #[error("cannot identify the network namespace (SO_NETNS_COOKIE): {0}; Linux 5.14 or later is needed")]
    Namespace(io::Error),
    /// The object could not be loaded.
    #[error("cannot load the eBPF programs: {0}; `mobile check` says what is missing")]
    Load(#[from] EbpfError),
    /// The kernel's support for a helper could not be determined.
    #[error(
        "cannot find out whether the kernel has the eBPF helper {helper}: {source}; `mobile check` says what is missing"
    )]
    Feature {
        /// The name of the helper in the kernel.
        helper: String,
        /// The cause.
        source: ProgramError,
    },
    /// One program could not be loaded or attached.
    #[error("cannot load or attach the eBPF program {name}: {source}; `mobile check` says what is missing")]
    Program {
        /// Which.
        name: &'static str,
        /// Why not.
        source: ProgramError,
    },
    /// A program that has no link to pin (Linux before 5.7).
    #[error("the eBPF program {name} cannot outlive the agent: {source}; Linux 5.7 or later is needed")]
    Link {
        /// Which.
        name: &'static str,
        /// Why not.
        source: LinkError,
    },
    /// A program could not be attached and pinned by bpf(2) itself.
    #[error(
        "cannot attach the eBPF program {name} and pin it at {path}: {source}; `mobile check` says what is missing"
    )]
    PinLink {
        /// The name of the program.
        name: &'static str,
        /// The path of the pin.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Something could not be pinned.
    #[error("cannot pin {path}: {source}")]
    Pin {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: PinError,
    },
    /// A map could not be used.
    #[error("cannot use the eBPF map {name}: {source}")]
    Map {
        /// Which.
        name: &'static str,
        /// Why not.
        source: MapError,
    },
    /// A map has no place left.
    #[error("the eBPF map {name} is full: it holds {entries} entries; {next_step}")]
    Full {
        /// Which.
        name: &'static str,
        /// How many it holds.
        entries: u32,
        /// What to do.
        next_step: &'static str,
    },
    /// The object lacks something it is built with.
    #[error("the eBPF object of this build has no {0}; build again with `cargo xtask build`")]
    Missing(&'static str),
    /// The messages of the programs cannot be read.
    #[error("cannot read the messages of the eBPF programs: {0}")]
    Logs(String),
}
