//! What `libmobile` and the agent agree on: where they meet, and the calls of the C library as they go over the control
//! socket, one JSON object a line.
//!
//! A crate of its own, so that the library carries neither the agent's runtime nor its eBPF loader.
#![forbid(unsafe_code)]

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The agent's configuration, when nobody names another.
pub const CONFIG: &str = "/etc/mobile/agent.toml";

/// The control socket, when the configuration does not say.
pub const SOCKET: &str = "/run/mobile/agent.sock";

/// The variable that names the control socket in place of the configuration.
pub const SOCKET_VARIABLE: &str = "MOBILE_CONTROL_SOCKET";

/// A call of the C library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Call {
    /// `inet_setmobile`.
    SetMobile {
        /// The process; 0 is the one that calls.
        pid: i32,
        /// Set the MOBILE attribute, or clear it.
        mobile: bool,
    },
    /// `inet_setmroute`.
    SetRoute {
        /// The gateway; none is the one there is.
        gateway: Option<Ipv4Addr>,
    },
}

/// A call as a question to the agent: one of those it understands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallRequest {
    /// Do this.
    Call(Call),
}

/// The agent's answer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CallReply {
    /// 0, or why not: an error number of this system.
    Called(i32),
    /// The question was not understood: the agent is of another version.
    Refused(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_over_the_socket_stays_as_it_is() {
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
