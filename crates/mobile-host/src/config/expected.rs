//! The values that the target types of a configuration accept, in words.

use serde::de::Visitor;

use crate::{duration, network};

/// The values that a visitor expects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    /// The values that this text describes, to complete "write …".
    Form(&'static str),
    /// An IPv4 or IPv6 network.
    Network,
    /// An IPv4 network in CIDR notation.
    Ipv4Network,
    /// An IPv6 network in CIDR notation.
    Ipv6Network,
    /// Values of a type that describes its errors itself.
    Other,
}

impl Expected {
    /// Returns the values that a visitor expects, by its own description of them.
    pub(super) fn by<'de, V: Visitor<'de>>(visitor: &V) -> Self {
        // The descriptions are those of serde, of the standard library's types in serde, and of
        // ipnet.
        let described = (visitor as &dyn serde::de::Expected).to_string();
        Self::Form(match described.as_str() {
            "IPv4 or IPv6 network address" => return Self::Network,
            "IPv4 network address" => return Self::Ipv4Network,
            "IPv6 network address" => return Self::Ipv6Network,
            "a boolean" => "true or false",
            "u8" => "a whole number from 0 to 255",
            "u16" => "a whole number from 0 to 65535",
            "u32" => "a whole number from 0 to 4294967295",
            "u64" | "usize" => "a whole number, 0 or larger",
            "a sequence" => "a list, such as [\"…\", \"…\"]",
            "socket address" => {
                "an IP address and a port, such as \"127.0.0.1:9000\" or \"[::1]:9000\", \"[::]:9000\" for all"
            }
            "IP address" => "an IP address, such as \"192.0.2.1\" or \"2001:db8::1\"",
            "a string" | "path string" => "a text in quotes",
            duration::FORM => duration::FORM,
            _ => return Self::Other,
        })
    }

    /// Returns the description of the accepted values, to complete "write …".
    pub(super) fn form(self) -> Option<&'static str> {
        match self {
            Self::Form(form) => Some(form),
            Self::Network | Self::Ipv4Network => Some("a network in quotes, such as \"192.168.1.0/24\""),
            Self::Ipv6Network => Some("a network in quotes, such as \"fd00:77::/64\""),
            Self::Other => None,
        }
    }

    /// Parses a text if a network is expected, and returns it in the notation of ipnet.
    pub(super) fn network(self, text: &str) -> Option<Result<String, network::NetworkError>> {
        match self {
            Self::Network => Some(network::parse(text).map(|network| network.to_string())),
            Self::Ipv4Network => Some(network::parse_ipv4(text).map(|network| network.to_string())),
            Self::Ipv6Network => Some(network::parse_ipv6(text).map(|network| network.to_string())),
            Self::Form(_) | Self::Other => None,
        }
    }
}

/// Returns the values of an enum, to complete "write …": `"auto", "on" or "off"`.
pub(super) fn one_of(values: &[&str]) -> String {
    let quoted: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::path::{Path, PathBuf};
    use std::time::Duration;

    use ipnet::{IpNet, Ipv4Net};
    use serde::Deserialize;

    use crate::config::parse;

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Settings {
        routing: Routing,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(default)]
    struct Routing {
        listen: Option<SocketAddr>,
        file: Option<PathBuf>,
        mark: u32,
        bypass: Vec<IpNet>,
        pool: Option<Ipv4Net>,
        mode: Mode,
        verbose: bool,
        #[serde(with = "crate::duration")]
        idle: Duration,
    }

    #[derive(Debug, Default, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Mode {
        #[default]
        Auto,
        Manual,
    }

    /// Parses the section `[routing]` with these lines, and environment variables.
    fn load(lines: &str, environment: &[(&str, &str)]) -> Result<Routing, String> {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        parse::<Settings>(
            Path::new("agent.toml"),
            &format!("[routing]\n{lines}\n"),
            "MOBILE",
            environment,
            &[],
        )
        .map(|loaded| loaded.settings.routing)
        .map_err(|error| error.to_string())
    }

    #[test]
    fn a_refused_value_is_named_with_its_key_and_the_accepted_values() {
        for (line, expected) in [
            ("listen = 5", "5 is not accepted: write an IP address and a port"),
            ("listen = \"localhost:5\"", "\"localhost:5\" is not accepted: write an IP address and a port"),
            ("file = true", "true is not accepted: write a text in quotes"),
            ("file = /key", "/key is not accepted: write \"/key\", in quotes"),
            ("mark = -1", "-1 is not accepted: write a whole number from 0 to 4294967295"),
            ("mark = \"7\"", "\"7\" is not accepted: write a whole number from 0 to"),
            ("mark = many", "many is not accepted: write a whole number from 0 to"),
            ("mode = \"odd\"", "\"odd\" is not accepted: write \"auto\" or \"manual\""),
            ("mode = manual", "manual is not accepted: write \"auto\" or \"manual\""),
            ("mode = true", "true is not accepted: write \"auto\" or \"manual\""),
            ("verbose = no", "no is not accepted: write true or false"),
            ("verbose = \"yes\"", "\"yes\" is not accepted: write true or false"),
            ("verbose = 1", "1 is not accepted: write true or false"),
            ("bypass = \"10.0.0.0/8\"", "\"10.0.0.0/8\" is not accepted: write a list"),
            ("bypass = [10.0.0.0/8]", "10.0.0.0/8 is not accepted: write \"10.0.0.0/8\", in quotes"),
            ("bypass = [5]", "5 is not accepted: write a network in quotes"),
            ("bypass = [\"x\"]", "\"x\" is not a network"),
            ("bypass = [\"10.0.0.0\"]", "\"10.0.0.0\" has no prefix length: write \"10.0.0.0/8\" for"),
            ("pool = \"10.0.0.5/24\"", "\"10.0.0.5/24\" has address bits beyond the prefix"),
            ("idle = \"24\"", "\"24\" is not accepted: write a number with a unit, such as \"30s\""),
            ("idle = 24h", "24h is not accepted: write \"24h\", in quotes"),
            ("idle = soon", "soon is not accepted: write a number with a unit"),
            ("idle = -1", "-1 is not accepted: write a number with a unit"),
            ("idle = 1.5", "1.5 is not accepted: write a number with a unit"),
        ] {
            let (key, _) = line.split_once(" = ").unwrap();
            let error = load(&format!("\n{line} # comment"), &[]).unwrap_err();
            assert!(
                error.starts_with(&format!("agent.toml:3: [routing] {key}: {expected}")),
                "{line}: {error}"
            );
        }
        let error = load("bypass = [\n  \"10.0.0.0/8\",\n  printer,\n]", &[]).unwrap_err();
        assert!(error.starts_with("agent.toml:4: [routing] bypass: \"printer\" is not a network"), "{error}");
    }

    #[test]
    fn a_refused_environment_variable_is_named_with_the_accepted_values() {
        for (name, value, expected) in [
            ("MARK", "no", "[routing] mark: \"no\" is not accepted: write a whole number"),
            ("VERBOSE", "no", "[routing] verbose: \"no\" is not accepted: write true or false"),
            ("MODE", "no", "[routing] mode: \"no\" is not accepted: write \"auto\" or \"manual\""),
            ("IDLE", "1 day or so", "[routing] idle: \"1 day or so\" is not accepted: write a number"),
            ("BYPASS", "10.0.0.0/8,10.1.0.0", "[routing] bypass: \"10.1.0.0\" has no prefix length"),
        ] {
            let variable = format!("MOBILE_ROUTING_{name}");
            let error = load("", &[(&variable, value)]).unwrap_err();
            assert!(error.starts_with(&format!("environment variable {variable}: {expected}")), "{error}");
        }
    }

    #[test]
    fn a_duration_is_text_and_a_number_is_seconds() {
        for (value, seconds) in [("\"24h\"", 86_400), ("\"90s\"", 90), ("90", 90)] {
            let routing = load(&format!("idle = {value}"), &[]).unwrap();
            assert_eq!(routing.idle, Duration::from_secs(seconds));
        }
        for value in ["15s", "15"] {
            let routing = load("", &[("MOBILE_ROUTING_IDLE", value)]).unwrap();
            assert_eq!(routing.idle, Duration::from_secs(15));
        }
    }

    #[test]
    fn one_address_stands_for_itself_in_a_list_of_networks() {
        assert_eq!(load("bypass = [\"10.0.0.5\"]", &[]).unwrap().bypass, ["10.0.0.5/32".parse().unwrap()]);
    }
}
