//! `mobile status --watch`: the state of the session, refreshed once a second.
//!
//! On a terminal the output is redrawn in place; elsewhere each refresh writes one more block.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use mobile_host::control::Client;
use mobile_host::text::printable;
use tokio::signal::unix::{SignalKind, signal};

use super::status::{SHOWN_HANDOVERS, addresses, handover_line, or_dash, relay, session};
use crate::protocol::{Reply, Request};
use crate::status::{SessionState, Status, Traffic, Uplinks};

/// The time between two refreshes of the display.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Switches to the terminal's alternate screen, hides the cursor and turns line wrapping off.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
/// Restores the terminal: the reverse of [`ENTER`].
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// Moves the cursor to the upper left corner. Text is overwritten, not cleared first, so the screen
/// does not flicker.
const HOME: &str = "\x1b[H";
/// Erase the rest of the line, and the rest of the screen.
const END_OF_LINE: &str = "\x1b[K";
const END_OF_SCREEN: &str = "\x1b[J";

/// Prints the state of the session once a second, until a signal interrupts it or the reader of
/// stdout is gone.
pub(super) fn watch(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    // Without an agent at the start, report that and end.
    let mut agent = Some(super::agent(config)?);
    let screen = (!json && supports_escapes()).then(Screen::enter).transpose()?;
    super::runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
        let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
        let mut hang_up = signal(SignalKind::hangup()).context("cannot handle SIGHUP")?;
        let mut clock = tokio::time::interval(REFRESH_INTERVAL);
        let mut before: Option<Sample> = None;
        loop {
            tokio::select! {
                biased;
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hang_up.recv() => return Ok(()),
                _ = clock.tick() => {}
            }
            let sampled = sample(&mut agent, config);
            let text = match (&sampled, &screen) {
                (Ok(now), _) if json => super::json(&now.status)?,
                (Ok(now), Some(screen)) => screen.frame(&render(now, before.as_ref(), screen.paint)),
                (Ok(now), None) => format!("{}\n", render(now, before.as_ref(), Paint(false))),
                // Show the error and keep trying: the agent may be restarting.
                (Err(error), Some(screen)) => {
                    screen.frame(&format!("{}\n", printable(&mobile_host::error_chain(error))))
                }
                (Err(_), None) => return sampled.map(drop),
            };
            before = sampled.ok();
            if super::print_on(&text)?.is_break() {
                return Ok(());
            }
        }
    })
}

/// The agent's state at one point in time.
struct Sample {
    at: Instant,
    status: Status,
    uplinks: Uplinks,
}

/// Asks the agent for its state. Reconnects if the connection was lost.
fn sample(agent: &mut Option<Client>, config: Option<&Path>) -> anyhow::Result<Sample> {
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
    Ok(Sample { at: Instant::now(), status, uplinks })
}

/// Returns whether stdout is a terminal that understands escape sequences.
fn supports_escapes() -> bool {
    io::stdout().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// The terminal's alternate screen; dropping it restores the terminal.
struct Screen {
    paint: Paint,
}

impl Screen {
    fn enter() -> anyhow::Result<Self> {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let screen = Self { paint: Paint(!no_color) };
        match super::print_on(ENTER)? {
            ControlFlow::Continue(()) => Ok(screen),
            ControlFlow::Break(()) => anyhow::bail!("the terminal was closed"),
        }
    }

    /// Returns the output that draws `text`, cut to the height of the terminal.
    fn frame(&self, text: &str) -> String {
        // A terminal that does not know its size reports 0 rows.
        let rows = rustix::termios::tcgetwinsize(io::stdout()).map_or(0, |size| usize::from(size.ws_row));
        let lines: Vec<&str> = text.lines().take(if rows == 0 { usize::MAX } else { rows }).collect();
        let between = format!("{END_OF_LINE}\n");
        format!("{HOME}{}{END_OF_LINE}{END_OF_SCREEN}", lines.join(&between))
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // Ignore errors: a closed terminal needs no restoring.
        let mut stdout = io::stdout().lock();
        let _ = stdout.write_all(LEAVE.as_bytes()).and_then(|()| stdout.flush());
    }
}

/// Paints text with colours, if they are enabled.
#[derive(Clone, Copy)]
struct Paint(bool);

impl Paint {
    fn with(self, code: &str, text: impl Display) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_string() }
    }

    fn heading(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Colours `text` for the `state` of a session or uplink: green if it carries the tunnel, cyan
    /// if it could, yellow in between, red after a failure, dim otherwise.
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

/// Renders the agent's state, with rates since the sample `before`. Every line keeps its position
/// whatever its contents, so that the eye finds it.
fn render(now: &Sample, before: Option<&Sample>, paint: Paint) -> String {
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
    let open = if status.open { "; new connections go direct" } else { "" };
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
                "{:>10} to send, {} awaiting acknowledgement",
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
    for handover in status.recent_handovers.iter().take(SHOWN_HANDOVERS) {
        text.push_str(&format!("{}\n", handover_line(handover)));
    }
    text
}

/// Renders the table of uplinks, sorted by name: the policy's order would change with each
/// handover.
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

/// Renders the traffic that `counters` returns as (bytes, packets): the rates per second since the
/// previous sample, and the total in bytes.
fn traffic(now: &Sample, before: Option<&Sample>, counters: impl Fn(&Traffic) -> (u64, u64)) -> String {
    let (bytes, packets) = counters(&now.status.traffic);
    let rates = before.map(|before| {
        let seconds = now.at.duration_since(before.at).as_secs_f64().max(f64::EPSILON);
        let (old_bytes, old_packets) = counters(&before.status.traffic);
        // The counters of a restarted agent begin at 0 again.
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        (rate(bytes, old_bytes), rate(packets, old_packets))
    });
    let (byte_rate, packet_rate) = match rates {
        Some((bytes, packets)) => (format!("{}/s", size(bytes)), format!("{packets:.0} packets/s")),
        None => ("- /s".to_owned(), "- packets/s".to_owned()),
    };
    format!("{byte_rate:>12} {packet_rate:>18} {:>12} total", size(bytes as f64))
}

/// Formats a number of bytes with a decimal unit.
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

    fn samples() -> [Sample; 2] {
        let at = Instant::now();
        let uplinks = |states: [&str; 2]| Uplinks {
            forced: None,
            uplinks: vec![uplink("wlan0", states[0]), uplink("eth0", states[1])],
        };
        let before = Sample { at, status: sample(), uplinks: uplinks(["active", "standby"]) };
        let traffic = Traffic { sent_bytes: 3_000_000, sent_packets: 4000, ..Traffic::default() };
        let status = Status { traffic, ..sample() };
        [before, Sample { at: at + Duration::from_secs(2), status, uplinks: uplinks(["unusable", "active"]) }]
    }

    #[test]
    fn output_shows_rates_uplinks_and_the_last_handovers() {
        let [before, now] = samples();
        let text = render(&now, Some(&before), Paint(false));
        assert!(text.contains("sent           1.5 MB/s     2000 packets/s       3.0 MB total\n"), "{text}");
        assert!(text.contains("eth0            active         20.4 ms    1.1 %\n"), "{text}");
        assert!(text.contains("wlan0           unusable             -        -  no carrier\n"), "{text}");
        assert!(text.contains("HANDOVERS  9\n7.0 s ago: wlan0 -> eth0, carrier lost"), "{text}");
        assert!(!text.contains('\x1b'), "{text:?}");
        assert!(render(&before, None, Paint(false)).contains("- /s"));
    }

    #[test]
    fn every_line_keeps_its_position() {
        let [before, mut now] = samples();
        let places = |sample: &Sample| -> Vec<String> {
            let text = render(sample, None, Paint(false));
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
    fn colours_change_nothing_but_the_colour() {
        let [before, now] = samples();
        let mut text = render(&now, Some(&before), Paint(true));
        assert!(text.contains("\x1b[32mactive      \x1b[0m"), "{text:?}");
        for code in ["0", "1", "2", "31", "32", "33", "36"] {
            text = text.replace(&format!("\x1b[{code}m"), "");
        }
        let lines = |text: &str| text.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(lines(&text), lines(&render(&now, Some(&before), Paint(false))));
    }
}
