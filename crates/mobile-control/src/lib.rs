//! The interface between the C library `libmobile` and the agent: the default paths of the control
//! socket and the configuration, and the requests and replies on the socket, each one line of JSON.
//!
//! This is a crate of its own so that the library contains neither the agent's runtime nor its eBPF
//! loader.
#![forbid(unsafe_code)]

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The default path of the agent's configuration file.
pub const CONFIG: &str = "/etc/mobile/agent.toml";

/// The default path of the agent's control socket in the machine's own network namespace, which the
/// configuration may override.
pub const SOCKET: &str = "/run/mobile/agent.sock";

/// Returns the default path of the control socket of this network namespace's agent: [`SOCKET`], or
/// `agent-ID.sock` beside it if that exists, where `ID` is the inode number of the namespace.
///
/// Only an agent in a network namespace other than the machine's own creates the latter.
#[must_use]
pub fn default_socket() -> PathBuf {
    let socket = Path::new(SOCKET);
    let own = fs::metadata("/proc/thread-self/ns/net")
        .map(|namespace| socket.with_file_name(format!("agent-{}.sock", namespace.ino())));
    own.ok().filter(|path| path.exists()).unwrap_or_else(|| socket.to_owned())
}

/// The environment variable with the path of the control socket, which overrides the configuration.
pub const SOCKET_VARIABLE: &str = "MOBILE_CONTROL_SOCKET";

/// A call of a function of the C library `libmobile`, with its arguments, as sent to the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// The C function `inet_setmobile`, which sets or clears the MOBILE attribute of a process.
    SetMobile {
        /// The process ID; 0 means the process that calls the function.
        pid: i32,
        /// Whether to set the MOBILE attribute; otherwise it is cleared.
        mobile: bool,
    },
    /// The C function `inet_setmroute`, which verifies and repairs the MOBILE route.
    SetRoute {
        /// The gateway that the caller expects the MOBILE route to have; `None` accepts any.
        gateway: Option<Ipv4Addr>,
    },
}

/// The request by which the C library sends a call to the agent. The agent also understands other
/// requests, which the program `mobile` sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallRequest {
    /// Asks the agent to carry out a call of the C library.
    Call(Call),
}

/// The agent's reply to a call of the C library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallReply {
    /// The result of the call: 0, or an error number (`errno`) of this system.
    Called(i32),
    /// The agent did not understand the request, because it has another version; the text is its
    /// error message.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_encoding_of_calls_is_stable() {
        for (call, json) in [
            (Call::SetMobile { pid: 0, mobile: true }, r#"{"call":{"set_mobile":{"pid":0,"mobile":true}}}"#),
            (Call::SetRoute { gateway: None }, r#"{"call":{"set_route":{"gateway":null}}}"#),
            (
                Call::SetRoute { gateway: Some(Ipv4Addr::new(10, 77, 0, 1)) },
                r#"{"call":{"set_route":{"gateway":"10.77.0.1"}}}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&CallRequest::Call(call)).unwrap(), json);
            assert_eq!(serde_json::from_str::<CallRequest>(json).unwrap(), CallRequest::Call(call));
        }
        assert_eq!(serde_json::to_string(&CallReply::Called(0)).unwrap(), r#"{"called":0}"#);
    }
}
