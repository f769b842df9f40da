//! What goes over the control socket: one JSON object a line, a question and its answer.

use ipnet::IpNet;
use mobile_control::Call;
use serde::{Deserialize, Serialize};

use crate::status::{Status, Uplinks};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Set the MOBILE attribute of the process that asks; it execs a command afterwards.
    Run,
    /// A call of the C library, which has its own word for each of them.
    Call(Call),
    /// Set the MOBILE attribute of these processes.
    Attach {
        /// Process ids.
        pids: Vec<i32>,
    },
    /// Clear it.
    Detach {
        /// Process ids.
        pids: Vec<i32>,
    },
    /// The mobile processes.
    Processes,
    /// The state of the session.
    Status,
    /// The uplinks.
    Uplinks,
    /// Put this uplink first; none: back to policy.
    Use {
        /// An interface name.
        uplink: Option<String>,
    },
    /// What mobile processes reach directly.
    Bypasses,
    /// Change it.
    Bypass {
        /// A network.
        net: IpNet,
        /// Add it, or remove it.
        add: bool,
    },
    /// Remove every kernel object, and end.
    Cleanup,
    /// Make whatever systemd will run in its slice mobile, before anything runs there.
    PrepareSlice,
}

/// An answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    /// It is done.
    Done,
    /// To `Call`: 0, or the error number.
    Called(i32),
    /// It is done, and this is worth knowing.
    Noted(String),
    /// It is not done.
    Refused(String),
    /// To `Attach` and `Detach`: one for each process asked for.
    Changed(Vec<Change>),
    /// To `Processes`.
    Processes(Vec<Process>),
    /// To `Status`.
    Status(Box<Status>),
    /// To `Uplinks`.
    Uplinks(Uplinks),
    /// To `Bypasses`.
    Bypasses(Vec<IpNet>),
}

/// What became of one process of an `Attach` or `Detach`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Change {
    /// The process.
    pub(crate) pid: i32,
    /// Its command's name, when it is known.
    pub(crate) command: Option<String>,
    /// Why it was not changed; names the process.
    pub(crate) error: Option<String>,
    /// Its sockets that have a route already and keep it; UDP ones without a peer keep it for one more datagram.
    pub(crate) kept: Vec<Connection>,
}

/// A mobile process, as `mobile ps --json` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Process id.
    pub(crate) pid: i32,
    /// User id.
    pub(crate) uid: u32,
    /// The user's name, or its number.
    pub(crate) user: String,
    /// The command line, or the name in brackets.
    pub(crate) command: String,
    /// Its connections on the MOBILE route.
    pub(crate) connections: Vec<Connection>,
    /// What its TCP connections on that route carried, those that are over included; none if the kernel does not say.
    pub(crate) tcp: Option<Traffic>,
}

/// What the TCP connections of one process carried by the MOBILE route, since it was mobile. As `mobile ps --json` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Traffic {
    /// Connections it made, those that are over included.
    pub(crate) connections: u64,
    /// Bytes that left, acknowledged or not.
    pub(crate) bytes_sent: u64,
    /// Bytes that came.
    pub(crate) bytes_received: u64,
}

/// A socket that has a peer, and so a route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    /// `tcp` or `udp`.
    pub(crate) protocol: String,
    /// `address:port` here.
    pub(crate) local: String,
    /// `address:port` there.
    pub(crate) remote: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_read_as_they_are_written() {
        for (request, json) in [
            (Request::Run, r#""run""#),
            (Request::Attach { pids: vec![7] }, r#"{"attach":{"pids":[7]}}"#),
            (Request::Use { uplink: None }, r#"{"use":{"uplink":null}}"#),
            (
                Request::Bypass { net: "10.0.0.0/8".parse().unwrap(), add: true },
                r#"{"bypass":{"net":"10.0.0.0/8","add":true}}"#,
            ),
            (Request::Cleanup, r#""cleanup""#),
        ] {
            assert_eq!(serde_json::to_string(&request).unwrap(), json);
            assert_eq!(serde_json::from_str::<Request>(json).unwrap(), request);
        }
    }

    #[test]
    fn a_process_is_printed_as_the_documentation_says() {
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
    fn nonsense_is_no_question() {
        for json in ["\"reboot\"", "{\"attach\":{}}", "{\"attach\":{\"pids\":[99999999999]}}", "[]", "1"] {
            assert!(serde_json::from_str::<Request>(json).is_err(), "{json}");
        }
    }
}
