//! Counts the eBPF programs attached to the root of the cgroup hierarchy, which run for every
//! process.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::libc;

use crate::cgroup::cgroup2_root;

/// The hooks for outgoing packets, new sockets, `connect()` and datagrams, with the kernel's
/// numbers for them (`enum bpf_attach_type`).
const HOOKS: [(&str, u32); 4] = [("egress", 1), ("sock_create", 2), ("connect4", 10), ("sendmsg4", 14)];

/// The command `BPF_PROG_QUERY` of bpf(2).
const PROG_QUERY: libc::c_int = 16;

/// The attributes of `BPF_PROG_QUERY` (`union bpf_attr`, `query`). With `prog_ids` zero the kernel
/// only returns the number of programs.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// Returns the greatest number of eBPF programs attached to any one hook of the root cgroup.
pub fn count() -> Result<u32> {
    let root = File::open(cgroup2_root()?)?;
    let mut most = 0;
    for (hook, attach_type) in HOOKS {
        let count =
            query(&root, attach_type).with_context(|| format!("the programs at the root's {hook}"))?;
        most = most.max(count);
    }
    Ok(most)
}

fn query(root: &File, attach_type: u32) -> io::Result<u32> {
    let target_fd = u32::try_from(root.as_raw_fd()).map_err(io::Error::other)?;
    let mut query = Query { target_fd, attach_type, ..Query::default() };
    // SAFETY: the kernel accesses no more than the given size of `query`, which lives for the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, PROG_QUERY, &raw mut query, size_of::<Query>() as libc::c_uint)
    };
    if result == 0 { Ok(query.prog_cnt) } else { Err(io::Error::last_os_error()) }
}
