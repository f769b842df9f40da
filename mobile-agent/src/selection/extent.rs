//! Whose sockets the programs see that run for packets rather than for calls: those that mobile processes made, or everybody's.
//!
//! The first are enough while mobile processes have no others, and then ordinary processes pay nothing for them: the programs
//! are attached to the mobile cgroup. A process that becomes mobile later brings sockets of the cgroup it came from, and
//! systemd's slice is a cgroup of its own: for these they are attached to the root of the hierarchy as well, until nobody is
//! mobile.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use aya::{Ebpf, programs::ProgramError};
use mobile_ebpf_common::program;

use super::{
    bpf::{attach, load_program, open},
    bpf_error::{BpfError, Result},
    cgroup::MobileCgroup,
    pins::Generation,
};

/// The kind of the pins at the root.
const ROOT_LINK: &str = "root-link";

/// Where the programs are attached.
pub(super) struct Extent {
    root: File,
    /// Those for the root, with the pins that hold them there.
    programs: Vec<(&'static str, PathBuf)>,
    wide: bool,
}

impl Extent {
    /// Puts the programs in force at the mobile cgroup.
    pub(super) fn put_in_force(
        ebpf: &mut Ebpf,
        root: File,
        cgroup: &MobileCgroup,
        generation: &Generation,
    ) -> Result<Self> {
        let mobile = open(cgroup.dir())?;
        for name in [program::ACCOUNT, program::EGRESS_OWN] {
            load_program(ebpf, name, generation)?;
            attach(ebpf, name, &mobile, generation.path("link", name))?;
        }
        let mut programs = vec![program::ACCOUNT];
        match load_program(ebpf, program::EGRESS, generation) {
            Ok(()) => programs.push(program::EGRESS),
            // At this hook the kernel cannot tell one network namespace from another: Linux can since 6.15.
            Err(BpfError::Program { source: ProgramError::LoadError { .. }, .. }) => tracing::info!(
                "pings and datagrams that name an uplink's device (IP_PKTINFO), of sockets made before `mobile attach`, go on using it on this kernel"
            ),
            Err(error) => return Err(error),
        }
        let programs = programs.into_iter().map(|name| (name, generation.path(ROOT_LINK, name))).collect();
        Ok(Self { root, programs, wide: false })
    }

    /// From here on they see everybody's sockets.
    pub(super) fn widen(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        if self.wide {
            return Ok(());
        }
        for (name, pin) in &self.programs {
            // Left by an attempt that failed at a later one.
            if !pin.exists() {
                attach(ebpf, name, &self.root, pin.clone())?;
            }
        }
        self.wide = true;
        Ok(())
    }

    /// From here on they see those that mobile processes made.
    pub(super) fn narrow(&mut self) -> Result<()> {
        if !self.wide {
            return Ok(());
        }
        self.wide = false;
        for (_, pin) in self.programs.iter().filter(|(_, pin)| pin.exists()) {
            // The pin is all that holds it.
            fs::remove_file(pin).map_err(|source| BpfError::Io {
                action: "remove",
                path: pin.clone(),
                source,
            })?;
        }
        Ok(())
    }
}
