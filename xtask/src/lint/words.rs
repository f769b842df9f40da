//! Counts the words of the project: how wide comments and prose are, how doc comments begin, how
//! long the documents are, and whether retired names are back.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::bounds;
use super::sources::{self, File};
use crate::shell;

/// A number of places or words with its bound, and the places that it counts.
struct Count {
    what: &'static str,
    bound: usize,
    number: usize,
    places: Vec<String>,
}

impl Count {
    fn of_places(what: &'static str, bound: usize, places: Vec<String>) -> Self {
        Self { what, bound, number: places.len(), places }
    }

    fn of_words<'a>(what: &'static str, bound: usize, pages: impl Iterator<Item = &'a File>) -> Self {
        let lengths: Vec<(usize, &str)> = pages.map(|page| (words(&page.text), page.name.as_str())).collect();
        Self {
            what,
            bound,
            number: lengths.iter().map(|(words, _)| words).sum(),
            places: lengths.iter().map(|(words, name)| format!("{name}: {words} words")).collect(),
        }
    }

    fn is_exceeded(&self) -> bool {
        self.number > self.bound
    }
}

/// Returns the number of words in a text; a pipe between table cells or a dash is no word.
fn words(text: &str) -> usize {
    text.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count()
}

/// Prints every count with its bound, and the places of those that exceed it.
pub(super) fn report() -> Result<()> {
    print!("{}", show(&count()?));
    Ok(())
}

/// Fails if a count exceeds its bound.
pub(super) fn check() -> Result<()> {
    let counts = count()?;
    if counts.iter().any(Count::is_exceeded) {
        bail!("words beyond their bounds (xtask/src/lint/bounds.rs):\n{}", show(&counts));
    }
    Ok(())
}

fn show(counts: &[Count]) -> String {
    let mut text = String::new();
    for count in counts {
        let verdict = if count.is_exceeded() { "TOO MANY" } else { "ok" };
        let _ =
            writeln!(text, "{:>6} of at most {:<6} {:<8} {}", count.number, count.bound, verdict, count.what);
        if count.is_exceeded() {
            for place in &count.places {
                let _ = writeln!(text, "    {place}");
            }
        }
    }
    text
}

fn count() -> Result<Vec<Count>> {
    let sources = sources::tracked("rs")?;
    let pages = sources::tracked("md")?;
    // Decisions and reports describe their time.
    let is_current =
        |page: &&File| !page.name.starts_with("docs/adr/") && !page.name.starts_with("docs/measure/reports/");
    let heads: Vec<Head> = sources.iter().flat_map(heads).collect();
    let place = |head: &Head| format!("{}: {}", head.place, head.text);
    let wide_comments = sources.iter().flat_map(|file| wide(file, sources::comment_lines(&file.text)));
    let wide_prose = pages.iter().flat_map(|page| wide(page, sources::prose_lines(&page.text)));
    Ok(vec![
        Count::of_places("comment lines wider than 100 columns", 0, wide_comments.collect()),
        Count::of_places("lines of Markdown prose wider than 100 columns", 0, wide_prose.collect()),
        Count::of_places(
            "doc comments that begin with a pronoun",
            bounds::PRONOUN_HEADS,
            heads.iter().filter(|head| begins_with_pronoun(&head.text)).map(place).collect(),
        ),
        Count::of_places(
            "doc comments of three words or fewer",
            bounds::SHORT_HEADS,
            heads.iter().filter(|head| head.is_short()).map(place).collect(),
        ),
        Count::of_places(
            "table cells of more than 25 words",
            0,
            pages
                .iter()
                .filter(|page| !bounds::REFERENCES.contains(&page.name.as_str()))
                .flat_map(long_cells)
                .collect(),
        ),
        Count::of_places(
            "retired names",
            0,
            sources.iter().chain(pages.iter().filter(is_current)).flat_map(retired).collect(),
        ),
        Count::of_words(
            "words in README.md",
            bounds::README_WORDS,
            pages.iter().filter(|page| page.name == "README.md"),
        ),
        Count::of_words(
            "words in README.md and docs/use",
            bounds::USER_WORDS,
            pages.iter().filter(|page| page.name == "README.md" || page.name.starts_with("docs/use/")),
        ),
        Count::of_words(
            "words in docs without decisions and reports",
            bounds::DOCS_WORDS,
            pages.iter().filter(|page| page.name.starts_with("docs/")).filter(is_current),
        ),
    ])
}

/// Returns the places of the lines that are wider than [`bounds::LINE_WIDTH`], except lines with a
/// link, which cannot be broken.
fn wide<'a>(file: &File, lines: impl Iterator<Item = (usize, &'a str)>) -> Vec<String> {
    lines
        .filter(|(_, line)| line.chars().count() > bounds::LINE_WIDTH)
        .filter(|(_, line)| !line.contains("://") && !line.contains("]("))
        .map(|(number, _)| format!("{}:{number}", file.name))
        .collect()
}

/// The first line of a doc comment.
struct Head {
    place: String,
    text: String,
    /// Whether the doc comment has a second line.
    goes_on: bool,
}

impl Head {
    fn is_short(&self) -> bool {
        !self.goes_on && self.text.split_whitespace().count() <= bounds::SHORT_HEAD
    }
}

fn heads(file: &File) -> Vec<Head> {
    let lines: Vec<&str> = file.text.lines().map(str::trim_start).collect();
    let doc = |line: &str| -> Option<&'static str> {
        ["///", "//!"].into_iter().find(|marker| line.starts_with(marker) && !line.starts_with("////"))
    };
    (0..lines.len())
        .filter_map(|at| {
            let marker = doc(lines[at])?;
            let is_first = at == 0 || doc(lines[at - 1]) != Some(marker);
            let next = lines.get(at + 1).and_then(|line| line.strip_prefix(marker));
            is_first.then(|| Head {
                place: format!("{}:{}", file.name, at + 1),
                text: lines[at][marker.len()..].trim().to_owned(),
                goes_on: next.is_some_and(|rest| !rest.trim().is_empty()),
            })
        })
        .collect()
}

fn begins_with_pronoun(text: &str) -> bool {
    let first = text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_lowercase();
    bounds::PRONOUNS.contains(&first.as_str()) || text.starts_with("`None`")
}

fn long_cells(page: &File) -> Vec<String> {
    let lines = page.text.lines().enumerate().filter(|(_, line)| line.starts_with('|'));
    lines
        .flat_map(|(at, line)| line.split('|').map(move |cell| (at, words(cell))))
        .filter(|(_, words)| *words > bounds::CELL_WORDS)
        .map(|(at, words)| format!("{}:{}: {words} words", page.name, at + 1))
        .collect()
}

fn retired(file: &File) -> Vec<String> {
    // Here they are named.
    if file.name == "xtask/src/lint/bounds.rs" {
        return Vec::new();
    }
    let words = |line: &str| -> Vec<String> {
        line.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect()
    };
    let lines = file.text.lines().enumerate();
    lines
        .flat_map(|(at, line)| words(line).into_iter().map(move |word| (at, word)))
        .filter_map(|(at, word)| {
            let (old, new) = bounds::RETIRED.iter().find(|(old, _)| *old == word)?;
            Some(format!("{}:{}: `{old}` is now {new}", file.name, at + 1))
        })
        .collect()
}

/// Fails if docs/messages.txt lacks a log message or an error of the programs, or has one that no
/// longer exists, so that each change of a message is read in review.
pub(super) fn check_messages() -> Result<()> {
    let path = shell::root().join(super::messages::FILE);
    let committed = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let current = super::messages::list()?;
    if committed == current {
        return Ok(());
    }
    let mut text = String::new();
    for (mark, from, other) in [('-', &committed, &current), ('+', &current, &committed)] {
        for line in from.lines().filter(|line| !other.lines().any(|there| there == *line)) {
            let _ = writeln!(text, "{mark} {line}");
        }
    }
    bail!(
        "{} differs from the sources; read the change, then run `cargo xtask gen`:\n{text}",
        relative(&path)
    )
}

fn relative(path: &Path) -> String {
    path.strip_prefix(shell::root()).unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, text: &str) -> File {
        File { name: name.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn the_first_line_of_a_doc_comment_is_its_head() {
        let file = file(
            "a.rs",
            "//! Parses frames.\n\n/// The size.\n///\n/// In bytes.\nfn a() {}\n    /// It is\n    /// long.\n",
        );
        let heads = heads(&file);
        let texts: Vec<_> = heads.iter().map(|head| (head.text.as_str(), head.is_short())).collect();
        assert_eq!(texts, [("Parses frames.", true), ("The size.", true), ("It is", false)]);
        assert_eq!(heads[2].place, "a.rs:7");
    }

    #[test]
    fn a_pronoun_is_the_whole_first_word() {
        for text in ["It waits.", "That of a path.", "What is left", "`None`: none", "What's left"] {
            assert!(begins_with_pronoun(text), "{text}");
        }
        for text in ["Item of a list.", "Thatch", "`Some` path", "Whether a path is active"] {
            assert!(!begins_with_pronoun(text), "{text}");
        }
    }

    #[test]
    fn a_long_cell_and_a_wide_line_are_found() {
        let page =
            file("a.md", &format!("| a | {} |\n\n{}\n```\n{0}\n```\n", "word ".repeat(26), "w".repeat(101)));
        assert_eq!(long_cells(&page), ["a.md:1: 26 words"]);
        assert_eq!(wide(&page, sources::prose_lines(&page.text)), ["a.md:3"]);
        let source = file("a.rs", &format!("let a = \"{0}\";\n// {0}\n", "w".repeat(101)));
        assert_eq!(wide(&source, sources::comment_lines(&source.text)), ["a.rs:2"]);
    }
}
