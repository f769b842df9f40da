//! Tests of the output of `mobile status` and `mobile uplinks`.

use super::*;
use crate::status::{Ingress, Problem, Queue, Refusal, RelayStatus, UplinkStatus};

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
            announced_endpoint: None,
            address: Some("192.0.2.1:443".parse().unwrap()),
            public_key: "K".into(),
            next_public_key: None,
            configured_key_replaced: false,
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
        session_seconds: Some(90.0),
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
    assert!(text.contains("session    connected for 2 min\n"), "{text}");
    assert!(text.contains("relay.example:443 (192.0.2.1:443)"), "{text}");
    let line =
        "7.0 s ago: wlan0 -> eth0, carrier lost, blackout 25 ms, 4 records retransmitted, 0 packets dropped";
    assert!(text.contains(line), "{text}");
    assert_eq!(text.matches("wlan0 -> eth0").count(), SHOWN_HANDOVERS, "{text}");
    assert!(text.contains("drops      2 queue_full\n"), "{text}");
}

#[test]
fn a_problem_is_shown_with_its_next_step() {
    let problem = Problem { cause: "not authorised".into(), next_step: "authorize it".into() };
    let status =
        Status { session: SessionState::Refused, problem: Some(problem), active_uplink: None, ..sample() };
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
    assert!(text.contains("connected for 2 min, without a persistent address"), "{text}");
    assert!(text.contains("persistent none (this host refuses the addresses"), "{text}");
}

#[test]
fn a_tunnel_that_fails_open_says_so() {
    assert!(!render(&sample()).contains("on failure"));
    let open = Status { on_failure: OnFailure::Open, ..sample() };
    assert!(render(&open).contains("on failure open: new connections of mobile processes would go"));
    let text = render(&Status { open: true, active_uplink: None, session: SessionState::NoUplink, ..open });
    assert!(text.contains("session    no usable uplink for 7.0 s\n"), "{text}");
    assert!(text.contains("on failure open: new connections of mobile processes go direct until"), "{text}");
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
