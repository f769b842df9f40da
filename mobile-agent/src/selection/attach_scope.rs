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

use aya::Ebpf;
use mobile_ebpf_common::program;

use super::{
    bpf::{attach, load_program, open},
    bpf_error::{BpfError, Result},
    cgroup::MobileCgroup,
    features,
    pins::Generation,
};

/// The kind of the pins at the root.
const ROOT_LINK: &str = "root-link";

/// Where the programs are attached.
pub(super) struct PacketPrograms {
    root: File,
    /// Those for the root, with the pins that hold them there.
    programs: Vec<(&'static str, PathBuf)>,
    wide: bool,
}

impl PacketPrograms {
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
        if features::tells_namespaces_of_packets()? {
            load_program(ebpf, program::EGRESS, generation)?;
            programs.push(program::EGRESS);
        } else {
            tracing::info!(
                "pings and datagrams that name an uplink's device (IP_PKTINFO), of sockets made before `mobile attach`, go on using it on this kernel"
            );
        }
        let programs = programs.into_iter().map(|name| (name, generation.path(ROOT_LINK, name))).collect();
        Ok(Self { root, programs, wide: false })
    }

    /// From here on they see everybody's sockets.
    pub(super) fn attach_to_root(&mut self, ebpf: &mut Ebpf) -> Result<()> {
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
    pub(super) fn detach_from_root(&mut self) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::selection::{bpf::OBJECT, pins, sandbox::Sandbox};

    /// The opcode BPF_JMP | BPF_CALL, the helper for a network namespace's cookie, and a helper
    /// that no kernel has.
    const CALL: [u8; 4] = [0x85, 0, 0, 0];
    const NETNS_COOKIE: u32 = 122;
    const NO_HELPER: u32 = 0x7fff_ffff;

    #[test]
    fn a_guard_that_cannot_be_loaded_is_an_error_where_the_kernel_has_what_it_calls() {
        Sandbox::with(|sandbox| {
            if !features::tells_namespaces_of_packets().unwrap() {
                return;
            }
            let call = |helper: u32| [CALL, helper.to_ne_bytes()].concat();
            let mut object = OBJECT.to_vec();
            let places: Vec<usize> =
                (0..object.len() - 8).filter(|at| object[*at..at + 8] == call(NETNS_COOKIE)).collect();
            for at in places {
                object[at..at + 8].copy_from_slice(&call(NO_HELPER));
            }
            pins::ensure_dir(&sandbox.pin_dir).unwrap();
            let generation = Generation::after(&sandbox.pin_dir, &[]).unwrap();
            let root = open(sandbox.cgroup.cgroup2().mount()).unwrap();
            let mut ebpf = Ebpf::load(&object).unwrap();
            let failed =
                PacketPrograms::put_in_force(&mut ebpf, root, &sandbox.cgroup, &generation).err().unwrap();
            assert!(matches!(failed, BpfError::Program { name: program::EGRESS, .. }), "{failed}");
        });
    }
}
