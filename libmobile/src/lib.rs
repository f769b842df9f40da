//! `libmobile`: the paper's C interface over the agent's control socket. `include/mobile.h` documents it.
//!
//! Nothing is kept between two calls, so that any thread may call at any time. Everything unsafe is in this file.

mod agent;
mod place;

use std::ffi::{CStr, OsString, c_int};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStringExt as _;
use std::panic::{UnwindSafe, catch_unwind};

use mobile_control::{Call, SOCKET_VARIABLE};
use nix::errno::Errno;
use nix::libc;

/// Sets (1) or clears (0) the MOBILE attribute of a process; 0 is the caller.
#[unsafe(no_mangle)]
pub extern "C" fn inet_setmobile(pid: c_int, flag: c_int) -> c_int {
    answer(move || {
        let mobile = match flag {
            0 => false,
            1 => true,
            _ => return Err(Errno::EINVAL),
        };
        // The kernel says who asks, so the caller's own number needs not mean the same to the agent: a container may
        // number processes in its own way.
        let pid = match pid {
            ..0 => return Err(Errno::EINVAL),
            own if own == nix::unistd::getpid().as_raw() => 0,
            other => other,
        };
        call(Call::SetMobile { pid, mobile })
    })
}

/// Puts the MOBILE route in force; null, or the address 0.0.0.0, is the gateway there is.
///
/// # Safety
/// `gateway` is null or points to a `sockaddr_in`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn inet_setmroute(gateway: *const libc::sockaddr_in) -> c_int {
    let gateway = if gateway.is_null() {
        None
    } else {
        // SAFETY: not null, and so a sockaddr_in, as the caller promises; perhaps inside a buffer that is not aligned.
        Some(unsafe { gateway.read_unaligned() })
    };
    answer(move || {
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
    agent::call(&place::socket(trusted_variable(), mobile_control::CONFIG.as_ref())?, call)
}

/// The environment's word, except in a program that runs with more rights than whoever started it.
fn trusted_variable() -> Option<OsString> {
    let name = std::ffi::CString::new(SOCKET_VARIABLE).ok()?;
    // SAFETY: takes no pointer.
    if unsafe { libc::getauxval(libc::AT_SECURE) } != 0 {
        return None;
    }
    // SAFETY: the name is a C string. As ever with getenv(), no thread may change the environment meanwhile.
    let value = unsafe { libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return None;
    }
    // SAFETY: not null, and so a C string, which stays while nobody changes the environment.
    let value = unsafe { CStr::from_ptr(value) };
    Some(OsString::from_vec(value.to_bytes().to_vec())).filter(|value| !value.is_empty())
}

/// As system calls answer: 0, or -1 and `errno`. A fault of ours is EIO: no panic may unwind into C.
fn answer(work: impl FnOnce() -> Result<(), Errno> + UnwindSafe) -> c_int {
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
    fn what_makes_no_sense_never_reaches_the_agent() {
        for (pid, flag) in [(0, 2), (0, -1), (-1, 1)] {
            Errno::clear();
            assert_eq!((inet_setmobile(pid, flag), Errno::last()), (-1, Errno::EINVAL), "{pid} {flag}");
        }
        // SAFETY: made of integers only, for which zero is a value.
        let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
        address.sin_family = libc::AF_INET6 as libc::sa_family_t;
        // SAFETY: a pointer to a sockaddr_in.
        let result = unsafe { inet_setmroute(&raw const address) };
        assert_eq!((result, Errno::last()), (-1, Errno::EAFNOSUPPORT));
    }

    #[test]
    fn a_panic_is_an_error_number() {
        assert_eq!((answer(|| panic!("for the test")), Errno::last()), (-1, Errno::EIO));
    }
}
