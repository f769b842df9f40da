//! Support for tests: a sandbox for the agent's kernel objects, and probe processes that create and
//! use sockets on command.

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

/// Bits of the mark outside the agent's mask, which the eBPF programs must not change.
pub(super) const FOREIGN: u32 = 0x0000_00ff;

/// Timeout for receiving a datagram that has been sent.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The interface index that stands for the host virtual device; no device has it.
const DEVICE: u32 = 4096;

/// A pin directory, a mobile cgroup and a network namespace for one test.
pub(super) struct Sandbox {
    pub(super) pin_dir: PathBuf,
    pub(super) cgroup: MobileCgroup,
    pub(super) marking: Marking<'static>,
}

impl Sandbox {
    /// Runs a test in a new sandbox, which is removed whether the test passes or fails.
    pub(super) fn with(test: impl FnOnce(&Self) + Send + 'static) {
        // Use a new thread, because its network namespace must not stay with the thread that runs
        // the next test.
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

    /// Starts a probe, a process that uses sockets on command, and makes it mobile.
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

/// A process that creates and uses sockets by commands on its standard input. Dropping the value
/// kills it.
pub(super) struct Probe {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    pub(super) fn start() -> Self {
        Self::start_as(Command::new(std::env::current_exe().unwrap()))
    }

    /// Starts a probe without CAP_SYS_RESOURCE, which raising RLIMIT_MEMLOCK requires.
    pub(super) fn start_without_sys_resource() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_resource", "--"]).arg(std::env::current_exe().unwrap());
        Self::start_as(command)
    }

    /// Starts the test binary again with `run_probe` as its only test.
    fn start_as(mut command: Command) -> Self {
        let module = module_path!().split_once("::").unwrap().1;
        let mut child = command
            .args([&format!("{module}::run_probe"), "--exact", "--ignored", "--nocapture", "--quiet"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let commands = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut probe = Self { child, commands, answers };
        assert_eq!(probe.ask("hello"), "hello");
        probe
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Kills the probe with SIGKILL.
    pub(super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Creates a socket of a kind, such as `tcp4`, in the probe process and returns its mark.
    pub(super) fn open(&mut self, kind: &str) -> u32 {
        self.mark(&format!("open {kind}"))
    }

    /// Lets the probe process try to create a socket of a kind, such as `tcp4`. Returns `opened`,
    /// or the name of the error, such as `EPERM`.
    pub(super) fn try_open(&mut self, kind: &str) -> String {
        self.ask(&format!("try {kind}"))
    }

    /// Returns the mark of the last socket of a kind.
    pub(super) fn socket_mark(&mut self, kind: &str) -> u32 {
        self.mark(&format!("mark {kind}"))
    }

    /// Connects the last socket of a kind and returns its mark afterwards.
    pub(super) fn connect(&mut self, kind: &str, to: &str) -> u32 {
        self.mark(&format!("connect {kind} {to}"))
    }

    /// Sends a datagram from the last socket of a kind and returns its mark afterwards.
    pub(super) fn send(&mut self, kind: &str, to: &str) -> u32 {
        self.mark(&format!("send {kind} {to}"))
    }

    /// Calls listen() on the last socket of a kind.
    pub(super) fn listen(&mut self, kind: &str) {
        assert_eq!(self.ask(&format!("listen {kind}")), "done");
    }

    /// Runs another command on a connection: `write` or `read` a number of bytes, `end` its own
    /// stream, `read-end` the end of the peer's stream, `close`.
    pub(super) fn stream(&mut self, what: &str) {
        assert_eq!(self.ask(what), "done");
    }

    /// Returns the peer of the last socket of a kind, as getpeername() reports it.
    pub(super) fn peer(&mut self, kind: &str) -> SocketAddr {
        self.ask(&format!("peer {kind}")).parse().unwrap()
    }

    /// Returns the sender of the next datagram to the last socket of a kind, as recvfrom() reports
    /// it.
    pub(super) fn receive_from(&mut self, kind: &str) -> SocketAddr {
        self.ask(&format!("receive {kind}")).parse().unwrap()
    }

    /// Sets SO_MARK as an application would, and returns the mark afterwards.
    pub(super) fn set_mark(&mut self, kind: &str, mark: u32) -> u32 {
        self.mark(&format!("set {kind} {mark}"))
    }

    /// Asserts that the kernel or the eBPF programs refuse to set SO_MARK to this value.
    pub(super) fn cannot_set_mark(&mut self, kind: &str, mark: u32) {
        assert_eq!(self.ask(&format!("refused {kind} {mark}")), "EPERM");
    }

    /// Creates `count` sockets of a kind, which stay open, and sends a datagram from each.
    pub(super) fn send_of_many(&mut self, kind: &str, to: &str, count: u32) {
        assert_eq!(self.ask(&format!("many {kind} {to} {count}")), "done");
    }

    /// Returns a TCP option of the last socket of a kind; `None` if the kernel does not have the
    /// option.
    pub(super) fn tcp_option(&mut self, kind: &str, option: TcpOption) -> Option<i32> {
        self.ask(&format!("get {kind} {option:?}")).parse().ok()
    }

    /// Sets a TCP option as an application would.
    pub(super) fn set_tcp_option(&mut self, kind: &str, option: TcpOption, value: i32) {
        assert_eq!(self.ask(&format!("put {kind} {option:?} {value}")), "done");
    }

    /// Returns the mark of a new socket that a child process of the probe creates.
    pub(super) fn child_opens(&mut self, kind: &str) -> u32 {
        self.mark(&format!("child {kind}"))
    }

    /// Moves the probe to another network namespace.
    pub(super) fn leave_namespace(&mut self) {
        assert_eq!(self.ask("unshare"), "done");
    }

    /// Makes the probe load the eBPF programs as the agent does at its start, and keep them.
    pub(super) fn become_agent(&mut self, sandbox: &Sandbox) {
        let Sandbox { pin_dir, cgroup, marking } = sandbox;
        let command = format!("agent {} {} {}", pin_dir.display(), cgroup.dir().display(), marking.mark);
        assert_eq!(self.ask(&command), "done");
    }

    fn mark(&mut self, command: &str) -> u32 {
        self.ask(command).parse().unwrap()
    }

    fn ask(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        loop {
            let mut line = String::new();
            let length = self.answers.read_line(&mut line).unwrap();
            assert!(length > 0, "the probe ended instead of answering `{command}`");
            // The test harness writes lines of its own.
            if let Some((_, answer)) = line.split_once("probe> ") {
                return answer.trim().to_string();
            }
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // An error means that the probe has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program of a [`Probe`]: executes the commands from its standard input.
#[test]
#[ignore = "a helper process of the other tests, not a test"]
fn run_probe() {
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
                // Keep the programs until the process is killed, as the agent does.
                std::mem::forget(selector);
                "done".to_string()
            }
            _ => panic!("unknown command {line}"),
        };
        println!("probe> {answer}");
    }
}

/// A TCP option that the eBPF programs change.
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
            // TCP_RTO_MAX_MS of Linux 6.15, which libc does not define.
            Self::RtoMax => 44,
            Self::SynCount => nix::libc::TCP_SYNCNT,
        }
    }

    fn get(self, socket: &Socket) -> String {
        let (mut value, mut length) = (0_i32, 4);
        // SAFETY: both pointers are valid for the call, and the kernel writes at most the four
        // bytes of `value`.
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
