//! Fuzzes the tracked state of an inner TCP flow, compared with a model of TCP.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::fuzzing;

fuzz_target!(init: mobile_fuzz::seeds(fuzzing::acceptance_seeds), |data: &[u8]| fuzzing::acceptance(data));
