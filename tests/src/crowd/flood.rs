//! Those who have no business at a relay.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use mobile_io::keys::PrivateKey;
use mobile_io::tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{Way, home};

/// What they try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// Bytes that are no TLS.
    Garbage,
    /// All of TLS, with a key that nobody authorised.
    UnknownKey,
}

/// Where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// Four IPv6 /64s.
    Few,
    /// Another /64 each time, of 65,536.
    Many,
}

/// The first that no member lives at.
const STRANGERS: u32 = 1 << 21;
/// Attempts that are made together: tokio's clock has milliseconds.
const TICK: Duration = Duration::from_millis(10);
/// They give up after this.
const PATIENCE: Duration = Duration::from_secs(2);
/// Open at once; a relay that cannot keep up must not use up our own sockets.
const AT_ONCE: usize = 4000;

/// Attempts in the background; they end when this is dropped.
#[derive(Debug)]
pub struct Flood {
    attempts: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Flood {
    pub(super) fn start(
        runtime: &Runtime,
        way: Arc<Way>,
        attack: Attack,
        sources: Sources,
        rate: u32,
    ) -> Self {
        let attempts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&attempts);
        let task = runtime.spawn(async move {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let stranger = tls::client_config(&PrivateKey::from_seed([0xee; 32]), way.key);
            let (mut pending, mut number) = (JoinSet::new(), 0);
            loop {
                ticks.tick().await;
                for _ in 0..rate / 100 {
                    number += 1;
                    let width = if sources == Sources::Few { 4 } else { 1 << 16 };
                    let from = home(STRANGERS + number % width);
                    let (way, stranger) = (Arc::clone(&way), Arc::clone(&stranger));
                    pending.spawn(timeout(PATIENCE, async move {
                        match attack {
                            Attack::Garbage => garbage(&way, from).await,
                            Attack::UnknownKey => {
                                let tcp = way.tcp(from).await?;
                                let mut stream = tls::connect(&stranger, tcp, PATIENCE).await?;
                                stream.read_to_end(&mut Vec::new()).await?;
                                Ok(())
                            }
                        }
                    }));
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                // How an attempt ended is in the relay's metrics.
                while pending.try_join_next().is_some() {}
                while pending.len() > AT_ONCE {
                    pending.join_next().await;
                }
            }
        });
        Self { attempts, task: task.abort_handle() }
    }

    /// Attempts until now.
    #[must_use]
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn garbage(way: &Way, from: Ipv6Addr) -> Result<()> {
    let mut tcp = way.tcp(from).await?;
    tcp.write_all(&[0xa5; 512]).await?;
    tcp.read_to_end(&mut Vec::new()).await?;
    Ok(())
}
