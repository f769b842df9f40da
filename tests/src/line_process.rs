//! A child process to which a case writes lines on stdin, and which answers with lines on stdout.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait::PATIENCE;

/// A running process that reads lines from stdin and prints lines on stdout, killed when dropped.
pub struct LineProcess {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl LineProcess {
    /// Starts `command` with piped stdin and stdout; stderr is inherited.
    pub fn start(command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let stdout = child.stdout.take().context("no stdout")?;
        let stdin = child.stdin.take();
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    /// Returns the process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits in 31 bits")
    }

    /// Writes a line to the process's stdin.
    pub fn send_line(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin of the process is closed")?;
        writeln!(stdin, "{line}").context("the process does not read its stdin")
    }

    /// Returns the next line of stdout. Fails if none arrives within [`PATIENCE`].
    pub fn next_line(&mut self) -> Result<String> {
        self.next_line_within(PATIENCE)
    }

    /// Returns the next line of stdout. Fails if none arrives within `patience`.
    pub fn next_line_within(&mut self, patience: Duration) -> Result<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("the process printed no line for {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the process has ended: {}", self.child.wait()?),
        }
    }

    /// Returns, without waiting, the lines of stdout that have arrived and that no call has
    /// returned yet.
    pub fn take_lines(&mut self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Writes a line to stdin and returns the next line of stdout.
    pub fn request(&mut self, line: &str) -> Result<String> {
        self.send_line(line)?;
        self.next_line().with_context(|| format!("after sending {line:?}"))
    }

    /// Closes stdin, waits until the process ends, and returns its exit code, or `None` if a signal
    /// ended it.
    pub fn finish(mut self) -> Result<Option<i32>> {
        drop(self.stdin.take());
        Ok(self.child.wait()?.code())
    }
}

impl Drop for LineProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
