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

use mobile_host::check::{CheckError, CheckReport};

use crate::config::Config;

pub(crate) use self::fact_error::FactError;
pub(crate) use self::facts::AgentStatus;
pub(crate) use self::judge::consequence;
pub(crate) use self::reach::resolve;

/// Refuses the start of an agent that `mobile check` would fail, in the same words, and logs the
/// warnings. The control socket must be bound already, so no other agent runs with this
/// configuration.
pub(crate) async fn before_start(config: &Config) -> Result<(), CheckError> {
    let findings = judge::judge_start(&facts::StartFacts::gather(config).await);
    for finding in CheckReport::new(findings).into_warnings()? {
        tracing::warn!("{finding}");
    }
    Ok(())
}

/// Returns the report of `mobile check` about this host; `config` is the configuration file, or the
/// default one if `None`. `ask_agent` returns the status of the agent with a configuration.
pub(crate) async fn check(
    config: Option<&Path>,
    ask_agent: impl FnOnce(&Config) -> AgentStatus,
) -> CheckReport {
    CheckReport::new(judge::judge(&facts::gather(config, ask_agent).await))
}
