//! Decides which user may send which request.
//!
//! The decision is pure; the user's identity comes from the kernel (the socket's peer credentials),
//! never from the request.

use crate::processes::Requester;
use crate::protocol::Request;

/// The reason why a user may not send a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Denied {
    /// The request chooses the uplink.
    #[error("only root and the [control] group may choose the uplink: run the command with sudo")]
    Use,
    /// The request changes the bypassed networks.
    #[error("only root and the [control] group may change the bypass: run the command with sudo")]
    Bypass,
    /// The request removes the kernel objects.
    #[error("only root and the [control] group may clean up: run the command with sudo")]
    Cleanup,
    /// The request prepares systemd's slice.
    #[error("only root and the [control] group may prepare the slice: systemd runs this command")]
    PrepareSlice,
}

/// Returns an error unless the requester may send this request. For requests that name processes,
/// the process helper decides for each process.
pub(super) fn admit(requester: Requester, request: &Request) -> Result<(), Denied> {
    let denied = match request {
        Request::Run
        | Request::Call(_)
        | Request::Attach { .. }
        | Request::Detach { .. }
        | Request::Processes
        | Request::Status
        | Request::Session
        | Request::Uplinks
        | Request::Bypasses
        | Request::Config => return Ok(()),
        Request::Use { .. } => Denied::Use,
        Request::Bypass { .. } => Denied::Bypass,
        Request::Cleanup => Denied::Cleanup,
        Request::PrepareSlice => Denied::PrepareSlice,
    };
    if requester.privileged { Ok(()) } else { Err(denied) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Requester = Requester { uid: 0, privileged: true };
    const MEMBER: Requester = Requester { uid: 1000, privileged: true };
    const USER: Requester = Requester { uid: 1000, privileged: false };

    #[test]
    fn any_user_may_run_commands_and_read_the_state_but_not_choose_uplinks_or_clean_up() {
        for request in [
            Request::Run,
            Request::Attach { pids: vec![1] },
            Request::Status,
            Request::Uplinks,
            Request::Processes,
        ] {
            for requester in [ROOT, MEMBER, USER] {
                assert_eq!(admit(requester, &request), Ok(()), "{request:?}");
            }
        }
        for request in [Request::Use { uplink: None }, Request::Cleanup] {
            assert_eq!(admit(ROOT, &request), Ok(()));
            assert_eq!(admit(MEMBER, &request), Ok(()));
            assert!(admit(USER, &request).unwrap_err().to_string().contains("only root"), "{request:?}");
        }
    }
}
