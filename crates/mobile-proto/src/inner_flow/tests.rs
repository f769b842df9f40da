use super::acceptance::MAX_DISTANCE;
use super::flow_state::{MAX_RESET_DISTANCE, MAX_WINDOW};
use super::*;
use crate::segment::FIN;
use crate::segment::tests::Sample;

fn segment(sample: Sample) -> Segment {
    Segment::parse(&sample.packet()).unwrap()
}

fn inbound(ack: u32, window: u16) -> Segment {
    segment(Sample { inbound: true, seq: 5000, ack, window, ..Sample::default() })
}

fn send(flows: &mut FlowTable, sample: Sample) -> Option<usize> {
    let segment = segment(sample);
    let at = flows.on_sending(&segment)?;
    flows.on_sent(at, &segment);
    Some(at)
}

#[test]
fn the_newest_acknowledgement_and_its_window_are_tracked() {
    let mut flows = FlowTable::default();
    assert_eq!(send(&mut flows, Sample::default()), None, "a segment that is only sent creates no flow");
    flows.on_delivered(&inbound(1000, 500));
    let at = send(&mut flows, Sample { seq: 1000, data: 200, ..Sample::default() }).unwrap();
    assert!(!flows.get(at).is_acknowledged());
    flows.on_delivered(&inbound(1100, 400));
    flows.on_delivered(&inbound(1000, 900));
    assert_eq!(
        (flows.get(at).acked, flows.get(at).window),
        (1100, Some(400)),
        "an older one changes nothing"
    );
    flows.on_delivered(&inbound(1100, 800));
    flows.on_delivered(&inbound(1201, 77));
    assert_eq!(
        (flows.get(at).acked, flows.get(at).window),
        (1100, Some(800)),
        "nor does one of data that was not sent"
    );
    flows.on_delivered(&inbound(1200, 0));
    assert!(flows.get(at).is_acknowledged());
    assert_eq!(flows.get(at).window, Some(0));
}

#[test]
fn the_window_of_a_handshake_is_not_in_the_flows_scale() {
    let mut flows = FlowTable::default();
    flows.on_delivered(&Segment { flags: SYN | ACK, ..inbound(1000, 65_535) });
    let at = send(&mut flows, Sample::default()).unwrap();
    assert_eq!(flows.get(at).window, None);
    flows.on_delivered(&inbound(1000, 12));
    assert_eq!(flows.get(at).window, Some(12));
}

#[test]
fn data_and_probes_elicit_an_answer() {
    let mut flows = FlowTable::default();
    flows.on_delivered(&inbound(1000, 500));
    let at = send(&mut flows, Sample::default()).unwrap();
    let flow = flows.get(at);
    let asks = |sample| flow.elicits_ack(&segment(sample));
    assert!(asks(Sample { seq: 1000, data: 1, ..Sample::default() }));
    assert!(asks(Sample { seq: 1000, flags: FIN | ACK, ..Sample::default() }));
    assert!(asks(Sample { seq: 999, ..Sample::default() }));
    assert!(!asks(Sample { seq: 1000, ..Sample::default() }), "an acknowledgement is never answered");
    assert!(!asks(Sample { seq: 998, ..Sample::default() }));
}

#[test]
fn reset_and_both_fins_end_a_flow_and_a_syn_begins_another() {
    let mut flows = FlowTable::default();
    for end in [true, false] {
        flows.on_delivered(&inbound(1000, 500));
        let reset = Segment { flags: RST | ACK, ..inbound(1000, 0) };
        if end {
            flows.on_delivered(&reset);
        } else {
            assert_eq!(flows.on_sending(&Segment { key: reset.key.reversed(), ..reset }), None);
        }
        assert_eq!(send(&mut flows, Sample::default()), None);
    }
    flows.on_delivered(&inbound(1000, 500));
    send(&mut flows, Sample { flags: FIN | ACK, ..Sample::default() }).unwrap();
    flows.on_delivered(&Segment { flags: FIN | ACK, ..inbound(1000, 500) });
    assert!(
        send(&mut flows, Sample { seq: 1001, ..Sample::default() }).is_some(),
        "its FIN is not acknowledged"
    );
    flows.on_delivered(&inbound(1001, 500));
    assert_eq!(send(&mut flows, Sample { seq: 1001, ..Sample::default() }), None);

    flows.on_delivered(&inbound(1000, 500));
    flows.on_delivered(&Segment { flags: SYN | ACK, ..inbound(77, 500) });
    let at = send(&mut flows, Sample { seq: 77, ..Sample::default() }).unwrap();
    assert_eq!(flows.get(at).acked, 77);
}

#[test]
fn the_least_recently_used_flow_makes_room() {
    let mut flows = FlowTable::default();
    let first = |port: usize| Sample { port: u16::try_from(port).unwrap(), ..Sample::default() };
    for port in (0..MAX_FLOWS).chain([0, MAX_FLOWS]) {
        flows.on_delivered(&segment(Sample { inbound: true, seq: 5000, ack: 1000, ..first(port) }));
        assert!(send(&mut flows, first(port)).is_some());
    }
    assert_eq!(flows.flows.len(), MAX_FLOWS);
    assert_eq!(flows.index.len(), MAX_FLOWS);
    assert_eq!(send(&mut flows, first(1)), None);
    for port in (2..=MAX_FLOWS).chain([0]) {
        let at = send(&mut flows, first(port)).expect("the flow is tracked");
        assert_eq!(flows.get(at).key, segment(first(port)).key);
    }
}

/// Returns a table with an established flow: 1000 of the local end is acknowledged, and the local
/// end expects 5000.
fn established() -> FlowTable {
    let mut flows = FlowTable::default();
    flows.on_delivered(&inbound(1000, 500));
    assert!(send(&mut flows, Sample::default()).is_some());
    flows
}

/// Tests that segments of strangers, each of which creates a flow that the local end never used, do
/// not evict an idle ssh session, which is the least recently used flow of all.
#[test]
fn segments_of_anybody_evict_no_flow_that_the_local_end_uses() {
    let mut flows = established();
    for port in 10_000..20_000 {
        flows.on_delivered(&segment(Sample { inbound: true, seq: 5000, ack: 77, port, ..Sample::default() }));
        assert!(flows.flows.len() == 1 && flows.unconfirmed.len() <= MAX_UNCONFIRMED);
    }
    assert!(send(&mut flows, Sample::default()).is_some());
    let last = Sample { seq: 77, port: 19_999, ..Sample::default() };
    assert!(send(&mut flows, last).is_some(), "a new flow is tracked as soon as its local end answers");
}

#[test]
fn a_reset_or_syn_with_a_guessed_number_ends_no_flow() {
    let mut flows = established();
    for seq in [5000 + MAX_RESET_DISTANCE + 1, 5000_u32.wrapping_sub(MAX_RESET_DISTANCE + 1), 1 << 31] {
        for flags in [RST, RST | ACK, SYN, SYN | ACK] {
            flows.on_delivered(&Segment { seq, flags, ..inbound(900, 0) });
            flows.on_delivered(&inbound(900, 0));
            let at = send(&mut flows, Sample::default()).expect("the flow is tracked");
            assert_eq!((flows.get(at).acked, flows.get(at).window), (1000, Some(500)), "{flags}");
        }
    }
    flows.on_delivered(&Segment { flags: RST, ..inbound(0, 0) });
    assert_eq!(send(&mut flows, Sample::default()), None);
}

#[test]
fn forged_state_of_an_unconfirmed_flow_is_forgotten_once_the_local_end_sends() {
    for forged in [2000, 1_000_000, 1000_u32.wrapping_sub(MAX_WINDOW + 1)] {
        let mut flows = FlowTable::default();
        flows.on_delivered(&inbound(forged, 500));
        assert_eq!(send(&mut flows, Sample { data: 10, ..Sample::default() }), None, "{forged}");
        flows.on_delivered(&inbound(1000, 500));
        let at = send(&mut flows, Sample { data: 10, ..Sample::default() }).expect("the flow is tracked");
        assert_eq!(flows.get(at).acked, 1000);
    }
}

/// Tests that a flow is not confirmed by an acknowledgement that is far ahead, in a segment a
/// little older than the local end expects.
#[test]
fn a_segment_that_the_local_end_would_refuse_does_not_confirm_a_flow() {
    for forged in [1000 + MAX_DISTANCE + 1, 1000 + (1 << 30)] {
        let mut flows = FlowTable::default();
        flows.on_delivered(&Segment { seq: 4900, ..inbound(forged, 500) });
        assert_eq!(send(&mut flows, Sample { data: 10, ..Sample::default() }), None, "{forged}");
    }
}

/// Tests a reported forgery: a segment 2^31 away from what the local end expects acknowledged 3,000
/// bytes that nobody had received, and the answer to an outage then told the local end to free
/// them.
#[test]
fn nothing_is_learnt_from_a_segment_that_the_local_end_refuses() {
    for seq in [5000 + (1 << 31), 5000 + MAX_DISTANCE + 1, 5000_u32.wrapping_sub(2 * MAX_DISTANCE), 4990] {
        for flags in [ACK, ACK | FIN, RST, RST | ACK] {
            let mut flows = established();
            let at = send(&mut flows, Sample { data: 3000, ..Sample::default() }).unwrap();
            let forged = Segment { seq, flags, ..inbound(4000, 60_000) };
            flows.on_delivered(&forged);
            let flow = flows.get(at);
            assert_eq!((flow.acked, flow.window), (1000, Some(500)), "{seq} {flags}");
            // Both FINs and an acknowledgement of everything would end the flow.
            let fin = Sample { seq: 4000, flags: FIN | ACK, ..Sample::default() };
            send(&mut flows, fin).expect("the flow is tracked");
            flows.on_delivered(&inbound(4001, 500));
            assert!(send(&mut flows, Sample { seq: 4001, ..Sample::default() }).is_some(), "{seq} {flags}");
        }
    }
}

/// Tests that the window is as wide as the local end says, where its handshake was seen.
#[test]
fn a_segment_beyond_the_window_is_ignored() {
    for (shift, width) in [(Some(0), 500), (Some(4), 8000), (None, 500 << 14)] {
        let mut flows = FlowTable::default();
        if let Some(shift) = shift {
            let syn = Segment { shift, ..segment(Sample { flags: SYN, seq: 999, ..Sample::default() }) };
            assert_eq!(flows.on_sending(&syn), None);
        }
        flows.on_delivered(&inbound(1000, 500));
        let at = send(&mut flows, Sample { data: 3000, ..Sample::default() }).unwrap();
        flows.on_delivered(&Segment { seq: 5000 + width + 1, ..inbound(2000, 900) });
        assert_eq!((flows.get(at).acked, flows.get(at).window), (1000, Some(500)), "{shift:?}");
        flows.on_delivered(&Segment { seq: 5000 + width + 1, flags: RST, ..inbound(0, 0) });
        flows.on_delivered(&Segment { seq: 5000 + width, ..inbound(3000, 700) });
        assert_eq!(
            (flows.get(at).acked, flows.get(at).window),
            (3000, Some(700)),
            "a segment at the end of the window is accepted"
        );
        assert!(send(&mut flows, Sample { seq: 3000, ..Sample::default() }).is_some(), "nor is it reset");
    }
}

#[test]
fn the_acknowledgement_of_a_refused_segment_is_kept_to_be_repeated() {
    let mut flows = established();
    let at = send(&mut flows, Sample { data: 400, ..Sample::default() }).unwrap();
    flows.on_delivered(&Segment { seq: 4000, ..inbound(1400, 600) });
    let flow = flows.get(at);
    assert_eq!((flow.acked, flow.window), (1000, Some(500)));
    let local = segment(Sample { data: 400, ..Sample::default() });
    assert_eq!(
        flow.missed_ack(&local),
        Some((1400, Some(600))),
        "the local end shows that it missed the acknowledgement"
    );
    assert_eq!(flow.missed_ack(&segment(Sample { seq: 1400, ..Sample::default() })), None);
    flows.get_mut(at).ack_repeated(1400, 600);
    assert_eq!((flows.get(at).acked, flows.get(at).window), (1400, Some(600)));
}

#[test]
fn a_window_does_not_shrink_and_follows_what_the_local_end_accepts() {
    let mut flows = established();
    let at = send(&mut flows, Sample { data: 4000, window: 0, ..Sample::default() }).unwrap();
    flows.on_delivered(&Segment { seq: 5400, ..inbound(2000, 1) });
    assert_eq!(flows.get(at).acked, 2000, "the window was open up to here");
    for ack in [1 << 30, 1 << 31, 5000] {
        send(&mut flows, Sample { ack, ..Sample::default() }).unwrap();
        flows.on_delivered(&Segment { seq: ack, ..inbound(flows.get(at).acked + 100, 1) });
    }
    assert_eq!(flows.get(at).acked, 2300, "whatever was acknowledged in between");
}

#[test]
fn only_a_segment_older_than_the_local_end_expects_counts_as_missed() {
    let missed_ack = |first: Segment, local: Sample| {
        let mut flows = established();
        assert!(send(&mut flows, Sample { data: 400, ..Sample::default() }).is_some());
        flows.on_delivered(&first);
        let local = segment(local);
        let at = flows.on_sending(&local).expect("the flow is tracked");
        flows.get(at).missed_ack(&local).is_some()
    };
    let late = Segment { seq: 5000, ..inbound(1400, 0) };
    let ignorant = Sample { seq: 1000, ack: 5800, ..Sample::default() };
    assert!(missed_ack(late, ignorant));
    assert!(missed_ack(late, Sample { data: 400, ..ignorant }), "a repetition shows it too");
    assert!(!missed_ack(late, Sample { ack: 5000, ..ignorant }), "it may be on its way to the local end");
    assert!(!missed_ack(Segment { seq: 5800, ..late }, ignorant));
    assert!(
        !missed_ack(Segment { seq: 5000_u32.wrapping_sub(MAX_DISTANCE), ..late }, ignorant),
        "too far behind"
    );
    assert!(!missed_ack(Segment { ack: 1401, ..late }, ignorant), "never sent");
    assert!(!missed_ack(late, Sample { seq: 1400, ..ignorant }), "it has the acknowledgement");
    assert!(!missed_ack(late, Sample { seq: 1399, ..ignorant }), "a probe repeats a known byte");
}

#[test]
fn a_full_table_takes_no_more_memory_than_documented() {
    let slot = size_of::<(FlowKey, usize)>() + 1;
    // A hash table keeps at most 7/8 of its power of two full, and the list doubles.
    let full = MAX_FLOWS * 2 * slot + (MAX_FLOWS + MAX_UNCONFIRMED) * size_of::<FlowState>();
    assert!(full <= 270 << 10, "{full}");
}
