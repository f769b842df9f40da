//! A flood of unauthorised connection attempts at the relay's port.

use std::net::Ipv6Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use mobile_transport::keys::PrivateKey;
use mobile_transport::tls;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{RelayTarget, client_address};

/// The kind of connection attempt that a flood makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attack {
    /// An attempt that sends 512 bytes that are not TLS.
    Garbage,
    /// An attempt with a complete TLS handshake and a key that the relay does not know.
    UnknownKey,
}

/// The range of source addresses that a flood uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// One address in each of four IPv6 /64 prefixes, in turn.
    Few,
    /// One address in each of 65,536 IPv6 /64 prefixes, in turn.
    Many,
}

/// The first client number whose address a flood uses; authorised clients have lower numbers.
const STRANGERS: u32 = 1 << 21;
/// The interval at which a flood starts its attempts in batches, since tokio's timers have a
/// resolution of 1 ms.
const TICK: Duration = Duration::from_millis(10);
/// The timeout of one connection attempt of a flood.
const PATIENCE: Duration = Duration::from_secs(2);
/// The greatest number of attempts in progress. A relay that cannot keep up must not exhaust the
/// test process's sockets.
const AT_ONCE: usize = 4000;

/// A flood that runs in the background and stops when dropped.
#[derive(Debug)]
pub struct Flood {
    attempts: Arc<AtomicU64>,
    task: AbortHandle,
}

impl Flood {
    pub(super) fn start(
        runtime: &Runtime,
        relay: Arc<RelayTarget>,
        attack: Attack,
        sources: Sources,
        rate: u32,
    ) -> Self {
        let attempts = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&attempts);
        let task = runtime.spawn(async move {
            let mut ticks = interval(TICK);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
            let stranger = tls::client_config(&PrivateKey::from_seed([0xee; 32]), relay.key);
            let (mut pending, mut number) = (JoinSet::new(), 0);
            loop {
                ticks.tick().await;
                for _ in 0..rate / 100 {
                    number += 1;
                    let width = if sources == Sources::Few { 4 } else { 1 << 16 };
                    let from = client_address(STRANGERS + number % width);
                    let (relay, stranger) = (Arc::clone(&relay), Arc::clone(&stranger));
                    pending.spawn(timeout(PATIENCE, async move {
                        match attack {
                            Attack::Garbage => garbage(&relay, from).await,
                            Attack::UnknownKey => {
                                let tcp = relay.tcp(from).await?;
                                let mut stream = tls::connect(&stranger, tcp, PATIENCE).await?;
                                stream.read_to_end(&mut Vec::new()).await?;
                                Ok(())
                            }
                        }
                    }));
                    counted.fetch_add(1, Ordering::Relaxed);
                }
                // The outcome of an attempt is counted by the relay's metrics.
                while pending.try_join_next().is_some() {}
                while pending.len() > AT_ONCE {
                    pending.join_next().await;
                }
            }
        });
        Self { attempts, task: task.abort_handle() }
    }

    /// Returns the number of connection attempts started so far.
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

async fn garbage(relay: &RelayTarget, from: Ipv6Addr) -> Result<()> {
    let mut tcp = relay.tcp(from).await?;
    tcp.write_all(&[0xa5; 512]).await?;
    tcp.read_to_end(&mut Vec::new()).await?;
    Ok(())
}
