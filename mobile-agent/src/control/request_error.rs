//! The reasons why a request on the control socket was refused, or failed.

use tokio::task::JoinError;

use super::access::Denied;
use crate::agent::{BypassError, CleanUpError, ProcessError, ReloadError, UnknownUplink};

/// The reason why a request was refused or failed. The text is the reply.
#[derive(Debug, thiserror::Error)]
pub(super) enum RequestError {
    /// The user may not send this request.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Processes could not be changed or listed.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The uplink to use does not exist.
    #[error(transparent)]
    Uplink(#[from] UnknownUplink),
    /// The bypassed networks could not be changed.
    #[error(transparent)]
    Bypass(#[from] BypassError),
    /// The configuration could not be reloaded.
    #[error(transparent)]
    Reload(#[from] ReloadError),
    /// The kernel objects could not be removed.
    #[error(transparent)]
    CleanUp(#[from] CleanUpError),
    /// The thread that handled the request panicked.
    #[error("the agent failed while it handled the request: {0}")]
    Failed(#[from] JoinError),
}
