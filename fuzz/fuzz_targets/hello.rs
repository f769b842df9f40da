//! Fuzzes HELLO, the first frame of a path, received in pieces, and the payloads of WELCOME, CONFIG
//! and ACTIVATE.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::fuzzing;

fuzz_target!(init: mobile_fuzz::seeds(fuzzing::hello_seeds), |data: &[u8]| fuzzing::hello(data));
