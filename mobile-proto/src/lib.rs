//! The tunnel protocol, sans-IO: no sockets, no runtime, no clock.
#![forbid(unsafe_code)]
