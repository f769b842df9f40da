//! Fuzzes enrolment: the request and the reply.
#![no_main]

use libfuzzer_sys::fuzz_target;
use mobile_proto::fuzzing;

fuzz_target!(init: mobile_fuzz::seeds(fuzzing::enrolment_seeds), |data: &[u8]| fuzzing::enrolment(data));
