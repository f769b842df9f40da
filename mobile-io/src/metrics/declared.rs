//! A metric as it is declared: once, for whoever counts it, scrapes it and documents it.

use prometheus::{GaugeVec, HistogramOpts, IntCounterVec, IntGaugeVec, Opts};

/// What a metric is called and what it means. [`declare!`](crate::declare_metrics) makes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// Its whole name.
    pub name: &'static str,
    /// What its values do.
    pub kind: MetricKind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What a scrape, and the documentation, say of it.
    pub help: &'static str,
}

/// What the values of a metric do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// They only grow.
    Counter,
    /// They go up and down.
    Gauge,
    /// They are counted by size.
    Histogram,
}

impl MetricKind {
    /// Its as_str in the text format.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

impl Metric {
    /// Its counters.
    ///
    /// # Errors
    /// When the declaration has no name, or one that Prometheus does not allow.
    pub fn counters(&self) -> prometheus::Result<IntCounterVec> {
        debug_assert_eq!(self.kind, MetricKind::Counter, "{}", self.name);
        IntCounterVec::new(self.options(), self.labels)
    }

    /// Its gauges.
    ///
    /// # Errors
    /// As [`counters`](Self::counters).
    pub fn gauges(&self) -> prometheus::Result<GaugeVec> {
        debug_assert_eq!(self.kind, MetricKind::Gauge, "{}", self.name);
        GaugeVec::new(self.options(), self.labels)
    }

    /// Its gauges of whole numbers.
    ///
    /// # Errors
    /// As [`counters`](Self::counters).
    pub fn int_gauges(&self) -> prometheus::Result<IntGaugeVec> {
        debug_assert_eq!(self.kind, MetricKind::Gauge, "{}", self.name);
        IntGaugeVec::new(self.options(), self.labels)
    }

    /// What its histogram is made of, with these upper bounds.
    #[must_use]
    pub fn histogram(&self, bounds: &[f64]) -> HistogramOpts {
        debug_assert_eq!(self.kind, MetricKind::Histogram, "{}", self.name);
        HistogramOpts::from(self.options()).buckets(bounds.to_vec())
    }

    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }
}

/// Declares metrics, each a constant, and `ALL` of them:
///
/// ```
/// mobile_io::declare_metrics! {
///     SENT: Counter "lamp_sent_total" ["colour"] "Signals sent.";
///     LIT: Gauge "lamp_lit" [] "1 while it is lit.";
/// }
/// # fn main() {
/// assert_eq!((ALL[1], SENT.labels), (LIT, &["colour"][..]));
/// # }
/// ```
#[macro_export]
macro_rules! declare_metrics {
    ($($constant:ident: $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        $(
            #[doc = $help]
            pub(crate) const $constant: $crate::metrics::Metric = $crate::metrics::Metric {
                name: $name,
                kind: $crate::metrics::MetricKind::$kind,
                labels: &[$($label),*],
                help: $help,
            };
        )*
        /// All of them, in the order in which they are documented.
        #[allow(dead_code, reason = "read where the documentation is made")]
        pub(crate) const ALL: &[$crate::metrics::Metric] = &[$($constant),*];
    };
}
