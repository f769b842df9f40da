//! The bounds of sizes and of the counts in `cargo xtask lint --words`, each with its reason, and
//! the names that are retired.

/// The largest number of lines in a source file: about the length that is read in one go.
pub(super) const FILE_LINES: usize = 400;

/// The largest number of lines in the body of a function: it fits on one screen.
pub(super) const FUNCTION_LINES: usize = 60;

/// The largest number of fields in a type. A type with more has mostly two jobs.
pub(super) const TYPE_FIELDS: usize = 12;

/// Widest line of a comment or of Markdown prose, in characters: two panes fit on one screen, and a
/// diff of a paragraph shows the sentence that changed.
pub(super) const LINE_WIDTH: usize = 100;

/// The largest number of doc comments that may begin with a pronoun. A summary is read alone, in an
/// index or beside a completion, where a pronoun refers to nothing; 20 leaves room for sentences
/// that need one.
pub(super) const PRONOUN_HEADS: usize = 20;

/// The largest number of doc comments whose first line may have [`SHORT_HEAD`] words or fewer. Most
/// of these repeat the item's name.
pub(super) const SHORT_HEADS: usize = 60;

/// The number of words up to which the first line of a doc comment counts as short.
pub(super) const SHORT_HEAD: usize = 3;

/// The largest number of words in one table cell: a table is for values that are looked up, not for
/// prose.
pub(super) const CELL_WORDS: usize = 25;

/// The largest number of words in README.md: about four minutes of reading.
pub(super) const README_WORDS: usize = 900;

/// The largest number of words in README.md and docs/use together: less than an hour of reading.
pub(super) const USER_WORDS: usize = 12_000;

/// The largest number of words in docs, without docs/adr and the reports of benchmark runs.
pub(super) const DOCS_WORDS: usize = 20_000;

/// The pages that are references: their table cells describe one key or metric each and may be
/// long.
pub(super) const REFERENCES: [&str; 2] = ["docs/use/json.md", "docs/use/metrics.md"];

/// Words with which a sentence refers to something that was said before it.
pub(super) const PRONOUNS: [&str; 28] = [
    "he", "his", "it", "its", "nobody", "none", "others", "ours", "so", "somebody", "such", "that", "their",
    "theirs", "them", "these", "they", "this", "those", "we", "what", "whatever", "where", "which", "who",
    "whoever", "whose", "whom",
];

/// Names in the code that are not to be used again, each with the name that replaces it.
pub(super) const RETIRED: &[(&str, &str)] = &[];
