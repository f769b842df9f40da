use std::io;

use super::super::tests::{only_capabilities, run_confined};
use super::super::{Capabilities, Confinement};
use super::*;

/// Makes a system call by its number and returns the error number, if it fails.
fn call(number: libc::c_long, first: libc::c_long) -> Option<i32> {
    // SAFETY: with these arguments the tested calls have no effect or are refused.
    let result = unsafe { libc::syscall(number, first, 0_u64, 0_u64, 0_u64, 0_u64) };
    (result < 0).then(|| io::Error::last_os_error().raw_os_error().unwrap())
}

#[test]
fn calls_outside_the_list_fail_unless_they_are_allowed_in_addition() {
    for denied in [
        libc::SYS_unshare,
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_kill,
        libc::SYS_mount,
        libc::SYS_setns,
        libc::SYS_io_uring_setup,
        libc::SYS_userfaultfd,
        libc::SYS_setuid,
        libc::SYS_bpf,
    ] {
        let found = run_confined(&only_capabilities(Capabilities::all()), || call(denied, 0));
        assert_eq!(found, Some(libc::EPERM), "call {denied}");
    }
    let allowed = Confinement { syscalls: &[libc::SYS_unshare], ..only_capabilities(Capabilities::all()) };
    assert_eq!(run_confined(&allowed, || call(libc::SYS_unshare, 0)), None);
}

#[test]
fn clone_cannot_create_namespaces() {
    let flags = [libc::CLONE_NEWUSER, libc::CLONE_NEWNET, libc::CLONE_NEWUSER | libc::CLONE_NEWNS];
    for flags in flags.map(libc::c_long::from) {
        let found = run_confined(&only_capabilities(Capabilities::all()), || call(libc::SYS_clone, flags));
        assert_eq!(found, Some(libc::EPERM), "flags {flags:x}");
    }
    let found = run_confined(&only_capabilities(Capabilities::all()), || call(libc::SYS_clone3, 0));
    assert_eq!(found, Some(libc::ENOSYS));
}

#[test]
#[cfg(target_arch = "x86_64")]
fn calls_of_another_abi_are_refused() {
    // `__X32_SYSCALL_BIT`: the x32 ABI's `getpid()`, which a denylist would allow.
    const X32: libc::c_long = 0x4000_0000;
    let found = run_confined(&only_capabilities(Capabilities::all()), || call(X32 + libc::SYS_getpid, 0));
    // A kernel without x32 checks the number before it runs the filter, and returns ENOSYS.
    assert!([Some(libc::EPERM), Some(libc::ENOSYS)].contains(&found), "{found:?}");
}

#[test]
fn other_processes_cannot_be_signalled() {
    let own = libc::c_long::from(std::process::id());
    let signal_zero =
        |pid| run_confined(&only_capabilities(Capabilities::all()), || call(libc::SYS_tgkill, pid));
    assert_eq!(signal_zero(own + 1), Some(libc::EPERM));
    // The kernel itself refuses thread id 0, so EINVAL shows that the filter passed the call.
    assert_eq!(signal_zero(own), Some(libc::EINVAL));
}

#[test]
fn bpf_cannot_load_programs_even_when_it_is_allowed() {
    let confinement = Confinement { syscalls: &[libc::SYS_bpf], ..only_capabilities(Capabilities::all()) };
    // BPF_MAP_CREATE, BPF_PROG_LOAD, BPF_BTF_LOAD.
    for command in [0, 5, 18] {
        let found = run_confined(&confinement, || call(libc::SYS_bpf, command));
        assert_eq!(found, Some(libc::EPERM), "command {command}");
    }
    assert_ne!(run_confined(&confinement, || call(libc::SYS_bpf, 1)), Some(libc::EPERM));
}

#[test]
fn no_other_process_is_reached_by_descriptors_limits_or_unix_sockets() {
    let reached = run_confined(&only_capabilities(Capabilities::all()), || {
        let stream = std::os::unix::net::UnixStream::connect("/nowhere").map(drop);
        let datagram = std::os::unix::net::UnixDatagram::unbound().is_ok();
        let pair = std::os::unix::net::UnixStream::pair().is_ok();
        let network = std::net::UdpSocket::bind("127.0.0.1:0").is_ok();
        // SAFETY: F_SETOWN of an invalid descriptor has no effect; neither have limits that are
        // not given.
        let owner = unsafe { libc::fcntl(-1, libc::F_SETOWN, 1) };
        let refused = owner < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM);
        (stream.map_err(|error| error.raw_os_error()), datagram, pair, network, refused)
    });
    assert_eq!(reached, (Err(Some(libc::EPERM)), true, true, true, true));
    let limits =
        |pid| run_confined(&only_capabilities(Capabilities::all()), || call(libc::SYS_prlimit64, pid));
    assert_eq!(limits(1), Some(libc::EPERM));
    assert_eq!(limits(0), None);
    let open = Confinement { unix_streams: true, ..only_capabilities(Capabilities::all()) };
    let found = run_confined(&open, || std::os::unix::net::UnixStream::connect("/nowhere").map(drop));
    assert_eq!(found.map_err(|error| error.raw_os_error()), Err(Some(libc::ENOENT)));
}

#[test]
fn threads_and_programs_still_start() {
    let output = run_confined(&only_capabilities(Capabilities::all()), || {
        std::thread::spawn(|| std::process::Command::new("sh").args(["-c", "echo $((6*7))"]).output())
            .join()
            .unwrap()
    });
    assert_eq!(output.unwrap().stdout, b"42\n");
}
