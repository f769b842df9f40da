//! A captive portal: the visited network accepts connections to the relay's port itself and answers
//! with HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::ns::Ns;
use crate::services::TcpService;

/// The port of the portal's HTTP server, to which connections to the relay's port are redirected.
const PORT: u16 = 8443;

/// The portal's answer to any request: a redirect to its login page.
const ANSWER: &[u8] =
    b"HTTP/1.1 302 Found\r\nLocation: http://login.portal.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A captive portal in which nobody has logged in. Dropping it stands for the login: the network
/// becomes open.
pub struct CaptivePortal {
    visited: Ns,
    intercepted: Arc<AtomicU64>,
    _server: TcpService,
}

impl CaptivePortal {
    /// Puts a portal in front of the visited network, and cuts off existing connections to the
    /// relay.
    pub fn install(visited: &Ns) -> Result<Self> {
        let intercepted = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&intercepted);
        let server = TcpService::start(visited, PORT, move |stream, _| {
            counter.fetch_add(1, Ordering::Relaxed);
            answer(&stream);
        })?;
        visited.feed(
            &["nft", "-f", "-"],
            &format!(
                "table inet portal {{\n chain prerouting {{\n  type nat hook prerouting priority dstnat\n  \
                 iifname lan0 tcp dport {port} redirect to :{PORT}\n }}\n chain forward {{\n  \
                 type filter hook forward priority filter - 10\n  iifname lan0 tcp dport {port} drop\n  \
                 oifname lan0 tcp sport {port} drop\n \
                 }}\n}}\n",
                port = crate::product::RELAY_PORT
            ),
        )?;
        Ok(Self { visited: visited.clone(), intercepted, _server: server })
    }

    /// Returns the number of connections that the portal has answered.
    #[must_use]
    pub fn intercepted(&self) -> u64 {
        self.intercepted.load(Ordering::Relaxed)
    }
}

impl Drop for CaptivePortal {
    fn drop(&mut self) {
        let _ = self.visited.run(&["nft", "delete", "table", "inet", "portal"]);
    }
}

fn answer(mut stream: &TcpStream) {
    // The portal waits for the client's first bytes, whatever they are.
    let mut request = [0; 4096];
    if stream.read(&mut request).is_ok_and(|count| count > 0) {
        let _ = stream.write_all(ANSWER);
    }
}
