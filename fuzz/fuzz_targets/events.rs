//! Fuzzes a session whose peer causes as many events as it can. Whatever frames the peer repeats,
//! and however long the caller leaves events in the queue, the number of queued events is
//! proportional to the paths that were opened.
#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use mobile_fuzz::Input;
use mobile_proto::{Budget, Event, Hello, Limits, PathId, Session, SessionId};

#[path = "../../crates/mobile-proto/tests/common/mod.rs"]
mod common;

const ID: SessionId = SessionId([1; 16]);
const EPOCH: u64 = 101;
const MAX_STEPS: usize = 60;
/// Maximum number of paths at a time, which is also the number of path ids.
const PATHS: u8 = 4;

fuzz_target!(init: mobile_fuzz::seeds(seeds), |data: &[u8]| {
    let mut input = Input(data);
    let flags = input.byte();
    let is_client = flags & 1 != 0;
    let limits = Limits { max_paths: usize::from(PATHS), ..Limits::default() };
    let mut session = if is_client {
        Session::client(ID, limits)
    } else {
        Session::server(ID, EPOCH, limits, common::config())
    };
    let mut now = Instant::now() + Duration::from_secs(100_000);
    // News, which is reported each time: a path was welcomed, and a path is closed.
    let mut news = 0;
    let mut switch = 0;
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let (kind, path) = (input.byte(), PathId(u32::from(input.byte() % PATHS)));
        match kind % 8 {
            0 if is_client => {
                session.open_path(now, path);
                session.poll_transmit(now, path, &mut Vec::new(), Budget::new(1000));
                news += 2;
            }
            0 => {
                let hello = Hello { session: ID, epoch: EPOCH, path, switch, compression: false };
                session.accept_path(now, &hello).expect("a standby path is closed to make room");
                news += 2;
            }
            1 => session.activate(now, path, &[]),
            2 => {
                now += Duration::from_millis(u64::from(input.word()));
                session.handle_timeout(now);
                session.poll_transmit(now, path, &mut Vec::new(), Budget::new(1000));
            }
            // The caller takes its events from time to time.
            3 if kind & 8 == 0 => {
                while let Some(event) = session.poll_event() {
                    if let Event::Config(config) = event {
                        assert!(config.mtu >= 576);
                    }
                }
                news = 0;
            }
            _ => {
                let bytes = frames(&mut input, &mut switch);
                let _ = session.handle_input(now, path, &bytes, &mut |_| {});
            }
        }
        let most = 2 + 5 * usize::from(PATHS) + news;
        assert!(session.pending_events() <= most, "{} events, at most {most}", session.pending_events());
    }
});

/// Returns up to 2000 frames of one kind or of two kinds in turn, as the input chooses.
fn frames(input: &mut Input<'_>, switch: &mut u64) -> Vec<u8> {
    let (first, second) = (input.byte(), input.byte());
    let (count, argument) = (usize::from(input.word()) % 2000, input.byte());
    let mut out = Vec::new();
    for number in 0..=count {
        let (kind, turn) = if number % 2 == 0 { (first, 0) } else { (second, 1) };
        let argument = argument.wrapping_add(turn);
        match kind % 9 {
            0 => put(&mut out, 0x13, &[&[argument % 64][..], &mtu(argument)].concat()),
            1 => put(&mut out, 0x11, &[&epoch(argument)[..], &[0, argument % 64], &mtu(argument)].concat()),
            2 => {
                *switch += 1;
                let counter = u32::try_from(*switch).expect("few") | 0x8000_0000;
                let keep = u32::from(argument % PATHS).to_be_bytes();
                put(&mut out, 0x12, &[&epoch(0)[..], &counter.to_be_bytes(), &[0], &keep].concat());
            }
            3 => put(&mut out, 0x15, &[]),
            4 => put(&mut out, 0x04, &[argument; 8]),
            5 => put(&mut out, 0x05, &u64::from(argument).to_be_bytes()),
            6 => put(&mut out, 0x03, &[0]),
            7 => put(&mut out, 0x02, &[argument % 64]),
            _ if number == count => put(&mut out, 0x14, &[argument]),
            _ => {}
        }
    }
    out
}

fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    out.push(kind);
    out.push(u8::try_from(payload.len()).expect("below 64"));
    out.extend_from_slice(payload);
}

fn epoch(argument: u8) -> [u8; 8] {
    (EPOCH + u64::from(argument / 128)).to_be_bytes()
}

fn mtu(argument: u8) -> [u8; 4] {
    [3, 2, 5, argument]
}

fn seeds() -> Vec<Vec<u8>> {
    let hear = |first: u8, second: u8| [4, 1, first, second, 7, 200, 9];
    let mut seeds = Vec::new();
    // A client: paths 1 and 2 are welcomed; then each frame alternates with a change of the
    // configuration.
    for kind in 0..9 {
        let mut seed = vec![1, 0, 1, 0, 2];
        seed.extend_from_slice(&[4, 1, 1, 1, 0, 0, 9, 4, 2, 1, 1, 0, 0, 9, 1, 1]);
        for _ in 0..3 {
            seed.extend_from_slice(&hear(0, kind));
            seed.extend_from_slice(&[2, 1, 1, 200]);
        }
        seeds.push(seed);
    }
    // A relay whose client switches paths without end.
    for kind in 0..9 {
        let mut seed = vec![0, 0, 1, 0, 2];
        for path in [1, 2, 1, 2] {
            seed.extend_from_slice(&[4, path, 2, kind, 0, 9, path, 2, path, 0, 200]);
        }
        seeds.push(seed);
    }
    seeds
}
