//! Checks the host name of requests, to protect the metrics from DNS rebinding.
//!
//! The owner of a web page that is open in a browser near this host may point the DNS name of the
//! page at this host. The browser then takes this host for the page's own server and lets the page
//! read every reply. The browser sends the name in the `Host` header (RFC 9110, section 7.2). So
//! requests are only answered for names that no one else controls: IP addresses, `localhost`, and
//! the configured names.

use std::net::{IpAddr, Ipv6Addr};

use hyper::header::{HOST, HeaderMap};
use hyper::http::uri::Authority;
use hyper::{StatusCode, Uri, Version};

/// The configured host names under which the metrics may be requested (`[metrics] hosts`).
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts(Vec<String>);

impl Hosts {
    pub(super) fn new(names: &[String]) -> Self {
        Self(names.iter().map(|name| name.trim_end_matches('.').to_owned()).collect())
    }

    /// Checks the host that a request names; the error is the status with which to refuse the
    /// request.
    pub(super) fn check(&self, version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), StatusCode> {
        let mut named = headers.get_all(HOST).iter();
        let header = match (named.next(), named.next()) {
            (Some(one), None) => {
                let text = one.to_str().map_err(|_| StatusCode::BAD_REQUEST)?;
                Some(text.parse::<Authority>().map_err(|_| StatusCode::BAD_REQUEST)?)
            }
            // HTTP/1.0 has no Host header. Some health checks use HTTP/1.0; no browser does.
            (None, None) if version <= Version::HTTP_10 => None,
            // RFC 9112, section 3.2: respond with 400 unless there is exactly one Host header.
            _ => return Err(StatusCode::BAD_REQUEST),
        };
        let all_allowed = header.iter().chain(uri.authority()).all(|authority| self.is_allowed(authority));
        if all_allowed { Ok(()) } else { Err(StatusCode::MISDIRECTED_REQUEST) }
    }

    fn is_allowed(&self, authority: &Authority) -> bool {
        let host = authority.host();
        // Only a port may follow the host, and nothing may precede it: splitting at `]` alone would
        // accept `[::1].example` as `[::1]`.
        let is_port = |rest: &str| rest.is_empty() || rest.strip_prefix(':').is_some_and(is_number);
        let is_whole = authority.as_str().strip_prefix(host).is_some_and(is_port);
        let name = host.strip_suffix('.').unwrap_or(host);
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        is_whole
            && (bracketed.is_some_and(|address| address.parse::<Ipv6Addr>().is_ok())
                || host.parse::<IpAddr>().is_ok()
                || name.eq_ignore_ascii_case("localhost")
                || self.0.iter().any(|own| own.eq_ignore_ascii_case(name)))
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns whether `name` is valid in `[metrics] hosts`: a DNS name without port, path or wildcard.
#[must_use]
pub fn is_host_name(name: &str) -> bool {
    // RFC 1035, section 2.3.4; underscores occur in practice.
    let label = |label: &str| {
        let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (1..=63).contains(&label.len()) && label.bytes().all(good)
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn judge(version: Version, uri: &str, named: &[&str]) -> Result<(), u16> {
        let hosts = Hosts::new(&["relay.example.org".to_owned(), "laptop.".to_owned()]);
        let mut headers = HeaderMap::new();
        named.iter().for_each(|name| {
            headers.append(HOST, HeaderValue::from_str(name).unwrap());
        });
        hosts.check(version, &uri.parse().unwrap(), &headers).map_err(|status| status.as_u16())
    }

    #[test]
    fn addresses_localhost_and_configured_names_are_accepted() {
        for name in [
            "127.0.0.1",
            "127.0.0.1:9478",
            "192.0.2.7:80",
            "[::1]:9478",
            "[2001:db8::1]",
            "localhost",
            "LOCALHOST:9478",
            "localhost.",
            "Relay.Example.ORG:9478",
            "relay.example.org.",
            "laptop:9477",
        ] {
            assert_eq!(judge(Version::HTTP_11, "/metrics", &[name]), Ok(()), "{name}");
        }
    }

    #[test]
    fn other_names_are_refused() {
        for name in [
            "evil.example",
            "evil.example:9478",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "relay.example.org.evil.example",
            "x.relay.example.org",
            "127.0.0.1@evil.example",
            "evil@127.0.0.1",
            "[::1].evil.example",
        ] {
            let refused = judge(Version::HTTP_11, "/metrics", &[name]).unwrap_err();
            assert!(matches!(refused, 400 | 421), "{name}: {refused}");
            judge(Version::HTTP_10, "/metrics", &[name]).unwrap_err();
            let absolute = format!("http://{name}/metrics");
            if absolute.parse::<Uri>().is_ok() {
                judge(Version::HTTP_11, &absolute, &["localhost"]).unwrap_err();
            }
        }
    }

    #[test]
    fn a_request_must_name_exactly_one_host() {
        assert_eq!(judge(Version::HTTP_11, "/metrics", &[]), Err(400));
        assert_eq!(judge(Version::HTTP_10, "/metrics", &[]), Ok(()));
        assert_eq!(judge(Version::HTTP_11, "/metrics", &["localhost", "evil.example"]), Err(400));
        assert_eq!(judge(Version::HTTP_11, "/metrics", &["localhost", "localhost"]), Err(400));
        assert_eq!(judge(Version::HTTP_11, "/metrics", &[""]), Err(400));
        assert_eq!(judge(Version::HTTP_11, "http://localhost/metrics", &["localhost"]), Ok(()));
    }

    #[test]
    fn configured_names_must_be_plain_dns_names() {
        for good in ["laptop", "relay.example.org", "relay.example.org.", "a_b-c.d", "192.0.2.7"] {
            assert!(is_host_name(good), "{good}");
        }
        for bad in ["", ".", "a..b", "*.example.org", "http://a", "a:9478", "a/b", "a b", &"x".repeat(64)] {
            assert!(!is_host_name(bad), "{bad}");
        }
    }
}
