//! A program to which lines are said and which answers with lines.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::wait::PATIENCE;

/// A running program with lines in and lines out; killed when dropped.
pub struct Talk {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Talk {
    /// Starts `command`; its stderr is heard along with its stdout.
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

    /// The program's process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits in 31 bits")
    }

    /// Says a line.
    pub fn say(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its stdin is closed")?;
        writeln!(stdin, "{line}").context("it does not listen any more")
    }

    /// The next line it says.
    pub fn hear(&mut self) -> Result<String> {
        self.hear_within(PATIENCE)
    }

    /// The next line it says within `patience`.
    pub fn hear_within(&mut self, patience: Duration) -> Result<String> {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("it said nothing for {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("it has ended: {}", self.child.wait()?),
        }
    }

    /// What it has said and nobody has heard yet.
    pub fn overhear(&mut self) -> Vec<String> {
        self.lines.try_iter().collect()
    }

    /// Says a line and hears the answer.
    pub fn ask(&mut self, line: &str) -> Result<String> {
        self.say(line)?;
        self.hear().with_context(|| format!("after {line:?}"))
    }

    /// Closes its stdin and waits for its end; returns its exit code.
    pub fn finish(mut self) -> Result<Option<i32>> {
        drop(self.stdin.take());
        Ok(self.child.wait()?.code())
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
