//! Decides which user may send which request.
//!
//! The decision is pure; the user's identity comes from the kernel (the socket's peer credentials),
//! never from the request.

use crate::processes::Requester;
use crate::protocol::Request;

/// The reason why a user may not send a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", denial(.what, .group.as_deref()))]
pub(super) struct Denied {
    /// The effect of the request, after "may".
    what: &'static str,
    /// The setting `[control] group`.
    group: Option<String>,
}

fn denial(what: &str, group: Option<&str>) -> String {
    match group {
        Some(group) => format!(
            "only root and members of the group `{group}` ([control] group) may {what}: join it, or run the \
             command with sudo"
        ),
        None => {
            format!("only root may {what}: run the command with sudo, or set [control] group and join it")
        }
    }
}

/// Returns an error unless the requester may send this request; `group` is the setting `[control]
/// group`. For requests that name processes, the process helper decides for each process.
pub(super) fn admit(requester: Requester, request: &Request, group: Option<&str>) -> Result<(), Denied> {
    let what = match request {
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
        Request::Use { .. } => "choose the uplink",
        Request::Bypass { .. } => "change the bypass",
        Request::Reload => "reload the configuration",
        Request::Cleanup => "clean up",
        Request::PrepareSlice => "prepare the slice",
    };
    if requester.privileged { Ok(()) } else { Err(Denied { what, group: group.map(str::to_owned) }) }
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
                assert_eq!(admit(requester, &request, None), Ok(()), "{request:?}");
            }
        }
        for request in [Request::Use { uplink: None }, Request::Reload, Request::Cleanup] {
            assert_eq!(admit(ROOT, &request, None), Ok(()));
            assert_eq!(admit(MEMBER, &request, None), Ok(()));
            for (group, named) in [(None, "only root may"), (Some("netdev"), "the group `netdev`")] {
                let refusal = admit(USER, &request, group).unwrap_err().to_string();
                assert!(refusal.contains(named) && refusal.contains("sudo"), "{request:?}: {refusal}");
            }
        }
    }
}
