//! `mobile check`: whether this host can run the agent, and what is in the way.
//!
//! [`facts`] gathers the state of the kernel, the files and the network without changing anything.
//! [`judge`] is pure: it turns the facts into findings, each with a next step if it is not `ok`.
//! [`reach`] tries the relay over each uplink, and [`load_programs`] loads the eBPF programs in a
//! namespace of its own.

mod facts;
mod judge;
mod load_programs;
mod reach;

use std::path::Path;

use mobile_io::check::CheckReport;

pub(crate) use self::judge::consequence;
pub(crate) use self::reach::resolve;

/// Gathers all facts and judges them.
pub(crate) async fn check(config: Option<&Path>) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config).await))
}
