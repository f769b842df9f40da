//! The eBPF programs: one function for each hook of the kernel.
//!
//! | module | job |
//! | --- | --- |
//! | `select` | marks the sockets of mobile processes at socket(), connect() and sendmsg() |
//! | `answers` | gives DNS answers the address that the query was sent to |
//! | `so_mark` | protects the agent's bits of a mark from SO_MARK |
//! | `egress` | stops packets of mobile sockets from leaving by another device than the tunnel's |
//! | `account` | counts the traffic of mobile processes' TCP connections |

#![expect(clippy::needless_pass_by_value, reason = "the macros of the programs pass the context by value")]

mod account;
mod answers;
mod egress;
mod select;
mod so_mark;

/// The verdict that the kernel's egress hook has beside ALLOW and REFUSE, which reports EPERM to
/// the sender: drop the packet, as a full queue would.
const DROP: i32 = 2;
