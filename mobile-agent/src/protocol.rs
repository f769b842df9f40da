//! The requests and replies on the control socket, one JSON object a line.

use std::path::PathBuf;

use ipnet::IpNet;
use mobile_control::Call;
use serde::{Deserialize, Serialize};

use crate::status::{Problem, Status, Uplinks};

/// A request to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Make the requesting process mobile; it executes a command afterwards.
    Run,
    /// A function call of the C library `libmobile`.
    Call(Call),
    /// Make these processes mobile.
    Attach {
        /// The IDs of the processes.
        pids: Vec<i32>,
    },
    /// Make these processes ordinary.
    Detach {
        /// The IDs of the processes.
        pids: Vec<i32>,
    },
    /// List the mobile processes.
    Processes,
    /// Return the state of the session.
    Status,
    /// Return why there is no session, if there is none.
    Session,
    /// Return the state of the uplinks.
    Uplinks,
    /// Prefer an uplink, or return to the configured policy.
    Use {
        /// The name of the interface; `None` returns to the policy.
        uplink: Option<String>,
    },
    /// Return the bypassed networks.
    Bypasses,
    /// Change the bypassed networks.
    Bypass {
        /// The network to add or remove.
        net: IpNet,
        /// Whether to add the network; otherwise it is removed.
        add: bool,
    },
    /// Return the path of the agent's configuration file.
    Config,
    /// Read the configuration file and the private key again.
    Reload,
    /// Remove every kernel object of the agent, then end the agent.
    Cleanup,
    /// Make the processes of systemd's `mobile.slice` mobile, before systemd starts any of them.
    PrepareSlice,
}

/// A reply of the agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// The request succeeded, without a result.
    Done,
    /// The result of a `Call`: 0, or the error number (errno).
    Called(i32),
    /// The request succeeded; the text is a note for the user.
    Noted(String),
    /// The request failed or was refused, for this reason.
    Refused(String),
    /// The result of `Attach` and `Detach`: one change for each process ID.
    Changed(Vec<Change>),
    /// The reply to `Processes`.
    Processes(Vec<Process>),
    /// The reply to `Status`.
    Status(Box<Status>),
    /// The reply to `Session`: `None` if connections of mobile processes have a session.
    Session(Option<NoSession>),
    /// The reply to `Uplinks`.
    Uplinks(Uplinks),
    /// The reply to `Bypasses`.
    Bypasses(Vec<IpNet>),
    /// The reply to `Config`: the path without symbolic links.
    Config(PathBuf),
    /// The reply to `Reload`.
    Reloaded(Reloaded),
}

/// The reason why connections of mobile processes have no session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NoSession {
    /// The cause and its remedy.
    pub(crate) problem: Problem,
    /// Whether new connections go direct meanwhile; otherwise they wait.
    pub(crate) open: bool,
}

/// The settings that a reload found changed, each as `[section] key`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reloaded {
    /// The settings whose new values are in force.
    pub(crate) changed: Vec<String>,
    /// The settings that keep their values until the agent is restarted.
    pub(crate) kept: Vec<String>,
}

/// The result of `Attach` or `Detach` for one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// The ID of the process.
    pub(crate) pid: i32,
    /// The name of the command, if it is known.
    pub(crate) command: Option<String>,
    /// The reason why the process was not changed, in a text that names the process; `None` if the
    /// process was changed.
    pub(crate) error: Option<String>,
    /// The connected sockets of the process, which keep their present route.
    pub(crate) kept: Vec<Connection>,
}

/// A mobile process, as `mobile ps --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// The ID of the process.
    pub(crate) pid: i32,
    /// The user ID of the process.
    pub(crate) uid: u32,
    /// The user's name, or the user ID if it has no name.
    pub(crate) user: String,
    /// The command line, or the command's name in brackets.
    pub(crate) command: String,
    /// The open connections through the tunnel.
    pub(crate) connections: Vec<Connection>,
    /// The traffic of the process's TCP connections through the tunnel, open and closed ones;
    /// `None` if the kernel's counters cannot be read.
    pub(crate) tcp: Option<Traffic>,
}

/// The traffic of one process's TCP connections through the tunnel since the process became mobile,
/// as `mobile ps --json` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    /// The number of connections that the process made, open and closed ones.
    pub(crate) connections: u64,
    /// The bytes sent, acknowledged or not.
    pub(crate) bytes_sent: u64,
    /// The number of bytes received.
    pub(crate) bytes_received: u64,
}

/// A connected socket, whose route is therefore fixed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    /// The protocol: `tcp` or `udp`.
    pub(crate) protocol: String,
    /// The local address as `address:port`.
    pub(crate) local: String,
    /// The remote address as `address:port`.
    pub(crate) remote: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_decoded_as_they_are_encoded() {
        for (request, json) in [
            (Request::Run, r#""run""#),
            (Request::Attach { pids: vec![7] }, r#"{"attach":{"pids":[7]}}"#),
            (Request::Use { uplink: None }, r#"{"use":{"uplink":null}}"#),
            (
                Request::Bypass { net: "10.0.0.0/8".parse().unwrap(), add: true },
                r#"{"bypass":{"net":"10.0.0.0/8","add":true}}"#,
            ),
            (Request::Reload, r#""reload""#),
            (Request::Cleanup, r#""cleanup""#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
        }
    }

    #[test]
    fn the_json_of_a_process_is_as_documented() {
        let process = Process {
            pid: 7,
            uid: 1000,
            user: "ann".into(),
            command: "ssh host".into(),
            connections: vec![Connection {
                protocol: "tcp".into(),
                local: "10.77.0.2:40000".into(),
                remote: "192.0.2.9:22".into(),
            }],
            tcp: Some(Traffic { connections: 3, bytes_sent: 4, bytes_received: 5 }),
        };
        let expected = serde_json::json!({
            "pid": 7, "uid": 1000, "user": "ann", "command": "ssh host",
            "connections": [{"protocol": "tcp", "local": "10.77.0.2:40000", "remote": "192.0.2.9:22"}],
            "tcp": {"connections": 3, "bytes_sent": 4, "bytes_received": 5},
        });
        assert_eq!(serde_json::to_value(&process).unwrap(), expected);
        let unknown = serde_json::to_value(Process { tcp: None, ..process }).unwrap();
        assert_eq!(unknown["tcp"], serde_json::Value::Null);
    }

    #[test]
    fn the_c_library_and_the_agent_understand_each_other() {
        use mobile_control::CallRequest;

        for call in [Call::SetMobile { pid: 7, mobile: false }, Call::SetRoute { gateway: None }] {
            let json = serde_json::to_string(&CallRequest::Call(call)).unwrap();
            assert_eq!(serde_json::from_str::<Request>(&json).unwrap(), Request::Call(call));
        }
        for (ours, theirs) in [
            (Reply::Called(3), mobile_control::CallReply::Called(3)),
            (Reply::Refused("no".into()), mobile_control::CallReply::Refused("no".into())),
        ] {
            let json = serde_json::to_string(&ours).unwrap();
            assert_eq!(serde_json::from_str::<mobile_control::CallReply>(&json).unwrap(), theirs);
        }
    }

    #[test]
    fn malformed_requests_are_rejected() {
        for json in ["\"reboot\"", "{\"attach\":{}}", "{\"attach\":{\"pids\":[99999999999]}}", "[]", "1"] {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }
}
