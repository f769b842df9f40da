//! `mobile status --watch`: the session as it is, once a second. On a terminal in one place, elsewhere one block after another.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use mobile_io::control::Client;
use mobile_io::text::printable;
use tokio::signal::unix::{SignalKind, signal};

use super::status::{SHOWN, addresses, or_dash, relay, session, story};
use crate::control::protocol::{Reply, Request};
use crate::status::{SessionState, Status, Traffic, Uplinks};

/// How often it looks: as often as a person does.
const EVERY: Duration = Duration::from_secs(1);

/// The terminal's other screen, without cursor and without lines that wrap.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// As it was.
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// To the upper left corner: what stands there is written over, not wiped first, and so does not flicker.
const HOME: &str = "\x1b[H";
/// The rest of this line, and the rest of the screen.
const END_OF_LINE: &str = "\x1b[K";
const END_OF_SCREEN: &str = "\x1b[J";

/// Watches until interrupted, or until nobody reads any more.
pub(super) fn watch(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    // Where there is no agent to begin with, that is the answer.
    let mut agent = Some(super::agent(config)?);
    let screen = (!json && is_capable()).then(Screen::enter).transpose()?;
    super::runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
        let mut clock = tokio::time::interval(EVERY);
        let mut before: Option<Look> = None;
        loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hang_up.recv() => return Ok(()),
                _ = clock.tick() => {}
            }
            let looked = look(&mut agent, config);
            let text = match (&looked, &screen) {
                (Ok(now), _) if json => super::json(&now.status)?,
                (Ok(now), Some(screen)) => screen.frame(&picture(now, before.as_ref(), screen.paint)),
                (Ok(now), None) => format!("{}\n", picture(now, before.as_ref(), Paint(false))),
                // It may be back soon, and a person sees that better than a prompt.
                (Err(error), Some(screen)) => {
                    screen.frame(&format!("{}\n", printable(&super::error_chain(error))))
                }
                (Err(_), None) => return looked.map(drop),
            };
            before = looked.ok();
            if super::print_on(&text)?.is_break() {
                return Ok(());
            }
        }
    })
}

/// What is known at one time.
struct Look {
    at: Instant,
    status: Status,
    uplinks: Uplinks,
}

/// Asks the agent; one that was lost is looked for again.
fn look(agent: &mut Option<Client>, config: Option<&Path>) -> anyhow::Result<Look> {
    let mut client = match agent.take() {
        Some(client) => client,
        None => super::agent(config)?,
    };
    let status = match super::ask(&mut client, &Request::Status)? {
        Reply::Status(status) => *status,
        other => return Err(super::unexpected(&other)),
    };
    let uplinks = match super::ask(&mut client, &Request::Uplinks)? {
        Reply::Uplinks(uplinks) => uplinks,
        other => return Err(super::unexpected(&other)),
    };
    *agent = Some(client);
    Ok(Look { at: Instant::now(), status, uplinks })
}

/// A terminal that understands more than lines.
fn is_capable() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The terminal while it is ours.
struct Screen {
    paint: Paint,
}

impl Screen {
    fn enter() -> anyhow::Result<Self> {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let screen = Self { paint: Paint(!no_color) };
        match super::print_on(ENTER)? {
            ControlFlow::Continue(()) => Ok(screen),
            ControlFlow::Break(()) => anyhow::bail!("the terminal is gone"),
        }
    }

    /// What draws `picture`, as far as it fits.
    fn frame(&self, picture: &str) -> String {
        // A size of nothing is that of a terminal that does not know.
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let lines: Vec<&str> = picture.lines().take(if rows == 0 { usize::MAX } else { rows }).collect();
        let between = format!("{END_OF_LINE}\n");
        format!("{HOME}{}{END_OF_LINE}{END_OF_SCREEN}", lines.join(&between))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// Whether colours may be used.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: impl Display) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn heading(self, text: &str) -> String {
        self.with("1", text)
    }

    /// By how well something is.
    fn state(self, state: &str, text: &str) -> String {
        match state {
            "active" | "connected" => self.with("32", text),
            "standby" | "usable" => self.with("36", text),
            "connecting" | "silent" => self.with("33", text),
            "failing" | "refused" | "no_uplink" => self.with("31", text),
            _ => self.with("2", text),
        }
    }
}

/// The same lines in the same places, whatever they say, so that the eye finds them.
fn picture(now: &Look, before: Option<&Look>, paint: Paint) -> String {
    let status = &now.status;
    let state = match status.session {
        SessionState::Connected => "connected",
        SessionState::Connecting => "connecting",
        SessionState::NoUplink => "no_uplink",
        SessionState::Refused => "refused",
    };
    let problem = match &status.problem {
        Some(problem) => {
            paint.state("failing", &printable(&format!("{}; {}", problem.cause, problem.next_step)))
        }
        None => "none".to_owned(),
    };
    let open = if status.open { "; new connections go directly" } else { "" };
    let dropped: u64 = status.drops.values().sum();
    let queue = &status.queue;
    let mut lines: Vec<(&str, String)> = vec![
        ("session", paint.state(state, &session(status))),
        ("problem", problem),
        ("relay", printable(&relay(status)).into_owned()),
        ("persistent", addresses(status)),
        ("processes", format!("{} mobile{open}", status.mobile_processes)),
        ("sent", traffic(now, before, |traffic| (traffic.sent_bytes, traffic.sent_packets))),
        ("received", traffic(now, before, |traffic| (traffic.received_bytes, traffic.received_packets))),
        (
            "waiting",
            format!(
                "{:>10} to be sent, {} to be acknowledged",
                size(queue.queued_bytes as f64),
                size(queue.unacknowledged_bytes as f64)
            ),
        ),
        ("dropped", format!("{dropped:>10} packets")),
    ];
    lines.push(("", String::new()));
    let mut text: String = lines
        .iter()
        .map(|(name, value)| {
            format!("{}{value}", paint.heading(&format!("{name:<11}"))).trim_end().to_owned() + "\n"
        })
        .collect();
    text.push_str(&uplinks(&now.uplinks, paint));
    text.push_str(&format!("\n{}\n", paint.heading(&format!("HANDOVERS  {}", status.handovers))));
    for handover in status.recent_handovers.iter().take(SHOWN) {
        text.push_str(&format!("{}\n", story(handover)));
    }
    text
}

/// By name: the order of the policy changes with each handover.
fn uplinks(uplinks: &Uplinks, paint: Paint) -> String {
    let row = |name: &str, state: &str, rtt: &str, loss: &str, why: &str| {
        (
            format!("{name:<16}"),
            format!("{state:<12}"),
            format!("{rtt:>10}{loss:>9}  {why}").trim_end().to_owned(),
        )
    };
    let (name, state, rest) = row("UPLINK", "STATE", "RTT", "LOSS", "WHY");
    let mut text = format!("{}\n", paint.heading(&format!("{name}{state}{rest}")));
    let mut sorted: Vec<_> = uplinks.uplinks.iter().collect();
    sorted.sort_by(|one, other| one.name.cmp(&other.name));
    for uplink in sorted {
        let forced = (uplinks.forced.as_ref() == Some(&uplink.name)).then_some("first by `mobile use`");
        let why: Vec<&str> = forced.into_iter().chain(uplink.reason.as_deref()).collect();
        let (name, state, rest) = row(
            &printable(&uplink.name),
            &printable(&uplink.state),
            &or_dash(uplink.rtt_seconds.map(|rtt| format!("{:.1} ms", rtt * 1000.0))),
            &or_dash(uplink.loss_ratio.map(|loss| format!("{:.1} %", loss * 100.0))),
            &printable(&why.join("; ")),
        );
        text.push_str(&format!("{name}{}{rest}\n", paint.state(&uplink.state, &state)));
    }
    text
}

/// Bytes and packets a second since the last look, and bytes in all.
fn traffic(now: &Look, before: Option<&Look>, of: impl Fn(&Traffic) -> (u64, u64)) -> String {
    let (bytes, packets) = of(&now.status.traffic);
    let rates = before.map(|before| {
        let seconds = now.at.duration_since(before.at).as_secs_f64().max(f64::EPSILON);
        let (old_bytes, old_packets) = of(&before.status.traffic);
        // An agent that was restarted counts from 0 again.
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        (rate(bytes, old_bytes), rate(packets, old_packets))
    });
    let (byte_rate, packet_rate) = match rates {
        Some((bytes, packets)) => (format!("{}/s", size(bytes)), format!("{packets:.0} packets/s")),
        None => ("- /s".to_owned(), "- packets/s".to_owned()),
    };
    format!("{byte_rate:>12} {packet_rate:>18} {:>12} in all", size(bytes as f64))
}

/// Bytes for a person.
fn size(bytes: f64) -> String {
    match bytes {
        b if b < 1e3 => format!("{b:.0} B"),
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
    }
}

#[cfg(test)]
mod tests {
    use super::super::status::tests::sample;
    use super::*;
    use crate::status::{Problem, UplinkStatus};

    fn uplink(name: &str, state: &str) -> UplinkStatus {
        UplinkStatus {
            name: name.into(),
            state: state.into(),
            reason: (state == "unusable").then(|| "no carrier".into()),
            next_step: None,
            addresses: Vec::new(),
            metric: None,
            rtt_seconds: (state == "active").then_some(0.0204),
            loss_ratio: (state == "active").then_some(0.011),
        }
    }

    fn looks() -> [Look; 2] {
        let at = Instant::now();
        let uplinks = |states: [&str; 2]| Uplinks {
            forced: None,
            uplinks: vec![uplink("wlan0", states[0]), uplink("eth0", states[1])],
        };
        let before = Look { at, status: sample(), uplinks: uplinks(["active", "standby"]) };
        let traffic = Traffic { sent_bytes: 3_000_000, sent_packets: 4000, ..Traffic::default() };
        let status = Status { traffic, ..sample() };
        [before, Look { at: at + Duration::from_secs(2), status, uplinks: uplinks(["unusable", "active"]) }]
    }

    #[test]
    fn a_person_sees_rates_uplinks_and_the_last_handovers() {
        let [before, now] = looks();
        let text = picture(&now, Some(&before), Paint(false));
        assert!(text.contains("sent           1.5 MB/s     2000 packets/s       3.0 MB in all\n"), "{text}");
        assert!(text.contains("eth0            active         20.4 ms    1.1 %\n"), "{text}");
        assert!(text.contains("wlan0           unusable             -        -  no carrier\n"), "{text}");
        assert!(text.contains("HANDOVERS  9\n7.0 s ago: wlan0 -> eth0, carrier lost"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(picture(&before, None, Paint(false)).contains("- /s"));
    }

    #[test]
    fn every_line_stays_where_it_is() {
        let [before, mut now] = looks();
        let places = |look: &Look| -> Vec<String> {
            let text = picture(look, None, Paint(false));
            text.lines().map(|line| line.split(' ').next().unwrap_or_default().to_owned()).collect()
        };
        let usual = places(&before);
        assert_eq!(usual[11], "eth0");
        now.status.problem = Some(Problem { cause: "a".into(), next_step: "b".into() });
        now.status.session = SessionState::NoUplink;
        now.status.open = true;
        assert_eq!(places(&now), usual);
    }

    #[test]
    fn colours_change_nothing_else() {
        let [before, now] = looks();
        let mut text = picture(&now, Some(&before), Paint(true));
        assert!(text.contains("\x1b[32mactive      \x1b[0m"), "{text:?}");
        for code in ["0", "1", "2", "31", "32", "33", "36"] {
            text = text.replace(&format!("\x1b[{code}m"), "");
        }
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(lines(&text), lines(&picture(&now, Some(&before), Paint(false))));
    }
}
