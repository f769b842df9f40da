//! The verb `mobile bypass`, with its subcommands `add NET`, `del NET` and `list`.

use std::path::Path;

use super::args::Bypass;
use crate::protocol::{Reply, Request};

/// Asks the agent to change or list the bypassed networks.
pub(super) fn bypass(config: Option<&Path>, what: &Bypass) -> anyhow::Result<()> {
    let request = match what {
        Bypass::Add { net } => Request::Bypass { net: *net, add: true },
        Bypass::Del { net } => Request::Bypass { net: *net, add: false },
        Bypass::List { .. } => Request::Bypasses,
    };
    match (super::ask(&mut super::agent(config)?, &request)?, what) {
        (Reply::Bypasses(nets), Bypass::List { json: true }) => super::print_json(&nets),
        (Reply::Bypasses(nets), Bypass::List { json: false }) => {
            super::print(&nets.iter().map(|net| format!("{net}\n")).collect::<String>())
        }
        (Reply::Done, Bypass::Add { .. } | Bypass::Del { .. }) => Ok(()),
        (Reply::Noted(note), Bypass::Add { .. } | Bypass::Del { .. }) => {
            eprintln!("mobile: {}", mobile_host::text::printable(&note));
            Ok(())
        }
        (other, _) => Err(super::unexpected(&other)),
    }
}
