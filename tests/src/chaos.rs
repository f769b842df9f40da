//! Chaos: everything that happens to a laptop, at random and all at once, under flows whose every byte is checked.
//!
//! A seed decides the [`Script`]; the stage plays it on a lab with both programs; the flows must outlive it whole.

mod ends;
mod flows;
mod options;
mod run;
mod script;
mod stage;
mod stream;
mod vitals;

pub use ends::client;
pub use options::Options;
pub use run::run;
pub use script::{Event, Kind, Script};
pub use stream::Stream;
