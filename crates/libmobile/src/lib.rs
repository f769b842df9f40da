//! The C library `libmobile`, which implements the paper's C interface by requests over the agent's
//! control socket. `include/mobile.h` documents the interface.
//!
//! The library keeps no state between two calls, so any thread may call at any time. All unsafe
//! code is in this file.

mod agent;
mod socket_path;

use std::ffi::{CStr, OsString, c_int};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt as _;
use std::panic::{UnwindSafe, catch_unwind};

use mobile_control::{Call, SOCKET_VARIABLE};
use nix::errno::Errno;
use nix::libc;

/// Sets (`flag` 1) or clears (`flag` 0) the MOBILE attribute of the process `pid`, or of the caller
/// if `pid` is 0. Returns 0, or -1 with `errno` set.
#[unsafe(no_mangle)]
pub extern "C" fn inet_setmobile(pid: c_int, flag: c_int) -> c_int {
    finish(move || {
        let mobile = match flag {
            0 => false,
            1 => true,
            _ => return Err(Errno::EINVAL),
        };
        // The kernel reports the caller to the agent, so send 0 instead of the caller's own ID,
        // which may differ from the one that the agent sees: a container has its own numbering.
        let pid = match pid {
            ..0 => return Err(Errno::EINVAL),
            own if own == nix::unistd::getpid().as_raw() => 0,
            other => other,
        };
        call(Call::SetMobile { pid, mobile })
    })
}

/// Asks the agent to verify and repair the MOBILE route. Returns 0, or -1 with `errno` set.
///
/// Fails if `gateway` is neither the persistent address nor the address at which the relay is
/// reached at the moment. A null pointer or the address 0.0.0.0 disables this check.
///
/// # Safety
///
/// `gateway` must be null or point to a `sockaddr_in`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inet_setmroute(gateway: *const libc::sockaddr_in) -> c_int {
    let gateway = if gateway.is_null() {
        None
    } else {
        // SAFETY: the pointer is not null, so it points to a sockaddr_in as the caller promises,
        // which may lie in a buffer that is not aligned.
        Some(unsafe { gateway.read_unaligned() })
    };
    finish(move || {
        let gateway = match gateway {
            Some(address) if c_int::from(address.sin_family) != libc::AF_INET => {
                return Err(Errno::EAFNOSUPPORT);
            }
            Some(address) => {
                Some(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))).filter(|ip| !ip.is_unspecified())
            }
            None => None,
        };
        call(Call::SetRoute { gateway })
    })
}

fn call(call: Call) -> Result<(), Errno> {
    agent::call(&socket_path::find(trusted_variable(), mobile_control::CONFIG.as_ref())?, call)
}

/// Returns the path of the control socket in the environment variable [`SOCKET_VARIABLE`]; `None`
/// if the variable is unset or empty, or if the program has more rights than the user who started
/// it (AT_SECURE).
fn trusted_variable() -> Option<OsString> {
    let name = std::ffi::CString::new(SOCKET_VARIABLE).ok()?;
    // SAFETY: the function takes no pointer.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return None;
    }
    // SAFETY: the name is a C string. As always with getenv(), no thread may change the environment
    // meanwhile.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: the pointer is not null, so it is a C string, which is valid until the environment
    // changes.
    let value = unsafe { CStr::from_ptr(value) };
    Some(OsString::from_vec(value.to_bytes().to_vec())).filter(|value| !value.is_empty())
}

/// Runs `work` and returns its result as system calls do: 0, or -1 with `errno` set. A panic
/// becomes EIO, because a panic must not unwind into C.
fn finish(work: impl FnOnce() -> Result<(), Errno> + UnwindSafe) -> c_int {
    match catch_unwind(work).unwrap_or(Err(Errno::EIO)) {
        Ok(()) => 0,
        Err(errno) => {
            errno.set();
            -1
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_arguments_are_refused_without_asking_the_agent() {
        for (pid, flag) in [(0, 2), (0, -1), (-1, 1)] {
            Errno::clear();
            assert_eq!((inet_setmobile(pid, flag), Errno::last()), (-1, Errno::EINVAL), "{pid} {flag}");
        }
        // SAFETY: a sockaddr_in consists of integers, for which zero is a valid value.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET6 as libc::sa_family_t;
        // SAFETY: the pointer points to a sockaddr_in.
        let result = unsafe { inet_setmroute(&raw const address) };
        assert_eq!((result, Errno::last()), (-1, Errno::EAFNOSUPPORT));
    }

    #[test]
    fn a_panic_becomes_an_error_number() {
        assert_eq!((finish(|| panic!("for the test")), Errno::last()), (-1, Errno::EIO));
    }
}
