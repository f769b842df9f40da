//! The eBPF programs that run for packets, and the cgroup that they are attached to.
//!
//! The programs of [`program::SOCKET_CALLS`] run for socket calls of every process. The programs
//! here run for packets, and ordinary processes should not pay for them, so they are attached to
//! the mobile cgroup as long as that is enough ([`AttachScope::MobileOnly`]). It is not enough for
//! a process that becomes mobile later, because its sockets belong to the cgroup it came from, nor
//! for systemd's slice, which is a cgroup of its own. For these the programs are attached to the
//! root of the cgroup hierarchy as well ([`AttachScope::Root`]), until no process is mobile.

use std::{
    fs::{self, File},
    path::PathBuf,
};

use aya::Ebpf;
use mobile_ebpf_common::program;

use super::{
    bpf_error::{BpfError, Result},
    cgroup::MobileCgroup,
    features,
    pins::Generation,
    programs::{attach, load_program, open},
};

/// The prefix of the names of pins for links at the root of the cgroup hierarchy.
const ROOT_LINK: &str = "root-link";

/// The cgroups that the eBPF programs for packets are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AttachScope {
    /// The mobile cgroup alone: the eBPF programs see only sockets that mobile processes created.
    MobileOnly,
    /// The root of the cgroup hierarchy as well: the eBPF programs see the sockets of all
    /// processes.
    Root,
}

/// The eBPF programs that run for packets.
pub(super) struct PacketPrograms {
    root: File,
    /// The names of the programs that may be attached to the root cgroup, each with the path at
    /// which its link to the root is pinned.
    programs: Vec<(&'static str, PathBuf)>,
    scope: AttachScope,
}

impl PacketPrograms {
    /// Loads the eBPF programs for packets and attaches them to the mobile cgroup.
    pub(super) fn attach_to_mobile(
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
        if features::egress_has_netns_cookie()? {
            load_program(ebpf, program::EGRESS, generation)?;
            programs.push(program::EGRESS);
        } else {
            tracing::info!(
                "this kernel cannot stop pings and datagrams that name an uplink's device (IP_PKTINFO) on sockets \
                 created before `mobile attach`: they leave by that device"
            );
        }
        let programs = programs.into_iter().map(|name| (name, generation.path(ROOT_LINK, name))).collect();
        Ok(Self { root, programs, scope: AttachScope::MobileOnly })
    }

    /// Attaches the programs to the root cgroup as well, so that they see the sockets of all
    /// processes.
    pub(super) fn attach_to_root(&mut self, ebpf: &mut Ebpf) -> Result<()> {
        if self.scope == AttachScope::Root {
            return Ok(());
        }
        for (name, pin) in &self.programs {
            // The pin exists if an earlier attempt failed at a later program.
            if !pin.exists() {
                attach(ebpf, name, &self.root, pin.clone())?;
            }
        }
        self.scope = AttachScope::Root;
        Ok(())
    }

    /// Detaches the programs from the root cgroup, so that they see only sockets that mobile
    /// processes created.
    pub(super) fn detach_from_root(&mut self) -> Result<()> {
        if self.scope == AttachScope::MobileOnly {
            return Ok(());
        }
        self.scope = AttachScope::MobileOnly;
        for (_, pin) in self.programs.iter().filter(|(_, pin)| pin.exists()) {
            // Nothing but the pin holds the link, so removing the pin detaches the program.
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
    use crate::selection::{object::OBJECT, pins, sandbox::Sandbox};

    /// The opcode `BPF_JMP | BPF_CALL`, the number of the helper that returns a network namespace's
    /// cookie, and the number of a helper that no kernel has.
    const CALL: [u8; 4] = [0x85, 0, 0, 0];
    const NETNS_COOKIE: u32 = 122;
    const NO_HELPER: u32 = 0x7fff_ffff;

    #[test]
    fn an_egress_program_that_cannot_be_loaded_is_an_error_if_the_kernel_has_its_helper() {
        Sandbox::with(|sandbox| {
            if !features::egress_has_netns_cookie().unwrap() {
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
            let failed = PacketPrograms::attach_to_mobile(&mut ebpf, root, &sandbox.cgroup, &generation)
                .err()
                .unwrap();
            assert!(matches!(failed, BpfError::Program { name: program::EGRESS, .. }), "{failed}");
        });
    }
}
