//! Outages of all uplinks: the host virtual device stays usable (section 3.1 of the paper), and the
//! session waits.

use std::time::{Duration, Instant};

use mobile_tests::{Blackhole, Testbed, UplinkName, port};

use crate::{Outcome, server};

/// The length of the outage.
const OUTAGE: Duration = Duration::from_secs(20);

/// The timeout of answers after the outage: TCP may first wait as long as the outage lasted before
/// it retransmits.
const RECOVERY: Duration = Duration::from_secs(60);

#[test]
fn with_no_uplink_for_20_s_send_does_not_fail_and_the_session_goes_on() -> Outcome {
    let bed = Testbed::new()?;
    let [four, six] = server(port::ECHO);
    let mut tcp = [bed.mobile_labtool(&["tcp", &four])?, bed.mobile_labtool(&["tcp", &six])?];
    let mut udp = [
        bed.mobile_labtool(&["udp", &four])?,
        bed.mobile_labtool(&["udp-connected", &four])?,
        bed.mobile_labtool(&["udp", &six])?,
        bed.mobile_labtool(&["udp-connected", &six])?,
    ];
    for talk in &mut tcp {
        talk.next_line()?;
        assert_eq!(talk.request("before")?, "before");
    }
    for talk in &mut udp {
        assert_eq!(talk.request("before")?, "before");
    }

    bed.lab.eth().take_down()?;
    bed.lab.wlan().cut()?;
    bed.lab.wlan().give_up_address()?;
    let start = Instant::now();
    bed.agent.wait_status("the loss of the last uplink", |status| status["session"] == "no_uplink")?;
    let mut count = 0;
    while start.elapsed() < OUTAGE {
        for talk in tcp.iter_mut().chain(&mut udp) {
            talk.send_line(&format!("during {count}"))?;
        }
        count += 1;
        // An ordinary pace of typing; the length of the outage is fixed.
        std::thread::sleep(Duration::from_millis(250));
    }
    for talk in tcp.iter_mut().chain(&mut udp) {
        // An error of send() or recv() would be printed: `! send: Network is unreachable`.
        assert_eq!(talk.take_lines(), Vec::<String>::new());
    }
    assert_eq!(bed.agent.log().matches("no path to the relay").count(), 1, "said while it lasts, once");

    bed.lab.wlan().bring_up()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    for talk in &mut tcp {
        for number in 0..count {
            assert_eq!(talk.next_line_within(RECOVERY)?, format!("during {number}"));
        }
        assert_eq!(talk.request("after")?, "after");
    }
    for talk in &mut udp {
        talk.send_line("after")?;
        // Datagrams of the outage may arrive late. None may be garbled, and the new one must
        // arrive.
        loop {
            match talk.next_line()?.as_str() {
                "after" => break,
                late => assert!(late.starts_with("during "), "{late}"),
            }
        }
    }
    bed.finish()
}

#[test]
fn a_silent_uplink_is_left_for_one_that_answers() -> Outcome {
    for blackhole in [Blackhole::Both, Blackhole::Up, Blackhole::Down] {
        let mut bed = Testbed::new()?;
        let [four, _] = server(port::ECHO);
        let mut talk = bed.mobile_labtool(&["tcp", &four])?;
        talk.next_line()?;
        bed.lab.eth().link().set_blackhole(blackhole);
        let start = Instant::now();
        assert_eq!(talk.request("anybody there?")?, "anybody there?");
        eprintln!("{blackhole:?}: {:?}", start.elapsed());
        assert_eq!(bed.agent.status()?["active_uplink"], "wlan0");
        bed.expect_warning("gone silent");
        bed.finish()?;
    }
    Ok(())
}
