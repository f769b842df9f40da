//! The verbs `mobile status`, `mobile uplinks` and `mobile use`.

use std::path::Path;
use std::time::Duration;

use mobile_host::text::printable;

use crate::config::OnFailure;
use crate::protocol::{Reply, Request};
use crate::status::{FilterKind, Handover, SessionState, Status, Uplinks};
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
    match super::ask(&mut agent, &Request::Use { uplink })? {
        Reply::Done => Ok(()),
        Reply::Noted(note) => {
            eprintln!("mobile: {}", printable(&note));
            Ok(())
        }
        other => Err(super::unexpected(&other)),
    }
}

fn render(status: &Status) -> String {
    let mut lines: Vec<(&str, String)> = Vec::new();
    lines.push(("session", session(status)));
    if let Some(problem) = &status.problem {
        lines.push(("problem", problem.cause.clone()));
        lines.push(("next step", problem.next_step.clone()));
    }
    lines.push(("relay", relay(status)));
    lines.push(("persistent", addresses(status)));
    let forced = match &status.forced_uplink {
        Some(forced) if status.active_uplink.as_ref() == Some(forced) => {
            " (preferred by `mobile use`)".to_owned()
        }
        Some(forced) => format!(" (`mobile use {forced}` takes effect when that uplink is usable)"),
        None => String::new(),
    };
    lines.push(("uplink", format!("{}{forced}", status.active_uplink.as_deref().unwrap_or("none"))));
    if let Some(rtt) = status.rtt_seconds {
        lines.push(("round trip", format!("{:.1} ms", rtt * 1000.0)));
    }
    lines.push(("handovers", status.handovers.to_string()));
    lines.extend(
        status.recent_handovers.iter().take(SHOWN_HANDOVERS).map(|handover| ("", handover_line(handover))),
    );
    let traffic = &status.traffic;
    lines.push((
        "traffic",
        format!(
            "sent {} bytes in {} packets, received {} in {}",
            traffic.sent_bytes, traffic.sent_packets, traffic.received_bytes, traffic.received_packets
        ),
    ));
    match status.compression.as_str() {
        "off" => {}
        "refused" => {
            lines.push(("compressed", "no: the relay's [tunnel] compression does not allow it".to_owned()));
        }
        kind => lines.push((
            "compressed",
            format!(
                "{kind}, sent {} bytes as {}, received {} as {}",
                traffic.sent_compressible_bytes,
                traffic.sent_compressed_bytes,
                traffic.received_compressible_bytes,
                traffic.received_compressed_bytes
            ),
        )),
    }
    let drops: Vec<String> = status
        .drops
        .iter()
        .filter(|(_, count)| **count > 0)
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    lines.push(("drops", if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }));
    if status.rival_rules > 0 {
        let rules = status.rival_rules;
        lines.push((
            "rules",
            format!(
                "{rules} rules of other programs take the packets of mobile processes: see `mobile check`"
            ),
        ));
    }
    lines.extend(ingress(status).map(|ingress| ("ingress", ingress)));
    if status.on_failure == OnFailure::Open {
        let now = match (status.open, status.active_uplink.is_some()) {
            (true, _) => "new connections of mobile processes go direct until there is a session",
            (false, true) => "new connections of mobile processes would go direct without a session",
            (false, false) => "new connections of mobile processes will soon go direct",
        };
        lines.push(("on failure", format!("open: {now}")));
    }
    lines.push(("processes", format!("{} mobile", status.mobile_processes)));
    lines.iter().map(|(name, value)| format!("{name:<11}{}\n", printable(value))).collect()
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
    let since = status.since_seconds.map(|seconds| format!(" for {}", duration(seconds))).unwrap_or_default();
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
    let address = status.relay.address.map(|address| address.to_string());
    match address.filter(|address| *address != status.relay.endpoint) {
        Some(address) => format!("{} ({address})", status.relay.endpoint),
        None => status.relay.endpoint.clone(),
    }
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
pub(super) mod tests {
    use super::*;
    use crate::status::{Ingress, Problem, Queue, Refusal, RelayStatus, Traffic, UplinkStatus};

    fn handover(age_seconds: f64) -> Handover {
        Handover {
            cause: "carrier_lost".into(),
            from: "wlan0".into(),
            to: "eth0".into(),
            blackout_seconds: 0.025,
            replayed_records: 4,
            dropped_packets: 0,
            age_seconds,
        }
    }

    pub(in super::super) fn sample() -> Status {
        Status {
            version: "0".into(),
            agent_pid: 1,
            uptime_seconds: 10.0,
            session: SessionState::Connected,
            problem: None,
            relay: RelayStatus {
                endpoint: "relay.example:443".into(),
                address: Some("192.0.2.1:443".parse().unwrap()),
                public_key: "K".into(),
            },
            public_key: "P".into(),
            device: "mobile0".into(),
            addresses: vec!["10.77.0.2".parse().unwrap()],
            mtu: Some(1500),
            dns: Vec::new(),
            refused: Vec::new(),
            active_uplink: Some("eth0".into()),
            forced_uplink: None,
            rtt_seconds: Some(0.0201),
            since_seconds: Some(7.0),
            handovers: 9,
            last_handover: Some(handover(7.0)),
            recent_handovers: (7..16).map(|age| handover(f64::from(age))).collect(),
            traffic: Traffic::default(),
            compression: "off".to_owned(),
            drops: [("aged".to_owned(), 0), ("queue_full".to_owned(), 2)].into(),
            queue: Queue::default(),
            mobile_processes: 3,
            on_failure: OnFailure::Closed,
            open: false,
            opened: 0,
            routing_restored: 0,
            rival_rules: 0,
            rules_moved: 0,
            ingress: Ingress { filter: FilterKind::Nftables, problem: None, dropped_packets: 0 },
        }
    }

    #[test]
    fn text_output_shows_the_uplink_and_the_cost_of_the_last_handovers() {
        let text = render(&sample());
        assert!(text.contains("session    connected for 7.0 s\n"), "{text}");
        assert!(text.contains("relay.example:443 (192.0.2.1:443)"), "{text}");
        let line = "7.0 s ago: wlan0 -> eth0, carrier lost, blackout 25 ms, 4 records retransmitted, 0 packets dropped";
        assert!(text.contains(line), "{text}");
        assert_eq!(text.matches("wlan0 -> eth0").count(), SHOWN_HANDOVERS, "{text}");
        assert!(text.contains("drops      2 queue_full\n"), "{text}");
    }

    #[test]
    fn a_problem_is_shown_with_its_next_step() {
        let problem = Problem { cause: "not authorised".into(), next_step: "authorize it".into() };
        let status = Status {
            session: SessionState::Refused,
            problem: Some(problem),
            active_uplink: None,
            ..sample()
        };
        let text = render(&status);
        assert!(text.contains("problem    not authorised\nnext step  authorize it\n"), "{text}");
    }

    #[test]
    fn a_session_without_an_address_says_so() {
        let refusal = Refusal {
            kind: "address".into(),
            claim: "192.168.1.7".into(),
            reason: "local".into(),
            cause: "the pushed address 192.168.1.7 is an address of eth0".into(),
            next_step: "have another [pool] chosen on the relay".into(),
        };
        let status = Status { addresses: Vec::new(), refused: vec![refusal], ..sample() };
        let text = render(&status);
        assert!(text.contains("connected for 7.0 s, without a persistent address"), "{text}");
        assert!(text.contains("persistent none (this host refuses the addresses"), "{text}");
    }

    #[test]
    fn a_tunnel_that_fails_open_says_so() {
        assert!(!render(&sample()).contains("on failure"));
        let open = Status { on_failure: OnFailure::Open, ..sample() };
        assert!(render(&open).contains("on failure open: new connections of mobile processes would go"));
        let text =
            render(&Status { open: true, active_uplink: None, session: SessionState::NoUplink, ..open });
        assert!(text.contains("session    no usable uplink for 7.0 s\n"), "{text}");
        assert!(
            text.contains("on failure open: new connections of mobile processes go direct until"),
            "{text}"
        );
    }

    #[test]
    fn packets_dropped_by_the_ingress_filter_and_a_missing_filter_are_shown() {
        let with = |filter, problem: Option<&str>, dropped_packets| {
            let ingress = Ingress { filter, problem: problem.map(Into::into), dropped_packets };
            render(&Status { ingress, ..sample() })
        };
        assert!(!render(&sample()).contains("ingress"));
        let text = with(FilterKind::Nftables, None, 3);
        assert!(text.contains("ingress    dropped 3 packets that came to a persistent address"), "{text}");
        let text = with(FilterKind::None, Some("nft is not installed"), 0);
        assert!(text.contains("ingress    no filter (nft is not installed): see"), "{text}");
    }

    #[test]
    fn an_unusable_uplink_is_shown_with_the_reason() {
        let uplink = |name: &str, state: &str, reason: Option<&str>| UplinkStatus {
            name: name.into(),
            state: state.into(),
            reason: reason.map(Into::into),
            next_step: None,
            addresses: Vec::new(),
            metric: Some(100),
            rtt_seconds: (state == "active").then_some(0.0204),
            loss_ratio: (state == "active").then_some(0.011),
        };
        let text = render_uplinks(&Uplinks {
            forced: Some("eth0".into()),
            uplinks: vec![uplink("eth0", "active", None), uplink("wlan0", "unusable", Some("no carrier"))],
        });
        assert!(text.contains("preferred by `mobile use`"), "{text}");
        assert!(text.contains("20.4 ms") && text.contains("1.1 %"), "{text}");
        assert!(text.lines().last().unwrap().ends_with("no carrier"), "{text}");
    }

    #[test]
    fn the_json_of_status_has_stable_keys() {
        let json = serde_json::to_value(sample()).unwrap();
        assert_eq!(json["session"], "connected");
        assert_eq!(json["last_handover"]["cause"], "carrier_lost");
        assert_eq!(json["recent_handovers"][8]["age_seconds"], 15.0);
        assert_eq!(json["active_uplink"], "eth0");
        assert_eq!(json["addresses"][0], "10.77.0.2");
        assert!(json["rtt_seconds"].is_number() && json["drops"]["queue_full"] == 2);
    }
}
