//! The tunnel protocol between the host virtual device and the home virtual device, sans-IO:
//! no sockets, no runtime, no clock. Time is an argument, bytes come in and go out by slices.
//!
//! A [`Session`] joins one client and the relay. It runs over one or more *paths* (byte streams, in
//! practice TCP with TLS 1.3, each over one uplink), of which at most one is *active*: it carries
//! the inner packets. Records are numbered per direction, acknowledged cumulatively and kept until
//! then, so that a handover to another path loses, doubles and reorders nothing.
//!
//! The wire format and the state machines are written down in `docs/understand/protocol.md`.
#![forbid(unsafe_code)]

mod close;
mod coalesce;
mod compression;
mod config;
pub mod enroll;
mod error;
mod flow;
mod frame;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod health;
mod hello;
mod ids;
mod limits;
mod message;
mod offload;
pub mod packet;
mod path;
mod pool;
mod queue;
mod replay;
mod segment;
mod segment_budget;
mod session;
mod stats;
mod varint;

pub use close::CloseCode;
pub use coalesce::{CoalescedSegment, SegmentCoalescer};
pub use config::PushConfig;
pub use error::ProtocolError;
pub use frame::MAX_PACKET;
pub use health::TransportSample;
pub use hello::{Hello, HelloReader};
pub use ids::{PathId, SessionId};
pub use limits::Limits;
pub use offload::{Offload, OffloadError, VNET_HEADER_LEN};
pub use packet::{Packet, PacketBuf};
pub use session::{DropReason, Enqueue, Event, Session, Unacknowledged};
pub use stats::{PathStats, Stats};

/// The protocol's name in TLS (ALPN, RFC 7301). A change that an old peer cannot understand gets
/// another name, so two versions can share one port.
pub const ALPN: &[u8] = b"mobile/1";
