//! The process helper: a second process of the agent, the only one that may inspect and change
//! other processes.
//!
//! Making a process mobile, marking the sockets it holds and listing its connections require
//! `CAP_SYS_PTRACE` and `CAP_DAC_OVERRIDE`, with which a program can overwrite any process or file.
//! The agent parses bytes from the network, so it must not have these capabilities. It starts the
//! helper, drops both capabilities and sends jobs to the helper over a socket pair. The helper
//! reads nothing from the network and knows no job but those in [`job`].

mod access;
mod change_error;
mod client;
mod helper;
mod job;
mod load_config;
mod tun_holder;
mod work;

pub(crate) use access::Requester;
pub(crate) use client::ProcessHelper;
pub(crate) use helper::main;
pub(crate) use job::{Job, JobError, LoadedConfig, Setup};
