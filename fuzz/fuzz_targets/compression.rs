//! Fuzzes the decompression of a peer's streams, and of streams that the own encoder has made.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::fuzzing;

fuzz_target!(init: mobile_fuzz::seeds(fuzzing::compression_seeds), |data: &[u8]| fuzzing::compression(data));
