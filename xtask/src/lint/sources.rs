//! The files under version control, and their comments and prose.

use std::fs;

use anyhow::{Context as _, Result};

use crate::shell;

/// A file under version control.
pub(super) struct File {
    /// The path from the root of the workspace.
    pub(super) name: String,
    pub(super) text: String,
}

/// Returns the tracked files with this extension, and those that are new and not ignored.
pub(super) fn tracked(extension: &str) -> Result<Vec<File>> {
    let pattern = format!("*.{extension}");
    let mut git = std::process::Command::new("git");
    git.current_dir(shell::root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        &pattern,
    ]);
    let listed = shell::output(&mut git)?;
    let names = listed.lines().filter(|name| shell::root().join(name).exists());
    names
        .map(|name| {
            let text = fs::read_to_string(shell::root().join(name))
                .with_context(|| format!("cannot read {name}"))?;
            Ok(File { name: name.to_owned(), text })
        })
        .collect()
}

/// Returns the lines that hold nothing but a comment, with their numbers from 1.
pub(super) fn comment_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(at, line)| (at + 1, line));
    lines.filter(|(_, line)| line.trim_start().starts_with("//"))
}

/// Returns the lines of a Markdown page outside tables and code blocks, with their numbers from 1.
pub(super) fn prose_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut is_code = false;
    text.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence && !line.trim_start().starts_with('|')
    })
}
