//! Shared parts of the fuzz targets: seeds that are made by the real encoders, and input that is
//! consumed from the front.

use std::path::PathBuf;
use std::{env, fs, process};

/// Environment variable with a folder: the target writes its seeds there and exits.
const SEEDS: &str = "MOBILE_FUZZ_SEEDS";

/// Writes the seeds that `make` returns and exits, if the variable `MOBILE_FUZZ_SEEDS` is set. To
/// be called when a target starts.
///
/// # Panics
/// If the files cannot be written.
pub fn seeds(make: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(folder) = env::var_os(SEEDS).map(PathBuf::from) else { return };
    for (number, seed) in make().into_iter().enumerate() {
        let file = folder.join(format!("seed-{number:03}"));
        fs::write(&file, seed).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    process::exit(0);
}

/// Fuzz input that is consumed from the front. Missing bytes are 0, so that every input is valid.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Returns whether no bytes are left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// Returns the next two bytes as a number.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// Returns the next `count` bytes, or as many as there are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Converts bytes to text, with invalid bytes replaced.
#[must_use]
pub fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// Splits the input into a configuration file and, after a NUL byte, environment variables, one
/// `NAME=VALUE` a line.
pub fn file_and_variables(data: &[u8]) -> (String, impl Iterator<Item = (String, String)>) {
    let text = String::from_utf8_lossy(data);
    let (file, variables) = text.split_once('\0').unwrap_or((&text, ""));
    let pairs: Vec<_> = variables.lines().filter_map(|line| line.split_once('=')).collect();
    let owned: Vec<_> = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    (file.to_owned(), owned.into_iter())
}
