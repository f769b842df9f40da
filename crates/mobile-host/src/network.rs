//! Networks in CIDR notation, with errors that say what was probably meant.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The error for a text that is not a network, with the spelling that was probably meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The text is an address that may stand for a network or for itself.
    #[error("{given:?} has no prefix length: write {}", meant(.network, .alone.as_ref()))]
    NoPrefix {
        /// The refused text, as given.
        given: String,
        /// The network that was probably meant.
        network: IpNet,
        /// The address alone, if one address is accepted.
        alone: Option<IpNet>,
    },
    /// The address has bits after the prefix.
    #[error("{given:?} has address bits beyond the prefix: write {}", meant(.network, .alone.as_ref()))]
    HostBits {
        /// The refused text, as given.
        given: String,
        /// The network without these bits.
        network: IpNet,
        /// The address alone, if one address is accepted.
        alone: Option<IpNet>,
    },
    /// The text has a netmask in place of the prefix length.
    #[error("{given:?} has a netmask: write \"{network}\"")]
    Netmask {
        /// The refused text, as given.
        given: String,
        /// The network that the given text means, in CIDR notation.
        network: IpNet,
    },
    /// The prefix length is too large for the address family, or no number.
    #[error("{given:?} has an invalid prefix length: write a number from 0 to {max} after the slash")]
    BadPrefix {
        /// The refused text, as given.
        given: String,
        /// The largest prefix length of the address family.
        max: u8,
    },
    /// The network is of the other address family.
    #[error("{given:?} is not an {family} network: write for example \"{example}\"")]
    OtherFamily {
        /// The refused text, as given.
        given: String,
        /// The family that is accepted.
        family: &'static str,
        /// A network of this family.
        example: &'static str,
    },
    /// The text has no IP address before the slash.
    #[error("{given:?} is not a network: write for example \"192.168.1.0/24\"")]
    NotANetwork {
        /// The refused text, as given.
        given: String,
    },
}

fn meant(network: &IpNet, alone: Option<&IpNet>) -> String {
    match alone {
        Some(alone) => format!("\"{network}\" for the network, or \"{alone}\" for this address alone"),
        None => format!("for example \"{network}\""),
    }
}

/// Whether an address without a prefix length may stand for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lone {
    Accepted,
    Refused,
}

/// Parses a network, or an address, which stands for itself.
///
/// An address that looks like a network, as 192.168.1.0 does, needs a prefix length.
///
/// # Errors
/// When the text is not a network, has no prefix length although it looks like a network, or has
/// address bits beyond the prefix.
pub fn parse(text: &str) -> Result<IpNet, NetworkError> {
    parse_either(text, Lone::Accepted)
}

/// Parses an IPv4 network; the prefix length is required.
///
/// # Errors
/// As [`parse`], and when the network is not an IPv4 network.
pub fn parse_ipv4(text: &str) -> Result<Ipv4Net, NetworkError> {
    match parse_either(text, Lone::Refused)? {
        IpNet::V4(network) => Ok(network),
        IpNet::V6(_) => {
            Err(NetworkError::OtherFamily { given: text.to_owned(), family: "IPv4", example: "10.77.0.0/24" })
        }
    }
}

/// Parses an IPv6 network; the prefix length is required.
///
/// # Errors
/// As [`parse`], and when the network is not an IPv6 network.
pub fn parse_ipv6(text: &str) -> Result<Ipv6Net, NetworkError> {
    match parse_either(text, Lone::Refused)? {
        IpNet::V6(network) => Ok(network),
        IpNet::V4(_) => {
            Err(NetworkError::OtherFamily { given: text.to_owned(), family: "IPv6", example: "fd00:77::/64" })
        }
    }
}

fn parse_either(text: &str, lone: Lone) -> Result<IpNet, NetworkError> {
    let given = text.to_owned();
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(address) = address.trim().parse::<IpAddr>() else {
        return Err(NetworkError::NotANetwork { given });
    };
    let single = IpNet::from(address);
    let alone = (lone == Lone::Accepted).then_some(single);
    let Some(prefix) = prefix else {
        let guess = probable_prefix(address);
        let network = IpNet::new(address, guess).unwrap_or(single).trunc();
        if lone == Lone::Accepted && network.addr() != address {
            return Ok(single);
        }
        return Err(NetworkError::NoPrefix { given, network, alone });
    };
    let max = single.max_prefix_len();
    let network = match prefix.trim().parse::<u8>().map(|length| IpNet::new(address, length)) {
        Ok(Ok(network)) => network,
        _ => {
            let mask = prefix.trim().parse().ok().and_then(|mask| IpNet::with_netmask(address, mask).ok());
            return Err(match mask {
                Some(network) => NetworkError::Netmask { given, network: network.trunc() },
                None => NetworkError::BadPrefix { given, max },
            });
        }
    };
    if network.trunc() != network {
        return Err(NetworkError::HostBits { given, network: network.trunc(), alone });
    }
    Ok(network)
}

/// Returns the prefix length that an address without one probably stands for: up to its last byte
/// that is not zero, but at most 24 bits of an IPv4 address and 64 of an IPv6 address.
fn probable_prefix(address: IpAddr) -> u8 {
    let bits = match address {
        IpAddr::V4(address) => (32 - address.to_bits().trailing_zeros().min(32)).min(24),
        IpAddr::V6(address) => (128 - address.to_bits().trailing_zeros().min(128)).min(64),
    };
    let step = if address.is_ipv6() && bits > 16 { 16 } else { 8 };
    u8::try_from(bits.next_multiple_of(step)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_or_one_address_is_accepted() {
        for (text, network) in [
            ("192.168.1.0/24", "192.168.1.0/24"),
            ("192.168.1.7", "192.168.1.7/32"),
            ("192.168.1.0/32", "192.168.1.0/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(parse(text).unwrap(), network.parse().unwrap(), "{text}");
        }
        assert_eq!(parse_ipv4("10.0.0.0/8"), Ok("10.0.0.0/8".parse().unwrap()));
        assert_eq!(parse_ipv6("fd00::/64"), Ok("fd00::/64".parse().unwrap()));
    }

    #[test]
    fn an_error_names_what_was_probably_meant() {
        for (text, parts) in [
            ("192.168.1.0", &["\"192.168.1.0/24\" for the network", "\"192.168.1.0/32\""][..]),
            ("172.16.0.0", &["\"172.16.0.0/16\""]),
            ("10.0.0.0", &["\"10.0.0.0/8\""]),
            ("0.0.0.0", &["\"0.0.0.0/0\""]),
            ("fd00::", &["\"fd00::/8\"", "\"fd00::/128\""]),
            ("2001:db8:7::", &["\"2001:db8:7::/48\""]),
            ("192.168.1.5/24", &["beyond the prefix", "\"192.168.1.0/24\"", "\"192.168.1.5/32\""]),
            ("10.0.0.0/255.0.0.0", &["a netmask", "\"10.0.0.0/8\""]),
            ("10.0.0.0/33", &["from 0 to 32"]),
            ("fd00::/x", &["from 0 to 128"]),
            ("printer", &["\"printer\" is not a network"]),
            ("192.168.1", &["not a network"]),
        ] {
            let error = parse(text).unwrap_err().to_string();
            for part in parts {
                assert!(error.contains(part), "{text}: no {part:?} in {error}");
            }
        }
        let error = parse_ipv4("10.99.0.5").unwrap_err().to_string();
        assert_eq!(error, "\"10.99.0.5\" has no prefix length: write for example \"10.99.0.0/24\"");
        assert!(parse_ipv4("fd00::/64").unwrap_err().to_string().contains("not an IPv4 network"));
        assert!(parse_ipv6("10.0.0.0/8").unwrap_err().to_string().contains("not an IPv6 network"));
    }
}
