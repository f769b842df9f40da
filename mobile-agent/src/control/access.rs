//! Who may ask what. The decisions are pure; what they need is read from the kernel, never from the requester.

use super::protocol::Request;
use crate::processes::Requester;

/// Whether the requester may ask this at all. Which processes it may change is decided for each of them.
pub(super) fn admit(requester: Requester, request: &Request) -> Result<(), String> {
    match request {
        Request::Run
        | Request::Call(_)
        | Request::Attach { .. }
        | Request::Detach { .. }
        | Request::Processes
        | Request::Status
        | Request::Uplinks
        | Request::Bypasses => Ok(()),
        Request::Use { .. } | Request::Bypass { .. } | Request::Cleanup | Request::PrepareSlice
            if requester.privileged =>
        {
            Ok(())
        }
        Request::Use { .. } => {
            Err("only root or the [control] group may choose the uplink: try it with sudo".into())
        }
        Request::Bypass { .. } => {
            Err("only root or the [control] group may change the bypass: try it with sudo".into())
        }
        Request::Cleanup => Err("only root or the [control] group may clean up: try it with sudo".into()),
        Request::PrepareSlice => {
            Err("only root or the [control] group may prepare the slice: systemd does it".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Requester = Requester { uid: 0, privileged: true };
    const MEMBER: Requester = Requester { uid: 1000, privileged: true };
    const USER: Requester = Requester { uid: 1000, privileged: false };

    #[test]
    fn everybody_may_run_and_look_but_not_choose_or_clean() {
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
            assert!(admit(USER, &request).unwrap_err().contains("only root"), "{request:?}");
        }
    }
}
