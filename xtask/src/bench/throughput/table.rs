//! The tables, as Markdown for docs/benchmarks.md.

use super::super::stats::Spread;
use super::SHAPES;
use super::subject::Sample;

/// The figures of one subject.
pub(crate) struct Row {
    name: &'static str,
    /// One for each shape.
    pub(crate) cells: [Cell; SHAPES.len()],
}

/// The figures of one subject and one shape.
#[derive(Default)]
pub(crate) struct Cell {
    pub(crate) samples: Vec<Sample>,
    pub(crate) failures: u32,
}

impl Row {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, cells: Default::default() }
    }
}

impl Cell {
    fn speed(&self) -> Option<Spread> {
        Spread::of(&self.samples.iter().map(|sample| sample.mbits).collect::<Vec<_>>())
    }

    fn effort(&self, of: impl Fn([f64; 2]) -> f64) -> Option<Spread> {
        Spread::of(&self.samples.iter().filter_map(|sample| sample.effort.map(&of)).collect::<Vec<_>>())
    }

    /// `text`, or a dash where there is none, and what failed.
    fn told(&self, text: Option<String>) -> String {
        let text = text.unwrap_or_else(|| "–".to_owned());
        if self.failures == 0 { text } else { format!("{text}, {} failed", self.failures) }
    }
}

/// Speeds, and what part of the first row's they are.
pub(crate) fn speed(rows: &[Row]) -> String {
    let direct = |column: usize| rows.first()?.cells[column].speed().map(|spread| spread.median);
    let mut out = header(&SHAPES.map(|shape| shape.title.to_owned()));
    for (index, row) in rows.iter().enumerate() {
        let cells = row.cells.iter().enumerate().map(|(column, cell)| {
            let text = cell.speed().map(|spread| match direct(column) {
                Some(direct) if index > 0 => format!("{spread}: {:.2}", spread.median / direct),
                _ => spread.to_string(),
            });
            cell.told(text)
        });
        out.push_str(&line(row.name, cells));
    }
    out
}

/// Processor time, of those who use any.
pub(crate) fn effort(rows: &[Row]) -> String {
    let mut out = header(&SHAPES.map(|shape| shape.title.to_owned()));
    for row in rows.iter().skip(1) {
        let cells = row.cells.iter().map(|cell| {
            let sides = cell.effort(|[host, _]| host).zip(cell.effort(|[_, relay]| relay));
            let both = cell.effort(|[host, relay]| host + relay);
            cell.told(sides.zip(both).map(|((host, relay), both)| {
                let Spread { median, least, greatest } = both;
                format!("{:.2} + {:.2} = {median:.2} ({least:.2}–{greatest:.2})", host.median, relay.median)
            }))
        });
        out.push_str(&line(row.name, cells));
    }
    out
}

fn header(titles: &[String]) -> String {
    format!("| | {} |\n|{}\n", titles.join(" | "), " --- |".repeat(titles.len() + 1))
}

fn line(name: &str, cells: impl Iterator<Item = String>) -> String {
    format!("| {name} | {} |\n", cells.collect::<Vec<_>>().join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &'static str, runs: &[(f64, Option<[f64; 2]>)]) -> Row {
        let mut row = Row::new(name);
        for cell in &mut row.cells {
            cell.samples = runs.iter().map(|&(mbits, effort)| Sample { mbits, effort }).collect();
        }
        row
    }

    #[test]
    fn a_row_for_everyone_with_its_part_of_direct_and_its_effort() {
        let runs = [(50.0, Some([1.0, 2.0])), (20.0, Some([2.0, 4.0])), (60.0, Some([1.5, 2.0]))];
        let mut rows = vec![row("direct", &[(100.0, None), (300.0, None)]), row("mobile", &runs)];
        let speed = speed(&rows);
        assert!(speed.contains("| direct | 200 (100–300) |"), "{speed}");
        assert!(speed.contains("| mobile | 50 (20–60): 0.25 |"), "{speed}");
        let text = effort(&rows);
        assert!(
            text.contains("| mobile | 1.50 + 2.00 = 3.50 (3.00–6.00) |") && !text.contains("direct"),
            "{text}"
        );
        rows[1].cells[0] = Cell { samples: Vec::new(), failures: 3 };
        assert!(effort(&rows).contains("| mobile | –, 3 failed |"));
    }
}
