//! The control socket: what the verbs ask the daemon, and who may ask what.

mod access;
mod processes;
pub(crate) mod protocol;
pub(crate) mod server;
