//! The process of a probe: creates and uses sockets as its standard input says.

use std::{
    collections::HashMap,
    io::{Read as _, Write as _},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr},
    path::Path,
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::{marking, probe::Probe, tcp_option::TcpOption};
use crate::selection::{bpf::Selector, cgroup::MobileCgroup};

/// Timeout for receiving a datagram that has been sent.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The program of a [`Probe`]: executes the commands from its standard input.
#[test]
#[ignore = "a helper process of the other tests, not a test"]
fn run_probe() {
    let mut sockets = Sockets::default();
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = sockets.ask(&words).unwrap_or_else(|| {
            assert!(sockets.act(&words), "unknown command {line}");
            "done".to_string()
        });
        println!("probe> {answer}");
    }
}

/// The sockets of a probe.
#[derive(Default)]
struct Sockets {
    /// The last socket of each kind.
    last: HashMap<String, Socket>,
    /// Other sockets, which only stay open.
    many: Vec<Socket>,
}

impl Sockets {
    /// Executes a command that has an answer; returns `None` for other commands.
    fn ask(&mut self, words: &[&str]) -> Option<String> {
        let sockets = &mut self.last;
        Some(match *words {
            ["hello"] => "hello".to_string(),
            ["open", kind] => {
                sockets.insert(kind.to_string(), open(kind));
                mark_of(&sockets[kind])
            }
            ["try", kind] => match make(kind) {
                Ok(_) => "opened".to_string(),
                Err(error) => name_of(&error),
            },
            ["mark", kind] => mark_of(&sockets[kind]),
            ["connect", kind, to] => {
                // Ignore the error if nothing listens: the route is chosen before.
                let _ = sockets[kind].connect(&address(to));
                mark_of(&sockets[kind])
            }
            ["send", kind, to] => {
                // An ICMP echo request, whose format ping and raw sockets check.
                let _ = sockets[kind].send_to(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], &address(to));
                mark_of(&sockets[kind])
            }
            ["peer", kind] => sockets[kind].peer_addr().unwrap().as_socket().unwrap().to_string(),
            ["receive", kind] => {
                sockets[kind].set_read_timeout(Some(RECEIVE_TIMEOUT)).unwrap();
                let (_, from) = sockets[kind].recv_from(&mut [MaybeUninit::uninit(); 64]).unwrap();
                from.as_socket().unwrap().to_string()
            }
            ["set", kind, mark] => {
                sockets[kind].set_mark(mark.parse().unwrap()).unwrap();
                mark_of(&sockets[kind])
            }
            ["refused", kind, mark] => name_of(&sockets[kind].set_mark(mark.parse().unwrap()).unwrap_err()),
            ["get", kind, option] => TcpOption::named(option).get(&sockets[kind]),
            ["child", kind] => Probe::start().open(kind).to_string(),
            _ => return None,
        })
    }

    /// Executes a command without an answer. Returns whether the command is known.
    fn act(&mut self, words: &[&str]) -> bool {
        let sockets = &mut self.last;
        match *words {
            ["listen", kind] => sockets[kind].listen(1).unwrap(),
            ["write", kind, length] => {
                (&sockets[kind]).write_all(&vec![7; length.parse().unwrap()]).unwrap();
            }
            ["read", kind, length] => {
                (&sockets[kind]).read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
            }
            ["end", kind] => sockets[kind].shutdown(Shutdown::Write).unwrap(),
            ["read-end", kind] => assert_eq!((&sockets[kind]).read(&mut [0]).unwrap(), 0),
            ["close", kind] => drop(sockets.remove(kind).unwrap()),
            ["many", kind, to, count] => {
                let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
                let (_, most) = nix::sys::resource::getrlimit(limit).unwrap();
                nix::sys::resource::setrlimit(limit, most, most).unwrap();
                let send = |_| {
                    let socket = open(kind);
                    let _ = socket.send_to(&[0; 8], &address(to));
                    socket
                };
                self.many.extend((0..count.parse::<u32>().unwrap()).map(send));
            }
            ["put", kind, option, value] => {
                TcpOption::named(option).set(&sockets[kind], value.parse().unwrap());
            }
            ["unshare"] => unshare(CloneFlags::CLONE_NEWNET).unwrap(),
            ["agent", pin_dir, cgroup, mark] => {
                let marking = marking(mark.parse().unwrap());
                let cgroup = MobileCgroup::ensure(Some(Path::new(cgroup))).unwrap();
                let selector = Selector::load_or_adopt(Path::new(pin_dir), &cgroup, marking).unwrap();
                // Keep the programs until the process is killed, as the agent does.
                std::mem::forget(selector);
            }
            _ => return false,
        }
        true
    }
}

fn open(kind: &str) -> Socket {
    make(kind).unwrap()
}

fn make(kind: &str) -> std::io::Result<Socket> {
    let (domain, kind, protocol) = match kind {
        "tcp4" => (Domain::IPV4, Type::STREAM, None),
        "tcp6" => (Domain::IPV6, Type::STREAM, None),
        "mptcp4" => (Domain::IPV4, Type::STREAM, Some(Protocol::MPTCP)),
        "udp4" => (Domain::IPV4, Type::DGRAM, None),
        "udp6" => (Domain::IPV6, Type::DGRAM, None),
        "ping4" => (Domain::IPV4, Type::DGRAM, Some(Protocol::ICMPV4)),
        "ping6" => (Domain::IPV6, Type::DGRAM, Some(Protocol::ICMPV6)),
        "raw4" => (Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)),
        "raw6" => (Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)),
        other => panic!("unknown kind of socket {other}"),
    };
    Socket::new(domain, kind, protocol)
}

fn name_of(error: &std::io::Error) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(error.raw_os_error().unwrap()))
}

fn mark_of(socket: &Socket) -> String {
    socket.mark().unwrap().to_string()
}

fn address(text: &str) -> socket2::SockAddr {
    text.parse::<SocketAddr>().unwrap().into()
}
