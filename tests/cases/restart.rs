//! Connections of mobile processes survive a kill and a restart of either program.

use mobile_tests::{LineProcess, Testbed};

use crate::{Outcome, assert_echo, echo_sessions};

fn go_on(talks: &mut [LineProcess]) -> Outcome {
    for talk in &mut *talks {
        assert_eq!(talk.next_line()?, "meanwhile");
    }
    assert_echo(talks, "after")
}

#[test]
fn connections_go_on_after_the_agent_was_killed_and_started_again() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    for _ in 0..2 {
        bed.agent.kill()?;
        for talk in &mut talks {
            talk.send_line("meanwhile")?;
        }
        bed.agent.start()?;
        bed.agent.wait_connected()?;
        go_on(&mut talks)?;
    }
    assert_eq!(bed.relay.sessions()?.len(), 1, "the killed agent's session is replaced");
    // The next agent has the same persistent addresses.
    let persistent = bed.agent.status()?["addresses"].clone();
    assert_eq!(persistent[0], bed.agent.address4.to_string());
    bed.finish()
}

#[test]
fn connections_go_on_after_the_relay_was_killed_and_started_again() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    for _ in 0..2 {
        bed.relay.kill()?;
        for talk in &mut talks {
            talk.send_line("meanwhile")?;
        }
        bed.relay.start()?;
        bed.agent.wait_connected()?;
        go_on(&mut talks)?;
    }
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn connections_go_on_after_an_orderly_restart_of_both() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut talks = echo_sessions(&bed)?;
    bed.relay.stop()?;
    bed.agent.stop()?;
    for talk in &mut talks {
        talk.send_line("meanwhile")?;
    }
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    go_on(&mut talks)?;
    bed.expect_warning("relay");
    bed.finish()
}
