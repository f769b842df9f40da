//! Fuzzes a line on the relay's admin socket.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: mobile_fuzz::seeds(home_relay::fuzzing::admin_message_seeds), |data: &[u8]| {
    home_relay::fuzzing::admin_message(data);
});
