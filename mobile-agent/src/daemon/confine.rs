//! What the agent keeps once it runs; docs/security.md, "Privileges", says what for. Files are not among what it gives up:
//! Landlock would keep it from looking at other processes, as `attach`, `ps` and `explain` do.

use mobile_io::confine::{Capabilities, Confinement};
use nix::libc;

/// The same at every start.
pub(super) fn confinement() -> Confinement {
    Confinement {
        capabilities: Capabilities::BPF
            | Capabilities::CHOWN
            | Capabilities::DAC_OVERRIDE
            | Capabilities::NET_ADMIN
            | Capabilities::PERFMON
            | Capabilities::SYS_PTRACE,
        calls: &[libc::SYS_bpf],
        files: None,
    }
}
