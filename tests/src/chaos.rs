//! The chaos test: random network events, many at a time, while TCP flows run whose every byte is
//! checked.
//!
//! A seed determines the [`Script`] of events. Each run performs them in a lab with both programs,
//! and every flow must survive without a wrong or missing byte.

mod ends;
mod flow_plan;
mod flows;
mod options;
mod resource_usage;
mod run;
mod script;
mod stage;
mod stream;

pub use ends::client;
pub use options::Options;
pub use run::run;
pub use script::{Event, EventKind, Script};
pub use stream::Stream;
