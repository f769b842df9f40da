//! Fuzzes a line on the agent's control socket, as the agent reads it, and a reply, as its commands
//! and libmobile read it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_control::{Call, CallRequest};
use mobile_host::control::parse;
use serde::Serialize;

#[path = "../../mobile-agent/src/config.rs"]
#[allow(dead_code, reason = "a module of the agent, used for the names in a reply")]
mod config;
#[path = "../../mobile-agent/src/protocol.rs"]
mod protocol;
#[path = "../../mobile-agent/src/status.rs"]
mod status;

use protocol::{Change, Connection, Process, Reply, Request, Traffic};

fuzz_target!(init: mobile_fuzz::seeds(seeds), |data: &[u8]| {
    let request = parse::<Request>(data);
    if let Ok(request) = &request {
        assert_eq!(&parse::<Request>(&json(request)).expect("an encoded request"), request);
    }
    if let Ok(CallRequest::Call(call)) = parse::<CallRequest>(data) {
        assert_eq!(request.ok(), Some(Request::Call(call)), "the library sends what the agent parses");
    }
    if let Ok(answer) = parse::<Reply>(data) {
        let line = json(&answer);
        assert_eq!(json(&parse::<Reply>(&line).expect("an encoded reply")), line);
        if matches!(answer, Reply::Called(_) | Reply::Refused(_)) {
            parse::<mobile_control::CallReply>(&line).expect("the library parses it, too");
        }
    }
});

/// Returns every control request, and the replies that can be built without a running agent.
fn seeds() -> Vec<Vec<u8>> {
    let net = "10.0.0.0/8".parse().expect("a network");
    let requests = [
        Request::Run,
        Request::Call(Call::SetMobile { pid: 7, mobile: true }),
        Request::Call(Call::SetRoute { gateway: Some([10, 77, 0, 1].into()) }),
        Request::Attach { pids: vec![7, 4711] },
        Request::Detach { pids: vec![7] },
        Request::Processes,
        Request::Status,
        Request::Uplinks,
        Request::Use { uplink: Some("wlan0".into()) },
        Request::Use { uplink: None },
        Request::Bypasses,
        Request::Bypass { net, add: true },
        Request::Cleanup,
    ];
    let text = |text: &str| text.to_owned();
    let connection =
        Connection { protocol: text("tcp"), local: text("10.77.0.2:1"), remote: text("192.0.2.1:2") };
    let kept = vec![connection];
    let answers = [
        Reply::Done,
        Reply::Called(13),
        Reply::Noted(text("seen")),
        Reply::Refused(text("no")),
        Reply::Changed(vec![Change { pid: 7, command: Some(text("sh")), error: None, kept: kept.clone() }]),
        Reply::Processes(vec![Process {
            pid: 7,
            uid: 1000,
            user: text("ann"),
            command: text("ssh"),
            connections: kept,
            tcp: Some(Traffic { connections: 3, bytes_sent: 4, bytes_received: 5 }),
        }]),
        Reply::Bypasses(vec![net]),
    ];
    requests.iter().map(json).chain(answers.iter().map(json)).collect()
}

fn json(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("a serializable message")
}
