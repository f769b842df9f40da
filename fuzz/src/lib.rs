//! What the targets share: seeds that are made by the real encoders, and input taken piece by piece.

use std::path::PathBuf;
use std::{env, fs, process};

/// Names a folder: the target writes its seeds there, and ends.
const SEEDS: &str = "MOBILE_FUZZ_SEEDS";

/// To be called as a target begins. Writes what `make` makes, if that is what was asked for.
///
/// # Panics
/// When the files cannot be written.
pub fn seeds(make: impl FnOnce() -> Vec<Vec<u8>>) {
    let Some(folder) = env::var_os(SEEDS).map(PathBuf::from) else { return };
    for (number, seed) in make().into_iter().enumerate() {
        let file = folder.join(format!("seed-{number:03}"));
        fs::write(&file, seed).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
    process::exit(0);
}

/// Input that is taken from the front; what is missing is 0, so that every input means something.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a>(pub &'a [u8]);

impl<'a> Input<'a> {
    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte.
    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// The next two.
    pub fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    /// The next `count`, or as many as there are.
    pub fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// Text, with what is none replaced.
#[must_use]
pub fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// A configuration file, and behind a NUL the environment, one `NAME=VALUE` a line.
pub fn file_and_variables(data: &[u8]) -> (String, impl Iterator<Item = (String, String)>) {
    let text = String::from_utf8_lossy(data);
    let (file, variables) = text.split_once('\0').unwrap_or((&text, ""));
    let pairs: Vec<_> = variables.lines().filter_map(|line| line.split_once('=')).collect();
    let owned: Vec<_> = pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    (file.to_owned(), owned.into_iter())
}
