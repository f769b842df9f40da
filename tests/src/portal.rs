//! A captive portal: the visited network accepts every connection to the relay's port itself, and answers HTTP.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::ns::Ns;
use crate::services::TcpService;

/// Where the portal's own server listens.
const PORT: u16 = 8443;

/// What portals answer to whatever they are asked.
const ANSWER: &[u8] =
    b"HTTP/1.1 302 Found\r\nLocation: http://login.portal.example/\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// A portal that nobody has logged in to. Dropping it is the login.
pub struct Portal {
    visited: Ns,
    caught: Arc<AtomicU64>,
    _server: TcpService,
}

impl Portal {
    /// Puts it before everything in the visited network; what was connected is cut off too.
    pub fn close(visited: &Ns) -> Result<Self> {
        let caught = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&caught);
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
        Ok(Self { visited: visited.clone(), caught, _server: server })
    }

    /// How many connections it has answered.
    #[must_use]
    pub fn caught(&self) -> u64 {
        self.caught.load(Ordering::Relaxed)
    }
}

impl Drop for Portal {
    fn drop(&mut self) {
        let _ = self.visited.run(&["nft", "delete", "table", "inet", "portal"]);
    }
}

fn answer(mut stream: &TcpStream) {
    // Whatever they say first.
    let mut request = [0; 4096];
    if stream.read(&mut request).is_ok_and(|count| count > 0) {
        let _ = stream.write_all(ANSWER);
    }
}
