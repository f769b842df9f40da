//! Fuzzes frames: whatever can be parsed survives a round trip.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::fuzzing;

fuzz_target!(init: mobile_fuzz::seeds(fuzzing::frame_seeds), |data: &[u8]| fuzzing::frames(data));
