//! The shell around the protocol: everything that both programs do with the kernel, the network and files.
//!
//! The protocol itself (`mobile-proto`) has no sockets and no clock; this crate gives it both. It holds no policy:
//! which uplink to use, which client to serve and what to route is decided by the agent and the relay.

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
pub mod netlink;
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
