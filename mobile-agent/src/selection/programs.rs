//! Loads, attaches and pins single eBPF programs.

use std::{
    fs::File,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        CgroupAttachMode, CgroupSkbAttachType, Program,
        links::{FdLink, LinkError},
    },
};

use super::{
    bpf_error::{BpfError, Result},
    link,
    pins::Generation,
};

/// The kernel's number of the hook at which [`mobile_ebpf_common::program::SETSOCKOPT`] runs (`enum
/// bpf_attach_type`).
const BPF_CGROUP_SETSOCKOPT: u32 = 22;

/// Loads an eBPF program into the kernel and pins it.
pub(super) fn load_program(ebpf: &mut Ebpf, name: &'static str, generation: &Generation) -> Result<()> {
    let program = ebpf.program_mut(name).ok_or(BpfError::Missing(name))?;
    match program {
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::CgroupSockopt(program) => program.load(),
        _ => return Err(BpfError::Missing(name)),
    }
    .map_err(|source| BpfError::Program { name, source })?;
    let path = generation.path("program", name);
    program.pin(&path).map_err(|source| BpfError::Pin { path, source })
}

/// Opens the directory of a cgroup, to attach programs to it.
pub(super) fn open(dir: &Path) -> Result<File> {
    File::open(dir).map_err(|source| BpfError::Io { action: "open", path: dir.into(), source })
}

/// Attaches a loaded eBPF program to a cgroup and pins its link.
pub(super) fn attach(ebpf: &mut Ebpf, name: &'static str, cgroup: &File, pin: PathBuf) -> Result<()> {
    let failed = |source| BpfError::Program { name, source };
    // Links require this mode; the links of one cgroup run one after another whatever the mode.
    let mode = CgroupAttachMode::Single;
    let link: std::result::Result<FdLink, LinkError> =
        match ebpf.program_mut(name).ok_or(BpfError::Missing(name))? {
            Program::CgroupSock(program) => {
                let id = program.attach(cgroup, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            Program::CgroupSockAddr(program) => {
                let id = program.attach(cgroup, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            Program::CgroupSkb(program) => {
                let id = program.attach(cgroup, CgroupSkbAttachType::Egress, mode).map_err(failed)?;
                program.take_link(id).map_err(failed)?.try_into()
            }
            // aya cannot pin links of this kind.
            Program::CgroupSockopt(program) => {
                let program = program.fd().map_err(failed)?.as_fd();
                return link::pin(program, cgroup.as_fd(), BPF_CGROUP_SETSOCKOPT, &pin)
                    .map_err(|source| BpfError::PinLink { name, path: pin, source });
            }
            _ => return Err(BpfError::Missing(name)),
        };
    let link = link.map_err(|source| BpfError::Link { name, source })?;
    link.pin(&pin).map_err(|source| BpfError::Pin { path: pin, source })?;
    Ok(())
}
