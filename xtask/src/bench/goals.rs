//! Goals for the figures of a benchmark, and whether they are met.

/// A goal for one figure of this project's programs.
pub(crate) struct Goal {
    what: String,
    wanted: f64,
    got: Option<f64>,
    /// Whether the figure must be at least `wanted`; otherwise it must be at most `wanted`.
    at_least: bool,
}

impl Goal {
    /// Creates a goal that is met if the measured figure `got` is at least `wanted`; `got` is
    /// `None` if it was not measured.
    pub(crate) fn at_least(what: impl Into<String>, wanted: f64, got: Option<f64>) -> Self {
        Self { what: what.into(), wanted, got, at_least: true }
    }

    /// Creates a goal that is met if the measured figure `got` is at most `wanted`; `got` is `None`
    /// if it was not measured.
    pub(crate) fn at_most(what: impl Into<String>, wanted: f64, got: Option<f64>) -> Self {
        Self { what: what.into(), wanted, got, at_least: false }
    }

    fn is_met(&self) -> Option<bool> {
        self.got.map(|got| if self.at_least { got >= self.wanted } else { got <= self.wanted })
    }
}

/// Returns the goals as a Markdown table for docs/measure/benchmarks.md. Leaves out goals whose
/// figure was not measured.
pub(crate) fn markdown(goals: &[Goal]) -> String {
    let mut out = "| goal | wanted | measured | |\n| --- | --- | --- | --- |\n".to_owned();
    for goal in goals {
        let Some((got, met)) = goal.got.zip(goal.is_met()) else { continue };
        let sign = if goal.at_least { "≥" } else { "≤" };
        let verdict = if met { "met" } else { "**missed**" };
        out.push_str(&format!("| {} | {sign} {} | {got:.3} | {verdict} |\n", goal.what, goal.wanted));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_met_missed_or_left_out() {
        let text = markdown(&[
            Goal::at_least("fast", 0.4, Some(0.4)),
            Goal::at_most("cheap", 0.125, Some(0.2)),
            Goal::at_least("unknown", 1.0, None),
        ]);
        assert!(text.contains("| fast | ≥ 0.4 | 0.400 | met |"), "{text}");
        assert!(text.contains("| cheap | ≤ 0.125 | 0.200 | **missed** |"), "{text}");
        assert!(!text.contains("unknown"));
    }
}
