//! Tests of the sockets that need no tunnel.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::{Outcome, SocketCell};
use crate::config::Config;
use crate::kind::{Family, SocketKind};

#[test]
fn a_listening_socket_waits_for_the_next_call_when_a_caller_hangs_up() {
    let config = Config::parse(std::iter::empty()).unwrap();
    let mut cell = SocketCell::new(SocketKind::TcpListening, Family::Ipv4, 0);
    cell.open(&config);
    let port = cell.socket.as_ref().unwrap().local_addr().unwrap().as_socket().unwrap().port();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    cell.restart();
    drop(TcpStream::connect(to).unwrap());
    let mut caller = TcpStream::connect(to).unwrap();
    caller.write_all(b"hello\n").unwrap();

    let deadline = Instant::now() + Duration::from_secs(5);
    while cell.outcome() == Outcome::Waiting && Instant::now() < deadline {
        cell.send(&config);
    }
    assert!(cell.outcome() == Outcome::Answered);
}
