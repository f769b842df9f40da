//! Provides what a daemon needs from its host: configuration, logging, metrics, control sockets,
//! confinement and a record of what the daemon leaves in the kernel.
//!
//! The agent and the relay share this crate. The crate knows neither their protocol nor their
//! network, and depends on no other crate of the workspace.
//!
//! # Modules by subject
//!
//! **Interfaces to the operator**:
//!
//! - [`config`] merges the configuration file, environment variables and defaults.
//! - [`log`] and [`metrics`] report what happens; [`declare_metrics!`] declares the metrics of a
//!   program with the text of their documentation.
//! - [`control`] is the Unix socket over which commands talk to a running daemon.
//! - [`log_rate_limiter`] limits repeated log messages.
//! - [`check`] formats the findings of the `check` commands, and [`isolation`] runs checks with
//!   side effects in separate namespaces.
//! - [`duration`] and [`network`] parse durations and networks, and say what was probably meant.
//! - [`text`] escapes text of other users before it is shown, and [`error_chain()`] formats an
//!   error with its causes.
//!
//! **Process and kernel**:
//!
//! - [`notify`] and [`shutdown`] talk to systemd.
//! - [`capability`] explains why the kernel refuses a change of the network.
//! - [`confine`] drops the rights that a started daemon does not need.
//! - [`sysctl`] accesses /proc/sys, [`nft`] runs the `nft` program, and [`netns`] identifies
//!   network namespaces.
//! - [`in_use`] waits for what a killed program still holds.
//! - [`allocator`] tunes the memory allocator, and [`descriptors`] raises the limit on open files.
//!
//! **Files**:
//!
//! - [`directory`] checks that files can be created.
//! - [`state_file`] records kernel objects, so that `cleanup` can remove them after a crash.
//! - [`registry`] tells the daemons that run at the same time about each other.
//! - [`ownership`] passes files that root creates to the user of the service.
//!
//! # How a daemon uses the crate
//!
//! A program loads its [`config`], starts its [`log`], opens its [`control`] socket and its
//! [`metrics`], records in its [`state_file`] what it creates in the kernel, confines itself with
//! [`confine`], and reports [`notify::ready`]. Linking the crate into a program for musl replaces
//! musl's allocator (see [`allocator`]).
//!
//! [`control::Listener`] and [`metrics::serve`] are asynchronous and need a tokio runtime. [`nft`]
//! and [`control::Client`] block.
//!
//! # Example
//!
//! An error of [`config`] names the place and the most similar known key:
//!
//! ```
//! use std::net::SocketAddr;
//! use std::path::Path;
//!
//! use mobile_host::config;
//! use serde::Deserialize;
//!
//! #[derive(Debug, Deserialize)]
//! struct Settings {
//!     relay: Relay,
//! }
//!
//! #[derive(Debug, Deserialize)]
//! struct Relay {
//!     endpoint: SocketAddr,
//!     public_key: String,
//! }
//!
//! fn parse(text: &str) -> Result<Settings, config::ConfigError> {
//!     let environment = [("MOBILE_RELAY_ENDPOINT".to_owned(), "192.0.2.1:443".to_owned())];
//!     let path = Path::new("agent.toml");
//!     config::parse(path, text, "MOBILE", environment.into_iter(), &[])?.complete(Ok::<_, String>)
//! }
//!
//! let settings = parse("[relay]\npublic_key = \"k\"\n")?;
//! assert_eq!(settings.relay.public_key, "k");
//! assert_eq!(settings.relay.endpoint, "192.0.2.1:443".parse()?);
//!
//! let error = parse("[relay]\npublickey = \"\"\n").unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     "agent.toml:2: unknown key `publickey` in [relay]; did you mean `public_key`?",
//! );
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod allocator;
pub mod capability;
pub mod check;
pub mod config;
pub mod confine;
pub mod control;
pub mod descriptors;
pub mod directory;
pub mod duration;
mod error_chain;
pub mod in_use;
pub mod isolation;
pub mod log;
pub mod log_rate_limiter;
pub mod metrics;
pub mod netns;
pub mod network;
pub mod nft;
pub mod notify;
pub mod ownership;
pub mod registry;
pub mod shutdown;
pub mod state_file;
pub mod sysctl;
pub mod text;

pub use error_chain::error_chain;
