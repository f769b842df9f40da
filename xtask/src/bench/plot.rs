//! Bar charts as SVG for docs/measure/plots: a bar for each median, a whisker from least to
//! greatest, and the figure as text.
//!
//! Rectangles and text need no library. The charts have a background of their own, because pages
//! show them on white and on black.

use std::fmt::Write as _;
use std::fs;

use anyhow::{Context as _, Result};

use super::stats::Spread;
use super::subject::OURS;
use crate::shell::{self, step};

/// A bar chart with one bar for each contestant.
pub(crate) struct Plot<'a> {
    /// The name of the SVG file without its extension.
    pub(crate) file: &'a str,
    pub(crate) title: String,
    pub(crate) unit: &'a str,
    pub(crate) bars: Vec<(&'a str, Spread)>,
}

/// Widths and heights of the chart's parts, in pixels.
const NAMES: f64 = 120.0;
const BARS: f64 = 420.0;
const FIGURES: f64 = 110.0;
const LINE: f64 = 24.0;
const HEAD: f64 = 34.0;

impl Plot<'_> {
    /// Writes the chart as an SVG file.
    pub(crate) fn write(&self) -> Result<()> {
        let folder = shell::root().join("docs/measure/plots");
        fs::create_dir_all(&folder)?;
        let path = folder.join(self.file).with_extension("svg");
        fs::write(&path, self.svg()).with_context(|| format!("cannot write {}", path.display()))?;
        step(&format!("plotted {}", path.display()));
        Ok(())
    }

    fn svg(&self) -> String {
        let (width, height) = (NAMES + BARS + FIGURES, HEAD + LINE * self.bars.len() as f64 + 8.0);
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
             <text x=\"8\" y=\"21\" font-weight=\"bold\">{}, {}</text>\n",
            escaped(&self.title),
            escaped(self.unit)
        );
        // Negative values (bytes saved) extend to the left of zero.
        let least = self.bars.iter().map(|(_, spread)| spread.least).fold(0.0, f64::min);
        let greatest = self.bars.iter().map(|(_, spread)| spread.greatest).fold(f64::MIN_POSITIVE, f64::max);
        let x = |value: f64| NAMES + (value - least) / (greatest - least) * BARS;
        for (index, (name, Spread { median, least, greatest })) in self.bars.iter().enumerate() {
            let top = HEAD + LINE * index as f64;
            let (middle, base) = (top + LINE / 2.0, top + LINE / 2.0 + 4.5);
            let colour = if name.starts_with(OURS) { "#d9480f" } else { "#8ca0b3" };
            let (left, right) = (x(median.min(0.0)), x(median.max(0.0)));
            // Writing to a String cannot fail.
            let _ = writeln!(
                out,
                "<text x=\"{:.0}\" y=\"{base}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\
                 <path d=\"M{:.1} {middle}H{:.1}\" stroke=\"#222\" stroke-width=\"1.5\"/>\
                 <text x=\"{:.1}\" y=\"{base}\">{}</text>",
                NAMES - 8.0,
                escaped(name),
                top + 4.0,
                (right - left).max(1.0),
                LINE - 8.0,
                x(*least),
                x(*greatest),
                x(greatest.max(0.0)) + 6.0,
                figure(*median),
            );
        }
        out + "</svg>\n"
    }
}

/// Formats a figure with at least three significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_lies_within_the_chart() {
        let spread = |least, median, greatest| Spread { least, median, greatest };
        let bars = vec![("direct", spread(90.0, 100.0, 200.0)), ("mobile", spread(-60.0, -50.0, -40.0))];
        let svg = Plot { file: "x", title: "a < b".to_owned(), unit: "%", bars }.svg();
        assert!(svg.contains("a &lt; b, %") && svg.ends_with("</svg>\n"), "{svg}");
        // The chart runs from 120 (-60) to 540 (200); zero is about 97 pixels from the left edge.
        assert!(svg.contains("<rect x=\"216.9\" y=\"38.0\" width=\"161.5\""), "{svg}");
        assert!(svg.contains("<rect x=\"136.2\" y=\"62.0\" width=\"80.8\""), "{svg}");
        assert_eq!(svg.matches("<path ").count(), 2);
    }
}
