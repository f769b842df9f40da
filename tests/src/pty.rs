//! A program on a pseudoterminal that a case types into and reads from.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::libc;
use nix::pty::{Winsize, openpty};
use nix::unistd::setsid;

use crate::wait::{PATIENCE, wait_for};

/// A program whose controlling terminal is a pseudoterminal of the test process.
pub struct Terminal {
    child: Child,
    keyboard: File,
    screen: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    /// Starts `command` in a new terminal session (setsid) on a terminal of 24 rows and 80 columns.
    pub fn start(command: &mut Command) -> Result<Self> {
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).context("cannot open a pseudoterminal")?;
        let (keyboard, mut display) = (File::from(pty.master.try_clone()?), File::from(pty.master));
        // SAFETY: the closure makes only system calls between fork and exec, and stdin is the
        // pseudoterminal by then.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        // The child must not inherit the master, or closing it here would not hang up the terminal.
        for fd in [keyboard.as_raw_fd(), display.as_raw_fd()] {
            // SAFETY: both descriptors are open and owned by this process.
            unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) };
        }
        let child = command
            .stdin(pty.slave.try_clone()?)
            .stdout(pty.slave.try_clone()?)
            .stderr(pty.slave)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        // Only the child may hold the slave; otherwise reading the master does not end with the
        // child.
        command
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let screen = Arc::new(Mutex::new(Vec::new()));
        let shown = Arc::clone(&screen);
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = display.read(&mut buffer) {
                shown.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&buffer[..count]);
            }
        });
        Ok(Self { child, keyboard, screen })
    }

    /// Types `text` on the terminal.
    pub fn send(&self, text: &str) -> Result<()> {
        (&self.keyboard).write_all(text.as_bytes()).context("cannot type: the terminal is gone")
    }

    /// Returns everything that the program has written to the terminal so far.
    #[must_use]
    pub fn transcript(&self) -> String {
        String::from_utf8_lossy(&self.screen.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until `text` has been written to the terminal. Fails after [`PATIENCE`].
    pub fn expect(&self, text: &str) -> Result<()> {
        self.expect_within(text, PATIENCE)
    }

    /// Waits until `text` has been written to the terminal. Fails after `patience`.
    pub fn expect_within(&self, text: &str, patience: Duration) -> Result<()> {
        let shown = wait_for(&format!("{text:?} on the terminal"), patience, || {
            Ok(self.transcript().contains(text).then_some(()))
        });
        if let Err(error) = shown {
            bail!("{error}; it shows:\n{}", self.transcript());
        }
        Ok(())
    }

    /// Returns the program's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits in 31 bits")
    }

    /// Returns the exit status if the program has ended, else `None`.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until the program ends by itself.
    pub fn wait(&mut self) -> Result<ExitStatus> {
        wait_for("the end of the program on the terminal", PATIENCE, || self.ended())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
