//! The Linux side of the agent and the relay: everything that both programs do with the kernel,
//! the network and files.
//!
//! The protocol itself, `mobile-proto`, has neither sockets nor a clock. This crate runs it: the
//! [`driver`] connects a session to TLS connections, to a TUN device and to the time. The crate
//! also holds what both programs need from their host, such as configuration and logging.
//! It makes no policy decisions: the agent and the relay decide which uplink to use, which client
//! to serve and what to route.
//!
//! # Modules by subject
//!
//! **Transport**, the way of a packet between the device and the network:
//!
//! - [`driver`] runs one session: it reads packets from a device, moves bytes between the session
//!   and its paths, and reports events to the owner. Start here to see how a session works.
//! - [`tun`] opens the TUN device, and [`coalescing`] combines datagrams that are written to it.
//! - [`tls`] authenticates both ends of a path by their keys, and [`transport`] opens and tunes
//!   the TCP connection below. `tcp_info` reads its counters from the kernel.
//! - [`keys`] loads and saves the Ed25519 keys, and [`invitation`] is the text with which a new
//!   client enrols.
//! - [`tunnel_options`] has the values of the `[tunnel]` section that both programs share.
//!
//! **Network configuration** of the host:
//!
//! - [`nft`] runs the `nft` program, [`sysctl`] accesses /proc/sys, and [`netns`] identifies
//!   network namespaces.
//!
//! **Running as a service**:
//!
//! - [`config`] merges the configuration file, environment variables and flags.
//! - [`log`] and [`metrics`] report what happens; [`notify`] and [`shutdown`] talk to systemd.
//! - [`control`] is the Unix socket over which commands talk to a running daemon.
//! - [`confine`] drops the rights that a started daemon does not need.
//! - [`state_file`] records kernel objects, so that `cleanup` can remove them after a crash.
//! - [`check`] formats the findings of the `check` commands, and [`isolation`] runs checks with
//!   side effects in separate namespaces.
//! - [`allocator`], [`descriptors`], [`ownership`] and [`text`] are smaller helpers of the
//!   daemons.
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
//! A program loads its [`config`], sets up devices and routes with `mobile-netlink` and confines itself
//! with [`confine`]. While it runs, it establishes TLS connections, passes them to the
//! [`driver::Handle`] of a session, and reacts to [`driver::DriverEvent`]s.
//!
//! Everything that waits for the network is asynchronous and needs a tokio runtime. [`nft`]
//! and [`control::Client`] block.
//!
//! # Example
//!
//! An error of [`config`] names the place and the most similar known key:
//!
//! ```
//! use std::path::Path;
//!
//! use mobile_io::config;
//! use mobile_io::keys::{PrivateKey, PublicKey};
//! use serde::Deserialize;
//!
//! #[derive(Debug, Deserialize)]
//! struct Settings {
//!     relay: Relay,
//! }
//!
//! #[derive(Debug, Deserialize)]
//! struct Relay {
//!     endpoint: String,
//!     public_key: PublicKey,
//! }
//!
//! fn parse(text: &str) -> Result<Settings, config::ConfigError> {
//!     let environment = [("MOBILE_RELAY_ENDPOINT".to_owned(), "192.0.2.1:443".to_owned())];
//!     config::parse(Path::new("agent.toml"), text, "MOBILE", environment.into_iter(), &[])
//! }
//!
//! let key = PrivateKey::generate()?.public();
//! let settings = parse(&format!("[relay]\npublic_key = \"{key}\"\n"))?;
//! assert_eq!(settings.relay.public_key, key);
//! assert_eq!(settings.relay.endpoint, "192.0.2.1:443");
//!
//! let error = parse("[relay]\npublickey = \"\"\n").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "agent.toml:2: unknown key `publickey` in [relay]; did you mean `public_key`?",
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod allocator;
pub mod check;
pub mod coalescing;
pub mod config;
pub mod confine;
pub mod control;
pub mod descriptors;
pub mod driver;
pub mod invitation;
pub mod isolation;
pub mod keys;
pub mod log;
pub mod metrics;
pub mod netns;
pub mod nft;
pub mod notify;
pub mod ownership;
pub mod shutdown;
mod socket;
pub mod state_file;
pub mod sysctl;
mod tcp_info;
pub mod text;
pub mod tls;
pub mod transport;
pub mod tun;
pub mod tunnel_options;
