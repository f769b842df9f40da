//! The handle of a probe: sends commands to the process and reads the answers.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use super::{Sandbox, tcp_option::TcpOption};

/// A process that creates and uses sockets by commands on its standard input. Dropping the value
/// kills it.
pub(in super::super) struct Probe {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    pub(in super::super) fn start() -> Self {
        Self::start_as(Command::new(std::env::current_exe().unwrap()))
    }

    /// Starts a probe without CAP_SYS_RESOURCE, which raising RLIMIT_MEMLOCK requires.
    pub(in super::super) fn start_without_sys_resource() -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set=-sys_resource", "--"]).arg(std::env::current_exe().unwrap());
        Self::start_as(command)
    }

    /// Starts the test binary again with `run_probe` as its only test.
    fn start_as(mut command: Command) -> Self {
        let sandbox = module_path!().strip_suffix("::probe").unwrap().split_once("::").unwrap().1;
        let mut child = command
            .args([
                &format!("{sandbox}::probe_process::run_probe"),
                "--exact",
                "--ignored",
                "--nocapture",
                "--quiet",
            ])
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

    pub(in super::super) fn pid(&self) -> i32 {
        self.child.id().try_into().unwrap()
    }

    /// Kills the probe with SIGKILL.
    pub(in super::super) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Creates a socket of a kind, such as `tcp4`, in the probe process and returns its mark.
    pub(in super::super) fn open(&mut self, kind: &str) -> u32 {
        self.mark(&format!("open {kind}"))
    }

    /// Lets the probe process try to create a socket of a kind, such as `tcp4`. Returns `opened`,
    /// or the name of the error, such as `EPERM`.
    pub(in super::super) fn try_open(&mut self, kind: &str) -> String {
        self.ask(&format!("try {kind}"))
    }

    /// Returns the mark of the last socket of a kind.
    pub(in super::super) fn socket_mark(&mut self, kind: &str) -> u32 {
        self.mark(&format!("mark {kind}"))
    }

    /// Connects the last socket of a kind and returns its mark afterwards.
    pub(in super::super) fn connect(&mut self, kind: &str, to: &str) -> u32 {
        self.mark(&format!("connect {kind} {to}"))
    }

    /// Sends a datagram from the last socket of a kind and returns its mark afterwards.
    pub(in super::super) fn send(&mut self, kind: &str, to: &str) -> u32 {
        self.mark(&format!("send {kind} {to}"))
    }

    /// Calls listen() on the last socket of a kind.
    pub(in super::super) fn listen(&mut self, kind: &str) {
        assert_eq!(self.ask(&format!("listen {kind}")), "done");
    }

    /// Runs another command on a connection: `write` or `read` a number of bytes, `end` its own
    /// stream, `read-end` the end of the peer's stream, `close`.
    pub(in super::super) fn stream(&mut self, what: &str) {
        assert_eq!(self.ask(what), "done");
    }

    /// Returns the peer of the last socket of a kind, as getpeername() reports it.
    pub(in super::super) fn peer(&mut self, kind: &str) -> SocketAddr {
        self.ask(&format!("peer {kind}")).parse().unwrap()
    }

    /// Returns the sender of the next datagram to the last socket of a kind, as recvfrom() reports
    /// it.
    pub(in super::super) fn receive_from(&mut self, kind: &str) -> SocketAddr {
        self.ask(&format!("receive {kind}")).parse().unwrap()
    }

    /// Sets SO_MARK as an application would, and returns the mark afterwards.
    pub(in super::super) fn set_mark(&mut self, kind: &str, mark: u32) -> u32 {
        self.mark(&format!("set {kind} {mark}"))
    }

    /// Asserts that the kernel or the eBPF programs refuse to set SO_MARK to this value.
    pub(in super::super) fn cannot_set_mark(&mut self, kind: &str, mark: u32) {
        assert_eq!(self.ask(&format!("refused {kind} {mark}")), "EPERM");
    }

    /// Creates `count` sockets of a kind, which stay open, and sends a datagram from each.
    pub(in super::super) fn send_of_many(&mut self, kind: &str, to: &str, count: u32) {
        assert_eq!(self.ask(&format!("many {kind} {to} {count}")), "done");
    }

    /// Returns a TCP option of the last socket of a kind; `None` if the kernel does not have the
    /// option.
    pub(in super::super) fn tcp_option(&mut self, kind: &str, option: TcpOption) -> Option<i32> {
        self.ask(&format!("get {kind} {option:?}")).parse().ok()
    }

    /// Sets a TCP option as an application would.
    pub(in super::super) fn set_tcp_option(&mut self, kind: &str, option: TcpOption, value: i32) {
        assert_eq!(self.ask(&format!("put {kind} {option:?} {value}")), "done");
    }

    /// Returns the mark of a new socket that a child process of the probe creates.
    pub(in super::super) fn child_opens(&mut self, kind: &str) -> u32 {
        self.mark(&format!("child {kind}"))
    }

    /// Moves the probe to another network namespace.
    pub(in super::super) fn leave_namespace(&mut self) {
        assert_eq!(self.ask("unshare"), "done");
    }

    /// Makes the probe load the eBPF programs as the agent does at its start, and keep them.
    pub(in super::super) fn become_agent(&mut self, sandbox: &Sandbox) {
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
