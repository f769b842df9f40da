//! A telnet session into which the demonstration types.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mobile_tests::{Terminal, wait_for};

use super::screen::Screen;

/// The letter that is typed again and again. Nothing else on the terminal contains it after typing
/// begins, so each one that appears is the echo of a keystroke.
const KEY: char = 'x';
/// The shell's no-operation command, to which the typed letters are arguments, so that they are
/// only echoed.
const NO_OP: &str = ": ";
/// The prompt of root's shell on the server.
const PROMPT: &str = "# ";

/// A telnet client on its own terminal.
pub(crate) struct Session {
    title: String,
    terminal: Terminal,
    /// The position in the terminal's transcript at which typing began.
    mark: usize,
    echoes: Vec<Instant>,
    pressed: usize,
}

impl Session {
    /// Starts the telnet client and waits for the server's prompt.
    pub(crate) fn open(title: &str, command: &mut Command) -> Result<Self> {
        let terminal = Terminal::start(command).with_context(|| format!("cannot start `{title}`"))?;
        terminal.expect(PROMPT).with_context(|| format!("`{title}` reached no shell on the server"))?;
        Ok(Self { title: title.to_owned(), terminal, mark: 0, echoes: Vec::new(), pressed: 0 })
    }

    /// Types `echo WORD` and a newline into the session.
    pub(crate) fn type_echo(&self, word: &str) {
        self.press(&format!("echo {word}\n"));
    }

    /// Returns whether the server prints `word` on its own line within `patience`.
    pub(crate) fn shows_line(&self, word: &str, patience: Duration) -> bool {
        let output = || self.terminal.transcript().lines().any(|line| line.trim_end() == word);
        wait_for(word, patience, || Ok(output().then_some(()))).is_ok()
    }

    /// Begins a line of the no-operation command, into which [`Session::press_key`] types.
    pub(crate) fn begin_typing(&mut self) {
        self.mark = self.terminal.transcript().len();
        self.press(NO_OP);
    }

    /// Types the letter [`KEY`] once.
    pub(crate) fn press_key(&mut self) {
        self.pressed += 1;
        self.press(&KEY.to_string());
    }

    /// Records the arrival of the letters that the server has echoed since the last call.
    pub(crate) fn poll_echoes(&mut self) {
        let transcript = self.terminal.transcript();
        let back = transcript.get(self.mark..).unwrap_or_default().matches(KEY).count();
        let now = Instant::now();
        self.echoes.resize(back.max(self.echoes.len()), now);
    }

    /// Ends the line that [`Session::begin_typing`] began.
    pub(crate) fn end_typing(&self) {
        self.press("\n");
    }

    /// Returns the time at which each letter was echoed, in milliseconds since `start`.
    pub(crate) fn echoes(&self, start: Instant) -> Vec<u64> {
        self.echoes
            .iter()
            .map(|echo| u64::try_from(echo.duration_since(start).as_millis()).unwrap_or(u64::MAX))
            .collect()
    }

    /// Waits for the shell's next prompt; returns false if there is none within `patience`.
    pub(crate) fn is_ready(&self, patience: Duration) -> bool {
        let asks = || self.terminal.transcript().ends_with(PROMPT);
        wait_for(PROMPT, patience, || Ok(asks().then_some(()))).is_ok()
    }

    fn press(&self, keys: &str) {
        // A client that has ended takes no keys; the missing echo will be seen.
        let _ = self.terminal.send(keys);
    }

    /// Returns the number of keys pressed and of letters echoed.
    pub(crate) fn keys(&mut self) -> (usize, usize) {
        self.poll_echoes();
        (self.pressed, self.echoes.len())
    }

    /// Returns everything the terminal shows.
    pub(crate) fn screen(&self) -> Screen {
        Screen { title: self.title.clone(), transcript: self.terminal.transcript() }
    }
}
