//! A benchmark's figures as a grid: a row for each contestant (direct connection, mobile,
//! competitors), a column for each setup, and several runs in each cell. Formats Markdown tables
//! for docs/measure/benchmarks.md.

use anyhow::Result;
use mobile_tests::competitors::CompetitorKind;

use super::stats::Spread;
use super::subject::{Contestant, OURS};
use crate::shell::step;

/// All measurements of a benchmark, one row for each contestant. Row 0 is the direct connection and
/// row 1 is mobile; competitors and other builds of mobile follow.
pub(crate) struct Grid<S> {
    titles: Vec<String>,
    pub(crate) rows: Vec<Row<S>>,
}

/// The measurements of one contestant: a tunnel or the direct connection.
pub(crate) struct Row<S> {
    pub(crate) name: &'static str,
    /// Whether the contestant is a build of this project.
    ours: bool,
    /// One cell for each column.
    pub(crate) cells: Vec<GridCell<S>>,
}

/// The figures of one contestant in one column, a sample for each successful run, and the number of
/// failed runs.
pub(crate) struct GridCell<S> {
    pub(crate) samples: Vec<S>,
    pub(crate) failures: u32,
}

impl<S> GridCell<S> {
    /// Returns the spread of one figure over all runs in the cell; `None` if no run has the figure.
    pub(crate) fn spread(&self, figure: impl Fn(&S) -> Option<f64>) -> Option<Spread> {
        Spread::of(&self.samples.iter().filter_map(figure).collect::<Vec<_>>())
    }
}

impl<S> Grid<S> {
    pub(crate) fn new(titles: Vec<String>, names: impl Iterator<Item = &'static str>) -> Self {
        let empty = || GridCell { samples: Vec::new(), failures: 0 };
        let row =
            |(index, name)| Row { name, ours: index == 1, cells: titles.iter().map(|_| empty()).collect() };
        let rows = names.enumerate().map(row).collect();
        Self { titles, rows }
    }

    /// Measures all contestants one after the other in each run, so that other load on the machine
    /// disturbs all of them alike.
    ///
    /// Every other run is in the opposite order, so that no contestant always follows the same one.
    /// `sample` measures a contestant in one column, and `format_sample` formats the result for the
    /// progress output. A failure is counted and does not stop the other measurements.
    pub(crate) fn measure(
        contestants: &[Contestant],
        titles: Vec<String>,
        runs: u32,
        mut sample: impl FnMut(&Contestant, usize) -> Result<S>,
        format_sample: impl Fn(&S) -> String,
    ) -> Self {
        let mut grid = Self::new(titles, contestants.iter().map(|contestant| contestant.name));
        for (contestant, row) in contestants.iter().zip(&mut grid.rows) {
            row.ours = contestant.subject.is_ours();
        }
        for run in 1..=runs {
            for (column, title) in grid.titles.iter().enumerate() {
                let mut turns: Vec<_> = contestants.iter().zip(&mut grid.rows).collect();
                if run % 2 == 0 {
                    turns.reverse();
                }
                for (contestant, row) in turns {
                    let said = match sample(contestant, column) {
                        Ok(sample) => {
                            let text = format_sample(&sample);
                            row.cells[column].samples.push(sample);
                            text
                        }
                        Err(error) => {
                            row.cells[column].failures += 1;
                            format!("failed: {error:#}")
                        }
                    };
                    step(&format!("run {run} of {runs}, {title}, {}: {said}", contestant.name));
                }
            }
        }
        grid
    }

    /// Returns a Markdown table with the rows from `first` on, whose cells have the text that
    /// `text` returns, or a dash for `None`, and the number of failed runs.
    pub(crate) fn table(&self, first: usize, text: impl Fn(&GridCell<S>, usize) -> Option<String>) -> String {
        let line = "| --- ".repeat(self.titles.len() + 1);
        let mut out = format!("| | {} |\n{line}|\n", self.titles.join(" | "));
        for row in self.rows.iter().skip(first) {
            out.push_str(&format!("| {} |", row.name));
            for (column, cell) in row.cells.iter().enumerate() {
                let text = text(cell, column).unwrap_or_else(|| "–".to_owned());
                let failed =
                    if cell.failures == 0 { String::new() } else { format!(", {} failed", cell.failures) };
                out.push_str(&format!(" {text}{failed} |"));
            }
            out.push('\n');
        }
        out
    }

    /// Returns a Markdown table of one figure: its spread, and the ratio of its median to the
    /// direct connection's.
    pub(crate) fn against_direct(&self, figure: impl Fn(&S) -> Option<f64> + Copy) -> String {
        let direct = |column: usize| Some(self.rows.first()?.cells[column].spread(figure)?.median);
        self.table(0, |cell, column| {
            let spread = cell.spread(figure)?;
            let own = self.rows.first().is_some_and(|row| std::ptr::eq(&row.cells[column], cell));
            Some(match direct(column) {
                Some(direct) if !own => format!("{spread}: {:.2}", spread.median / direct),
                _ => spread.to_string(),
            })
        })
    }

    /// Returns the median of one figure over the runs in the cell of this row and column.
    pub(crate) fn median(
        &self,
        row: usize,
        column: usize,
        figure: impl Fn(&S) -> Option<f64>,
    ) -> Option<f64> {
        Some(self.rows.get(row)?.cells[column].spread(figure)?.median)
    }

    /// Returns the name of each competitor and its median of one figure.
    pub(crate) fn competitors(
        &self,
        column: usize,
        figure: impl Fn(&S) -> Option<f64> + Copy,
    ) -> impl Iterator<Item = (&'static str, f64)> {
        let median = move |row: &Row<S>| Some((row.name, row.cells[column].spread(figure)?.median));
        self.rows.iter().skip(1).filter(|row| !row.ours).filter_map(median)
    }

    /// Returns the greatest median that a competitor tunnelling over TCP has of one figure.
    pub(crate) fn best_over_tcp(
        &self,
        column: usize,
        figure: impl Fn(&S) -> Option<f64> + Copy,
    ) -> Option<f64> {
        let over_tcp =
            |name: &str| CompetitorKind::TUNNELS.iter().any(|kind| kind.name == name && kind.over_tcp);
        let figures = self.competitors(column, figure).filter(|(name, _)| over_tcp(name));
        figures.map(|(_, figure)| figure).max_by(f64::total_cmp)
    }

    /// Returns, for a plot of one column, each contestant's name and the spread of its runs,
    /// without other builds of this project.
    pub(crate) fn bars(
        &self,
        column: usize,
        figure: impl Fn(&S) -> Option<f64> + Copy,
    ) -> Vec<(&'static str, Spread)> {
        let bar = |row: &Row<S>| Some((row.name, row.cells[column].spread(figure)?));
        self.rows.iter().filter(|row| !row.ours || row.name == OURS).filter_map(bar).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_ratios_to_direct_and_counts_failures() {
        let mut grid =
            Grid::new(vec!["one".to_owned(), "two".to_owned()], ["direct", "mobile", "other"].into_iter());
        grid.rows[0].cells[0].samples = vec![100.0, 300.0];
        grid.rows[1].cells[0].samples = vec![50.0, 20.0, 60.0];
        grid.rows[2].cells[0].samples = vec![10.0];
        grid.rows[1].cells[1].failures = 3;
        let text = grid.against_direct(|sample: &f64| Some(*sample));
        assert!(
            text.starts_with("| | one | two |\n| --- | --- | --- |\n| direct | 200 (100–300) | – |\n"),
            "{text}"
        );
        assert!(text.contains("| mobile | 50 (20–60): 0.25 | –, 3 failed |"), "{text}");
        assert_eq!(grid.competitors(0, |sample| Some(*sample)).collect::<Vec<_>>(), [("other", 10.0)]);
        assert_eq!(grid.table(1, |_, _| None).lines().count(), 4);
        assert_eq!(grid.bars(0, |sample| Some(*sample)).len(), 3);
        assert_eq!(grid.best_over_tcp(0, |sample| Some(*sample)), None);
        grid.rows[2].name = "vtun";
        assert_eq!(grid.best_over_tcp(0, |sample| Some(*sample)), Some(10.0));
        // Another build of this project is not a competitor.
        (grid.rows[2].ours, grid.rows[2].name) = (true, "before");
        assert_eq!(grid.competitors(0, |sample| Some(*sample)).count(), 0);
        assert_eq!(grid.bars(0, |sample| Some(*sample)).len(), 2);
    }
}
