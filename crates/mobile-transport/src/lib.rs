//! Runs a session of the tunnel protocol: connects it to a TUN device, to TLS connections and to
//! the time.
//!
//! A session of `mobile-proto` has neither sockets nor a clock; this crate is the shell around it.
//! The crate makes no policy decisions: the agent and the relay decide which uplink to use, which
//! client to serve and what to route.
//!
//! # Modules by subject
//!
//! **The session and its device**:
//!
//! - [`driver`] runs one session: it reads packets from a device, moves bytes between the session
//!   and its paths, and reports events to the owner. Start here to see how a session works.
//! - [`tun`] opens the TUN device, and [`coalescing`] combines datagrams that are written to it.
//!
//! **The paths**:
//!
//! - [`tls`] authenticates both ends of a path by their keys. `socket` reads ahead for TLS, and
//!   limits the bytes that a peer may send during the handshake.
//! - [`transport`] opens the TCP connection of a path and tunes it. `tcp_info` reads its counters
//!   from the kernel.
//! - `rate_control` decides by these counters how much a path may send, and with which congestion
//!   control.
//!
//! **Identity and settings**:
//!
//! - [`keys`] loads and saves the Ed25519 keys, [`key_rotation`] replaces them, and [`invitation`]
//!   is the text with which a new client enrols.
//! - [`tunnel_options`] has the values of the `[tunnel]` section that both programs share.
//!
//! # How the parts fit
//!
//! ```text
//!             PacketIo                    Session (mobile-proto)             TlsStream
//!  tun::Tun <-----------> driver (one task for each session) <-----------> tls, transport
//!                              ^                  |
//!                     Handle   |                  v   DriverEvent
//!                        the agent's tunnel, or the relay's registry
//! ```
//!
//! A program opens its device with [`tun::Tun::open`] and starts a session with [`driver::spawn`].
//! While it runs, it establishes TLS connections with [`transport::connect`] and [`tls::connect`],
//! or [`tls::accept`], passes them to the [`driver::Handle`] of a session, and reacts to
//! [`driver::DriverEvent`]s.
//!
//! Everything that waits for the network is asynchronous and needs a tokio runtime.
//!
//! # Example
//!
//! The relay prints an invitation, and the agent reads the relay's address and key from it:
//!
//! ```
//! use mobile_transport::invitation::{Invitation, new_token};
//! use mobile_transport::keys::PrivateKey;
//!
//! let relay = PrivateKey::generate()?.public();
//! let endpoint = "relay.example.org:443".to_owned();
//! let invitation = Invitation { endpoint, relay: relay.into(), token: new_token()? };
//!
//! let line = invitation.to_string();
//! assert!(line.starts_with("mobile-invite-1-"));
//! assert_eq!(line.parse(), Ok(invitation));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod coalescing;
pub mod driver;
pub mod invitation;
pub mod key_rotation;
pub mod keys;
mod rate_control;
mod socket;
mod tcp_info;
pub mod tls;
pub mod transport;
pub mod tun;
pub mod tunnel_options;
