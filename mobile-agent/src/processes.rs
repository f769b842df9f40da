//! The process helper: the small second process that looks into and changes other processes for
//! the agent.
//!
//! Setting the MOBILE attribute of a process, marking the sockets it holds and listing its
//! connections take `CAP_SYS_PTRACE` and `CAP_DAC_OVERRIDE`, with which one can overwrite any
//! process or file. The agent reads bytes from the network, so it must not have them. It starts the
//! helper, gives both away and sends it jobs over a socket pair. The helper reads nothing from the
//! network; it knows no job but those in [`job`].

mod access;
mod change_error;
mod client;
mod helper;
mod job;
mod tun_holder;
mod work;

pub(crate) use access::Requester;
pub(crate) use client::ProcessHelper;
pub(crate) use helper::main;
pub(crate) use job::{Job, JobError, Setup};
