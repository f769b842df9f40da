//! `mobile check`: reports whether this host can run the agent, and what prevents it.
//!
//! [`facts`] gathers the state of the kernel, the files and the network without changing anything.
//! [`judge`] is pure: it turns the facts into findings, each with a next step if it is not `ok`.
//! [`reach`] tries the relay over each uplink, and [`load_programs`] loads the eBPF programs in a
//! namespace of its own.

mod fact_error;
mod facts;
mod judge;
mod load_programs;
mod reach;

use std::path::Path;

use mobile_host::check::CheckReport;

pub(crate) use self::fact_error::FactError;
pub(crate) use self::facts::AgentStatus;
pub(crate) use self::judge::consequence;
pub(crate) use self::reach::resolve;

/// Returns the report of `mobile check` about this host; `config` is the configuration file, or the
/// default one if `None`. `ask_agent` returns the status of the agent whose control socket is at a
/// path.
pub(crate) async fn check(
    config: Option<&Path>,
    ask_agent: impl FnOnce(&Path) -> AgentStatus,
) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config, ask_agent).await))
}
