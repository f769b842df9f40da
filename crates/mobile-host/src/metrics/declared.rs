//! Declares each metric once: the declarations serve the code that counts, the scrapes and the
//! documentation.

use prometheus::{GaugeVec, HistogramOpts, IntCounterVec, IntGaugeVec, Opts};

/// The declaration of a metric, created by [`declare_metrics!`](crate::declare_metrics).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metric {
    /// The full name of the metric.
    pub name: &'static str,
    /// The type of the metric.
    pub kind: MetricKind,
    /// The names of the labels.
    pub labels: &'static [&'static str],
    /// The description in scrapes and in the documentation.
    pub help: &'static str,
}

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// A value that only increases.
    Counter,
    /// A value that increases and decreases.
    Gauge,
    /// A distribution of values over buckets.
    Histogram,
}

impl MetricKind {
    /// Returns the name of the type in the Prometheus text format.
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
    /// Creates the counters of this metric.
    ///
    /// # Errors
    /// When Prometheus does not allow the declared name.
    pub fn counters(&self) -> prometheus::Result<IntCounterVec> {
        debug_assert_eq!(self.kind, MetricKind::Counter, "{}", self.name);
        IntCounterVec::new(self.options(), self.labels)
    }

    /// Creates the gauges of this metric.
    ///
    /// # Errors
    /// As [`counters`](Self::counters).
    pub fn gauges(&self) -> prometheus::Result<GaugeVec> {
        debug_assert_eq!(self.kind, MetricKind::Gauge, "{}", self.name);
        GaugeVec::new(self.options(), self.labels)
    }

    /// Creates the integer gauges of this metric.
    ///
    /// # Errors
    /// As [`counters`](Self::counters).
    pub fn int_gauges(&self) -> prometheus::Result<IntGaugeVec> {
        debug_assert_eq!(self.kind, MetricKind::Gauge, "{}", self.name);
        IntGaugeVec::new(self.options(), self.labels)
    }

    /// Returns the options of a histogram with the given upper bounds.
    #[must_use]
    pub fn histogram(&self, bounds: &[f64]) -> HistogramOpts {
        debug_assert_eq!(self.kind, MetricKind::Histogram, "{}", self.name);
        HistogramOpts::from(self.options()).buckets(bounds.to_vec())
    }

    fn options(&self) -> Opts {
        Opts::new(self.name, self.help)
    }
}

/// Declares a constant of type [`Metric`] for each metric, and the list
/// `ALL` of all of them:
///
/// ```
/// mobile_host::declare_metrics! {
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
        /// All metrics, in the order in which they are documented.
        #[allow(dead_code, reason = "read where the documentation is made")]
        pub(crate) const ALL: &[$crate::metrics::Metric] = &[$($constant),*];
    };
}
