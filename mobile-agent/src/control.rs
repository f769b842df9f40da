//! The control socket, over which the verbs and the C library `libmobile` send requests to the
//! agent.
//!
//! One JSON object a line: a request, then its reply. [`protocol`] defines both, [`access`] decides
//! who may send which request, [`server`] accepts connections and handles requests, and [`calls`]
//! handles those of `libmobile`. Requests that read or change other processes go on to the process
//! helper ([`crate::processes`]).

mod access;
pub(crate) mod calls;
pub(crate) mod protocol;
pub(crate) mod server;
