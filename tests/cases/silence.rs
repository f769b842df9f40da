//! Blackholes: an uplink keeps its carrier, but drops all packets in one or both directions.

use std::time::{Duration, Instant};

use mobile_tests::{Blackhole, Testbed, port};

use crate::{Outcome, server};

/// Checks that an echo session answers over the other uplink when `blackhole` begins.
///
/// How soon it answers depends on the test machine: the tests of the agent's state machine show it
/// with a virtual clock, and the benchmark `handover` measures it.
fn a_keystroke_is_answered(blackhole: Blackhole) -> Outcome {
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
    eprintln!("{blackhole:?}: {:?}", start.elapsed());
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
fn when_upstream_packets_vanish_the_session_answers_over_the_other_uplink() -> Outcome {
    a_keystroke_is_answered(Blackhole::Up)
}

#[test]
fn when_downstream_packets_vanish_the_session_answers_over_the_other_uplink() -> Outcome {
    a_keystroke_is_answered(Blackhole::Down)
}

#[test]
fn when_all_packets_vanish_the_session_answers_over_the_other_uplink() -> Outcome {
    a_keystroke_is_answered(Blackhole::Both)
}
