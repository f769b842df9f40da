//! The ports of the server's services: well-known ones, and some of the lab's own.

/// Echo, over TCP and UDP.
pub const ECHO: u16 = 7;
/// Discard, over TCP, as in the paper's measurements.
pub const DISCARD: u16 = 9;
/// OpenSSH's server, started by [`Services::sshd`](crate::Services::sshd).
pub const SSH: u16 = 22;
/// The telnetd of GNU inetutils; its login program is a shell.
pub const TELNET: u16 = 23;
/// DNS, used by cases that start a resolver; see [`crate::dns`].
pub const DNS: u16 = 53;
/// HTTP, as `tests/src/http.rs` answers it.
pub const HTTP: u16 = 80;
/// A service, over TCP and UDP, that answers each line or datagram with its source address.
pub const WHOAMI: u16 = 1001;
/// A service that sends the numbers from 0 upwards, eight bytes each, one every
/// [`crate::pulse::PULSE`].
pub const NUMBERS: u16 = 1002;
/// The port at which [`crate::datagrams`] counts datagrams.
pub const DATAGRAMS: u16 = 1003;
/// The port of iperf3's server.
pub const IPERF3: u16 = 5201;
