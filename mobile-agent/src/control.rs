//! The control socket, over which the verbs and the C library `libmobile` send requests to the
//! agent.
//!
//! Each line is one JSON object: a request, then its reply. [`protocol`](crate::protocol) defines
//! both, [`access`] decides who may send which request, [`server`] accepts connections and passes
//! requests to the agent ([`crate::agent`]), and [`calls`] handles those of `libmobile`.

mod access;
mod blocking;
mod calls;
mod request_error;
pub(crate) mod server;
