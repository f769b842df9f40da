//! The timeline at the end of the demonstration: when the typed letters of each telnet session were
//! echoed.

use std::fmt::Write as _;
use std::time::Duration;

/// A time in milliseconds since the first keystroke.
pub(crate) type Millis = u64;

/// The timeline's row of one telnet session: the times at which typed characters were echoed.
pub(crate) struct TimelineRow {
    /// The row's name, of at most [`NAME_WIDTH`] characters.
    pub(crate) name: &'static str,
    /// The times of the echoes, in ascending order.
    pub(crate) echoes: Vec<Millis>,
}

/// The data of the timeline.
pub(crate) struct Timeline {
    /// The rows of the mobile session and of the plain one.
    pub(crate) rows: [TimelineRow; 2],
    /// The uplinks that carried the tunnel, each with the time at which it began to.
    pub(crate) uplinks: Vec<(Millis, String)>,
    /// The time at which the active uplink was cut.
    pub(crate) cut: Millis,
    /// The time at which typing ended.
    pub(crate) end: Millis,
    /// The longest ordinary time between two echoes, in milliseconds; a longer one counts as a
    /// silence.
    pub(crate) ordinary: Millis,
}

/// A time without echoes, from one echo to the next; `until` is `None` if no echo followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    from: Millis,
    until: Option<Millis>,
}

impl Silence {
    /// Returns the length of the silence, or `None` if it never ended.
    pub(crate) fn length(self) -> Option<Duration> {
        self.until.map(|until| Duration::from_millis(until - self.from))
    }
}

/// The number of cells (characters) in a row. With the row's name a line has 93 characters and fits
/// most terminals.
const CELLS: u64 = 80;
const NAME_WIDTH: usize = 12;
/// The cell at which the cut of the uplink is drawn: more of the time after the cut is shown than
/// before it.
const CUT_CELL: u64 = 24;
/// The duration of one cell in milliseconds: short enough that a blackout of one or two keys still
/// fills a cell.
const CELL: Millis = 50;

impl Timeline {
    /// Returns the longest of a row's silences that end after the cut of the uplink, or never. If
    /// there is none, returns an endless silence from the cut on.
    pub(crate) fn longest_silence(&self, row: &TimelineRow) -> Silence {
        self.silences(row)
            .into_iter()
            .filter(|silence| silence.until.is_none_or(|until| until >= self.cut))
            .max_by_key(|silence| silence.until.unwrap_or(Millis::MAX) - silence.from)
            .unwrap_or(Silence { from: self.cut, until: None })
    }

    /// Returns the timeline as lines to print, coloured if `colour` is set.
    pub(crate) fn draw(&self, colour: bool) -> String {
        let mut picture = String::new();
        let paint = |picture: &mut String, code: &str, text: &str| {
            if colour {
                let _ = write!(picture, "\x1b[{code}m{text}\x1b[0m");
            } else {
                picture.push_str(text);
            }
        };
        picture.push_str(&self.scale());
        for row in &self.rows {
            let _ = write!(picture, "{:>NAME_WIDTH$} ", row.name);
            for cell in self.cells(row) {
                match cell {
                    TimelineCell::Echoed => paint(&mut picture, "32", "█"),
                    TimelineCell::Waiting => paint(&mut picture, "33", "░"),
                    TimelineCell::Dead => paint(&mut picture, "31", "·"),
                    TimelineCell::Unseen => picture.push(' '),
                }
            }
            picture.push('\n');
        }
        picture.push_str(&self.uplink_row());
        picture.push_str(&self.cut_mark());
        let _ = writeln!(picture, "{:>NAME_WIDTH$} █ every key echoed   ░ waiting   · no further echo", "");
        picture
    }

    /// Returns the silences of a row: the times between two echoes, and the time after the last one
    /// if typing went on for longer than [`Timeline::ordinary`].
    fn silences(&self, row: &TimelineRow) -> Vec<Silence> {
        let between = row.echoes.windows(2).map(|pair| Silence { from: pair[0], until: Some(pair[1]) });
        let last = row.echoes.last().copied().unwrap_or(0);
        let end = (self.end > last + self.ordinary).then_some(Silence { from: last, until: None });
        between.chain(end).collect()
    }

    /// Returns the time at the left edge of a cell, or `None` before the first keystroke. The cut
    /// of the uplink is at the left edge of [`CUT_CELL`].
    fn left_edge(&self, cell: u64) -> Option<Millis> {
        (self.cut + cell * CELL).checked_sub(CUT_CELL * CELL)
    }

    fn cells(&self, row: &TimelineRow) -> Vec<TimelineCell> {
        let silences: Vec<Silence> = self
            .silences(row)
            .into_iter()
            .filter(|silence| silence.until.is_none_or(|until| until - silence.from > self.ordinary))
            .collect();
        let first = row.echoes.first().copied().unwrap_or(Millis::MAX);
        let cell = |index| {
            let Some(left) = self.left_edge(index) else { return TimelineCell::Unseen };
            if left + CELL <= first || left >= self.end {
                return TimelineCell::Unseen;
            }
            // A cell shows the state in its middle. Silences are longer than a cell, so none falls
            // between two cells.
            let middle = left + CELL / 2;
            let within = |silence: &&Silence| {
                silence.from <= middle && silence.until.is_none_or(|until| until > middle)
            };
            match silences.iter().find(within) {
                None => TimelineCell::Echoed,
                Some(Silence { until: Some(_), .. }) => TimelineCell::Waiting,
                Some(Silence { until: None, .. }) => TimelineCell::Dead,
            }
        };
        (0..CELLS).map(cell).collect()
    }

    /// Returns the timeline's scale: a line with half seconds before and after the cut of the
    /// uplink.
    fn scale(&self) -> String {
        let mut line: Vec<char> = Vec::new();
        for cell in 0..CELLS {
            let from_cut = (cell.abs_diff(CUT_CELL)) * CELL;
            if from_cut.is_multiple_of(500) {
                let sign = match cell.cmp(&CUT_CELL) {
                    std::cmp::Ordering::Less => "-",
                    std::cmp::Ordering::Equal => "",
                    std::cmp::Ordering::Greater => "+",
                };
                let label = format!("{sign}{}.{} s", from_cut / 1000, from_cut % 1000 / 100);
                write_at(&mut line, cell, &label);
            }
        }
        format!("{:>NAME_WIDTH$} {}\n", "", line.iter().collect::<String>().trim_end())
    }

    fn uplink_row(&self) -> String {
        let mut line: Vec<char> = Vec::new();
        for (index, (since, name)) in self.uplinks.iter().enumerate() {
            let until = self.uplinks.get(index + 1).map_or(self.end, |(next, _)| *next);
            let covered = (0..CELLS).filter(|cell| {
                self.left_edge(*cell).is_some_and(|left| left + CELL > *since && left < until.min(self.end))
            });
            let covered: Vec<u64> = covered.collect();
            let (Some(first), Some(last)) = (covered.first(), covered.last()) else { continue };
            let width = usize::try_from(last - first + 1).unwrap_or(0);
            let text: String = format!("{name} ").chars().chain(std::iter::repeat('─')).take(width).collect();
            write_at(&mut line, *first, &text);
        }
        format!("{:>NAME_WIDTH$} {}\n", "tunnel on", line.iter().collect::<String>().trim_end())
    }

    fn cut_mark(&self) -> String {
        let carrier = self.uplinks.iter().rev().find(|(since, _)| *since <= self.cut);
        let name = carrier.map_or("the active uplink", |(_, name)| name);
        format!(
            "{:>width$} {name} is cut\n",
            "▲",
            width = NAME_WIDTH + 2 + usize::try_from(CUT_CELL).unwrap_or(0)
        )
    }
}

enum TimelineCell {
    Echoed,
    Waiting,
    Dead,
    Unseen,
}

/// Writes `text` into `line` from a cell on, extending the line if necessary.
fn write_at(line: &mut Vec<char>, cell: u64, text: &str) {
    let at = usize::try_from(cell).unwrap_or(0);
    let end = (at + text.chars().count()).min(usize::try_from(CELLS).unwrap_or(0) + 1);
    if line.len() < end {
        line.resize(end, ' ');
    }
    for (slot, letter) in line[at..end].iter_mut().zip(text.chars()) {
        *slot = letter;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Timeline {
        let alive = |ranges: &[(u64, u64)]| ranges.iter().flat_map(|&(a, b)| (a..=b).step_by(20)).collect();
        Timeline {
            rows: [
                TimelineRow { name: "mobile", echoes: alive(&[(40, 2000), (2130, 5000)]) },
                TimelineRow { name: "plain", echoes: alive(&[(40, 2000)]) },
            ],
            uplinks: vec![(0, "wlan0".to_owned()), (2100, "eth0".to_owned())],
            cut: 2000,
            end: 5000,
            ordinary: 60,
        }
    }

    #[test]
    fn the_blackout_is_the_longest_silence_around_the_cut() {
        let picture = sample();
        assert_eq!(picture.longest_silence(&picture.rows[0]).length(), Some(Duration::from_millis(130)));
        assert_eq!(picture.longest_silence(&picture.rows[1]).length(), None);
    }

    #[test]
    fn a_silence_before_the_cut_is_not_its_blackout() {
        let picture = Timeline { cut: 4950, ..sample() };
        assert_eq!(picture.longest_silence(&picture.rows[0]).length(), Some(Duration::from_millis(20)));
    }

    #[test]
    fn a_session_without_echoes_is_silent_without_end() {
        let row = TimelineRow { name: "mobile", echoes: vec![] };
        assert_eq!(sample().longest_silence(&row).length(), None);
    }

    #[test]
    fn the_picture_shows_both_sessions_and_fits_100_columns() {
        let drawn = sample().draw(false);
        let lines: Vec<&str> = drawn.lines().collect();
        assert_eq!(lines.len(), 6, "{drawn}");
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{drawn}");
        assert!(!drawn.contains('\x1b'));
        let count = |line: &str, letter: char| line.chars().filter(|c| *c == letter).count();
        assert_eq!(count(lines[1], '░'), 3, "{drawn}");
        assert_eq!(count(lines[1], '·'), 0, "{drawn}");
        assert!(count(lines[2], '·') > 50, "{drawn}");
        assert!(lines[3].contains("wlan0 ───") && lines[3].contains("eth0 ───"), "{drawn}");
        assert!(lines[4].contains("▲ wlan0 is cut"), "{drawn}");
        let column = |line: &str, what: char| line.chars().position(|c| c == what).unwrap();
        assert_eq!(column(lines[4], '▲'), column(lines[1], '░'), "{drawn}");
    }
}
