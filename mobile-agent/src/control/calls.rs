//! Handles the calls of the C library `libmobile`, such as `inet_setmobile`, and answers with error
//! numbers.

use std::sync::Arc;

use mobile_control::Call;

use super::blocking::blocking;
use super::request_error::RequestError;
use crate::agent::{Agent, Caller, ProcessError};

/// Executes a function call that a process made in `libmobile`. Returns the result that the process
/// gets: 0, or an error number (errno). Returns `Err` if the agent itself failed.
pub(super) async fn handle(agent: &Arc<Agent>, caller: Caller, call: Call) -> Result<i32, RequestError> {
    let done = match call {
        Call::SetMobile { pid, mobile } => {
            let agent = Arc::clone(agent);
            let set = move || agent.processes().set_mobile(&caller, pid, mobile);
            match blocking(set).await {
                Ok(()) => Ok(()),
                Err(RequestError::Process(ProcessError::Helper(error))) => {
                    tracing::debug!(%error, "inet_setmobile failed");
                    Err(error.errno())
                }
                Err(error) => return Err(error),
            }
        }
        Call::SetRoute { gateway } => agent.set_route(gateway).await,
    };
    Ok(done.map_or_else(|errno| errno as i32, |()| 0))
}
