//! Netlink events by the thousand: the agent stays responsive, keeps its path and misses nothing that matters.

use std::time::{Duration, Instant};

use mobile_tests::{Testbed, UplinkName, netlink_storm, port};
use nix::sys::signal::Signal;

use crate::{Outcome, server};

/// Some twenty thousand events.
const FLIPS: usize = 5_000;

/// Far less than a person's patience with a command, and more than a busy test machine needs.
const RESPONSIVE: Duration = Duration::from_secs(1);

#[test]
fn in_a_storm_of_netlink_events_the_agent_answers_and_keeps_its_path() -> Outcome {
    let bed = Testbed::new()?;
    let [server, _] = server(port::ECHO);
    let mut gaps = bed.mobile_talk(&["gaps", &server, "20", "4"])?;
    let before = bed.agent.status()?["handovers"].clone();
    let host = bed.lab.host.clone();
    let storm = std::thread::spawn(move || netlink_storm(&host, FLIPS));
    let mut answers = 0;
    while !storm.is_finished() {
        let asked = Instant::now();
        let status = bed.agent.status()?;
        assert!(asked.elapsed() < RESPONSIVE, "`status` took {:?}", asked.elapsed());
        assert_eq!(status["active_uplink"], "eth0", "{status}");
        answers += 1;
    }
    storm.join().expect("the storm does not panic")?;
    assert!(answers > 0, "the storm was over before it was looked at");
    let report: serde_json::Value = serde_json::from_str(&gaps.hear()?)?;
    eprintln!("{answers} answers in the storm; {report}");
    assert!(report["longest_gap_ms"].as_f64().is_some_and(|gap| gap < 1_000.0), "{report}");
    assert_eq!(bed.agent.status()?["handovers"], before);
    // And it still hears what matters.
    bed.lab.eth().remove_route()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    bed.finish()
}

#[test]
fn a_change_that_an_overrun_netlink_socket_lost_is_not_missed() -> Outcome {
    let bed = Testbed::new()?;
    let [server, _] = server(port::ECHO);
    let mut talk = bed.mobile_talk(&["tcp", &server])?;
    talk.hear()?;
    bed.agent.signal(Signal::SIGSTOP)?;
    // Nobody reads: the socket's buffer holds some hundred of these.
    netlink_storm(&bed.lab.host, FLIPS / 5)?;
    bed.lab.eth().remove_route()?;
    netlink_storm(&bed.lab.host, FLIPS / 5)?;
    let sockets = bed.lab.host.run(&["cat", "/proc/net/netlink"])?;
    bed.agent.signal(Signal::SIGCONT)?;
    let overrun = sockets.lines().skip(1).filter(|line| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        // Protocol 0 is rtnetlink; a subscriber's groups are not zero.
        columns[1] == "0" && columns[3] != "00000000" && columns[8] != "0"
    });
    assert!(overrun.count() > 0, "no subscriber's socket overran:\n{sockets}");
    bed.agent.wait_active(UplinkName::Wlan)?;
    assert_eq!(talk.ask("still here")?, "still here");
    // And after it, changes are told as ever.
    bed.lab.eth().bring_up()?;
    bed.agent.wait_active(UplinkName::Eth)?;
    bed.finish()
}
