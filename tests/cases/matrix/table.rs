//! The tables of the socket matrix, and their comparison with docs/understand/security.md.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use mobile_tests::matrix::AttachTiming;
use serde_json::Value;

use super::{Cell, State, rules};
use crate::Outcome;

const BEGIN: &str = "<!-- measured: MATRIX=write cargo xtask test e2e matrix -->\n";
const END: &str = "<!-- end of what is measured -->\n";
const EXCEPTIONS_BEGIN: &str = "<!-- measured on older kernels: cargo xtask test vm -->\n";

type Measured = HashMap<State, Vec<Cell>>;

/// Returns two tables in Markdown: one has a column for each state of the agent, for a process that
/// was always mobile, the other a column for each [`AttachTiming`], while the tunnel is up.
pub(super) fn tables(measured: &Measured) -> String {
    let states = State::ALL.map(|state| (head_of_state(state), state, AttachTiming::Mobile));
    let orders = AttachTiming::ALL.map(|timing| (head_of_timing(timing), State::Up, timing));
    format!(
        "Sockets of a process started by `mobile run`, by what the agent is doing:\n\n{}\n\
         While the tunnel is up, by when the process became mobile:\n\n{}",
        table(measured, &states),
        table(measured, &orders)
    )
}

/// Returns one line of text for each measured socket, from which a developer can find the reason of
/// a result.
pub(super) fn everything(measured: &Measured) -> String {
    let mut text = String::new();
    for state in State::ALL {
        for cell in measured.get(&state).into_iter().flatten() {
            let (Cell { timing, kind, family, left, .. }, words) = (cell, words(state, cell));
            let _ = writeln!(text, "{state:?} {timing:?} {kind} {family}: {words} {left:?}");
        }
    }
    text
}

/// Returns a description of each measured socket whose packets left by a device that
/// [`rules::is_broken`] reports as forbidden.
pub(super) fn leaks(measured: &Measured) -> Vec<String> {
    let text = |(state, cell): (State, &Cell)| {
        let Cell { timing, kind, family, left, .. } = cell;
        format!("{state:?}, {timing:?}: {kind}, {family}: {left:?}")
    };
    broken(measured).map(text).collect()
}

/// Returns a table of the sockets whose packets left by a device that [`rules::is_broken`] reports
/// as forbidden. On the newest kernel the table is empty.
pub(super) fn exceptions(measured: &Measured) -> String {
    let mut rows: Vec<(&Cell, Vec<&str>)> = Vec::new();
    for (state, cell) in broken(measured) {
        let same = |known: &Cell| {
            (known.timing, &known.kind, &known.family) == (cell.timing, &cell.kind, &cell.family)
        };
        match rows.iter_mut().find(|(known, _)| same(known)) {
            Some((_, states)) => states.push(head_of_state(state)),
            None => rows.push((cell, vec![head_of_state(state)])),
        }
    }
    let mut text = "| socket | | process | while |\n| --- | --- | --- | --- |\n".to_owned();
    for (Cell { timing, kind, family, .. }, states) in rows {
        let _ = writeln!(text, "| {kind} | {family} | {} | {} |", head_of_timing(*timing), states.join(", "));
    }
    text
}

fn broken(measured: &Measured) -> impl Iterator<Item = (State, &Cell)> {
    let cells = |state| measured.get(&state).into_iter().flatten().map(move |cell| (state, cell));
    State::ALL.into_iter().flat_map(cells).filter(|(state, cell)| rules::is_broken(*state, cell))
}

/// Returns whether `MATRIX=older` declares that this kernel is older than the one on which the
/// documented tables were measured.
pub(super) fn is_an_older_kernel() -> bool {
    asked_for("older")
}

/// Compares the tables in docs/understand/security.md with the measured ones, or replaces them if
/// `MATRIX=write` asks for it.
pub(super) fn compare(tables: &str) -> Outcome {
    let path = document();
    let text = std::fs::read_to_string(&path)?;
    let (before, documented, after) = section(&text, BEGIN)?;
    if documented == tables {
        return Ok(());
    }
    if asked_for("write") {
        return Ok(std::fs::write(&path, [before, BEGIN, tables, END, after].concat())?);
    }
    let differing = documented.lines().zip(tables.lines()).filter(|(old, new)| old != new);
    let lines: Vec<String> = differing.map(|(old, new)| format!("- {old}\n+ {new}")).collect();
    bail!(
        "docs/understand/security.md says otherwise than was measured (MATRIX=write writes it anew):\n{}",
        lines.join("\n")
    )
}

/// Compares the exceptions documented for older kernels with the measured ones. Cannot rewrite the
/// document, because the virtual machine has only a copy of it.
pub(super) fn compare_exceptions(table: &str) -> Outcome {
    let text = std::fs::read_to_string(document())?;
    let (_, documented, _) = section(&text, EXCEPTIONS_BEGIN)?;
    ensure!(
        documented == table,
        "docs/understand/security.md says otherwise than was measured on this kernel, which is:\n{table}"
    );
    Ok(())
}

/// Splits a document at the section between the marker `begin` and [`END`]: returns the text before
/// the section, its content and the text after it, without the markers.
fn section<'a>(text: &'a str, begin: &str) -> anyhow::Result<(&'a str, &'a str, &'a str)> {
    let (before, rest) = text
        .split_once(begin)
        .with_context(|| format!("docs/understand/security.md has no {}", begin.trim()))?;
    let (inside, after) =
        rest.split_once(END).context("docs/understand/security.md has no end of the tables")?;
    Ok((before, inside, after))
}

fn document() -> PathBuf {
    std::env::var_os("MATRIX_DOCUMENT").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/understand/security.md"),
        PathBuf::from,
    )
}

fn asked_for(what: &str) -> bool {
    std::env::var_os("MATRIX").is_some_and(|value| value == what)
}

fn table(measured: &Measured, columns: &[(&str, State, AttachTiming)]) -> String {
    let heads: Vec<&str> = columns.iter().map(|(head, ..)| *head).collect();
    let mut text = format!("| socket | {} |\n|{}\n", heads.join(" | "), " --- |".repeat(columns.len() + 1));
    let mut kinds: Vec<&str> = Vec::new();
    for cell in &measured[&State::Up] {
        if !kinds.contains(&cell.kind.as_str()) {
            kinds.push(&cell.kind);
        }
    }
    for kind in kinds {
        let cells: Vec<String> =
            columns.iter().map(|(_, state, timing)| families(measured, *state, *timing, kind)).collect();
        let _ = writeln!(text, "| {kind} | {} |", cells.join(" | "));
    }
    text
}

/// Returns the text of one table cell: the common result of all address families, or the result of
/// each family if they differ.
fn families(measured: &Measured, state: State, timing: AttachTiming, kind: &str) -> String {
    let mut said: Vec<(String, Vec<&str>)> = Vec::new();
    for cell in measured[&state].iter().filter(|cell| cell.timing == timing && cell.kind == kind) {
        let words = words(state, cell);
        match said.iter_mut().find(|(known, _)| *known == words) {
            Some((_, families)) => families.push(&cell.family),
            None => said.push((words, vec![&cell.family])),
        }
    }
    match &said[..] {
        [(words, _)] => words.clone(),
        said => {
            let each: Vec<String> =
                said.iter().map(|(words, families)| format!("{}: {words}", families.join(", "))).collect();
            each.join("; ")
        }
    }
}

fn words(state: State, cell: &Cell) -> String {
    let one_way =
        cell.first["outcome"] == "ok" || cell.after.as_ref().is_some_and(|after| after["outcome"] == "ok");
    let tunnel = cell.left.contains_key("mobile0");
    let way = match (tunnel, cell.left.len() > usize::from(tunnel)) {
        (true, false) => "tunnel",
        (false, true) if one_way => "link",
        (false, true) => "direct",
        (true, true) => "tunnel and direct",
        (false, false) => "nowhere",
    };
    let arrived = |value: &Value| value["outcome"] == "answered" || value["outcome"] == "ok";
    let errno = |value: &Value| value["errno"].as_str().map(str::to_owned);
    let after = cell.after.as_ref();
    match (errno(&cell.first), after) {
        // Whether it arrives in time or later depends on the machine.
        (_, Some(after)) if state == State::Upgrading && arrived(after) => way.into(),
        (Some(errno), Some(after)) if arrived(after) => format!("{errno}, then {way}"),
        (Some(errno), _) => errno,
        (None, _) if arrived(&cell.first) => way.into(),
        (None, Some(after)) if arrived(after) && way == "tunnel" => "waits".into(),
        (None, Some(after)) if arrived(after) => format!("waits, then {way}"),
        (None, Some(after)) => {
            errno(after).map_or_else(|| "lost".into(), |errno| format!("waits, then {errno}"))
        }
        (None, None) => "lost".into(),
    }
}

fn head_of_state(state: State) -> &'static str {
    match state {
        State::Up => "up",
        State::NeverConnected => "relay not reached yet",
        State::RelayGone => "relay gone",
        State::NoUplink => "no uplink",
        State::Killed => "agent killed",
        State::Upgrading => "agent replaced",
        State::NobodyMobile => "`cleanup` cut off: nobody mobile",
        State::RouteGone => "`cleanup` cut off: no route",
    }
}

fn head_of_timing(timing: AttachTiming) -> &'static str {
    match timing {
        AttachTiming::Mobile => "always",
        AttachTiming::AttachedAfterSocket => "attached after socket()",
        AttachTiming::AttachedAfterConnect => "attached after connect()",
        AttachTiming::DetachedAfterSocket => "detached after socket()",
        AttachTiming::DetachedAfterConnect => "detached after connect()",
        AttachTiming::Ordinary => "never",
    }
}
