//! The tables of the benchmark `table2` as Markdown for docs/measure/benchmarks.md.

use super::super::stats::Spread;
use super::super::subject::OURS;
use super::{Sample, WRITE_PATTERNS};

/// The runs of one contestant with one write pattern.
pub(super) type Column = Vec<Sample>;

/// The results of one contestant: the direct connection, mobile or a competitor.
pub(super) struct Row {
    pub(super) name: &'static str,
    /// One column for each write pattern.
    pub(super) columns: [Column; WRITE_PATTERNS.len()],
}

impl Row {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, columns: Default::default() }
    }
}

/// Returns how many more bytes passed the real devices than the process wrote (`length`), in
/// percent.
pub(super) fn over(sample: &Sample, length: usize) -> f64 {
    let [sent, received] = sample.real;
    ((sent + received) as f64 / length as f64 - 1.0) * 100.0
}

/// Returns the median and range of [`over`], the overhead in percent, in the runs of a column.
pub(super) fn spread(column: &Column, length: usize) -> Option<Spread> {
    Spread::of(&column.iter().map(|sample| over(sample, length)).collect::<Vec<_>>())
}

/// Returns the paper's table 2 with mobile's figures: the bytes at the process, the virtual and the
/// real device, with Nagle's algorithm on.
pub(super) fn paper(rows: &[Row], length: usize) -> String {
    let mut out = "| | sent | received | total |\n| --- | --- | --- | --- |\n".to_owned();
    let mut line = |title: &str, [sent, received]: [u64; 2]| {
        let total = sent + received;
        out.push_str(&format!("| {title} | {sent} | {received} | {total} |\n"));
    };
    line("process", [length as u64, 0]);
    let Some(ours) = rows.iter().find(|row| row.name == OURS).map(|row| &row.columns[0]) else { return out };
    let median = |of: &dyn Fn(&Sample) -> Option<[u64; 2]>| {
        let both = [0, 1].map(|way| {
            let figures: Vec<f64> =
                ours.iter().filter_map(|sample| of(sample).map(|it| it[way] as f64)).collect();
            Spread::of(&figures).map_or(0, |spread| spread.median.round() as u64)
        });
        (both[0] > 0).then_some(both)
    };
    median(&|sample| sample.virtual_device).into_iter().for_each(|both| line("virtual device", both));
    median(&|sample| Some(sample.real)).into_iter().for_each(|both| line("real device", both));
    out
}

/// Returns the table of the overhead of all contestants: the bytes beyond those written, in
/// percent.
pub(super) fn overhead(rows: &[Row], length: usize) -> String {
    let titles = WRITE_PATTERNS.map(|pattern| pattern.title).join(" | ");
    let mut out =
        format!("| real over process, % | {titles} |\n|{}\n", " --- |".repeat(WRITE_PATTERNS.len() + 1));
    for row in rows {
        let cells = row.columns.iter().map(|column| {
            spread(column, length).map_or("–".to_owned(), |Spread { median, least, greatest }| {
                format!("{median:+.1} ({least:+.1}–{greatest:+.1})")
            })
        });
        out.push_str(&format!("| {} | {} |\n", row.name, cells.collect::<Vec<_>>().join(" | ")));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_have_the_papers_rows_and_every_overhead() {
        let mut row = Row::new(OURS);
        for real in [1100, 1050, 1200] {
            row.columns[0].push(Sample { virtual_device: Some([1010, 10]), real: [real, 50] });
        }
        let rows = [Row::new("direct"), row];
        let paper = paper(&rows, 1000);
        assert!(paper.starts_with("| | sent |"), "{paper}");
        assert!(paper.contains("| process | 1000 | 0 | 1000 |\n| virtual device | 1010 | 10 | 1020 |\n"));
        assert!(paper.ends_with("| real device | 1100 | 50 | 1150 |\n"), "{paper}");
        let overhead = overhead(&rows, 1000);
        assert!(overhead.contains("| direct | – |"), "{overhead}");
        assert!(overhead.contains("| mobile | +15.0 (+10.0–+25.0) | – |"), "{overhead}");
    }
}
