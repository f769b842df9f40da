//! A network namespace and a directory for one relay; both are removed when the test ends.
#![expect(clippy::unwrap_used, reason = "a helper of tests: a panic is how it fails")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const RELAY: &str = env!("CARGO_BIN_EXE_home-relay");
/// The longest wait for a process to start or end: enough for a debug build on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The environment of one test: a network namespace and a directory of files for one relay.
pub(crate) struct Bench {
    dir: tempfile::TempDir,
    /// A process that keeps the namespace alive.
    namespace: Running,
}

/// A process that does not outlive the test.
pub(crate) struct Running(Child);

impl Running {
    fn start(command: &[&str], log: Stdio) -> Self {
        // The kernel kills the process with the thread that started it, should the test itself be
        // killed.
        let mut child = Command::new("setpriv");
        child.args(["--pdeathsig", "KILL"]).args(command).stdin(Stdio::null()).stderr(log);
        Self(child.spawn().expect("setpriv (util-linux) is installed"))
    }

    /// Sends SIGKILL to the process and waits for its end.
    pub(crate) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// Sends SIGTERM to the process and returns its exit status, `None` if a signal ended it.
    pub(crate) fn terminate(&mut self) -> Option<i32> {
        let pid = self.0.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        let late = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < late, "the process does not end after SIGTERM");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Bench {
    /// Creates a test's directory, and its network namespace with the loopback device up.
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let namespace = Running::start(&["unshare", "-n", "sleep", "300"], Stdio::inherit());
        let bench = Self { dir, namespace };
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let theirs = format!("/proc/{}/ns/net", bench.namespace.0.id());
        let late = Instant::now() + PATIENCE;
        while std::fs::read_link(&theirs).is_ok_and(|namespace| namespace == own) {
            assert!(Instant::now() < late, "cannot make a network namespace: these tests need root");
            std::thread::sleep(Duration::from_millis(5));
        }
        bench.inside(&["ip", "link", "set", "lo", "up"]);
        bench
    }

    /// Returns the path of the file `name` in this test's directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the path of the admin socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path("relay.sock")
    }

    /// Runs `init` in the test's directory, where all files of the relay are by default. Returns
    /// its output.
    pub(crate) fn init(&self, ipv4: &str, ipv6: &str) -> String {
        let output = self.ok(&["init", "--listen", "127.0.0.1:8443", "--ipv4", ipv4, "--ipv6", ipv6]);
        text(&output)
    }

    /// Appends a section to the configuration, and removes its empty heading that `init` wrote.
    pub(crate) fn append(&self, section: &str) {
        let config = std::fs::read_to_string(self.path("relay.toml")).unwrap();
        let heading = section.lines().next().unwrap();
        std::fs::write(self.path("relay.toml"), config.replace(heading, "") + section).unwrap();
    }

    /// Gives the user nobody the files that a relay needs to start.
    pub(crate) fn give_to_nobody(&self) {
        let nobody = Some(65_534);
        for file in ["", "relay.toml", "relay.key", "relay.state"] {
            std::os::unix::fs::chown(self.path(file), nobody, nobody).unwrap();
        }
    }

    /// Runs a command of the relay that must succeed.
    pub(crate) fn ok(&self, args: &[&str]) -> Output {
        let output = self.relay(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {output:?}");
        output
    }

    /// Runs a command of the relay that must fail with status 1, and returns its standard error.
    pub(crate) fn fails(&self, args: &[&str]) -> String {
        let output = self.relay(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(output.stdout.is_empty(), "{args:?}: {output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs a command of the relay and returns its exit status.
    pub(crate) fn status(&self, args: &[&str]) -> Option<i32> {
        self.relay(args).output().unwrap().status.code()
    }

    /// Runs a command of the relay in the namespace; it must succeed.
    pub(crate) fn run_inside(&self, args: &[&str]) {
        let config = self.path("relay.toml");
        self.inside(&[&[RELAY, "--config", config.to_str().unwrap()], args].concat());
    }

    /// Runs a command in the namespace that must succeed, and returns its standard output.
    pub(crate) fn inside(&self, command: &[&str]) -> String {
        let output = self.enter(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {output:?}");
        text(&output)
    }

    /// Starts a relay in the namespace and returns once it answers on the admin socket.
    pub(crate) fn serve(&self) -> Running {
        let namespace = self.namespace_argument();
        let config = self.path("relay.toml");
        let log = std::fs::File::options().create(true).append(true).open(self.path("relay.log")).unwrap();
        let relay = ["nsenter", &namespace, RELAY, "serve", "--config", config.to_str().unwrap()];
        let mut relay = Running::start(&relay, log.into());
        let late = Instant::now() + PATIENCE;
        while self.status(&["sessions"]) != Some(0) {
            assert!(relay.0.try_wait().unwrap().is_none(), "the relay has ended");
            assert!(Instant::now() < late, "the relay does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        relay
    }

    /// Starts a relay in the namespace through the command `wrapper`; the start must fail, and its
    /// error is returned.
    pub(crate) fn serve_fails(&self, wrapper: &[&str]) -> String {
        let config = self.path("relay.toml");
        let relay = [RELAY, "serve", "--config", config.to_str().unwrap()];
        // A relay that does start fails the test instead of blocking it.
        let output = self.enter(&[&["timeout", "20"], wrapper, &relay].concat()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts another program on the relay's port, which runs until dropped.
    pub(crate) fn occupy_port(&self) -> Running {
        let namespace = self.namespace_argument();
        let holder = Running::start(&["nsenter", &namespace, "iperf3", "-s", "-p", "8443"], Stdio::inherit());
        let late = Instant::now() + PATIENCE;
        while !self.inside(&["ss", "-ltn"]).contains(":8443") {
            assert!(Instant::now() < late, "iperf3 does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        holder
    }

    /// Asserts that no device, nftables rules or admin socket of the relay are left.
    pub(crate) fn assert_nothing_left(&self) {
        let links = self.inside(&["ip", "-o", "link"]);
        assert!(!links.contains("home0"), "{links}");
        let tables = self.inside(&["nft", "list", "tables"]);
        assert!(!tables.contains("home_relay"), "{tables}");
        assert!(!self.socket().exists());
    }

    fn relay(&self, args: &[&str]) -> Command {
        let mut command = Command::new(RELAY);
        command.arg("--config").arg(self.path("relay.toml")).args(args);
        command
    }

    fn enter(&self, command: &[&str]) -> Command {
        let mut nsenter = Command::new("nsenter");
        nsenter.arg(self.namespace_argument()).args(command);
        nsenter
    }

    fn namespace_argument(&self) -> String {
        let path = format!("/proc/{}/ns/net", self.namespace.0.id());
        assert!(Path::new(&path).exists(), "the namespace is gone");
        format!("--net={path}")
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let log = std::fs::read_to_string(self.path("relay.log")).unwrap_or_default();
        if std::thread::panicking() {
            eprintln!("{log}");
        } else {
            assert!(!log.contains(" WARN ") && !log.contains(" ERROR "), "nothing was wrong: {log}");
        }
    }
}

/// Returns the standard output of a command.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}
