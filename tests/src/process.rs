//! Programs of the lab: short ones with a deadline, long ones with a log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

/// What a short command left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// All it wrote to stdout.
    pub stdout: String,
    /// All it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// The exit code, or 128 plus the signal, as a shell counts.
    #[must_use]
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Its stdout if it succeeded, else an error with its stderr.
    pub fn ok(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}: {}{}", self.status, self.stderr.trim(), self.stdout.trim());
        }
        Ok(self.stdout)
    }
}

/// Runs `command` to its end; one that takes longer than `patience` is killed, and an error.
pub fn finish_within(command: &mut Command, input: Option<&[u8]>, patience: Duration) -> Result<Finished> {
    let stdin = match input {
        Some(bytes) => {
            let mut file = tempfile::tempfile()?;
            file.write_all(bytes)?;
            file.seek(SeekFrom::Start(0))?;
            Stdio::from(file)
        }
        None => Stdio::null(),
    };
    // Files, not pipes: a grandchild that keeps them open does not keep us waiting.
    let (mut stdout, mut stderr) = (tempfile::tempfile()?, tempfile::tempfile()?);
    let mut child = command
        .stdin(stdin)
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let end = Instant::now() + patience;
    let mut pause = Duration::from_micros(200);
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            let (out, err) = (slurp(&mut stdout)?, slurp(&mut stderr)?);
            bail!("{command:?} took longer than {patience:?}; it said: {out}{err}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    Ok(Finished { status, stdout: slurp(&mut stdout)?, stderr: slurp(&mut stderr)? })
}

/// A program that runs beside the case; killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command` with stdout and stderr appended to `output`.
    pub fn start(name: &str, command: &mut Command, output: &Path) -> Result<Self> {
        let log = File::options().create(true).append(true).open(output)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        Ok(Self { name: name.to_owned(), child, output: output.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits in 31 bits")
    }

    /// Everything it has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Its status if it has ended.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), patience, || self.ended())
            .with_context(|| format!("it said: {}", self.output()))
    }

    /// Waits until its output contains `text`; its early end is an error.
    pub fn wait_output(&mut self, text: &str, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while !self.output().contains(text) {
            if let Some(status) = self.ended()? {
                if self.output().contains(text) {
                    break;
                }
                bail!("{} ended ({status}) before it said {text:?}; it said: {}", self.name, self.output());
            }
            if Instant::now() >= end {
                bail!("{} did not say {text:?} in {patience:?}; it said: {}", self.name, self.output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) -> Result<()> {
        // It may have ended by itself: that is what kill asks for.
        let _ = self.child.kill();
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

fn slurp(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
