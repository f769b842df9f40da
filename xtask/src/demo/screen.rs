//! Prints the contents of two terminals side by side.

use std::fmt::Write as _;

/// A terminal's title and everything it has shown.
pub(crate) struct Screen {
    /// The command line, which is the title of the terminal's column.
    pub(crate) title: String,
    /// The terminal's output as received.
    pub(crate) transcript: String,
}

/// The width of a terminal's column in characters; two columns and the separator have 96.
const COLUMN: usize = 46;
/// The longest run of one letter that is printed as it is. A longer run is a key held down, and is
/// printed as its length.
const RUN: usize = 8;

/// Returns the lines that show both terminals in columns under their titles.
pub(crate) fn beside(screens: &[Screen; 2]) -> String {
    let columns = screens.each_ref().map(lines);
    let mut out = String::new();
    for row in 0..columns[0].len().max(columns[1].len()) {
        let cell = |column: &Vec<String>| column.get(row).cloned().unwrap_or_default();
        let _ = writeln!(out, "  {:<COLUMN$} │ {}", cell(&columns[0]), cell(&columns[1]));
    }
    let trimmed: Vec<&str> = out.lines().map(str::trim_end).collect();
    trimmed.join("\n") + "\n"
}

fn lines(screen: &Screen) -> Vec<String> {
    let plain: String = screen.transcript.chars().filter(|c| *c == '\n' || !c.is_control()).collect();
    let shown = plain.lines().map(collapse).filter(|line| !line.trim().is_empty());
    let heading = [screen.title.clone(), "─".repeat(COLUMN)];
    heading.into_iter().chain(shown).map(|line| line.chars().take(COLUMN).collect()).collect()
}

/// Replaces a long run of one letter: "xxxxxxxxxxxx" becomes "xxx…(12)".
fn collapse(line: &str) -> String {
    let letters: Vec<char> = line.chars().collect();
    let mut out = String::new();
    for run in letters.chunk_by(|a, b| a == b) {
        if run.len() > RUN && run[0] != ' ' {
            out.extend(&run[..3]);
            let _ = write!(out, "…({})", run.len());
        } else {
            out.extend(run);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_screen_sets_the_height_and_long_runs_are_counted() {
        let screens = [
            Screen { title: "mobile".into(), transcript: "$ echo a\r\na\r\n$ xxxxxxxxxxxx\r\n$ ".into() },
            Screen { title: "plain".into(), transcript: "$ echo a\r\n".into() },
        ];
        let shown = beside(&screens);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines.len(), 6, "{shown}");
        assert!(lines[4].contains("$ xxx…(12)"), "{shown}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{shown}");
    }
}
