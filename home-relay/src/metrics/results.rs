//! The reasons and results that the metrics count, each with its label.

/// The reason why a packet was not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The packet is no IP packet, or its length fields contradict each other.
    Malformed,
    /// A client sent the packet with a source address that it does not hold.
    Source,
    /// A client sent the packet to another client while clients are isolated.
    Isolation,
    /// A client sent the packet to an address that no router forwards to.
    Destination,
    /// The destination is a persistent address whose client has no session.
    NoSession,
    /// The client receives packets more slowly than they arrive for it, and its queue is full.
    QueueFull,
    /// The home virtual device did not accept the packet.
    Device,
    /// A client sent a packet with segmentation offload that the kernel would split into more
    /// segments than allowed.
    Segments,
    /// A client sent the packet to a destination outside its reach.
    Reach,
    /// The packet begins a connection of a client that has its maximum of tracked connections.
    Connections,
    /// The packet begins a connection of a client that exceeds its rate of new connections.
    ConnectionRate,
    /// The packet, to or from a client, belongs to no tracked connection and begins none.
    Invalid,
    /// The packet is for a client, but belongs to no connection that the client began, and neither
    /// `[clients] inbound` nor a port forward admits it.
    Unsolicited,
    /// The packet was in transit between devices other than the relay's, which `[nat] transit`
    /// forbids.
    Transit,
}

impl DropReason {
    pub(super) const ALL: [Self; 14] = [
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

    pub(super) fn label(self) -> &'static str {
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

/// The result of a connection's handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HandshakeResult {
    /// The connection became the first path of a new session.
    Opened,
    /// The connection became a path of an existing session.
    Resumed,
    /// The client's key is not, or no longer, authorised.
    Unauthorized,
    /// The TLS handshake failed for a reason other than those of `Unauthorized` and `Oversized`.
    Tls,
    /// The client sent more bytes than a handshake takes.
    Oversized,
    /// The client sent something other than a valid HELLO.
    Hello,
    /// The handshake exceeded its time limit.
    Timeout,
    /// Closed before TLS: too many half-open connections.
    Busy,
    /// Closed before TLS: too many half-open connections of this source.
    SourceBusy,
    /// Closed before TLS: this source exceeds its rate of handshakes.
    SourceRate,
    /// Closed before TLS: the sources from which no client was authenticated within a day together
    /// exceed their rate of handshakes.
    Rate,
    /// The connection was an enrolment, with a result of its own in [`EnrolmentResult`].
    Enrolment,
}

impl HandshakeResult {
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

    pub(super) fn label(self) -> &'static str {
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

/// The result of an enrolment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EnrolmentResult {
    /// The key became a client's, now or by an earlier request with the same token.
    Enrolled,
    /// A client's key is about to be replaced by another one.
    KeyChanged,
    /// The key to be replaced is no client's.
    NotAClient,
    /// No invitation has the token.
    Unknown,
    /// The invitation has expired.
    Expired,
    /// Another key has redeemed the token.
    Used,
    /// The key is already a client under another name.
    KeyTaken,
    /// No address was left in the pool.
    NoAddress,
    /// The store failed.
    Failed,
    /// The request was malformed or missing.
    Malformed,
    /// Closed at once: too many concurrent enrolments.
    Busy,
}

impl EnrolmentResult {
    pub(crate) const ALL: [Self; 11] = [
        Self::Enrolled,
        Self::KeyChanged,
        Self::NotAClient,
        Self::Unknown,
        Self::Expired,
        Self::Used,
        Self::KeyTaken,
        Self::NoAddress,
        Self::Failed,
        Self::Malformed,
        Self::Busy,
    ];

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Enrolled => "enrolled",
            Self::KeyChanged => "key_changed",
            Self::NotAClient => "not_a_client",
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
