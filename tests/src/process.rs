//! Runs programs: short commands with a timeout, long-running ones with a log file.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::wait::wait_for;

/// The exit status and the output of a finished command.
#[derive(Debug)]
pub struct CommandOutput {
    /// The exit status of the command.
    pub status: ExitStatus,
    /// Everything written to stdout.
    pub stdout: String,
    /// Everything written to stderr.
    pub stderr: String,
}

impl CommandOutput {
    /// Returns the exit code, or 128 plus the signal number if a signal ended the command, as a
    /// shell does.
    #[must_use]
    pub fn code(&self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Returns stdout if the command succeeded, else an error that contains stderr.
    pub fn ok(self) -> Result<String> {
        if !self.status.success() {
            bail!("{}: {}{}", self.status, self.stderr.trim(), self.stdout.trim());
        }
        Ok(self.stdout)
    }
}

/// Runs `command` with `input` as its stdin and returns its output. Kills the command and fails if
/// it takes longer than `patience`.
pub fn finish_within(
    command: &mut Command,
    input: Option<&[u8]>,
    patience: Duration,
) -> Result<CommandOutput> {
    let stdin = match input {
        Some(bytes) => {
            let mut file = tempfile::tempfile()?;
            file.write_all(bytes)?;
            file.seek(SeekFrom::Start(0))?;
            Stdio::from(file)
        }
        None => Stdio::null(),
    };
    // Output goes to files instead of pipes: a grandchild that keeps a pipe open would block the
    // read.
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
            bail!("{command:?} took longer than {patience:?}; its output: {out}{err}");
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    };
    Ok(CommandOutput { status, stdout: slurp(&mut stdout)?, stderr: slurp(&mut stderr)? })
}

/// A program that runs beside a case and is killed when dropped.
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

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits in 31 bits")
    }

    /// Returns everything that the program has written to stdout and stderr so far.
    #[must_use]
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Returns the exit status if the program has ended, else `None`.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until the program ends by itself, and returns its exit status. Fails after `patience`.
    pub fn wait(&mut self, patience: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        wait_for(&format!("the end of {name}"), patience, || self.ended())
            .with_context(|| format!("its output: {}", self.output()))
    }

    /// Waits until the program's output contains `text`. Fails after `patience`, or if the program
    /// ends before.
    pub fn wait_output(&mut self, text: &str, patience: Duration) -> Result<()> {
        let end = Instant::now() + patience;
        while !self.output().contains(text) {
            if let Some(status) = self.ended()? {
                if self.output().contains(text) {
                    break;
                }
                bail!(
                    "{} ended ({status}) before it printed {text:?}; its output: {}",
                    self.name,
                    self.output()
                );
            }
            if Instant::now() >= end {
                bail!(
                    "{} did not print {text:?} within {patience:?}; its output: {}",
                    self.name,
                    self.output()
                );
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Sends a signal to the program.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.pid()), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Kills the program with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        // The program may have ended by itself.
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
