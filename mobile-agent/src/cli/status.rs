//! The verbs `mobile status`, `mobile uplinks` and `mobile use`.

use std::path::Path;
use std::time::Duration;

use mobile_host::text::printable;

use crate::config::OnFailure;
use crate::protocol::{Reply, Request};
use crate::status::{FilterKind, Handover, SessionState, Status, Traffic, Uplinks};
use crate::tunnel::history::whole_ms;

/// The number of handovers that the text output shows; `--json` has all that the agent remembers.
pub(super) const SHOWN_HANDOVERS: usize = 5;

/// Prints the state of the session.
pub(super) fn status(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let mut agent = super::agent(config)?;
    match super::ask(&mut agent, &Request::Status)? {
        Reply::Status(status) if json => super::print_json(&status),
        Reply::Status(status) => super::print(&render(&status)),
        other => Err(super::unexpected(&other)),
    }
}

/// Prints the table of uplinks.
pub(super) fn uplinks(config: Option<&Path>, json: bool) -> anyhow::Result<()> {
    let mut agent = super::agent(config)?;
    match super::ask(&mut agent, &Request::Uplinks)? {
        Reply::Uplinks(uplinks) if json => super::print_json(&uplinks),
        Reply::Uplinks(uplinks) => super::print(&render_uplinks(&uplinks)),
        other => Err(super::unexpected(&other)),
    }
}

/// Makes the agent prefer one uplink; `auto` restores the configured policy.
pub(super) fn force(config: Option<&Path>, uplink: &str) -> anyhow::Result<()> {
    let mut agent = super::agent(config)?;
    let uplink = (uplink != "auto").then(|| uplink.to_owned());
    let outcome = match &uplink {
        Some(uplink) => {
            format!("the tunnel uses {} whenever that uplink is usable\n", printable(uplink))
        }
        None => "the policy of the configuration chooses the uplink\n".to_owned(),
    };
    let note = match super::ask(&mut agent, &Request::Use { uplink })? {
        Reply::Done => None,
        Reply::Noted(note) => Some(note),
        other => return Err(super::unexpected(&other)),
    };
    super::print(&outcome)?;
    if let Some(note) = note {
        eprintln!("mobile: {}", printable(&note));
    }
    Ok(())
}

/// A line of the output: its name and its value.
type Line = (&'static str, String);

fn render(status: &Status) -> String {
    let mut lines: Vec<Line> = vec![("session", session(status))];
    if let Some(problem) = &status.problem {
        lines.push(("problem", problem.cause.clone()));
        lines.push(("next step", problem.next_step.clone()));
    }
    lines.push(("relay", relay(status)));
    lines.extend(announced(status).map(|announced| ("announced", announced)));
    lines.push(("persistent", addresses(status)));
    lines.extend(dns(status).map(|dns| ("dns", dns)));
    lines.push(("uplink", active_uplink(status)));
    if let Some(rtt) = status.rtt_seconds {
        lines.push(("round trip", format!("{:.1} ms", rtt * 1000.0)));
    }
    lines.push(("handovers", status.handovers.to_string()));
    lines.extend(
        status.recent_handovers.iter().take(SHOWN_HANDOVERS).map(|handover| ("", handover_line(handover))),
    );
    lines.push(("traffic", traffic(&status.traffic)));
    lines.extend(compression(status).map(|compression| ("compressed", compression)));
    lines.push(("drops", drops(status)));
    lines.extend(rival_rules(status).map(|rules| ("rules", rules)));
    lines.extend(ingress(status).map(|ingress| ("ingress", ingress)));
    lines.extend(on_failure(status).map(|state| ("on failure", state)));
    lines.push(("processes", format!("{} mobile", status.mobile_processes)));
    lines.iter().map(|(name, value)| format!("{name:<11}{}\n", printable(value))).collect()
}

/// Returns the uplink that carries the tunnel, and whether `mobile use` chose it.
fn active_uplink(status: &Status) -> String {
    let forced = match &status.forced_uplink {
        Some(forced) if status.active_uplink.as_ref() == Some(forced) => {
            " (preferred by `mobile use`)".to_owned()
        }
        Some(forced) => format!(" (`mobile use {forced}` takes effect when that uplink is usable)"),
        None => String::new(),
    };
    format!("{}{forced}", status.active_uplink.as_deref().unwrap_or("none"))
}

fn traffic(traffic: &Traffic) -> String {
    format!(
        "sent {} bytes in {} packets, received {} in {}",
        traffic.sent_bytes, traffic.sent_packets, traffic.received_bytes, traffic.received_packets
    )
}

/// Returns what compression saved, or that the relay refuses it; `None` if it is off.
fn compression(status: &Status) -> Option<String> {
    let traffic = &status.traffic;
    match status.compression.as_str() {
        "off" => None,
        "refused" => Some("no: the relay's [tunnel] compression does not allow it".to_owned()),
        kind => Some(format!(
            "{kind}, sent {} bytes as {}, received {} as {}",
            traffic.sent_compressible_bytes,
            traffic.sent_compressed_bytes,
            traffic.received_compressible_bytes,
            traffic.received_compressed_bytes
        )),
    }
}

/// Returns the reasons for which packets were dropped, each after the number of packets.
fn drops(status: &Status) -> String {
    let drops = status.drops.iter().filter(|(_, count)| **count > 0);
    let drops: Vec<String> = drops.map(|(reason, count)| format!("{count} {reason}")).collect();
    if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }
}

/// Returns how many rules of other programs take the packets of mobile processes; `None` if none
/// does.
fn rival_rules(status: &Status) -> Option<String> {
    let rules = status.rival_rules;
    (rules > 0).then(|| {
        format!("{rules} rules of other programs take the packets of mobile processes: see `mobile check`")
    })
}

/// Returns what new connections do without a session; `None` if they wait, as they do by default.
fn on_failure(status: &Status) -> Option<String> {
    if status.on_failure == OnFailure::Closed {
        return None;
    }
    let now = match (status.open, status.active_uplink.is_some()) {
        (true, _) => "new connections of mobile processes go direct until there is a session",
        (false, true) => "new connections of mobile processes would go direct without a session",
        (false, false) => "new connections of mobile processes will soon go direct",
    };
    Some(format!("open: {now}"))
}

/// Returns a line that tells that the ingress filter is missing, or how many packets it dropped.
fn ingress(status: &Status) -> Option<String> {
    let ingress = &status.ingress;
    match (ingress.filter, ingress.dropped_packets) {
        (FilterKind::None, _) => {
            let problem = ingress.problem.as_deref().unwrap_or("unknown problem");
            Some(format!("no filter ({problem}): see `mobile check`"))
        }
        (FilterKind::Nftables | FilterKind::Ebpf, 0) => None,
        (FilterKind::Nftables | FilterKind::Ebpf, dropped) => Some(format!(
            "dropped {dropped} packets that came to a persistent address from outside the tunnel"
        )),
    }
}

/// Describes the state of the session and how long it has lasted.
pub(super) fn session(status: &Status) -> String {
    let since = match status.session {
        SessionState::Connected => status.session_seconds.or(status.since_seconds),
        _ => status.since_seconds,
    };
    let since = since.map(|seconds| format!(" for {}", duration(seconds))).unwrap_or_default();
    match status.session {
        SessionState::Connected if status.addresses.is_empty() => {
            format!("connected{since}, without a persistent address: connections of mobile processes wait")
        }
        SessionState::Connected => format!("connected{since}"),
        SessionState::Connecting => format!("connecting{since}"),
        SessionState::NoUplink if status.open => format!("no usable uplink{since}"),
        SessionState::NoUplink => format!("no usable uplink{since}; connections of mobile processes wait"),
        SessionState::Refused => "refused".to_owned(),
    }
}

/// Returns the relay's endpoint, and its address if the endpoint is a name.
pub(super) fn relay(status: &Status) -> String {
    let relay = &status.relay;
    let endpoint = relay.announced_endpoint.as_ref().unwrap_or(&relay.endpoint);
    let address = relay.address.map(|address| address.to_string());
    match address.filter(|address| address != endpoint) {
        Some(address) => format!("{endpoint} ({address})"),
        None => endpoint.clone(),
    }
}

/// Returns where the relay's announcements differ from the configuration.
fn announced(status: &Status) -> Option<String> {
    let relay = &status.relay;
    let endpoint = relay.announced_endpoint.as_ref().map(|announced| {
        format!("the endpoint {announced} is tried before [relay] endpoint {}", relay.endpoint)
    });
    let next = relay.next_public_key.as_ref().map(|next| format!("the key {next} is accepted too"));
    let replaced = relay
        .configured_key_replaced
        .then(|| format!("the key {} has replaced [relay] public_key", relay.public_key));
    let all: Vec<String> = endpoint.into_iter().chain(next).chain(replaced).collect();
    (!all.is_empty()).then(|| all.join("; "))
}

/// Returns the persistent addresses and the device that has them.
pub(super) fn addresses(status: &Status) -> String {
    let addresses = if status.addresses.is_empty() && !status.refused.is_empty() {
        "none (this host refuses the addresses that the relay assigned)".to_owned()
    } else if status.addresses.is_empty() {
        "none (the relay assigns them at the first connection)".to_owned()
    } else {
        status.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    };
    format!("{addresses} on {}", status.device)
}

/// Returns the relay's resolvers, which mobile processes use; `None` if it offers none.
fn dns(status: &Status) -> Option<String> {
    let resolvers: Vec<String> = status.dns.iter().map(ToString::to_string).collect();
    (!resolvers.is_empty()).then(|| resolvers.join(", "))
}

/// Formats a handover in one line.
pub(super) fn handover_line(handover: &Handover) -> String {
    let Handover { cause, from, to, blackout_seconds, replayed_records, dropped_packets, age_seconds } =
        handover;
    let (from, to) = (printable(from), printable(to));
    format!(
        "{} ago: {from} -> {to}, {}, blackout {} ms, {replayed_records} records retransmitted, {dropped_packets} packets dropped",
        duration(*age_seconds),
        cause.replace('_', " "),
        whole_ms(Duration::try_from_secs_f64(*blackout_seconds).unwrap_or_default()),
    )
}

fn render_uplinks(uplinks: &Uplinks) -> String {
    let rows: Vec<[String; 7]> = uplinks
        .uplinks
        .iter()
        .map(|uplink| {
            let forced = uplinks.forced.as_ref() == Some(&uplink.name);
            let addresses: Vec<String> = uplink.addresses.iter().map(ToString::to_string).collect();
            let why: Vec<&str> = [
                forced.then_some("preferred by `mobile use`"),
                uplink.reason.as_deref(),
                uplink.next_step.as_deref(),
            ]
            .into_iter()
            .flatten()
            .collect();
            [
                uplink.name.clone(),
                uplink.state.clone(),
                or_dash(uplink.metric.map(|metric| metric.to_string())),
                or_dash(uplink.rtt_seconds.map(|rtt| format!("{:.1} ms", rtt * 1000.0))),
                or_dash(uplink.loss_ratio.map(|loss| format!("{:.1} %", loss * 100.0))),
                or_dash((!addresses.is_empty()).then(|| addresses.join(","))),
                why.join("; "),
            ]
        })
        .collect();
    super::table::table(["UPLINK", "STATE", "METRIC", "RTT", "LOSS", "ADDRESSES", "WHY"], &rows)
}

pub(super) fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}

#[cfg(test)]
pub(super) mod tests;
