//! The Prometheus metrics of the relay: prefix `homerelay_`, base units, and never a label per
//! client.
//!
//! `declared` has the name, labels and help of every metric. [`Metrics`] holds the counters and
//! gauges that the rest of the relay updates.

pub(crate) mod declared;
mod results;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use mobile_host::metrics::Metric;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

pub(crate) use self::results::{DropReason, EnrolmentResult, HandshakeResult};

/// The packet and byte counters of one direction.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    packets: IntCounter,
    bytes: IntCounter,
}

impl Traffic {
    /// Returns the packets and their bytes.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.packets.get(), self.bytes.get())
    }

    /// Counts packets and their bytes.
    pub(crate) fn count(&self, packets: u64, bytes: u64) {
        self.packets.inc_by(packets);
        self.bytes.inc_by(bytes);
    }
}

/// The byte counters of compressed packets in one direction.
#[derive(Debug, Clone)]
pub(crate) struct Compressed {
    plain: IntCounter,
    compressed: IntCounter,
}

impl Compressed {
    /// Counts bytes before and after compression.
    pub(crate) fn count(&self, plain: u64, compressed: u64) {
        self.plain.inc_by(plain);
        self.compressed.inc_by(compressed);
    }
}

/// The reason why the relay cannot forward clients' packets.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Fault(String);

// Larger than the bound: a flat table of independent counters and gauges.
/// All metrics of the relay.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    drops: [IntCounter; DropReason::ALL.len()],
    handshakes: [IntCounter; HandshakeResult::ALL.len()],
    enrolments: [IntCounter; EnrolmentResult::ALL.len()],
    source_violations: IntCounter,
    /// Requests for a persistent address that failed because the pool was exhausted.
    pub(crate) pool_exhausted: IntCounter,
    /// The number of authorised clients.
    pub(crate) clients: IntGauge,
    /// The number of sessions, with or without a path.
    pub(crate) sessions: IntGauge,
    /// The number of open paths of all sessions.
    pub(crate) paths: IntGauge,
    /// The number of connections in their handshake.
    pub(crate) half_open: IntGauge,
    /// Packets from clients to the Internet.
    pub(crate) from_clients: Traffic,
    /// Packets from the Internet to clients.
    pub(crate) to_clients: Traffic,
    /// Compressed packets from clients.
    pub(crate) compressed_from_clients: Compressed,
    /// Compressed packets to clients.
    pub(crate) compressed_to_clients: Compressed,
    /// Changes of a session's active path.
    pub(crate) handovers: IntCounter,
    /// Records retransmitted to clients after a handover.
    pub(crate) replayed: IntCounter,
    /// Records that clients retransmitted although they had arrived.
    pub(crate) duplicates: IntCounter,
    /// Records that will never be delivered, because an outage exceeded the largest size or age of
    /// what either end keeps.
    pub(crate) lost: IntCounter,
    /// Successful reloads of the configuration.
    pub(crate) reloads: IntCounter,
    /// Failed reloads of the configuration, after which the old one stayed in force.
    pub(crate) reloads_refused: IntCounter,
    /// Parts of the kernel's network state that the relay restored after another program changed
    /// them.
    pub(crate) restored: IntCounter,
    /// The reason why the relay cannot forward clients' packets; `None` if it can.
    broken: Mutex<Option<String>>,
    /// Packets that sessions dropped: beyond their bounds of bytes or age, of flows that send
    /// faster than the path, with data that is queued already, or of an invalid length.
    pub(crate) session_drops: IntCounter,
}

impl Metrics {
    /// Creates and registers all metrics.
    pub(crate) fn new() -> prometheus::Result<Self> {
        let registry = Registry::new();
        let counters = |metric: Metric| -> prometheus::Result<IntCounterVec> {
            let counters = metric.counters()?;
            registry.register(Box::new(counters.clone()))?;
            Ok(counters)
        };
        let counter = |metric| counters(metric).map(|counters| counters.with_label_values::<&str>(&[]));
        let gauge = |metric: Metric, labels: &[&str]| -> prometheus::Result<IntGauge> {
            let gauges = metric.int_gauges()?;
            registry.register(Box::new(gauges.clone()))?;
            Ok(gauges.with_label_values(labels))
        };

        gauge(declared::BUILD_INFO, &[env!("CARGO_PKG_VERSION")])?.set(1);
        let (packets, bytes) = (counters(declared::PACKETS)?, counters(declared::BYTES)?);
        let traffic = |direction: &str| Traffic {
            packets: packets.with_label_values(&[direction]),
            bytes: bytes.with_label_values(&[direction]),
        };
        let plain = counters(declared::COMPRESSIBLE_BYTES)?;
        let made = counters(declared::COMPRESSED_BYTES)?;
        let compressed = |direction: &str| Compressed {
            plain: plain.with_label_values(&[direction]),
            compressed: made.with_label_values(&[direction]),
        };
        let drops = counters(declared::DROPS)?;
        let handshakes = counters(declared::HANDSHAKES)?;
        let reloads = counters(declared::RELOADS)?;
        let enrolments = counters(declared::ENROLMENTS)?;
        Ok(Self {
            reloads: reloads.with_label_values(&["done"]),
            reloads_refused: reloads.with_label_values(&["refused"]),
            session_drops: drops.with_label_values(&["session_bounds"]),
            drops: DropReason::ALL.map(|reason| drops.with_label_values(&[reason.label()])),
            handshakes: HandshakeResult::ALL.map(|result| handshakes.with_label_values(&[result.label()])),
            enrolments: EnrolmentResult::ALL.map(|result| enrolments.with_label_values(&[result.label()])),
            restored: counter(declared::NETWORK_RESTORED)?,
            broken: Mutex::default(),
            pool_exhausted: counter(declared::POOL_EXHAUSTED)?,
            source_violations: counter(declared::SOURCE_VIOLATIONS)?,
            clients: gauge(declared::CLIENTS, &[])?,
            sessions: gauge(declared::SESSIONS, &[])?,
            paths: gauge(declared::PATHS, &[])?,
            half_open: gauge(declared::HALF_OPEN, &[])?,
            from_clients: traffic("from_clients"),
            to_clients: traffic("to_clients"),
            compressed_from_clients: compressed("from_clients"),
            compressed_to_clients: compressed("to_clients"),
            handovers: counter(declared::HANDOVERS)?,
            replayed: counter(declared::REPLAYED_RECORDS)?,
            duplicates: counter(declared::DUPLICATE_RECORDS)?,
            lost: counter(declared::LOST_RECORDS)?,
            registry,
        })
    }

    /// Counts packets that were not forwarded.
    pub(crate) fn dropped(&self, reason: DropReason, packets: u64) {
        self.drops[reason as usize].inc_by(packets);
        if reason == DropReason::Source {
            self.source_violations.inc_by(packets);
        }
    }

    /// Returns how many packets were dropped, by reason.
    pub(crate) fn drops_by_reason(&self) -> BTreeMap<String, u64> {
        let drops = DropReason::ALL.map(|reason| (reason.label(), self.drops[reason as usize].get()));
        let session = [("session_bounds", self.session_drops.get())];
        drops.into_iter().chain(session).map(|(reason, packets)| (reason.to_owned(), packets)).collect()
    }

    /// Counts a handshake that ended with `result`.
    pub(crate) fn handshake(&self, result: HandshakeResult) {
        self.handshakes[result as usize].inc();
    }

    /// Counts an enrolment that ended with `result`.
    pub(crate) fn enrolment(&self, result: EnrolmentResult) {
        self.enrolments[result as usize].inc();
    }

    /// Returns how many enrolments ended with this result.
    #[cfg(test)]
    pub(crate) fn enrolments(&self, result: EnrolmentResult) -> u64 {
        self.enrolments[result as usize].get()
    }

    /// Sets the reason why the relay cannot forward clients' packets, or `None` if it can; returns
    /// the previous value.
    pub(crate) fn set_fault(&self, why: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.broken.lock().unwrap_or_else(PoisonError::into_inner), why)
    }

    /// Returns an error with the reason if the relay cannot forward clients' packets, for
    /// `/healthz`.
    pub(crate) fn health(&self) -> Result<(), Fault> {
        let broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone();
        broken.map_or(Ok(()), |why| Err(Fault(why)))
    }

    /// Returns all metrics in Prometheus' text format.
    pub(crate) fn text(&self) -> String {
        mobile_host::metrics::encode(&self.registry)
    }

    /// Returns how many packets were dropped for this reason.
    #[cfg(test)]
    pub(crate) fn drops(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// Returns how many handshakes ended with this result.
    #[cfg(test)]
    pub(crate) fn handshakes(&self, result: HandshakeResult) -> u64 {
        self.handshakes[result as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_result_is_counted_under_its_own_label() {
        let metrics = Metrics::new().unwrap();
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            (0..=index).for_each(|_| metrics.dropped(reason, 1));
        }
        for (index, result) in HandshakeResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
            (0..=index).for_each(|_| metrics.handshake(result));
        }
        for (index, result) in EnrolmentResult::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
            (0..=index).for_each(|_| metrics.enrolment(result));
        }
        let text = metrics.text();
        for (index, result) in EnrolmentResult::ALL.into_iter().enumerate() {
            let line = format!("homerelay_enrolments_total{{result=\"{}\"}} {}", result.label(), index + 1);
            assert!(text.contains(&line), "{line} in {text}");
        }
        for (index, reason) in DropReason::ALL.into_iter().enumerate() {
            let line = format!("homerelay_drops_total{{reason=\"{}\"}} {}", reason.label(), index + 1);
            assert!(text.contains(&line), "{line} in {text}");
        }
        for (index, result) in HandshakeResult::ALL.into_iter().enumerate() {
            let line = format!("homerelay_handshakes_total{{result=\"{}\"}} {}", result.label(), index + 1);
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(text.contains("homerelay_source_violations_total 2"), "{text}");
        assert!(text.contains("homerelay_build_info{version="), "{text}");
    }
}
