//! The shell around the protocol: everything that both programs do with the kernel, the network and files.
//!
//! The protocol itself (`mobile-proto`) has no sockets and no clock; this crate gives it both. It holds no policy:
//! which uplink to use, which client to serve and what to route is decided by the agent and the relay.

pub mod apart;
pub mod check;
pub mod config;
pub mod confine;
pub mod control;
pub mod descriptors;
pub mod driver;
pub mod invitation;
pub mod joining;
pub mod keys;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod modes;
pub mod netlink;
pub mod netns;
pub mod nft;
pub mod notify;
pub mod owner;
pub mod record;
pub mod shutdown;
mod socket;
pub mod sysctl;
mod tcp_info;
pub mod text;
pub mod tls;
pub mod transport;
pub mod tun;
