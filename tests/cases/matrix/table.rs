//! The tables of docs/security.md.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use mobile_tests::matrix::Order;
use serde_json::Value;

use super::{Cell, State};
use crate::Outcome;

const BEGIN: &str = "<!-- measured: MATRIX=write cargo xtask test e2e matrix -->\n";
const END: &str = "<!-- end of what is measured -->\n";

type Measured = HashMap<State, Vec<Cell>>;

/// By state, for a process that was mobile from its start; and by when it became so, with the tunnel up.
pub(super) fn tables(measured: &Measured) -> String {
    let states = State::ALL.map(|state| (head_of_state(state), state, Order::Mobile));
    let orders = Order::ALL.map(|order| (head_of_order(order), State::Up, order));
    format!(
        "Sockets of a process started by `mobile run`, by what the agent is doing:\n\n{}\n\
         While the tunnel is up, by when the process became mobile:\n\n{}",
        table(measured, &states),
        table(measured, &orders)
    )
}

/// Every cell, for whoever looks for the reason.
pub(super) fn everything(measured: &Measured) -> String {
    let mut text = String::new();
    for state in State::ALL {
        for cell in measured.get(&state).into_iter().flatten() {
            let (Cell { order, kind, family, left, .. }, words) = (cell, words(state, cell));
            let _ = writeln!(text, "{state:?} {order:?} {kind} {family}: {words} {left:?}");
        }
    }
    text
}

/// Whether this is another kernel than the one that the document is about: `MATRIX=leaks` says so.
pub(super) fn is_another_kernel() -> bool {
    std::env::var_os("MATRIX").is_some_and(|value| value == "leaks")
}

/// The document says what was measured, or is made to.
pub(super) fn compare(tables: &str) -> Outcome {
    if is_another_kernel() {
        return Ok(());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md");
    let text = std::fs::read_to_string(&path)?;
    let (before, rest) = text.split_once(BEGIN).context("docs/security.md has no place for the tables")?;
    let (documented, after) = rest.split_once(END).context("docs/security.md has no end of the tables")?;
    if documented == tables {
        return Ok(());
    }
    if std::env::var_os("MATRIX").is_some_and(|value| value == "write") {
        return Ok(std::fs::write(&path, [before, BEGIN, tables, END, after].concat())?);
    }
    let differing = documented.lines().zip(tables.lines()).filter(|(old, new)| old != new);
    let lines: Vec<String> = differing.map(|(old, new)| format!("- {old}\n+ {new}")).collect();
    bail!(
        "docs/security.md says otherwise than was measured (MATRIX=write writes it anew):\n{}",
        lines.join("\n")
    )
}

fn table(measured: &Measured, columns: &[(&str, State, Order)]) -> String {
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
            columns.iter().map(|(_, state, order)| families(measured, *state, *order, kind)).collect();
        let _ = writeln!(text, "| {kind} | {} |", cells.join(" | "));
    }
    text
}

/// What all families have in common, or each.
fn families(measured: &Measured, state: State, order: Order, kind: &str) -> String {
    let mut said: Vec<(String, Vec<&str>)> = Vec::new();
    for cell in measured[&state].iter().filter(|cell| cell.order == order && cell.kind == kind) {
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
        // How long it takes is the machine's affair.
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

fn head_of_order(order: Order) -> &'static str {
    match order {
        Order::Mobile => "always",
        Order::AttachedAfterSocket => "attached after socket()",
        Order::AttachedAfterConnect => "attached after connect()",
        Order::DetachedAfterSocket => "detached after socket()",
        Order::DetachedAfterConnect => "detached after connect()",
        Order::Ordinary => "never",
    }
}
