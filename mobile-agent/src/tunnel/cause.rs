//! The causes of handovers, and the failures of connection attempts.

use std::net::SocketAddr;

use mobile_proto::CloseCode;
use mobile_transport::keys::{PublicKey, RelayKeys};
use mobile_transport::tls;

use crate::status::Problem;

/// The reason for a handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HandoverCause {
    /// The link lost its carrier.
    CarrierLost,
    /// The link was set down administratively.
    LinkDown,
    /// The link disappeared or was excluded.
    LinkGone,
    /// The local address of the path was removed.
    AddressLost,
    /// The link lost its route to the relay.
    RouteLost,
    /// The relay did not answer on the path in time.
    Silent,
    /// The TCP or TLS connection of the path failed.
    TransportFailed,
    /// The relay closed the path.
    RelayClosed,
    /// The policy prefers another uplink; the new path was open before the old one closed.
    BetterUplink,
    /// `mobile use` named another uplink; the new path was open before the old one closed.
    Forced,
    /// A reload changed the relay's endpoint or key; the new path was open before the old one
    /// closed.
    Reloaded,
}

impl HandoverCause {
    /// Every cause, for metrics.
    pub(crate) const ALL: [Self; 11] = [
        Self::CarrierLost,
        Self::LinkDown,
        Self::LinkGone,
        Self::AddressLost,
        Self::RouteLost,
        Self::Silent,
        Self::TransportFailed,
        Self::RelayClosed,
        Self::BetterUplink,
        Self::Forced,
        Self::Reloaded,
    ];

    /// Returns the name of the cause in JSON, metrics and logs.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::CarrierLost => "carrier_lost",
            Self::LinkDown => "link_down",
            Self::LinkGone => "link_gone",
            Self::AddressLost => "address_lost",
            Self::RouteLost => "route_lost",
            Self::Silent => "silent",
            Self::TransportFailed => "transport_failed",
            Self::RelayClosed => "relay_closed",
            Self::BetterUplink => "better_uplink",
            Self::Forced => "forced",
            Self::Reloaded => "reloaded",
        }
    }
}

/// The party at fault for a failed connection attempt, which decides what is tried next and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The uplink, which then ranks behind the others for a while.
    Uplink,
    /// The relay; any uplink may work once the relay is back.
    Relay,
    /// A refused key; a person has to act, so retries are slow.
    Identity,
}

/// A failed connection attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// The party at fault.
    pub(crate) fault: Fault,
    /// The label of the failure in metrics.
    pub(crate) kind: &'static str,
    /// The cause and the next step, for a person.
    pub(crate) problem: Problem,
}

/// Every value of [`Failure::kind`].
pub(crate) const FAILURE_KINDS: [&str; 8] = [
    "resolve",
    "unreachable",
    "timeout",
    "unauthorised",
    "revoked",
    "wrong_relay_key",
    "protocol",
    "relay_closed",
];

impl Failure {
    fn new(fault: Fault, kind: &'static str, cause: String, next_step: impl Into<String>) -> Self {
        Self { fault, kind, problem: Problem { cause, next_step: next_step.into() } }
    }

    /// Returns the failure for a relay name that could not be resolved to an address.
    pub(crate) fn resolve(endpoint: &str, error: &str) -> Self {
        Self::new(
            Fault::Uplink,
            "resolve",
            format!("cannot resolve the relay's name in {endpoint}: {error}"),
            "check [relay] endpoint and the resolver of this host",
        )
    }

    /// Returns the failure for a TCP connection that was not established.
    pub(crate) fn unreachable(error: &str) -> Self {
        Self::not_connected(Fault::Uplink, error)
    }

    /// Returns the failure for a TCP connection that the host answered with a reset.
    pub(crate) fn connection_refused(error: &str) -> Self {
        Self::not_connected(Fault::Relay, error)
    }

    fn not_connected(fault: Fault, error: &str) -> Self {
        let next = "check that home-relay runs there and that the network allows the port";
        Self::new(fault, "unreachable", error.to_owned(), next)
    }

    /// Returns the failure for an attempt that timed out at `stage`.
    pub(crate) fn timeout(stage: &str) -> Self {
        Self::new(
            Fault::Uplink,
            "timeout",
            format!("no answer from the relay in time ({stage})"),
            "check that the network allows the relay's port",
        )
    }

    /// Returns the failure for a TLS handshake with the host at `address`, whose key is not proved
    /// before the end of the handshake.
    pub(crate) fn handshake(address: SocketAddr, cause: &tls::HandshakeFailure, own_key: &PublicKey) -> Self {
        let mut failure = Self::tls(cause, own_key);
        if let Some(what) = cause.violation() {
            failure.problem.cause = format!("another service answers at {address}, not a relay: {what}");
        }
        failure
    }

    /// Returns the failure for an error of TLS or of the protocol inside it.
    pub(crate) fn tls(cause: &tls::HandshakeFailure, own_key: &PublicKey) -> Self {
        match cause {
            tls::HandshakeFailure::Refused => Self::new(
                Fault::Identity,
                "unauthorised",
                format!(
                    "the relay does not accept this host's key {own_key}: it is not authorised \
                    there, or was revoked"
                ),
                format!("on the relay: home-relay authorize NAME {own_key}"),
            ),
            tls::HandshakeFailure::WrongRelayKey { expected, offered } => Self::new(
                Fault::Identity,
                "wrong_relay_key",
                format!("the relay presented the key {offered}, but [relay] public_key is {expected}"),
                "compare with the key that `home-relay key` prints: if the relay's key was changed, correct \
                 [relay] public_key; if not, another host answers in the relay's place",
            ),
            tls::HandshakeFailure::Protocol(_) | tls::HandshakeFailure::Oversized => Self::new(
                Fault::Uplink,
                "protocol",
                format!(
                    "the host at the relay's endpoint does not speak the relay's protocol: {}",
                    cause.violation().unwrap_or_default()
                ),
                "check the port of [relay] endpoint, the versions of both ends, and whether a captive portal \
                 or proxy is in between",
            ),
            tls::HandshakeFailure::Network(text) => {
                Self::unreachable(&format!("the connection to the relay failed: {text}"))
            }
        }
    }

    /// Returns the failure for a relay that presented another key than the announced one, which has
    /// taken the place of the configured one.
    pub(crate) fn wrong_announced_key(expected: &RelayKeys, offered: &PublicKey) -> Self {
        Self::new(
            Fault::Identity,
            "wrong_relay_key",
            format!(
                "the relay presented the key {offered}, but it had announced {expected} in place of [relay] \
                 public_key"
            ),
            "compare with `home-relay key`: if the relay was set up anew, remove relay.json in [state] dir, correct \
             [relay] public_key and restart the agent; if not, another host answers in the relay's place",
        )
    }

    /// Returns the failure for a path that the relay closed.
    pub(crate) fn closed(code: CloseCode, own_key: &PublicKey) -> Self {
        match code {
            CloseCode::Revoked => Self::new(
                Fault::Identity,
                "revoked",
                format!("the relay has revoked this host's key {own_key}"),
                format!("on the relay: home-relay authorize NAME {own_key}"),
            ),
            CloseCode::NoAddress => Self::new(
                Fault::Identity,
                "relay_closed",
                "the relay has no address left for this host".into(),
                "on the relay: enlarge [pool], or revoke clients that are not used",
            ),
            code => Self::new(
                Fault::Relay,
                "relay_closed",
                format!("the relay closed the path: {code}"),
                "none: the agent reconnects by itself",
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use mobile_transport::tls::HandshakeFailure;

    use super::*;

    #[test]
    fn another_service_at_the_endpoint_is_named_with_its_address() {
        let (address, key) = ("192.0.2.1:443".parse().unwrap(), PublicKey::from_bytes([7; 32]));
        let violation = HandshakeFailure::Protocol("received corrupt message".into());
        let Failure { kind, problem, .. } = Failure::handshake(address, &violation, &key);
        let cause = "another service answers at 192.0.2.1:443, not a relay: received corrupt message";
        assert_eq!((kind, problem.cause.as_str()), ("protocol", cause));
        assert!(problem.next_step.starts_with("check the port of [relay] endpoint"), "{problem:?}");
        let refused = Failure::handshake(address, &HandshakeFailure::Refused, &key);
        assert_eq!(refused, Failure::tls(&HandshakeFailure::Refused, &key));
    }
}
