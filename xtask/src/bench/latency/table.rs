//! Prints the results of the latency benchmark as Markdown for docs/measure/benchmarks.md.

use std::fmt;

use crate::bench::stats::Spread;

/// One measurement under one load: round trips in milliseconds, and the bulk transfer's rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) median: f64,
    pub(super) p99: f64,
    pub(super) mbits: Option<f64>,
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms, 99 % {:.1} ms", self.median, self.p99)?;
        self.mbits.map_or(Ok(()), |mbits| write!(f, ", {mbits:.2} Mbit/s"))
    }
}

/// All measurements of the direct connection, mobile or a competitor: for each run, a sample for
/// each load.
pub(super) struct Figures {
    pub(super) name: &'static str,
    pub(super) runs: Vec<Vec<Sample>>,
}

impl Figures {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, runs: Vec::new() }
    }

    pub(super) fn spread(&self, row: usize, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        let figures: Vec<f64> = self.runs.iter().filter_map(|run| figure(run.get(row)?)).collect();
        Spread::of(&figures)
    }
}

/// Returns a Markdown table with a row for each figure under each load. The figures under the first
/// load (none) are the reference of the others.
pub(super) fn markdown(columns: &[Figures], titles: &[&str]) -> String {
    let names: Vec<&str> = columns.iter().map(|column| column.name).collect();
    let mut out = format!("| | {} |\n|{}\n", names.join(" | "), " --- |".repeat(names.len() + 1));
    let mut row = |title: String, cell: &dyn Fn(&Figures) -> Option<String>| {
        let cells: Vec<String> =
            columns.iter().map(|column| cell(column).unwrap_or_else(|| "–".to_owned())).collect();
        out.push_str(&format!("| {title} | {} |\n", cells.join(" | ")));
    };
    type Figure = fn(&Sample) -> Option<f64>;
    let trips: [(&str, Figure); 2] =
        [("median", |sample| Some(sample.median)), ("99th percentile", |sample| Some(sample.p99))];
    for (index, title) in titles.iter().enumerate() {
        for (what, figure) in trips {
            row(format!("{title}, {what}, ms"), &|column| {
                let spread = column.spread(index, figure)?;
                let ratio = match column.spread(0, |sample| Some(sample.median)) {
                    Some(idle) if index > 0 && idle.median > 0.0 => {
                        format!(" = {:.1} × idle", spread.median / idle.median)
                    }
                    _ => String::new(),
                };
                Some(format!("{spread}{ratio}"))
            });
        }
        if index > 0 {
            row(format!("{title}, Mbit/s"), &|column| {
                let spread = column.spread(index, |sample| sample.mbits)?;
                let direct = columns.first()?.spread(index, |sample| sample.mbits)?;
                Some(format!("{:.2} = {:.2} × direct", spread.median, spread.median / direct.median))
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::super::super::subject::OURS;
    use super::*;

    #[test]
    fn figures_are_compared_with_idle_and_with_direct() {
        let sample = |median, mbits| Sample { median, p99: median * 2.0, mbits };
        let column = |name, loaded, mbits| Figures {
            name,
            runs: vec![vec![sample(20.0, None), sample(loaded, Some(mbits))]],
        };
        let table = markdown(&[column("direct", 200.0, 9.5), column(OURS, 30.0, 9.0)], &["idle", "upload"]);
        assert!(table.starts_with("| | direct | mobile |\n| --- | --- | --- |\n"), "{table}");
        assert!(table.contains("| idle, median, ms | 20 (20–20) | 20 (20–20) |"), "{table}");
        assert!(table.contains("| 200 (200–200) = 10.0 × idle | 30 (30–30) = 1.5 × idle |"), "{table}");
        assert!(table.contains("| 9.50 = 1.00 × direct | 9.00 = 0.95 × direct |"), "{table}");
    }
}
