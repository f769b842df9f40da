//! Blackholes: an uplink keeps its carrier, but drops all packets in one or both directions.

use std::time::{Duration, Instant};

use mobile_tests::{Blackhole, Testbed, port};

use crate::{Outcome, server};

/// The time within which the echo session must answer over the other uplink, from the beginning of
/// the blackhole.
const PROMPT: Duration = Duration::from_secs(1);

fn a_keystroke_is_answered_promptly(blackhole: Blackhole) -> Outcome {
    let mut bed = Testbed::new()?;
    let [server, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &server])?;
    talk.next_line()?;
    for _ in 0..5 {
        assert_eq!(talk.request("before")?, "before");
        // An ordinary pace, in which the path's round-trip time is measured.
        std::thread::sleep(Duration::from_millis(200));
    }
    bed.lab.eth().link().set_blackhole(blackhole);
    let start = Instant::now();
    assert_eq!(talk.request("anybody there?")?, "anybody there?");
    let took = start.elapsed();
    eprintln!("{blackhole:?}: {took:?}");
    assert!(took < PROMPT, "{blackhole:?}: {took:?}");
    let status = bed.agent.status()?;
    assert_eq!(status["active_uplink"], "wlan0", "{status}");
    assert_eq!(status["handovers"], 1, "{status}");
    assert_eq!(status["last_handover"]["cause"], "silent", "{status}");
    bed.expect_warning("gone silent");
    // The silent uplink is probed again.
    bed.expect_warning("no answer from the relay");
    bed.finish()
}

#[test]
fn when_upstream_packets_vanish_the_session_answers_over_the_other_uplink_within_a_second() -> Outcome {
    a_keystroke_is_answered_promptly(Blackhole::Up)
}

#[test]
fn when_downstream_packets_vanish_the_session_answers_over_the_other_uplink_within_a_second() -> Outcome {
    a_keystroke_is_answered_promptly(Blackhole::Down)
}

#[test]
fn when_all_packets_vanish_the_session_answers_over_the_other_uplink_within_a_second() -> Outcome {
    a_keystroke_is_answered_promptly(Blackhole::Both)
}
