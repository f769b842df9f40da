//! Prints the results of the handover benchmark as Markdown for docs/measure/benchmarks.md.

use mobile_tests::pulse::PulseMode;

use super::event::Event;
use crate::bench::stats::Spread;
use crate::bench::subject::OURS;

/// The results of one event with one participant: mobile or a competitor.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// The longest gaps of each run in milliseconds, one for each direction.
    pub(crate) runs: Vec<Vec<f64>>,
    /// The errors of failed runs.
    pub(crate) failures: Vec<String>,
}

impl Figures {
    fn mode(&self, mode: usize) -> Vec<f64> {
        self.runs.iter().filter_map(|gaps| gaps.get(mode).copied()).collect()
    }
}

/// A participant's column of the table: its name, the seconds after which a run is given up, and
/// for each event the results or the reason why there are none.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) patience: f64,
    pub(crate) cells: Vec<Result<Figures, String>>,
}

/// Returns the rows of the table for `events`, each as the event's index, the index of the
/// direction in each run's gaps, and a title.
fn rows(events: &[Event]) -> Vec<(usize, usize, String)> {
    let mut rows = Vec::new();
    for (index, event) in events.iter().enumerate() {
        for (place, mode) in event.modes().iter().enumerate() {
            let title = match (event.outage(), mode) {
                (None, _) => event.title().to_owned(),
                (Some(_), PulseMode::Echo) => format!("{}: application sending", event.title()),
                (Some(_), PulseMode::Down) => format!("{}: server sending", event.title()),
            };
            rows.push((index, place, title));
        }
    }
    rows
}

/// Returns the table of the interruptions that each event causes with this project: median and
/// maximum, and the best competitor's median.
pub(crate) fn ours(events: &[Event], ours: &Column, columns: &[Column]) -> String {
    let mut out = "| event | median | maximum | runs | best other, median |\n".to_owned();
    out.push_str("| --- | --- | --- | --- | --- |\n");
    for (index, place, title) in rows(events) {
        let cells = match &ours.cells[index] {
            Err(reason) => format!("– ({reason}) | – | 0"),
            Ok(figures) => {
                let runs = figures.mode(place);
                let spread = Spread::of(&runs);
                let say =
                    |figure: Option<f64>| figure.map_or("–".to_owned(), |one| number(one, ours.patience));
                let (median, most) = (spread.map(|one| one.median), spread.map(|one| one.greatest));
                format!("{} | {} | {}", say(median), say(most), count(runs.len(), figures))
            }
        };
        out.push_str(&format!("| {title} | {cells} | {} |\n", best_other(columns, index, place)));
    }
    out
}

/// Formats the least median gap of the competitors in one row, with that competitor's name; empty
/// if no competitor has a median.
fn best_other(columns: &[Column], index: usize, place: usize) -> String {
    let others = columns.iter().filter(|column| column.name != OURS);
    let medians = others.filter_map(|column| {
        let figures = column.cells[index].as_ref().ok()?;
        Some((Spread::of(&figures.mode(place))?.median, column))
    });
    let best = medians.min_by(|(one, _), (other, _)| one.total_cmp(other));
    match best {
        Some((median, column)) if median.is_finite() => {
            format!("{} ({})", number(median, column.patience), column.name)
        }
        Some((median, column)) => number(median, column.patience),
        None => String::new(),
    }
}

/// Returns the table of the gaps of mobile and all competitors: median, least and greatest.
pub(crate) fn all(events: &[Event], columns: &[Column]) -> String {
    let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
    let mut out = format!("| event | {} |\n|{}\n", names.join(" | "), " --- |".repeat(names.len() + 1));
    for (index, place, title) in rows(events) {
        if !events[index].is_for_competitors() {
            continue;
        }
        let cells: Vec<String> = columns.iter().map(|column| cell(column, index, place)).collect();
        out.push_str(&format!("| {title} | {} |\n", cells.join(" | ")));
    }
    out
}

/// Returns the errors of failed runs, to print below the tables.
pub(crate) fn notes(events: &[Event], columns: &[Column]) -> String {
    let mut out = String::new();
    for column in columns {
        for (event, cell) in events.iter().zip(&column.cells) {
            let reasons: Vec<String> = match cell {
                Err(reason) if event.is_for_competitors() || column.name == OURS => vec![reason.clone()],
                Err(_) => continue,
                Ok(figures) => figures.failures.clone(),
            };
            for reason in reasons {
                out.push_str(&format!("- {}, {}: {reason}\n", column.name, event.title()));
            }
        }
    }
    out
}

fn cell(column: &Column, index: usize, place: usize) -> String {
    let Ok(figures) = &column.cells[index] else { return "–".to_owned() };
    let runs = figures.mode(place);
    let Some(spread) = Spread::of(&runs) else { return "–".to_owned() };
    let say = |figure| number(figure, column.patience);
    let text = if spread.least.is_infinite() {
        say(spread.median)
    } else {
        format!("{} ({}–{})", say(spread.median), say(spread.least), say(spread.greatest))
    };
    if figures.failures.is_empty() { text } else { format!("{text}, {} runs", count(runs.len(), figures)) }
}

fn count(good: usize, figures: &Figures) -> String {
    match figures.failures.len() {
        0 => good.to_string(),
        bad => format!("{good} of {}", good + bad),
    }
}

/// Formats a gap in milliseconds, or, if it is infinite, that it exceeds `patience` in seconds.
pub(crate) fn number(figure: f64, patience: f64) -> String {
    if figure.is_infinite() { format!("> {patience} s") } else { format!("{figure:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &'static str, cells: Vec<Result<Figures, String>>) -> Column {
        Column { name, patience: 3.0, cells }
    }

    fn figures(runs: &[&[f64]]) -> Result<Figures, String> {
        Ok(Figures { runs: runs.iter().map(|gaps| gaps.to_vec()).collect(), failures: Vec::new() })
    }

    #[test]
    fn ours_has_a_row_for_each_event_and_two_for_an_outage() {
        let events = [Event::Use, Event::LinkDown, Event::Outage1];
        let cells = vec![
            figures(&[&[20.0], &[30.0], &[41.4]]),
            Err("no standby".to_owned()),
            figures(&[&[50.0, 70.0], &[60.0, f64::INFINITY]]),
        ];
        let peers = [
            column(
                "direct",
                vec![
                    Err("mobile only".into()),
                    figures(&[&[f64::INFINITY]]),
                    figures(&[&[9.0, f64::INFINITY]]),
                ],
            ),
            column(
                "MPTCP",
                vec![Err("mobile only".into()), figures(&[&[30.0]]), figures(&[&[10.0, f64::INFINITY]])],
            ),
        ];
        let table = ours(&events, &column(OURS, cells), &peers);
        let rows: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(rows[0], "| `mobile use` of the other uplink | 30 | 41 | 3 |  |");
        assert_eq!(
            rows[1],
            "| link down and address gone, standby warm | – (no standby) | – | 0 | 30 (MPTCP) |"
        );
        assert_eq!(
            rows[2],
            "| no uplink for 1 s, then one returns: application sending | 55 | 60 | 2 | 9 (direct) |"
        );
        assert_eq!(
            rows[3],
            "| no uplink for 1 s, then one returns: server sending | > 3 s | > 3 s | 2 | > 3 s |"
        );
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn dead_connections_are_shown_and_events_of_mobile_only_are_left_out() {
        let events = [Event::Use, Event::Better];
        let columns = [
            column(OURS, vec![figures(&[&[20.0]]), figures(&[&[21.0], &[23.0], &[22.0]])]),
            column("direct", vec![Err("mobile only".into()), figures(&[&[f64::INFINITY]])]),
            column("MPTCP", vec![Err("mobile only".into()), Err("this kernel has no MPTCP".into())]),
        ];
        let table = all(&events, &columns);
        assert!(
            table.starts_with("| event | mobile | direct | MPTCP |\n| --- | --- | --- | --- |\n"),
            "{table}"
        );
        assert!(table.ends_with("| 22 (21–23) | > 3 s | – |\n"), "{table}");
        assert_eq!(table.lines().count(), 3);
        let notes = notes(&events, &columns);
        assert!(notes.contains("- MPTCP, a better uplink appears"), "{notes}");
        assert!(notes.contains("this kernel has no MPTCP") && !notes.contains("mobile only"), "{notes}");
    }

    #[test]
    fn failed_runs_are_counted() {
        let mut failed = figures(&[&[20.0]]).unwrap();
        failed.failures.push("no luck".into());
        let columns = [column("vtun", vec![Ok(failed)])];
        assert!(all(&[Event::Better], &columns).ends_with("| 20 (20–20), 1 of 2 runs |\n"));
        assert!(notes(&[Event::Better], &columns).contains("no luck"));
    }
}
