//! The system calls that a confined daemon may make.
//!
//! The filter is an allowlist, because a denylist misses the calls that nobody thought of. Calls
//! outside the list fail with `EPERM`. Calls of other ABIs (x32, i386) fail as well, or end the
//! process.

use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use super::ConfineError;

/// The system calls of a network daemon on tokio, and of the `nft` program that both daemons run:
/// files, sockets, memory, threads, time, and signals to the process itself.
///
/// Not listed, besides what the kernel protects by capabilities: `ptrace`, `process_vm_*`,
/// `pidfd_getfd`, mounts, modules, namespaces, keys, setting the clock, io_uring, `userfaultfd`,
/// `bpf`, and signals to other processes.
const ALLOWED: &[libc::c_long] = &[
    // Files.
    libc::SYS_chdir,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_copy_file_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_fadvise64,
    libc::SYS_fallocate,
    libc::SYS_fchdir,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_fdatasync,
    libc::SYS_fgetxattr,
    libc::SYS_flock,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_fsync,
    libc::SYS_ftruncate,
    libc::SYS_getcwd,
    libc::SYS_getdents64,
    libc::SYS_getxattr,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_rm_watch,
    libc::SYS_linkat,
    libc::SYS_lseek,
    libc::SYS_mkdirat,
    libc::SYS_newfstatat,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_pipe2,
    libc::SYS_pread64,
    libc::SYS_preadv,
    libc::SYS_preadv2,
    libc::SYS_pwrite64,
    libc::SYS_pwritev,
    libc::SYS_pwritev2,
    libc::SYS_read,
    libc::SYS_readlinkat,
    libc::SYS_readv,
    libc::SYS_renameat2,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_statfs,
    libc::SYS_statx,
    libc::SYS_symlinkat,
    libc::SYS_sync_file_range,
    libc::SYS_umask,
    libc::SYS_unlinkat,
    libc::SYS_utimensat,
    libc::SYS_write,
    libc::SYS_writev,
    // Waiting.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    // Sockets.
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_bind,
    libc::SYS_connect,
    libc::SYS_getpeername,
    libc::SYS_getsockname,
    libc::SYS_getsockopt,
    libc::SYS_listen,
    libc::SYS_recvfrom,
    libc::SYS_recvmmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendmmsg,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_setsockopt,
    libc::SYS_shutdown,
    libc::SYS_socketpair,
    // Memory.
    libc::SYS_brk,
    libc::SYS_madvise,
    libc::SYS_membarrier,
    libc::SYS_memfd_create,
    libc::SYS_mincore,
    libc::SYS_mmap,
    libc::SYS_mprotect,
    libc::SYS_mremap,
    libc::SYS_msync,
    libc::SYS_munmap,
    // Threads, and programs that the daemon runs. `clone` has conditions: see `restrict`.
    libc::SYS_clone3,
    libc::SYS_execve,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_get_robust_list,
    libc::SYS_getcpu,
    libc::SYS_gettid,
    libc::SYS_pidfd_open,
    libc::SYS_rseq,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_yield,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_setpgid,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Identity of the process and of the system.
    libc::SYS_getegid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getgroups,
    libc::SYS_getpgid,
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_getrandom,
    libc::SYS_getresgid,
    libc::SYS_getresuid,
    libc::SYS_getrlimit,
    libc::SYS_getrusage,
    libc::SYS_getsid,
    libc::SYS_getuid,
    libc::SYS_sysinfo,
    libc::SYS_uname,
    // Time.
    libc::SYS_clock_getres,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_nanosleep,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_gettime,
    libc::SYS_timerfd_settime,
    // Signals.
    libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_signalfd4,
    // Giving up more rights: each thread of the runtime confines itself.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_restrict_self,
    libc::SYS_prctl,
    libc::SYS_seccomp,
];

/// Older equivalents of the system calls in [`ALLOWED`], which only some architectures have.
#[cfg(target_arch = "x86_64")]
const ALLOWED_ON_THIS_ARCH: &[libc::c_long] = &[
    libc::SYS_access,
    libc::SYS_arch_prctl,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_dup2,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
    libc::SYS_getdents,
    libc::SYS_getpgrp,
    libc::SYS_inotify_init,
    libc::SYS_link,
    libc::SYS_lstat,
    libc::SYS_mkdir,
    libc::SYS_open,
    libc::SYS_pipe,
    libc::SYS_poll,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_rmdir,
    libc::SYS_select,
    libc::SYS_stat,
    libc::SYS_symlink,
    libc::SYS_time,
    libc::SYS_unlink,
    libc::SYS_vfork,
];
#[cfg(target_arch = "aarch64")]
const ALLOWED_ON_THIS_ARCH: &[libc::c_long] = &[libc::SYS_renameat];
#[cfg(target_arch = "riscv64")]
const ALLOWED_ON_THIS_ARCH: &[libc::c_long] = &[libc::SYS_riscv_flush_icache];

/// The flags of `clone` that create a namespace.
///
/// `CLONE_NEWTIME` is missing, because it shares its bit with the exit signal.
const NAMESPACE_FLAGS: u64 = (libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWUTS) as u64;

/// The commands of `bpf()` that use existing objects (`enum bpf_cmd`, linux/bpf.h), for a daemon
/// that may call `bpf()` at all.
///
/// With these commands a daemon reads and changes maps, and attaches and pins loaded programs, but
/// cannot load new programs.
const BPF_COMMANDS: [u64; 11] = [
    1,  // BPF_MAP_LOOKUP_ELEM
    2,  // BPF_MAP_UPDATE_ELEM
    3,  // BPF_MAP_DELETE_ELEM
    4,  // BPF_MAP_GET_NEXT_KEY
    6,  // BPF_OBJ_PIN
    7,  // BPF_OBJ_GET
    8,  // BPF_PROG_ATTACH
    15, // BPF_OBJ_GET_INFO_BY_FD
    24, // BPF_MAP_LOOKUP_BATCH
    28, // BPF_LINK_CREATE
    34, // BPF_LINK_DETACH
];

/// Restricts the calling thread, and threads that it starts, to the system calls in [`ALLOWED`] and
/// `extra`.
///
/// If `unix_streams` is false, the thread cannot create Unix stream sockets, with which it could
/// connect to systemd, D-Bus or another service that trusts root. Accepted, inherited and paired
/// sockets still work, as do datagrams (`sd_notify`).
///
/// Also sets `no_new_privs`, so that no executed program regains rights.
pub(super) fn restrict(extra: &[libc::c_long], unix_streams: bool) -> Result<(), ConfineError> {
    // A filter can check the flags of `clone` but not those of `clone3`, which are in memory. This
    // filter answers `clone3` with ENOSYS, upon which the C libraries fall back to `clone`. The
    // kernel applies the strictest result, so the main filter can allow `clone3`.
    install_filter([(libc::SYS_clone3, Vec::new())], SeccompAction::Allow, errno(libc::ENOSYS))?;
    let plain = ALLOWED.iter().chain(ALLOWED_ON_THIS_ARCH).chain(extra);
    let mut rules: Vec<_> = plain.map(|&call| (call, Vec::new())).collect();
    rules.retain(|(call, _)| *call != libc::SYS_bpf);
    rules.push((libc::SYS_clone, vec![clone_without_namespaces()?]));
    // These commands set the process that the kernel signals when a descriptor becomes ready.
    rules.push((libc::SYS_fcntl, vec![argument_not_in(1, &SIGNAL_COMMANDS)?]));
    rules.push((libc::SYS_ioctl, vec![argument_not_in(1, &OWNER_REQUESTS)?]));
    // Pid 0: a process may only change its own limits.
    rules.push((libc::SYS_prlimit64, vec![first_argument_is(0)?]));
    rules.push((libc::SYS_socket, socket_rules(unix_streams)?));
    // `abort()` signals its own thread with `tgkill()`; other processes must be out of reach.
    let own = u64::from(std::process::id());
    rules.push((libc::SYS_tgkill, vec![first_argument_is(own)?]));
    if extra.contains(&libc::SYS_bpf) {
        let commands: Result<_, _> = BPF_COMMANDS.iter().map(|&command| first_argument_is(command)).collect();
        rules.push((libc::SYS_bpf, commands?));
    }
    install_filter(rules, errno(libc::EPERM), SeccompAction::Allow)
}

fn install_filter(
    rules: impl IntoIterator<Item = (libc::c_long, Vec<SeccompRule>)>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<(), ConfineError> {
    let rules = rules.into_iter().collect();
    let filter = SeccompFilter::new(rules, otherwise, matched, std::env::consts::ARCH.try_into()?)?;
    let program: BpfProgram = filter.try_into()?;
    Ok(seccompiler::apply_filter(&program)?)
}

fn errno(errno: libc::c_int) -> SeccompAction {
    SeccompAction::Errno(errno.unsigned_abs())
}

fn first_argument_is(value: u64) -> Result<SeccompRule, ConfineError> {
    let condition = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

/// The commands of `fcntl` that make the kernel send signals (`F_SETOWN`, `F_SETSIG`,
/// `F_SETOWN_EX`).
const SIGNAL_COMMANDS: [u64; 3] = [8, 10, 15];

/// The requests of `ioctl` that make the kernel send signals for sockets (`FIOSETOWN`,
/// `SIOCSPGRP`).
const OWNER_REQUESTS: [u64; 2] = [0x8901, 0x8902];

/// The bits of a socket's type that are not flags (`SOCK_TYPE_MASK`, linux/net.h).
const TYPE_MASK: u64 = 0xf;

fn argument_not_in(argument: u8, values: &[u64]) -> Result<SeccompRule, ConfineError> {
    let conditions: Result<_, _> = values
        .iter()
        .map(|&value| SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, value))
        .collect();
    Ok(SeccompRule::new(conditions?)?)
}

/// Returns the seccomp rules for `socket()`. If `unix_streams` is false, the only Unix sockets that
/// may be created are datagram sockets; sockets of other families are always allowed.
fn socket_rules(unix_streams: bool) -> Result<Vec<SeccompRule>, ConfineError> {
    if unix_streams {
        return Ok(Vec::new());
    }
    let dword = SeccompCmpArgLen::Dword;
    let datagram = SeccompCmpOp::MaskedEq(TYPE_MASK);
    let (unix, datagrams) = (libc::AF_UNIX.unsigned_abs().into(), libc::SOCK_DGRAM.unsigned_abs().into());
    Ok(vec![
        SeccompRule::new(vec![SeccompCondition::new(0, dword, SeccompCmpOp::Ne, unix)?])?,
        SeccompRule::new(vec![SeccompCondition::new(1, SeccompCmpArgLen::Dword, datagram, datagrams)?])?,
    ])
}

fn clone_without_namespaces() -> Result<SeccompRule, ConfineError> {
    let masked = SeccompCmpOp::MaskedEq(NAMESPACE_FLAGS);
    Ok(SeccompRule::new(vec![SeccompCondition::new(0, SeccompCmpArgLen::Qword, masked, 0)?])?)
}

#[cfg(test)]
mod tests;
