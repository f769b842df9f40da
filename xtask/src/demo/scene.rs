//! The course of the demonstration: the lab, two telnet sessions, the cut of the uplink and the
//! result.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mobile_tests::{Lab, LabOptions, PATIENCE, Testbed, Uplink, UplinkName, addr, port};
use serde_json::Value;

use super::screen::Screen;
use super::session::Session;
use super::timeline::{Timeline, TimelineRow};
use crate::shell::step;

/// The one-way delay of each uplink.
const DELAY: Duration = Duration::from_millis(10);
/// The round-trip time to the telnet server over an uplink.
pub(crate) const ROUND_TRIP: Duration = Duration::from_millis(20);
/// The interval between pressed keys, about a keyboard's auto-repeat: short enough to show a
/// blackout of two round trips.
pub(crate) const KEY_EVERY: Duration = Duration::from_millis(20);
/// The durations of typing before and after the uplink is cut: what the timeline shows, and a
/// little more.
const BEFORE: Duration = Duration::from_millis(1300);
const AFTER: Duration = Duration::from_millis(3000);
/// The time that the plain session gets to answer the word typed at the end, after [`AFTER`]. A
/// living session needs one round trip.
const LAST_CHANCE: Duration = Duration::from_secs(3);

/// The result of the demonstration.
pub(crate) struct DemoResult {
    /// The mobile session's terminal, then the plain session's.
    pub(crate) screens: [Screen; 2],
    /// For each session, whether the server answered the word typed before the cut, and the one
    /// after it.
    pub(crate) answers: [(bool, bool); 2],
    /// The number of keys pressed in the mobile session, and of letters that the server echoed.
    pub(crate) keys: (usize, usize),
    /// The times at which the echoes of each session arrived.
    pub(crate) timeline: Timeline,
    /// Further lines to print below the result.
    pub(crate) notes: Vec<String>,
}

/// Runs the demonstration in a lab, which is removed at the end.
pub(crate) fn play() -> Result<DemoResult> {
    step(
        "creating the lab: a mobile host with two uplinks behind different NATs, 10 ms each way; a relay; a server",
    );
    let mut bed = Testbed::installed(&LabOptions { delay: Some(DELAY), ..LabOptions::default() })?;
    step("starting home-relay and the agent");
    bed.start()?;
    let result = run_sessions(&bed)?;
    step("ending the sessions, stopping both programs and removing the lab");
    bed.finish()?;
    Ok(result)
}

fn run_sessions(bed: &Testbed) -> Result<DemoResult> {
    let (lab, agent) = (&bed.lab, &bed.agent);
    let before =
        agent.status()?.get("active_uplink").and_then(Value::as_str).context("no active uplink")?.to_owned();

    let server = addr::SERVER4.to_string();
    step(&format!(
        "the tunnel is up on {before}; starting `mobile run -- telnet` and plain `telnet` to the same server"
    ));
    let mut sessions = Sessions {
        mobile: Session::open("mobile run -- telnet server", &mut agent.run(&["telnet", &server]))?,
        plain: Session::open("telnet server", lab.host.command("telnet").arg(&server))?,
    };
    let mut notes = vec![seen_by_server(lab)?];

    step("typing into both sessions: echo hello-1");
    let first = sessions.ask("hello-1", PATIENCE);

    step(&format!("holding a key down in both sessions and cutting {before}"));
    let typing = sessions.type_over_cut(uplink(lab, &before)?)?;

    step("typing into both sessions: echo hello-2");
    sessions.end_typing();
    let second = sessions.ask("hello-2", LAST_CHANCE);

    let mut uplinks = vec![(0, before)];
    if let Some(handover) = Handover::read(&agent.status()?) {
        let since = typing.start.elapsed().saturating_sub(handover.age);
        uplinks.push((ms(since), handover.to.clone()));
        notes.push(handover.note(since.saturating_sub(typing.cut)));
    }
    let Sessions { mut mobile, plain } = sessions;
    let timeline = Timeline {
        rows: [
            TimelineRow { name: "mobile", echoes: mobile.echoes(typing.start) },
            TimelineRow { name: "plain", echoes: plain.echoes(typing.start) },
        ],
        uplinks,
        cut: ms(typing.cut),
        end: ms(typing.end),
        // Two keys and a round trip: one more lost or late echo makes a silence.
        ordinary: ms(ROUND_TRIP + 2 * KEY_EVERY),
    };
    Ok(DemoResult {
        screens: [mobile.screen(), plain.screen()],
        answers: [(first[0], second[0]), (first[1], second[1])],
        keys: mobile.keys(),
        timeline,
        notes,
    })
}

/// The two telnet sessions that are compared.
struct Sessions {
    mobile: Session,
    plain: Session,
}

/// The time at which a key was first pressed, and what followed as the time since then.
struct Typing {
    start: Instant,
    cut: Duration,
    end: Duration,
}

impl Sessions {
    /// Lets the shell of each session echo a word, and returns whether it did: the mobile session's
    /// within [`PATIENCE`], then the plain session's within `plain_patience`.
    fn ask(&self, word: &str, plain_patience: Duration) -> [bool; 2] {
        self.mobile.type_echo(word);
        self.plain.type_echo(word);
        [self.mobile.shows_line(word, PATIENCE), self.plain.shows_line(word, plain_patience)]
    }

    /// Holds a key down in both sessions and cuts the uplink meanwhile.
    fn type_over_cut(&mut self, uplink: &Uplink) -> Result<Typing> {
        self.mobile.begin_typing();
        self.plain.begin_typing();
        let start = Instant::now();
        self.hold_key(BEFORE);
        let cut = start.elapsed();
        uplink.link().cut()?;
        self.hold_key(AFTER);
        Ok(Typing { start, cut, end: start.elapsed() })
    }

    /// Leaves the line of typed keys in both sessions. Waits for the mobile session only, since the
    /// plain one may not answer any more.
    fn end_typing(&self) {
        self.mobile.end_typing();
        self.plain.end_typing();
        let _ = self.mobile.is_ready(PATIENCE);
    }

    /// Presses the key again and again in both sessions for the time `how_long`, and records when
    /// its echoes arrive.
    fn hold_key(&mut self, how_long: Duration) {
        let start = Instant::now();
        let mut next = start;
        while start.elapsed() < how_long {
            if Instant::now() >= next {
                self.mobile.press_key();
                self.plain.press_key();
                next += KEY_EVERY;
            }
            self.mobile.poll_echoes();
            self.plain.poll_echoes();
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The agent's last handover, from `mobile status --json`.
struct Handover {
    to: String,
    cause: String,
    replayed: u64,
    blackout: Duration,
    age: Duration,
}

impl Handover {
    fn read(status: &Value) -> Option<Self> {
        let last = status.get("last_handover")?;
        Some(Self {
            to: last.get("to")?.as_str()?.to_owned(),
            cause: last.get("cause")?.as_str()?.replace('_', " "),
            replayed: last.get("replayed_records")?.as_u64()?,
            blackout: Duration::try_from_secs_f64(last.get("blackout_seconds")?.as_f64()?).ok()?,
            age: Duration::try_from_secs_f64(last.get("age_seconds")?.as_f64()?).ok()?,
        })
    }

    /// Returns a line about the handover, which ended the time `ended` after the cut.
    fn note(&self, ended: Duration) -> String {
        format!(
            "The agent noticed the cut after {} ms ({}) and moved the tunnel to {} in {} ms; records replayed: {}.",
            ms(ended.saturating_sub(self.blackout)),
            self.cause,
            self.to,
            ms(self.blackout),
            self.replayed
        )
    }
}

fn uplink<'lab>(lab: &'lab Lab, device: &str) -> Result<&'lab Uplink> {
    let name = UplinkName::ALL.into_iter().find(|name| name.device() == device);
    Ok(lab.uplink(name.with_context(|| format!("the lab has no uplink {device}"))?))
}

/// Returns a line with the source addresses that the server sees for both sessions.
fn seen_by_server(lab: &Lab) -> Result<String> {
    let filter = format!("sport = :{}", port::TELNET);
    let sockets = lab.server.run(&["ss", "-Htn", "state", "established", &filter])?;
    let peers: Vec<IpAddr> = sockets
        .lines()
        .filter_map(|line| line.split_whitespace().last()?.parse().ok())
        .map(|guest: SocketAddr| guest.ip().to_canonical())
        .collect();
    let (relayed, direct): (Vec<IpAddr>, Vec<IpAddr>) = peers.iter().partition(|peer| **peer == addr::RELAY4);
    let ([relayed], [direct]) = (&relayed[..], &direct[..]) else {
        bail!("the server must see one session from the relay and one from elsewhere, but sees {peers:?}");
    };
    Ok(format!(
        "The server sees the mobile session from {relayed} (the relay), the plain session from {direct} (a NAT)."
    ))
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
