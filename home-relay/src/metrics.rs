//! What the relay counts, for Prometheus: prefix `homerelay_`, base units, never a label per client.

pub(crate) mod declared;

use std::sync::{Mutex, PoisonError};

use mobile_io::metrics::Metric;
use prometheus::{IntCounter, IntCounterVec, IntGauge, Registry};

/// Why a packet was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drop {
    /// No IP packet, or its lengths contradict each other.
    Malformed,
    /// From a client, with a source address that is not the client's.
    Source,
    /// From a client, to another client.
    Isolation,
    /// From a client, to an address no router forwards to.
    Destination,
    /// To an address of ours whose client has no session.
    NoSession,
    /// To a client that takes packets more slowly than they come.
    QueueFull,
    /// The device did not take it.
    Device,
    /// From a client: a packet that would be cut into more segments than a client may cause.
    Segments,
    /// From a client to a destination outside `[clients] reach`.
    Reach,
    /// From a client that already has its maximum of tracked connections and begins another.
    Connections,
    /// From a client that begins connections faster than its limit.
    ConnectionRate,
    /// To or from a client: the packet belongs to no known connection and begins none.
    Invalid,
    /// To a client that did not ask for the packet.
    Unsolicited,
    /// Between other devices of a host that did not forward before the relay turned forwarding on.
    Transit,
}

impl Drop {
    const ALL: [Self; 14] = [
        Self::Malformed,
        Self::Source,
        Self::Isolation,
        Self::Destination,
        Self::NoSession,
        Self::QueueFull,
        Self::Device,
        Self::Segments,
        Self::Reach,
        Self::Connections,
        Self::ConnectionRate,
        Self::Invalid,
        Self::Unsolicited,
        Self::Transit,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Source => "source",
            Self::Isolation => "isolation",
            Self::Destination => "destination",
            Self::NoSession => "no_session",
            Self::QueueFull => "queue_full",
            Self::Device => "device",
            Self::Segments => "segments",
            Self::Reach => "reach",
            Self::Connections => "connections",
            Self::ConnectionRate => "connection_rate",
            Self::Invalid => "invalid",
            Self::Unsolicited => "unsolicited",
            Self::Transit => "transit",
        }
    }
}

/// How a connection's handshake ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Handshake {
    /// A path of a new session.
    Opened,
    /// A path of a session that was there.
    Resumed,
    /// The client's key is not (or no longer) authorised.
    Unauthorized,
    /// TLS failed otherwise.
    Tls,
    /// The client sent more bytes than a handshake takes.
    Oversized,
    /// Not a HELLO of ours.
    Hello,
    /// Too slow.
    Timeout,
    /// Closed at once: too many handshakes under way.
    Busy,
    /// Closed at once: too many of this source under way.
    SourceBusy,
    /// Closed at once: too many of this source lately.
    SourceRate,
    /// Closed at once: too many of all unknown sources lately.
    Rate,
    /// No path, but an attempt to enrol; [`Enrolment`] says what came of it.
    Enrolment,
}

impl Handshake {
    pub(crate) const ALL: [Self; 12] = [
        Self::Opened,
        Self::Resumed,
        Self::Unauthorized,
        Self::Tls,
        Self::Oversized,
        Self::Hello,
        Self::Timeout,
        Self::Busy,
        Self::SourceBusy,
        Self::SourceRate,
        Self::Rate,
        Self::Enrolment,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Opened => "opened",
            Self::Resumed => "resumed",
            Self::Unauthorized => "unauthorized",
            Self::Tls => "tls",
            Self::Oversized => "oversized",
            Self::Hello => "hello",
            Self::Timeout => "timeout",
            Self::Busy => "busy",
            Self::SourceBusy => "source_busy",
            Self::SourceRate => "source_rate",
            Self::Rate => "rate",
            Self::Enrolment => "enrolment",
        }
    }
}

/// What came of an attempt to enrol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enrolment {
    /// The key is a client now.
    Enrolled,
    /// No invitation has the token.
    Unknown,
    /// The invitation's time was over.
    Expired,
    /// The token had been redeemed, by another key.
    Used,
    /// The key was a client under another name.
    KeyTaken,
    /// No address was left.
    NoAddress,
    /// The store failed.
    Failed,
    /// Not a question of ours, or none.
    Malformed,
    /// Closed at once: too many attempts under way.
    Busy,
}

impl Enrolment {
    pub(crate) const ALL: [Self; 9] = [
        Self::Enrolled,
        Self::Unknown,
        Self::Expired,
        Self::Used,
        Self::KeyTaken,
        Self::NoAddress,
        Self::Failed,
        Self::Malformed,
        Self::Busy,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::Unknown => "unknown",
            Self::Expired => "expired",
            Self::Used => "used",
            Self::KeyTaken => "key_taken",
            Self::NoAddress => "no_address",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::Busy => "busy",
        }
    }
}

/// Packets and bytes of one direction.
#[derive(Debug, Clone)]
pub(crate) struct Traffic {
    packets: IntCounter,
    bytes: IntCounter,
}

impl Traffic {
    /// Counts packets and their bytes.
    pub(crate) fn count(&self, packets: u64, bytes: u64) {
        self.packets.inc_by(packets);
        self.bytes.inc_by(bytes);
    }
}

/// Bytes of packets that travel compressed, in one direction.
#[derive(Debug, Clone)]
pub(crate) struct Compressed {
    plain: IntCounter,
    compressed: IntCounter,
}

impl Compressed {
    /// Counts bytes, and what they have become.
    pub(crate) fn count(&self, plain: u64, compressed: u64) {
        self.plain.inc_by(plain);
        self.compressed.inc_by(compressed);
    }
}

/// Every metric of the relay.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    drops: [IntCounter; Drop::ALL.len()],
    handshakes: [IntCounter; Handshake::ALL.len()],
    enrolments: [IntCounter; Enrolment::ALL.len()],
    source_violations: IntCounter,
    /// Times a client or an invitation got no address because none was left.
    pub(crate) pool_exhausted: IntCounter,
    /// Authorised clients.
    pub(crate) clients: IntGauge,
    /// Sessions, with or without a path.
    pub(crate) sessions: IntGauge,
    /// Connections of clients.
    pub(crate) paths: IntGauge,
    /// Connections in their handshake.
    pub(crate) half_open: IntGauge,
    /// Client to world.
    pub(crate) from_clients: Traffic,
    /// World to client.
    pub(crate) to_clients: Traffic,
    /// Client to world.
    pub(crate) compressed_from_clients: Compressed,
    /// World to client.
    pub(crate) compressed_to_clients: Compressed,
    /// Active path changes.
    pub(crate) handovers: IntCounter,
    /// Records sent again after a handover.
    pub(crate) replayed: IntCounter,
    /// Records clients sent again that had arrived.
    pub(crate) duplicates: IntCounter,
    /// Records given up by either side's bounds.
    pub(crate) lost: IntCounter,
    /// Configurations read anew, and those refused.
    pub(crate) reloads: IntCounter,
    /// The same.
    pub(crate) reloads_refused: IntCounter,
    /// Parts of the kernel's state that were put back.
    pub(crate) restored: IntCounter,
    /// Why clients' packets do not go through now, if they do not.
    broken: Mutex<Option<String>>,
    /// Packets dropped by sessions, over their bounds of bytes and age, or held already.
    pub(crate) session_drops: IntCounter,
}

impl Metrics {
    /// Makes and registers them all.
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
            drops: Drop::ALL.map(|reason| drops.with_label_values(&[reason.label()])),
            handshakes: Handshake::ALL.map(|result| handshakes.with_label_values(&[result.label()])),
            enrolments: Enrolment::ALL.map(|result| enrolments.with_label_values(&[result.label()])),
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

    /// Packets were not forwarded.
    pub(crate) fn dropped(&self, reason: Drop, packets: u64) {
        self.drops[reason as usize].inc_by(packets);
        if reason == Drop::Source {
            self.source_violations.inc_by(packets);
        }
    }

    /// A handshake ended.
    pub(crate) fn handshake(&self, result: Handshake) {
        self.handshakes[result as usize].inc();
    }

    /// An attempt to enrol ended.
    pub(crate) fn enrolment(&self, result: Enrolment) {
        self.enrolments[result as usize].inc();
    }

    /// How often an attempt to enrol ended so.
    #[cfg(test)]
    pub(crate) fn enrolments(&self, result: Enrolment) -> u64 {
        self.enrolments[result as usize].get()
    }

    /// From now on something is in the way of clients' packets, or nothing any more. Gives what was before.
    pub(crate) fn set_broken(&self, why: Option<String>) -> Option<String> {
        std::mem::replace(&mut *self.broken.lock().unwrap_or_else(PoisonError::into_inner), why)
    }

    /// Whether something is in the way, and what.
    pub(crate) fn healthy(&self) -> Result<(), String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }

    /// The text Prometheus reads.
    pub(crate) fn text(&self) -> String {
        mobile_io::metrics::encode(&self.registry)
    }

    /// How often a reason was counted.
    #[cfg(test)]
    pub(crate) fn drops(&self, reason: Drop) -> u64 {
        self.drops[reason as usize].get()
    }

    /// How often a handshake ended so.
    #[cfg(test)]
    pub(crate) fn handshakes(&self, result: Handshake) -> u64 {
        self.handshakes[result as usize].get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_and_result_is_counted_under_its_own_label() {
        let metrics = Metrics::new().unwrap();
        for (index, reason) in Drop::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, index);
            (0..=index).for_each(|_| metrics.dropped(reason, 1));
        }
        for (index, result) in Handshake::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
            (0..=index).for_each(|_| metrics.handshake(result));
        }
        for (index, result) in Enrolment::ALL.into_iter().enumerate() {
            assert_eq!(result as usize, index);
            (0..=index).for_each(|_| metrics.enrolment(result));
        }
        let text = metrics.text();
        for (index, result) in Enrolment::ALL.into_iter().enumerate() {
            let line = format!("homerelay_enrolments_total{{result=\"{}\"}} {}", result.label(), index + 1);
            assert!(text.contains(&line), "{line} in {text}");
        }
        for (index, reason) in Drop::ALL.into_iter().enumerate() {
            let line = format!("homerelay_drops_total{{reason=\"{}\"}} {}", reason.label(), index + 1);
            assert!(text.contains(&line), "{line} in {text}");
        }
        for (index, result) in Handshake::ALL.into_iter().enumerate() {
            let line = format!("homerelay_handshakes_total{{result=\"{}\"}} {}", result.label(), index + 1);
            assert!(text.contains(&line), "{line} in {text}");
        }
        assert!(text.contains("homerelay_source_violations_total 2"), "{text}");
        assert!(text.contains("homerelay_build_info{version="), "{text}");
    }
}
