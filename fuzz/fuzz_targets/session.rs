//! Fuzzes a session with an arbitrary peer on any path, while the caller uses the session as a
//! driver does: no panic, no spinning timer, and no more memory than the limits allow.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mobile_fuzz::Input;
use mobile_proto::{
    Budget, CloseCode, Event, Hello, InnerPacket, Limits, MAX_PACKET, Offload, Packet, PacketHeaders, PathId,
    PushConfig, Session, SessionId, TransportSample,
};

#[path = "../../crates/mobile-proto/tests/common/mod.rs"]
mod common;

const ID: SessionId = SessionId([1; 16]);
/// The epoch of the relay's session, which the frames in the seeds contain.
const EPOCH: u64 = 101;
const MAX_STEPS: usize = 200;
/// Maximum number of timeouts within an hour. Each of the four paths is checked some hundred times
/// until it is unresponsive, and once a second after that; a higher number means that the timer
/// spins.
const MAX_TURNS: u32 = 30_000;

struct Caller {
    session: Session,
    is_client: bool,
    limits: Limits,
    now: Instant,
    delivered: u64,
    /// The TCP statistics that all transports report; `None` until the input sets them.
    sample: Option<TransportSample>,
    /// Whether the caller passes in `sample` and transmits whenever timers run, as a driver does;
    /// otherwise only when the input says so.
    attentive: bool,
}

fuzz_target!(init: mobile_fuzz::seeds(seeds), |data: &[u8]| {
    let mut input = Input(data);
    let mut caller = Caller::new(input.byte());
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        caller.step(&mut input);
        caller.check();
    }
    // An hour later all paths are gone or quiet, and the queued packets can be taken over.
    caller.pass(Duration::from_secs(3600));
    caller.check();
    let held = caller.session.into_unacknowledged();
    let mut next = Session::client(SessionId([2; 16]), caller.limits);
    next.requeue(held);
});

impl Caller {
    fn new(flags: u8) -> Self {
        let limits = Limits {
            replay_bytes: 20_000,
            queue_bytes: 40_000,
            max_paths: 3,
            compression: flags & 2 != 0,
            ..Limits::default()
        };
        let is_client = flags & 1 != 0;
        let session = if is_client {
            Session::client(ID, limits.clone())
        } else {
            Session::server(ID, EPOCH, limits.clone(), common::config())
        };
        // Long after the start of the clock, so that no time is before it.
        let now = Instant::now() + Duration::from_secs(100_000);
        let attentive = flags & 4 != 0;
        Self { session, is_client, limits, now, delivered: 0, sample: None, attentive }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let (kind, path) = (input.byte(), PathId(u32::from(input.byte() % 4)));
        let now = self.now;
        match kind % 12 {
            0..=3 => {
                let count = usize::from(input.word());
                self.hear(path, input.take(count));
            }
            4 => self.enqueue(input),
            5 if self.is_client => self.session.open_path(now, path),
            5 => self.accept(path, input),
            6 => {
                let keep: Vec<_> = input.take(2).iter().map(|&path| PathId(u32::from(path % 4))).collect();
                self.session.activate(now, path, &keep);
            }
            7 => self.transmit(path, usize::from(input.word())),
            8 => self.pass(Duration::from_millis(u64::from(input.word()))),
            9 => match input.byte() % 3 {
                0 => self.session.path_lost(path),
                1 => self.session.close_path(now, path, CloseCode::Normal),
                _ => {
                    let mtu = 1280 + u16::from(input.byte());
                    self.session.set_config(PushConfig { mtu, ..common::config() });
                }
            },
            10 => self.sample(path, input),
            _ => self.session.poll_local(now, &mut |packet| assert!(packet.len() <= 80)),
        }
        while let Some(event) = self.session.poll_event() {
            if let Event::Config(config) = event {
                assert!(config.mtu >= 576 && config.dns.len() <= 8);
            }
        }
    }

    /// Enqueues a packet, once or many times.
    fn enqueue(&mut self, input: &mut Input<'_>) {
        let now = self.now;
        let (flags, count) = (input.byte(), usize::from(input.word()));
        let offload = match flags % 3 {
            0 => Offload::None,
            1 => Offload::Checksum,
            _ => Offload::Segment(u16::from(flags) * 8),
        };
        let bytes = input.take(count);
        // Like the driver, and many packets at once to fill what can be filled.
        let mut buffer = vec![0; MAX_PACKET];
        buffer[..bytes.len()].copy_from_slice(bytes);
        let headers = PacketHeaders::locate(Packet { bytes, offload });
        let _ = self.session.enqueue_in_place(now, &mut buffer, headers);
        for _ in 0..flags / 32 {
            let _ = self.session.enqueue(now, Packet { bytes, offload });
        }
    }

    /// Accepts a path, as a relay does.
    fn accept(&mut self, path: PathId, input: &mut Input<'_>) {
        let now = self.now;
        let flags = input.byte();
        let epoch = if flags & 1 == 0 { EPOCH } else { u64::from(flags) };
        let hello =
            Hello { session: ID, epoch, path, switch: u64::from(flags >> 4), compression: flags & 2 != 0 };
        self.session.accept_path(now, &hello).expect("a standby path is closed to make room");
    }

    /// Gives the session a sample with any values.
    fn sample(&mut self, path: PathId, input: &mut Input<'_>) {
        let now = self.now;
        let sample = TransportSample {
            delivered: u32::from(input.word()),
            in_flight: u32::from(input.byte()),
            unacked: u32::from(input.byte()),
            segs_out: u32::from(input.word()),
            retransmitted: u32::from(input.byte()),
            last_ack: Duration::from_millis(u64::from(input.word())),
            srtt: Duration::from_millis(u64::from(input.byte())),
            rttvar: Duration::from_millis(u64::from(input.byte())),
        };
        self.sample = Some(sample.clone());
        self.session.transport_sample(now, path, sample);
    }

    fn hear(&mut self, path: PathId, bytes: &[u8]) {
        let delivered = &mut self.delivered;
        let mut deliver = |packet: InnerPacket<'_>| {
            assert!(!packet.is_empty() && packet.len() <= MAX_PACKET);
            *delivered += 1;
        };
        while self.session.poll_event().is_some() {}
        let paths = self.session.paths().count();
        let failed = self.session.handle_input(self.now, path, bytes, &mut deliver).is_err();
        // One event for the configuration and one for the active path, and five for each path.
        let most = 2 + 5 * paths;
        assert!(
            self.session.pending_events() <= most,
            "{} events, at most {most}",
            self.session.pending_events()
        );
        if failed {
            let mut more = |_: InnerPacket<'_>| panic!("a failed path delivers nothing");
            let again = self.session.handle_input(self.now, path, bytes, &mut more);
            assert_eq!(again, Ok(()), "a failed path takes no more input");
            assert_ne!(self.session.active_path(), Some(path));
        }
    }

    fn transmit(&mut self, path: PathId, limit: usize) {
        let wanted = self.session.wants_transmit(path);
        let mut out = Vec::new();
        self.session.poll_transmit(self.now, path, &mut out, Budget::new(limit));
        assert!(
            !(wanted && limit == usize::from(u16::MAX) && out.is_empty()),
            "nothing was written although the session wanted to transmit"
        );
        // A frame that starts below the limit is written completely, after those that do not wait
        // for records.
        assert!(out.len() <= limit + 2 * MAX_PACKET, "{} bytes with a limit of {limit}", out.len());
    }

    /// Passes transport samples (TCP statistics) to the session for the paths for which it asks,
    /// before the session judges which answers are overdue.
    fn take_samples(&mut self) {
        let Some(sample) = self.sample.as_ref().filter(|_| self.attentive) else { return };
        let paths: Vec<_> = self.session.paths().collect();
        for path in paths {
            if self.session.wants_sample(self.now, path) {
                self.session.transport_sample(self.now, path, sample.clone());
            }
        }
    }

    /// Advances the clock by `time`, runs the session's timers when they are due, and checks that
    /// none is due again at the same time.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        for turn in 0.. {
            let Some(due) = self.session.poll_timeout().filter(|&due| due <= end) else { break };
            assert!(turn < MAX_TURNS, "the timer spins");
            self.now = self.now.max(due);
            self.take_samples();
            self.session.handle_timeout(self.now);
            assert!(
                self.session.poll_timeout().is_none_or(|next| next > self.now),
                "the timer is due again at once"
            );
            while self.session.poll_event().is_some() {}
            if self.attentive {
                let paths: Vec<_> = self.session.paths().collect();
                paths.into_iter().for_each(|path| self.transmit(path, usize::from(u16::MAX)));
            }
        }
        self.now = end;
    }

    fn check(&mut self) {
        let session = &self.session;
        assert!(session.queued_bytes() <= self.limits.queue_bytes + self.limits.replay_bytes + MAX_PACKET);
        assert!(session.unacked_bytes() <= self.limits.replay_bytes + MAX_PACKET);
        // A client opens its own paths, for which there are four ids here.
        assert!(session.paths().count() <= if self.is_client { 4 } else { self.limits.max_paths });
        assert_eq!(session.stats().rx_packets, self.delivered);
        assert!(session.active_path().is_none_or(|active| session.paths().any(|path| path == active)));
    }
}

/// Returns inputs made from a real session: the bytes that its client wrote arrive at a relay, and
/// those that its relay wrote at a client, in the same order.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for (compression, attentive) in [(false, false), (true, false), (false, true)] {
        let flags = u8::from(compression) * 2 + u8::from(attentive) * 4;
        let (up, down) = conversation(compression);
        // The relay: HELLO precedes the session; the client's other frames follow.
        let mut relay = vec![flags, 5, 1, flags];
        up.iter().for_each(|bytes| hear(&mut relay, bytes));
        relay.extend_from_slice(&[4, 1, 0, 0, 60]);
        relay.extend_from_slice(&segment());
        relay.extend_from_slice(&[7, 1, 0xff, 0xff, 8, 1, 0, 200, 9, 1, 2, 5, 7, 1, 0xff, 0xff, 9, 1, 0]);
        // In an outage the same segment is sent again and answered.
        for _ in 0..2 {
            relay.extend_from_slice(&[8, 1, 1, 0, 4, 1, 0, 0, 60]);
            relay.extend_from_slice(&segment());
        }
        relay.extend_from_slice(&[11, 1]);
        let mut client = vec![flags | 1, 5, 1, 7, 1, 0xff, 0xff];
        down.iter().take(1).for_each(|bytes| hear(&mut client, bytes));
        client.extend_from_slice(&[6, 1, 2, 3, 7, 1, 0xff, 0xff]);
        down.iter().skip(1).for_each(|bytes| hear(&mut client, bytes));
        client.extend_from_slice(&[
            10, 1, 0, 9, 1, 1, 0, 9, 0, 0, 9, 20, 1, 8, 1, 0x40, 0, 5, 2, 6, 2, 1, 2, 7, 2, 9, 9,
        ]);
        seeds.extend([relay, client]);
    }
    seeds
}

fn hear(seed: &mut Vec<u8>, bytes: &[u8]) {
    seed.extend_from_slice(&[0, 1]);
    seed.extend_from_slice(&u16::try_from(bytes.len()).expect("short").to_be_bytes());
    seed.extend_from_slice(bytes);
}

/// Returns what the client and the relay of a session write on path 1, turn by turn, without the
/// client's HELLO.
fn conversation(compression: bool) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let one = PathId(1);
    let mut pair = common::Pair::new(Limits { compression, ..Limits::default() });
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut turn = |pair: &mut common::Pair| {
        for _ in 0..2 {
            pair.transmit(usize::MAX);
            // The wire is gone once the path is closed.
            let Some(wire) = pair.wires.get(&one) else { return };
            let texts: [Vec<u8>; 2] =
                [&wire.up, &wire.down].map(|direction| direction.iter().copied().collect());
            let [up_text, down_text] = texts;
            up.extend(Some(up_text).filter(|text| !text.is_empty()));
            down.extend(Some(down_text).filter(|text| !text.is_empty()));
            for direction in [common::Direction::Up, common::Direction::Down] {
                pair.deliver(one, direction, usize::MAX);
            }
        }
    };
    pair.open(one);
    turn(&mut pair);
    pair.activate(one, &[PathId(2)]);
    turn(&mut pair);
    for number in 0..3 {
        let _ = pair.send_up(&common::packet(number, 150));
        let _ = pair.send_down(&common::packet(number, 151));
        turn(&mut pair);
    }
    let now = pair.now;
    pair.server().set_config(PushConfig { mtu: 1300, ..common::config() });
    pair.client.close_path(now, one, CloseCode::Normal);
    turn(&mut pair);
    (up.split_off(1), down)
}

/// Returns a TCP segment with 8 bytes of data and timestamps, from 10.77.0.2 to 192.0.2.1, as a TUN
/// provides it.
fn segment() -> [u8; 60] {
    let mut packet = [0; 60];
    packet[..12].copy_from_slice(&[0x45, 0, 0, 60, 0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet[12..20].copy_from_slice(&[10, 77, 0, 2, 192, 0, 2, 1]);
    packet[20..36].copy_from_slice(&[0x0f, 0xa0, 0, 80, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, 0x18, 0x20, 0]);
    packet[40..44].copy_from_slice(&[1, 1, 8, 10]);
    packet
}
