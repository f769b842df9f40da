//! The interface between the C library `libmobile` and the agent: the paths where they meet, and
//! the calls as they go over the control socket, one JSON object a line.
//!
//! This is a crate of its own so that the library contains neither the agent's runtime nor its eBPF
//! loader.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The path of the agent's configuration unless another is named.
pub const CONFIG: &str = "/etc/mobile/agent.toml";

/// The path of the control socket unless the configuration names another.
pub const SOCKET: &str = "/run/mobile/agent.sock";

/// The environment variable that names the control socket instead of the configuration.
pub const SOCKET_VARIABLE: &str = "MOBILE_CONTROL_SOCKET";

/// A call of the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// The C function `inet_setmobile`.
    SetMobile {
        /// The process ID; 0 means the caller.
        pid: i32,
        /// Whether to set the MOBILE attribute; otherwise it is cleared.
        mobile: bool,
    },
    /// The C function `inet_setmroute`.
    SetRoute {
        /// The expected gateway; `None` accepts the present one.
        gateway: Option<Ipv4Addr>,
    },
}

/// A request that carries a call. The agent understands more requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallRequest {
    /// Carry out this call.
    Call(Call),
}

/// The agent's reply to a call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallReply {
    /// The result of the call: 0, or an error number of this system.
    Called(i32),
    /// The agent did not understand the request: it is of another version.
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
