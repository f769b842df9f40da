//! The tunnel protocol between a mobile agent and its home relay, without I/O.
//!
//! The crate is *sans-IO*: it opens no socket, reads no clock, starts no task and does no
//! encryption. Time is an argument of its functions, and bytes are passed in and out as slices. The
//! driver in `mobile-transport` connects it to TCP, TLS 1.3 and timers; tests drive it with a
//! virtual clock. The wire format and the state machines are specified in
//! `docs/understand/protocol.md`.
//!
//! # Sessions and paths
//!
//! A [`Session`] connects one client (the agent) with the relay and carries the inner IP packets of
//! its mobile processes. It runs over one or more *paths*. A path is an ordered byte stream over
//! one uplink, in practice a TCP connection with TLS. At most one path is *active*: it carries the
//! inner packets. The others stand by.
//!
//! Each packet becomes a *record*. Records are numbered in each direction, acknowledged
//! cumulatively, and kept until they are acknowledged. When another path is activated, the
//! unacknowledged records are sent again on it. Within its [`Limits`], a session loses,
//! duplicates and reorders nothing at a handover.
//!
//! # The life of a session
//!
//! 1. The client opens a path with [`Session::open_path`], which queues HELLO. The relay reads it
//!    with a [`HelloReader`], looks up or creates the session named in it, and accepts the path
//!    with [`Session::accept_path`], which queues WELCOME.
//! 2. WELCOME carries the configuration ([`PushConfig`]) and the number of the record that the
//!    relay expects next. The client reports [`Event::PathReady`].
//! 3. The client makes the path active with [`Session::activate`]. Records flow in both directions.
//!    If the relay's epoch is known, this works before WELCOME, too, and saves a round trip.
//! 4. While data is in flight, the session watches the path. An overdue answer starts liveness
//!    probes ([`Event::PathProbing`]); when these go unanswered as well, the path is reported with
//!    [`Event::PathUnresponsive`]. The client then activates another path.
//! 5. During an outage packets are queued within the [`Limits`], and local TCP senders are answered
//!    with a closed window, so that their connections survive ([`Session::poll_local`]).
//! 6. [`Session::close_path`] ends a path with CLOSE. A session has no end of its own: it lives as
//!    long as its owner keeps it. [`Session::into_unacknowledged`] and [`Session::requeue`] move
//!    the remaining packets to a successor.
//!
//! # Driving a session
//!
//! - Pass received bytes to [`Session::handle_input`], in pieces of any size. It delivers the inner
//!   packets in order.
//! - Pass packets from the TUN to [`Session::enqueue`] while [`Session::has_room`] returns true.
//! - After each call, write what [`Session::poll_transmit`] appends for each path on which
//!   [`Session::wants_transmit`] returns true, and take the events from [`Session::poll_event`].
//! - Call [`Session::handle_timeout`] at the time that [`Session::poll_timeout`] returns.
//! - Pass the kernel's TCP_INFO to [`Session::transport_sample`] when [`Session::wants_sample`]
//!   returns true. Without samples, only silence reveals a dead path, after a second or more.
//! - Report a failed transport with [`Session::path_lost`].
//!
//! The choice of uplinks and the decision when to switch are not part of this crate; the agent
//! makes them.
//!
//! # Modules
//!
//! - `session`: the [`Session`], composed of its paths, a sender, a receiver and the state of its
//!   role
//! - `path`, `health`: one path, and whether it is dead, slow or well
//! - `queue`, `replay`, `buffer_pool`: packets to be sent (FQ-CoDel), records to be acknowledged,
//!   and reused buffers
//! - `inner_flow`, `segment`, `segment_budget`: the inner TCP flows and their segments
//! - `frame`, `hello`, `message`, `config`, `varint`: the encoding of frames and messages
//! - `compression`: zstd streams, and the choice of what to compress
//! - [`packet`], `offload`, `coalesce`: inner packets, their segmentation and checksum offload, and
//!   the coalescing of datagrams
//! - `announcement`: the relay's key and endpoint of the future
//! - [`enroll`]: the messages with which a new key redeems an invitation or replaces another
//! - `limits`, `stats`: the bounds of a session, and its counters
//! - `ids`, `close`, `error`: identifiers, the reasons for an end, and errors
//!
//! # Example
//!
//! A client session passes a packet to a server session:
//!
//! ```
//! use std::time::Instant;
//!
//! use mobile_proto::{
//!     Budget, Enqueue, HelloReader, Limits, PathId, PushConfig, Session, SessionId,
//! };
//!
//! let (now, path) = (Instant::now(), PathId(1));
//! let mut client = Session::client(SessionId([7; 16]), Limits::default());
//!
//! // The client opens a path. HELLO is the first frame on the wire.
//! let mut wire = Vec::new();
//! client.open_path(now, path);
//! client.poll_transmit(now, path, &mut wire, Budget::new(usize::MAX));
//!
//! // The relay reads HELLO, creates the session and accepts the path.
//! let (hello, _) = HelloReader::new().feed(&wire)?.expect("HELLO is complete");
//! let ipv4 = Some([10, 77, 0, 2].into());
//! let config = PushConfig { ipv4, mtu: 1400, ..PushConfig::default() };
//! let mut server = Session::server(hello.session, 1, Limits::default(), config);
//! server.accept_path(now, &hello)?;
//!
//! // WELCOME goes back to the client, which activates the path.
//! wire.clear();
//! server.poll_transmit(now, path, &mut wire, Budget::new(usize::MAX));
//! client.handle_input(now, path, &wire, &mut |_| {})?;
//! client.activate(now, path, &[]);
//!
//! // A packet from the client's TUN is delivered at the relay.
//! assert_eq!(client.enqueue(now, b"an inner packet"), Enqueue::Queued);
//! wire.clear();
//! client.poll_transmit(now, path, &mut wire, Budget::new(usize::MAX));
//! let mut delivered = Vec::new();
//! server.handle_input(now, path, &wire, &mut |packet| delivered.push(packet.to_vec()))?;
//! assert_eq!(delivered, [b"an inner packet"]);
//! # Ok::<(), mobile_proto::ProtocolError>(())
//! ```
#![forbid(unsafe_code)]

mod announcement;
mod buffer_pool;
mod close;
mod coalesce;
mod compression;
mod config;
pub mod enroll;
mod error;
mod frame;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod health;
mod hello;
mod ids;
mod inner_flow;
mod limits;
mod message;
mod offload;
pub mod packet;
mod path;
mod queue;
mod replay;
mod segment;
mod segment_budget;
mod session;
mod stats;
mod varint;

pub use announcement::{Announcement, is_endpoint};
pub use close::CloseCode;
pub use coalesce::{CoalescedSegment, SegmentCoalescer};
pub use config::PushConfig;
pub use error::ProtocolError;
pub use frame::MAX_PACKET;
pub use health::TransportSample;
pub use hello::{Hello, HelloReader};
pub use ids::{PathId, SessionId};
pub use limits::Limits;
pub use offload::{OffloadError, VNET_HEADER_LEN};
pub use packet::{InnerPacket, InnerPacketBuf, Offload, Packet, PacketBuf, PacketHeaders};
pub use session::{Budget, DropReason, Enqueue, Event, Session, Unacknowledged};
pub use stats::{PathStats, Stats};

/// The protocol's ALPN name in TLS (RFC 7301). An incompatible version gets another name, so that
/// two versions can share one port.
pub const ALPN: &[u8] = b"mobile/1";
