//! Escapes untrusted text before it is shown: command lines of other users, names of devices,
//! messages of a relay.
//!
//! Untrusted text may contain escape sequences, which a terminal executes; line ends, which forge
//! further lines; and direction marks, which change how a line reads. All of these are shown as
//! escapes.
//!
//! [`read_lossy`] reads untrusted text from the files in /proc.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::path::Path;
use std::{fs, io};

/// Reads a file, and replaces each sequence of bytes that is not UTF-8 by U+FFFD.
///
/// The names of mount points, processes and Unix sockets in the files of /proc may hold any byte:
/// one such name must not make the rest of the file unreadable.
///
/// # Errors
/// When the file cannot be read.
pub fn read_lossy(path: impl AsRef<Path>) -> io::Result<String> {
    let bytes = fs::read(path)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

/// Escapes every character of `text` that a terminal does not show as itself, including line ends
/// and tabs.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    escape(text, is_hidden, |out, c| {
        // Writing to a `String` cannot fail.
        let _ = write!(out, "{}", c.escape_default());
    })
}

/// Escapes text of several lines and columns, keeping line ends and tabs.
#[must_use]
pub fn printable_lines(text: &str) -> Cow<'_, str> {
    escape(
        text,
        |c| is_hidden(c) && !matches!(c, '\n' | '\t'),
        |out, c| {
            let _ = write!(out, "{}", c.escape_default());
        },
    )
}

/// Escapes the characters of a JSON document that a terminal executes or hides, with JSON escapes,
/// which keep the value of the document.
///
/// `serde_json` only escapes the characters that JSON requires (below U+0020), and not, for
/// instance, U+009B, which begins an escape sequence on some terminals. JSON contains no such
/// characters outside of strings.
#[must_use]
pub fn printable_json(document: &str) -> Cow<'_, str> {
    escape(
        document,
        |c| is_hidden(c) && !c.is_ascii_whitespace(),
        |out, c| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(out, "\\u{unit:04x}");
            }
        },
    )
}

fn escape(text: &str, hidden: impl Fn(char) -> bool, mut put: impl FnMut(&mut String, char)) -> Cow<'_, str> {
    if !text.chars().any(&hidden) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if hidden(c) { put(&mut out, c) } else { out.push(c) }
    }
    Cow::Owned(out)
}

/// Returns whether a terminal executes or hides a character instead of showing it.
///
/// Hidden characters are controls (C0, DEL, C1), direction marks (Unicode annex 9), line and
/// paragraph separators, and characters without width.
fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_characters_are_left_alone() {
        for text in ["", "ssh host", "grüße 日本語 🙂 \\n \"quoted\"", "a…b", "\u{fffd}"] {
            assert!(matches!(printable(text), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(printable_lines("a\tb\nc"), "a\tb\nc");
    }

    #[test]
    fn escape_sequences_line_ends_and_direction_marks_are_escaped() {
        for (text, expected) in [
            ("\x1b[2J\x1b]0;t\x07", "\\u{1b}[2J\\u{1b}]0;t\\u{7}"),
            ("a\n1 root\tx\r", "a\\n1 root\\tx\\r"),
            ("\u{9b}31m\x7f\0", "\\u{9b}31m\\u{7f}\\u{0}"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\\u{202e}b\\u{2066}c\\u{200f}"),
            ("a\u{2028}b\u{feff}\u{ad}\u{e0041}", "a\\u{2028}b\\u{feff}\\u{ad}\\u{e0041}"),
        ] {
            assert_eq!(printable(text), expected);
        }
        assert_eq!(printable_lines("a\n\x1b\u{2028}"), "a\n\\u{1b}\\u{2028}");
    }

    #[test]
    fn a_json_document_keeps_its_value() {
        let text = "\x1b\n\u{9b}\u{202e}\u{e0041}\u{7f}é";
        let document = serde_json::to_string_pretty(&serde_json::json!({ "a": text, "b": [1] })).unwrap();
        let safe = printable_json(&document);
        assert!(safe.chars().all(|c| c == '\n' || !is_hidden(c)), "{safe}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&safe).unwrap(),
            serde_json::from_str::<serde_json::Value>(&document).unwrap()
        );
    }
}
