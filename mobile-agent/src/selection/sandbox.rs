//! For the tests: a place of their own for agent's objects, and processes that do with sockets what they are told.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    mem::MaybeUninit,
    net::{Shutdown, SocketAddr},
    os::fd::AsRawFd as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    addresses::Addresses,
    bpf::{self, Marking, Selector},
    cgroup::{Cgroup2, MobileCgroup},
};
use crate::config::OnFailure;

/// Bits of the mark that are not ours: the programs must leave them alone.
pub(super) const FOREIGN: u32 = 0x0000_00ff;

/// How long an answer may take that is on its way.
const HEARING: Duration = Duration::from_secs(5);

/// No device has this index.
const DEVICE: u32 = 4096;

/// A pin directory, a mobile cgroup and a network namespace of one test.
pub(super) struct Sandbox {
    pub(super) pin_dir: PathBuf,
    pub(super) cgroup: MobileCgroup,
    pub(super) marking: Marking<'static>,
}

impl Sandbox {
    /// Runs a test in a place of its own, which is gone afterwards whether it passes or fails.
    pub(super) fn with(test: impl FnOnce(&Self) + Send + 'static) {
        // A thread of its own: the network namespace is not to stay with the thread that runs the next test.
        let result = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace; these tests need root");
            run("ip", &["link", "set", "lo", "up"]);
            std::fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647").unwrap();
            test(&Self::new());
        });
        if let Err(panic) = result.join() {
            std::panic::resume_unwind(panic);
        }
    }

    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("mobile-unit-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let cgroup2 = Cgroup2::find(None).unwrap();
        Self {
            pin_dir: Path::new("/sys/fs/bpf").join(&name),
            cgroup: MobileCgroup::ensure(Some(&cgroup2.mount().join(name))).unwrap(),
            marking: marking(0x4d00_0000),
        }
    }

    pub(super) fn load(&self) -> Selector {
        Selector::load_or_adopt(&self.pin_dir, &self.cgroup, self.marking).unwrap()
    }

    /// A process with the MOBILE attribute.
    pub(super) fn mobile(&self) -> Probe {
        let probe = Probe::start();
        self.cgroup.attach(probe.pid()).unwrap();
        probe
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for result in [
            bpf::remove(&self.pin_dir).map(drop).map_err(|error| error.to_string()),
            self.cgroup.remove().map_err(|error| error.to_string()),
        ] {
            if let Err(error) = result {
                // A second panic while unwinding would abort and hide the first.
                assert!(std::thread::panicking(), "left behind: {error}");
            }
        }
    }
}

fn marking(mark: u32) -> Marking<'static> {
    let (mask, device, none) = (!FOREIGN, DEVICE, Addresses::default());
    Marking {
        mark,
        mask,
        log: false,
        device,
        bypass: &[],
        resolvers: none,
        persistent: none,
        on_failure: OnFailure::Closed,
    }
}

pub(super) fn run(program: &str, args: &[&str]) {
    let status = Command::new(program).args(args).status().unwrap();
    assert!(status.success(), "{program} {args:?}: {status}");
}

/// A process of its own, told over its standard input what to do with sockets. It dies with its owner.
pub(super) struct Probe {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    pub(super) fn start() -> Self {
        Self::start_as(Command::new(std::env::current_exe().unwrap()))
    }

    /// Without the capability that raising RLIMIT_MEMLOCK takes.
    pub(super) fn start_without_sys_resource() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_resource", "--"]).arg(std::env::current_exe().unwrap());
        Self::start_as(command)
    }

    /// The test binary again, running `obey` as its only test.
    fn start_as(mut command: Command) -> Self {
        let module = module_path!().split_once("::").unwrap().1;
        let mut child = command
            .args([&format!("{module}::obey"), "--exact", "--ignored", "--nocapture", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut probe = Self { child, orders, answers };
        assert_eq!(probe.ask("hello"), "hello");
        probe
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// SIGKILL.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Makes a socket and says its mark.
    pub(super) fn open(&mut self, kind: &str) -> u32 {
        self.mark(&format!("open {kind}"))
    }

    /// Makes a socket, if possible. Returns `opened`, or the error's name.
    pub(super) fn try_open(&mut self, kind: &str) -> String {
        self.ask(&format!("try {kind}"))
    }

    /// The mark of the last socket of a kind.
    pub(super) fn look(&mut self, kind: &str) -> u32 {
        self.mark(&format!("look {kind}"))
    }

    /// connect() of the last socket of a kind; its mark afterwards.
    pub(super) fn connect(&mut self, kind: &str, to: &str) -> u32 {
        self.mark(&format!("connect {kind} {to}"))
    }

    /// sendto() of the last socket of a kind; its mark afterwards.
    pub(super) fn send(&mut self, kind: &str, to: &str) -> u32 {
        self.mark(&format!("send {kind} {to}"))
    }

    /// Calls listen() on the last socket of a kind.
    pub(super) fn listen(&mut self, kind: &str) {
        assert_eq!(self.ask(&format!("listen {kind}")), "done");
    }

    /// Has a connection do the rest: `write` or `read` so many bytes, `end` its stream, `read-end` of the other's, `close`.
    pub(super) fn stream(&mut self, what: &str) {
        assert_eq!(self.ask(what), "done");
    }

    /// Whom the last socket of a kind is connected to, as it says.
    pub(super) fn peer(&mut self, kind: &str) -> SocketAddr {
        self.ask(&format!("peer {kind}")).parse().unwrap()
    }

    /// Whom the next datagram to the last socket of a kind comes from, as it says.
    pub(super) fn hear(&mut self, kind: &str) -> SocketAddr {
        self.ask(&format!("hear {kind}")).parse().unwrap()
    }

    /// SO_MARK set by the application itself.
    pub(super) fn set_mark(&mut self, kind: &str, mark: u32) -> u32 {
        self.mark(&format!("set {kind} {mark}"))
    }

    /// Sets SO_MARK to a value that the kernel or the programs refuse.
    pub(super) fn cannot_set_mark(&mut self, kind: &str, mark: u32) {
        assert_eq!(self.ask(&format!("refused {kind} {mark}")), "EPERM");
    }

    /// Makes `count` sockets of a kind, which stay open, and sends a datagram from each.
    pub(super) fn send_of_many(&mut self, kind: &str, to: &str, count: u32) {
        assert_eq!(self.ask(&format!("many {kind} {to} {count}")), "done");
    }

    /// A TCP option of the last socket of a kind, `None` where the kernel has no such option.
    pub(super) fn tcp_option(&mut self, kind: &str, option: TcpOption) -> Option<i32> {
        self.ask(&format!("get {kind} {option:?}")).parse().ok()
    }

    /// A TCP option set by the application itself.
    pub(super) fn set_tcp_option(&mut self, kind: &str, option: TcpOption, value: i32) {
        assert_eq!(self.ask(&format!("put {kind} {option:?} {value}")), "done");
    }

    /// The mark of a new socket of a child of this process.
    pub(super) fn child_opens(&mut self, kind: &str) -> u32 {
        self.mark(&format!("child {kind}"))
    }

    /// From here on it is in another network namespace.
    pub(super) fn leave_namespace(&mut self) {
        assert_eq!(self.ask("unshare"), "done");
    }

    /// Does what the agent does at its start, and stays.
    pub(super) fn become_agent(&mut self, sandbox: &Sandbox) {
        let Sandbox { pin_dir, cgroup, marking } = sandbox;
        let order = format!("agent {} {} {}", pin_dir.display(), cgroup.dir().display(), marking.mark);
        assert_eq!(self.ask(&order), "done");
    }

    fn mark(&mut self, order: &str) -> u32 {
        self.ask(order).parse().unwrap()
    }

    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        loop {
            let mut line = String::new();
            let length = self.answers.read_line(&mut line).unwrap();
            assert!(length > 0, "the probe ended instead of answering `{order}`");
            // The test harness writes lines of its own.
            if let Some((_, answer)) = line.split_once("probe> ") {
                return answer.trim().to_string();
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Errors mean that it is dead already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The inside of a [`Probe`].
#[test]
#[ignore = "a helper process of the other tests, not a test"]
fn obey() {
    let (mut sockets, mut many) = (HashMap::new(), Vec::new());
    for line in std::io::stdin().lines() {
        let line = line.unwrap();
        let words: Vec<&str> = line.split(' ').collect();
        let answer = match words[..] {
            ["hello"] => "hello".to_string(),
            ["open", kind] => {
                sockets.insert(kind.to_string(), open(kind));
                mark_of(&sockets[kind])
            }
            ["try", kind] => match make(kind) {
                Ok(_) => "opened".to_string(),
                Err(error) => name_of(&error),
            },
            ["look", kind] => mark_of(&sockets[kind]),
            ["connect", kind, to] => {
                // Nobody may be listening: the route is chosen before that is known.
                let _ = sockets[kind].connect(&address(to));
                mark_of(&sockets[kind])
            }
            ["send", kind, to] => {
                // Echo request, checked by ping sockets and raw ones.
                let _ = sockets[kind].send_to(&[8, 0, 0xf7, 0xff, 0, 0, 0, 0], &address(to));
                mark_of(&sockets[kind])
            }
            ["listen", kind] => {
                sockets[kind].listen(1).unwrap();
                "done".to_string()
            }
            ["write", kind, length] => {
                (&sockets[kind]).write_all(&vec![7; length.parse().unwrap()]).unwrap();
                "done".to_string()
            }
            ["read", kind, length] => {
                (&sockets[kind]).read_exact(&mut vec![0; length.parse().unwrap()]).unwrap();
                "done".to_string()
            }
            ["end", kind] => {
                sockets[kind].shutdown(Shutdown::Write).unwrap();
                "done".to_string()
            }
            ["read-end", kind] => {
                assert_eq!((&sockets[kind]).read(&mut [0]).unwrap(), 0);
                "done".to_string()
            }
            ["close", kind] => {
                sockets.remove(kind).unwrap();
                "done".to_string()
            }
            ["peer", kind] => sockets[kind].peer_addr().unwrap().as_socket().unwrap().to_string(),
            ["hear", kind] => {
                sockets[kind].set_read_timeout(Some(HEARING)).unwrap();
                let (_, from) = sockets[kind].recv_from(&mut [MaybeUninit::uninit(); 64]).unwrap();
                from.as_socket().unwrap().to_string()
            }
            ["set", kind, mark] => {
                sockets[kind].set_mark(mark.parse().unwrap()).unwrap();
                mark_of(&sockets[kind])
            }
            ["refused", kind, mark] => name_of(&sockets[kind].set_mark(mark.parse().unwrap()).unwrap_err()),
            ["many", kind, to, count] => {
                let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
                let (_, most) = nix::sys::resource::getrlimit(limit).unwrap();
                nix::sys::resource::setrlimit(limit, most, most).unwrap();
                let send = |_| {
                    let socket = open(kind);
                    let _ = socket.send_to(&[0; 8], &address(to));
                    socket
                };
                many.extend((0..count.parse::<u32>().unwrap()).map(send));
                "done".to_string()
            }
            ["get", kind, option] => TcpOption::named(option).get(&sockets[kind]),
            ["put", kind, option, value] => {
                TcpOption::named(option).set(&sockets[kind], value.parse().unwrap());
                "done".to_string()
            }
            ["child", kind] => Probe::start().open(kind).to_string(),
            ["unshare"] => {
                unshare(CloneFlags::CLONE_NEWNET).unwrap();
                "done".to_string()
            }
            ["agent", pin_dir, cgroup, mark] => {
                let marking = marking(mark.parse().unwrap());
                let cgroup = MobileCgroup::ensure(Some(Path::new(cgroup))).unwrap();
                let selector = Selector::load_or_adopt(Path::new(pin_dir), &cgroup, marking).unwrap();
                // Held until the process is killed, as the agent does.
                std::mem::forget(selector);
                "done".to_string()
            }
            _ => panic!("unknown order {line}"),
        };
        println!("probe> {answer}");
    }
}

/// An option of a TCP socket that the programs have to do with.
#[derive(Clone, Copy, Debug)]
pub(super) enum TcpOption {
    RtoMax,
    SynCount,
}

impl TcpOption {
    pub(super) const ALL: [Self; 2] = [Self::RtoMax, Self::SynCount];

    fn named(name: &str) -> Self {
        if name == "RtoMax" { Self::RtoMax } else { Self::SynCount }
    }

    fn number(self) -> i32 {
        match self {
            // Linux 6.15; libc does not know it yet.
            Self::RtoMax => 44,
            Self::SynCount => nix::libc::TCP_SYNCNT,
        }
    }

    fn get(self, socket: &Socket) -> String {
        let (mut value, mut length) = (0_i32, 4);
        // SAFETY: both pointers are good for the call, and no more than the four bytes of `value` are written.
        let result = unsafe {
            let (level, value) = (nix::libc::IPPROTO_TCP, (&raw mut value).cast());
            nix::libc::getsockopt(socket.as_raw_fd(), level, self.number(), value, &raw mut length)
        };
        if result == 0 { value.to_string() } else { "none".to_string() }
    }

    fn set(self, socket: &Socket, value: i32) {
        // SAFETY: the four bytes of `value` are only read.
        let result = unsafe {
            let (level, value) = (nix::libc::IPPROTO_TCP, (&raw const value).cast());
            nix::libc::setsockopt(socket.as_raw_fd(), level, self.number(), value, 4)
        };
        assert_eq!(result, 0, "{self:?}");
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
