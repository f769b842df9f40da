//! Fuzzes inner packets, as the TUN and a peer provide them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::fuzzing;

fuzz_target!(init: mobile_fuzz::seeds(fuzzing::packet_seeds), |data: &[u8]| fuzzing::packet(data));
