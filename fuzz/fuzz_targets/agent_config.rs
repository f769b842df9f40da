//! Fuzzes agent.toml and the agent's environment through the real loader; see
//! [`mobile_fuzz::file_and_variables`].
//!
//! The agent is a program, not a library, so this target includes the source file of its
//! configuration as a module.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

#[path = "../../mobile-agent/src/config.rs"]
#[allow(dead_code, reason = "a module of the agent, of which only the loader is used here")]
mod config;

use config::{Config, ENV_PREFIX};

fuzz_target!(init: mobile_fuzz::seeds(seeds), |data: &[u8]| {
    let (text, variables) = mobile_fuzz::file_and_variables(data);
    let path = Path::new("/etc/mobile/agent.toml");
    let read = mobile_host::config::parse::<Config>(path, &text, ENV_PREFIX, variables, &[]);
    match read.map_err(anyhow::Error::from).and_then(|loaded| Config::complete(loaded, path)) {
        Ok(config) => {
            assert!(config.identity.private_key_file.is_absolute());
            let _ = config.relay_identity();
            let uplink = &config.uplink;
            for globs in [&uplink.prefer, &uplink.exclude, &uplink.standby] {
                let globs = config::globs("[uplink]", globs).expect("validated before");
                assert!(globs.iter().filter(|glob| glob.is_match("wlan0")).count() <= globs.len());
            }
        }
        Err(error) => {
            let error = format!("{error:#}");
            assert!(error.contains("agent.toml") || error.contains("environment variable"), "{error}");
        }
    }
});

/// Returns the example configuration of the documentation: as it is and with its commented-out
/// settings, each without and with environment variables.
fn seeds() -> Vec<Vec<u8>> {
    let guide = include_str!("../../docs/use/agent.md");
    let example =
        guide.split_once("```toml\n").and_then(|(_, rest)| rest.split_once("```")).expect("it has one").0;
    let example = example.replace("public_key = \"…\"", &format!("public_key = \"{}=\"", "A".repeat(43)));
    let all = example.replace("\n# ", "\n");
    let variables = "\0MOBILE_RELAY_ENDPOINT=[2001:db8::1]:443\nMOBILE_ROUTING_BYPASS=10.0.0.0/8, fd00::/8\n\
                     MOBILE_ROUTING_MARK=0x10\nMOBILE_TUNNEL_MTU=1400\nMOBILE_UPLINK_PREFER=en*,wl*\n";
    [example.clone(), all.clone(), example + variables, all + variables].map(String::into_bytes).to_vec()
}
