//! `mobile bypass add NET`, `del NET` and `list`.

use std::path::Path;

use clap::Subcommand;
use ipnet::IpNet;

use crate::control::protocol::{Answer, Request};

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub(super) enum What {
    /// Mobile processes reach this network directly.
    Add {
        /// Such as 192.168.1.0/24; an address stands for itself.
        #[arg(value_name = "NET", value_parser = net)]
        net: IpNet,
    },
    /// They do not any more.
    Del {
        /// A network that `list` names.
        #[arg(value_name = "NET", value_parser = net)]
        net: IpNet,
    },
    /// What they reach directly, one network a line.
    List {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Does it.
pub(super) fn bypass(config: Option<&Path>, what: &What) -> anyhow::Result<()> {
    let request = match what {
        What::Add { net } => Request::Bypass { net: *net, add: true },
        What::Del { net } => Request::Bypass { net: *net, add: false },
        What::List { .. } => Request::Bypasses,
    };
    match (super::ask(&mut super::agent(config)?, &request)?, what) {
        (Answer::Bypasses(nets), What::List { json: true }) => super::print_json(&nets),
        (Answer::Bypasses(nets), What::List { json: false }) => {
            super::print(&nets.iter().map(|net| format!("{net}\n")).collect::<String>())
        }
        (Answer::Done, What::Add { .. } | What::Del { .. }) => Ok(()),
        (Answer::Noted(note), What::Add { .. } | What::Del { .. }) => {
            eprintln!("mobile: {note}");
            Ok(())
        }
        (other, _) => Err(super::unexpected(&other)),
    }
}

/// A network, or an address as a network of one.
fn net(text: &str) -> Result<IpNet, String> {
    let address = || text.parse::<std::net::IpAddr>().map(IpNet::from);
    text.parse()
        .or_else(|_| address())
        .map_err(|_| "a network was expected, such as 192.168.1.0/24".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_network_of_one() {
        assert_eq!(net("192.168.1.7"), Ok("192.168.1.7/32".parse().unwrap()));
        assert_eq!(net("fd00::/8"), Ok("fd00::/8".parse().unwrap()));
        assert!(net("printer").is_err());
        assert!(net("10.0.0.0/33").is_err());
    }
}
