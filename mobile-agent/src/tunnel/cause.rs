//! Why a path was left, and why one could not be made.

use mobile_io::keys::PublicKey;
use mobile_io::tls;
use mobile_proto::CloseCode;

use crate::status::Problem;

/// Why a handover happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// The link lost its carrier.
    CarrierLost,
    /// The link was set down.
    LinkDown,
    /// The link is gone, or excluded.
    LinkGone,
    /// The address the path was bound to is gone.
    AddressLost,
    /// The link has no route to the relay any more.
    RouteLost,
    /// Nothing was heard although something is unanswered.
    Silent,
    /// TCP or TLS failed.
    TransportFailed,
    /// The relay closed the path.
    RelayClosed,
    /// Make before break: the policy prefers another uplink.
    BetterUplink,
    /// Make before break: `mobile use`.
    Forced,
}

impl Cause {
    /// All, for metrics.
    pub(crate) const ALL: [Self; 10] = [
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
    ];

    /// The word for JSON, metrics and logs.
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
        }
    }
}

/// Whose fault a failed attempt is: it decides what is tried next, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The uplink's: others come first for a while.
    Uplink,
    /// The relay's: any uplink may do as soon as it is back.
    Relay,
    /// A key is not accepted: only a person can help, so there is no hurry.
    Identity,
}

/// Why an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Whose fault.
    pub(crate) fault: Fault,
    /// The word for metrics.
    pub(crate) kind: &'static str,
    /// What is the matter, and what to do.
    pub(crate) problem: Problem,
}

/// Every `kind` of a failure.
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

    /// The relay's name has no address.
    pub(crate) fn resolve(endpoint: &str, error: &str) -> Self {
        Self::new(
            Fault::Uplink,
            "resolve",
            format!("the relay's name in {endpoint} cannot be resolved: {error}"),
            "check [relay] endpoint and the resolver of this host",
        )
    }

    /// TCP did not connect; `refused`: somebody said so.
    pub(crate) fn unreachable(error: &str, refused: bool) -> Self {
        let fault = if refused { Fault::Relay } else { Fault::Uplink };
        let next = "check that home-relay serves there and that the network lets the port through";
        Self::new(fault, "unreachable", error.to_owned(), next)
    }

    /// The attempt took too long.
    pub(crate) fn timeout(stage: &str) -> Self {
        Self::new(
            Fault::Uplink,
            "timeout",
            format!("no answer from the relay in time ({stage})"),
            "check that the network lets the relay's port through",
        )
    }

    /// TLS, or anything after it, failed.
    pub(crate) fn tls(cause: &tls::HandshakeFailure, own_key: &PublicKey) -> Self {
        match cause {
            tls::HandshakeFailure::Refused => Self::new(
                Fault::Identity,
                "unauthorised",
                format!(
                    "the relay does not accept this host's key {own_key}: it is not authorised there, or was revoked"
                ),
                format!("on the relay: home-relay authorize NAME {own_key}"),
            ),
            tls::HandshakeFailure::WrongRelayKey { expected, offered } => Self::new(
                Fault::Identity,
                "wrong_relay_key",
                format!("the relay shows the key {offered}, but [relay] public_key is {expected}"),
                "compare with the key that `home-relay init` printed: if the relay's key was changed, correct \
                 [relay] public_key; if not, somebody else answers in its place",
            ),
            tls::HandshakeFailure::Protocol(_) | tls::HandshakeFailure::Oversized => Self::new(
                Fault::Uplink,
                "protocol",
                format!("what answers at the relay's endpoint is no relay: {cause}"),
                "check the port in [relay] endpoint, the versions of both ends, and whether a captive portal \
                 or proxy stands in between",
            ),
            tls::HandshakeFailure::Network(text) => {
                Self::unreachable(&format!("the connection to the relay failed: {text}"), false)
            }
        }
    }

    /// The relay closed the path with this code.
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
                "none: the agent connects again",
            ),
        }
    }
}
