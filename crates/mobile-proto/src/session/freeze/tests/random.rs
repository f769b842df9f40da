//! Tests with random segments of both ends, and outages at random moments.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Receive { port: u16, seq: u32, ack: u32, window: u16, flags: u8 },
    Send { port: u16, seq: u32, ack: u32, flags: u8, data: usize, stamps: Option<(u32, u32)> },
    Garbage(Vec<u8>),
    Cut,
    Connect,
    Wait,
}

fn step() -> impl Strategy<Value = Step> {
    let (port, ack) = (0..3_u16, 990..1100_u32);
    let flags = prop_oneof![8 => Just(ACK), 1 => any::<u8>()];
    prop_oneof![
        6 => (port.clone(), 4990..5100_u32, ack.clone(), any::<u16>(), flags.clone())
            .prop_map(|(port, seq, ack, window, flags)| Step::Receive { port, seq, ack, window, flags }),
        8 => (port, ack, 4990..5100_u32, flags, 0..30_usize, any::<Option<(u32, u32)>>())
            .prop_map(|(port, seq, ack, flags, data, stamps)| Step::Send { port, seq, ack, flags, data, stamps }),
        1 => proptest::collection::vec(any::<u8>(), 1..80).prop_map(Step::Garbage),
        2 => Just(Step::Cut),
        2 => Just(Step::Connect),
        3 => Just(Step::Wait),
    ]
}

proptest! {
    /// Tests that an answer in the name of the other end never says more than that end has
    /// acknowledged.
    #[test]
    fn an_answer_acknowledges_no_more_than_the_peer_and_never_widens_a_window(
        steps in proptest::collection::vec(step(), 0..120),
        six in any::<bool>(),
    ) {
        let mut ends = Ends::new(&Limits::default());
        let mut connected = true;
        // The acknowledgements and windows of the other ends by flow, and the numbers that the
        // local ends expect.
        let mut acknowledged = HashSet::new();
        let mut expected = HashSet::new();
        for step in steps {
            match step {
                Step::Receive { port, seq, ack, window, flags } if connected => {
                    ends.receive(Sample { six, port, seq, ack, window, flags, ..Sample::default() });
                    acknowledged.insert((port, ack, window));
                }
                Step::Receive { .. } => {}
                Step::Send { port, seq, ack, flags, data, stamps } => {
                    let _ = ends.send(Sample { six, port, seq, ack, flags, data, timestamps: stamps, ..Sample::default() });
                    expected.insert((port, ack));
                }
                Step::Garbage(bytes) => {
                    let _ = ends.client.enqueue(ends.now, &bytes);
                    let _ = ends.server.enqueue(ends.now, &bytes);
                    if connected {
                        ends.settle();
                    }
                }
                Step::Cut if connected => {
                    ends.client.path_lost(ends.path);
                    ends.server.path_lost(ends.path);
                    connected = false;
                }
                Step::Connect if !connected => {
                    ends.connect();
                    connected = true;
                }
                Step::Cut | Step::Connect => {}
                Step::Wait => ends.now += LATER,
            }
            for packet in ends.local() {
                let answer = Segment::parse(&packet).unwrap();
                let port = u16::from_be_bytes(if six { [packet[42], packet[43]] } else { [packet[22], packet[23]] });
                prop_assert!(sums_are_zero(&packet));
                prop_assert_eq!((answer.flags, answer.data), (ACK, 0));
                prop_assert!(expected.contains(&(port, answer.seq)), "{:?}", answer);
                if connected {
                    prop_assert!(acknowledged.contains(&(port, answer.ack, answer.window)), "{:?}", answer);
                } else {
                    prop_assert_eq!(answer.window, 0);
                    prop_assert!(acknowledged.iter().any(|&(of, ack, _)| (of, ack) == (port, answer.ack)), "{:?}", answer);
                }
            }
        }
    }
}
