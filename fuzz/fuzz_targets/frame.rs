//! Fuzzes the frames of the tunnel protocol: a frame that can be parsed is encoded and parsed
//! again, with the same result.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::fuzzing;

fuzz_target!(init: mobile_fuzz::seeds(fuzzing::frame_seeds), |data: &[u8]| fuzzing::frames(data));
