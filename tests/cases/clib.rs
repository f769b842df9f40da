//! The C interface of the paper: libmobile is installed as docs/use/c-interface.md says, and
//! programs are compiled against it and run.

use std::path::{Path, PathBuf};
use std::process::Command;

use mobile_tests::{LineProcess, Ns, PATIENCE, Terminal, Testbed, UplinkName, addr, finish_within, program};
use nix::errno::Errno;

use crate::Outcome;

/// Compiler flags that make every warning an error.
const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];

/// The user id of `nobody`, who owns no processes or files.
const USER: u32 = 65_534;

/// The installation prefix of libmobile, as a packager would choose it.
const PREFIX: &str = "/opt/mobile";

/// The library libmobile, installed in a staging directory (`DESTDIR`) for programs that use it.
struct Library {
    stage: PathBuf,
    control: PathBuf,
}

impl Library {
    /// Installs libmobile with its own script, `install.sh`.
    fn install(bed: &Testbed) -> anyhow::Result<Self> {
        let stage = bed.lab.dir().join("stage");
        let library = program("libmobile.so")?;
        let build = library.parent().expect("it is in a folder");
        let mut install = Command::new("sh");
        install.arg(source("install.sh")).arg(build).arg(PREFIX).env("DESTDIR", &stage);
        run(&mut install)?;
        Ok(Self { stage, control: bed.agent.config().with_file_name("agent.sock") })
    }

    fn lib(&self) -> String {
        format!("{}{PREFIX}/lib", self.stage.display())
    }

    fn pkg_config(&self, args: &[&str]) -> anyhow::Result<Vec<String>> {
        let mut ask = Command::new("pkg-config");
        ask.args(args)
            .arg("mobile")
            .env("PKG_CONFIG_LIBDIR", format!("{}/pkgconfig", self.lib()))
            .env("PKG_CONFIG_SYSROOT_DIR", &self.stage);
        Ok(run(&mut ask)?.split_whitespace().map(str::to_owned).collect())
    }

    /// Compiles a program from one C source, with `more` arguments for the compiler.
    fn compile(&self, source: &Path, more: &[&str]) -> anyhow::Result<PathBuf> {
        let out = self.stage.join(source.file_stem().expect("a source has a name"));
        let mut cc = Command::new("cc");
        cc.arg("-std=c99").args(STRICT).arg("-o").arg(&out).arg(source);
        run(cc.args(more).args(self.pkg_config(&["--cflags", "--libs"])?))?;
        Ok(out)
    }

    /// Sets the environment variables by which a program finds libmobile and the agent's control
    /// socket.
    fn place<'a>(&self, command: &'a mut Command) -> &'a mut Command {
        command.env("LD_LIBRARY_PATH", self.lib()).env("MOBILE_CONTROL_SOCKET", &self.control)
    }
}

fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/libmobile").join(name)
}

fn case(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cases/clib").join(name)
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    finish_within(command, None, PATIENCE)?.ok()
}

#[test]
fn the_c_library_exports_two_functions_and_its_header_is_clean_c_and_cpp() -> Outcome {
    let bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    let library = Library::install(&bed)?;
    let file = format!("{}/libmobile.so", library.lib());

    let symbols = run(Command::new("nm").args(["-D", "--defined-only", "-P", &file]))?;
    let mut names: Vec<&str> = symbols.lines().filter_map(|line| line.split(' ').next()).collect();
    names.sort_unstable();
    assert_eq!(names, ["inet_setmobile", "inet_setmroute"], "{symbols}");
    let dynamic = run(Command::new("objdump").args(["-p", &file]))?;
    let soname = dynamic.lines().find_map(|line| line.trim().strip_prefix("SONAME"));
    assert_eq!(soname.map(str::trim), Some("libmobile.so.0"));
    assert_eq!(library.pkg_config(&["--modversion"])?, [env!("CARGO_PKG_VERSION")]);

    let flags = library.pkg_config(&["--cflags"])?;
    let header =
        "#include <mobile.h>\nint main(void) { return inet_setmobile(0, 2) + inet_setmroute(0) + 2; }\n";
    for (compiler, language, standards) in
        [("cc", "c", ["c89", "c99", "c17"]), ("c++", "c++", ["c++98", "c++11", "c++20"])]
    {
        for standard in standards {
            let mut compile = Command::new(compiler);
            compile.args(["-x", language, &format!("-std={standard}"), "-fsyntax-only"]).args(STRICT);
            compile.args(&flags).arg("-");
            let done = finish_within(&mut compile, Some(header.as_bytes()), PATIENCE)?;
            // C89 has no `//` comments, so the header has none.
            done.ok()?;
        }
    }
    bed.lab.passed();
    Ok(())
}

#[test]
fn the_papers_program_runs_telnet_with_the_persistent_address_over_a_handover() -> Outcome {
    let bed = Testbed::new()?;
    let library = Library::install(&bed)?;
    let mobile = library.compile(&source("examples/mobile.c"), &[])?;
    let mut command = bed.lab.host.command(&mobile);
    let telnet = Terminal::start(library.place(command.args(["telnet", &addr::SERVER4.to_string()])))?;
    telnet.expect("# ")?;
    telnet.send("echo before $((40 + 2))\n")?;
    telnet.expect("before 42")?;

    let listed: serde_json::Value = serde_json::from_str(&bed.agent.cli(&["ps", "--json"])?.ok()?)?;
    let processes = listed.as_array().expect("ps --json is a list");
    // No process stands in between: the command has the process id that was started.
    let own = processes.iter().find(|process| process["pid"] == telnet.pid()).expect("it is mobile");
    let local = own["connections"][0]["local"].as_str().expect("it has a connection");
    assert!(local.starts_with(&format!("{}:", bed.agent.address4)), "{local}");

    bed.lab.eth().cut()?;
    bed.lab.eth().give_up_address()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    telnet.send("echo after $((40 + 3))\n")?;
    telnet.expect("after 43")?;

    let mut nothing = bed.lab.host.command(&mobile);
    let done = finish_within(library.place(nothing.arg("no-such-command-anywhere")), None, PATIENCE)?;
    assert_eq!(done.code(), 127, "{done:?}");
    drop(telnet);
    bed.finish()
}

/// The error number that a caller of libmobile gets when a function succeeds.
const DONE: Errno = Errno::UnknownErrno;

/// A program on the host that calls one function of libmobile and prints the error number.
struct LibmobileCaller<'a> {
    library: &'a Library,
    host: Ns,
    program: PathBuf,
}

impl<'a> LibmobileCaller<'a> {
    /// Compiles the program, with `more` arguments for the compiler.
    fn compile(bed: &Testbed, library: &'a Library, more: &[&str]) -> anyhow::Result<Self> {
        let program = library.compile(&case("ask.c"), more)?;
        Ok(Self { library, host: bed.lab.host.clone(), program })
    }

    fn as_root(&self, args: &[&str]) -> anyhow::Result<Errno> {
        let mut command = self.host.command(&self.program);
        error_number(self.library.place(command.args(args)))
    }

    fn as_user(&self, args: &[&str]) -> anyhow::Result<Errno> {
        let mut command = self.host.command_as(USER, &self.program);
        error_number(self.library.place(command.args(args)))
    }
}

/// Runs a command that prints an error number.
fn error_number(command: &mut Command) -> anyhow::Result<Errno> {
    Ok(Errno::from_raw(run(command)?.trim().parse()?))
}

#[test]
fn every_error_of_the_c_interface_has_its_number() -> Outcome {
    let mut bed = Testbed::new()?;
    let library = Library::install(&bed)?;
    let ask = LibmobileCaller::compile(&bed, &library, &[])?;
    // A process of root, and one of a user.
    let shell = LineProcess::start(&mut bed.lab.host.command("sh"))?;
    let theirs = LineProcess::start(&mut bed.lab.host.command_as(USER, "sh"))?;
    let users = theirs.pid().to_string();
    setmobile_of_processes(&bed, &ask, &shell.pid().to_string(), &users)?;

    for gateway in ["null", "0.0.0.0", &bed.agent.address4.to_string(), &addr::RELAY4.to_string()] {
        assert_eq!(ask.as_user(&["route", gateway])?, DONE, "{gateway}");
    }
    assert_eq!(ask.as_root(&["route", "192.0.2.200"])?, Errno::EADDRNOTAVAIL);

    // Many calls at once from one process.
    let threads = library.compile(&case("threads.c"), &["-pthread"])?;
    let mut command = bed.lab.host.command(&threads);
    assert_eq!(run(library.place(command.arg(&users)))?.trim(), "0");

    setuid_program_asks_no_other_agent(&bed, &library)?;

    drop((shell, theirs));
    bed.agent.kill()?;
    assert_eq!(ask.as_root(&["mobile", "0", "1"])?, Errno::ECONNREFUSED);
    let mut command = bed.lab.host.command(&ask.program);
    library.place(command.args(["mobile", "0", "1"])).env("MOBILE_CONTROL_SOCKET", "/nonexistent/agent.sock");
    assert_eq!(error_number(&mut command)?, Errno::ENOENT);
    bed.finish()
}

/// Checks the error numbers of `inet_setmobile` for a process of root and one of a user, both on
/// the host, and for process ids and flags that do not exist.
fn setmobile_of_processes(bed: &Testbed, ask: &LibmobileCaller<'_>, roots: &str, users: &str) -> Outcome {
    let is_mobile = |pid: &str| -> anyhow::Result<bool> {
        Ok(std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?.contains("/mobile-laptop/"))
    };
    assert_eq!(ask.as_user(&["mobile", roots, "1"])?, Errno::EPERM);
    assert!(!is_mobile(roots)?);
    for pid in [roots, users] {
        for (flag, mobile) in [("1", true), ("1", true), ("0", false), ("0", false)] {
            assert_eq!(ask.as_root(&["mobile", pid, flag])?, DONE);
            assert_eq!(is_mobile(pid)?, mobile);
        }
    }
    assert_eq!(ask.as_user(&["mobile", users, "1"])?, DONE);
    assert!(is_mobile(users)?);
    assert_eq!(ask.as_root(&["mobile", "0", "1"])?, DONE);
    assert_eq!(ask.as_root(&["mobile", "0", "2"])?, Errno::EINVAL);
    assert_eq!(ask.as_root(&["mobile", "-1", "1"])?, Errno::EINVAL);
    assert_eq!(ask.as_root(&["mobile", &i32::MAX.to_string(), "1"])?, Errno::ESRCH);
    let elsewhere = LineProcess::start(&mut bed.lab.server.command("sh"))?;
    assert_eq!(ask.as_root(&["mobile", &elsewhere.pid().to_string(), "1"])?, Errno::EOPNOTSUPP);
    Ok(())
}

/// Checks that a program with another user's rights ignores an environment that names another
/// agent.
fn setuid_program_asks_no_other_agent(bed: &Testbed, library: &Library) -> Outcome {
    let trusting = LibmobileCaller::compile(bed, library, &[&format!("-Wl,-rpath,{}", library.lib())])?;
    let route = ["route", &bed.agent.address4.to_string()];
    run(Command::new("chmod").arg("4755").arg(&trusting.program))?;
    assert_ne!(trusting.as_user(&route)?, DONE);
    run(Command::new("chmod").arg("0755").arg(&trusting.program))?;
    assert_eq!(trusting.as_user(&route)?, DONE);
    Ok(())
}

#[test]
fn inet_setmobile_also_marks_raw_sockets() -> Outcome {
    const SCRIPT: &str = "
import ctypes, socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
library = ctypes.CDLL(sys.argv[1])
for flag in (1, 0):
    assert library.inet_setmobile(0, flag) == 0
    print(raw.getsockopt(socket.SOL_SOCKET, 36) != 0)  # SO_MARK
";
    let bed = Testbed::new()?;
    let library = Library::install(&bed)?;
    let file = format!("{}/libmobile.so", library.lib());
    let mut command = bed.lab.host.command("python3");
    let said = finish_within(library.place(command.args(["-c", SCRIPT, &file])), None, PATIENCE)?.ok()?;
    assert_eq!(said, "True\nFalse\n");
    bed.finish()
}

#[test]
fn setmroute_restores_what_was_removed_and_reports_that_there_is_no_route_yet() -> Outcome {
    let mut bed = Testbed::installed(&mobile_tests::LabOptions::default())?;
    let library = Library::install(&bed)?;
    let ask = LibmobileCaller::compile(&bed, &library, &[])?;
    let host = bed.lab.host.clone();
    let set = || ask.as_root(&["route", "null"]);
    // The agent has not reached the relay yet.
    bed.agent.start()?;
    assert_eq!(set()?, Errno::ENETDOWN);
    bed.relay.start()?;
    bed.agent.wait_connected()?;
    bed.expect_warning("parts of the MOBILE route that another program removed or changed");
    bed.expect_warning("relay not reachable over this uplink");
    for _ in 0..10 {
        host.run(&["ip", "route", "flush", "table", "7700"])?;
        assert_eq!(set()?, DONE);
        let routes = host.run(&["ip", "route", "show", "table", "7700"])?;
        assert!(routes.contains("default dev mobile0"), "{routes}");
    }
    bed.finish()
}
