//! Fuzzes relay.toml and the relay's environment through the real loader; see
//! [`mobile_fuzz::file_and_variables`].
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(init: mobile_fuzz::seeds(home_relay::fuzzing::config_seeds), |data: &[u8]| {
    let (text, variables) = mobile_fuzz::file_and_variables(data);
    home_relay::fuzzing::config(&text, variables);
});
