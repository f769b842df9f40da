//! Every end-to-end case, a module for each topic. A case's name is the promise it keeps.

mod command;
mod lab;
mod leaks;
mod metrics;
mod outage;
mod refusals;
mod restart;
mod selection;
mod sessions;
mod transfer;

use mobile_tests::addr;

/// What a case returns.
type Outcome = anyhow::Result<()>;

/// `address:port` of the server, IPv4 and IPv6.
fn server(port: u16) -> [String; 2] {
    [format!("{}:{port}", addr::SERVER4), format!("[{}]:{port}", addr::SERVER6)]
}

/// The server's URLs for `path`, IPv4 and IPv6.
fn urls(path: &str) -> [String; 2] {
    [format!("http://{}{path}", addr::SERVER4), format!("http://[{}]{path}", addr::SERVER6)]
}

/// The address part of `address:port`.
fn ip_of(seen: &str) -> std::net::IpAddr {
    seen.trim()
        .parse::<std::net::SocketAddr>()
        .unwrap_or_else(|_| panic!("{seen:?} is no socket address"))
        .ip()
}
