//! Programs that hand their work to a running instance: `mobile run` and `mobile explain` name the
//! running process, which will open the connections.

use std::net::IpAddr;

use mobile_tests::{PATIENCE, Process, Services, Terminal, Testbed, addr, finish_within, port, until};

use crate::programs::CHROMIUM;
use crate::{Outcome, ip_of, urls};

/// Returns the process ids for which a warning of `mobile` advises `mobile attach`.
fn advised(said: &str) -> Vec<String> {
    let line = said
        .lines()
        .find(|line| line.starts_with("mobile: "))
        .unwrap_or_else(|| panic!("no warning: {said}"));
    let (_, pids) = line.rsplit_once("mobile attach ").unwrap_or_else(|| panic!("no advice: {line}"));
    pids.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn a_running_browser_is_named_and_can_be_attached() -> Outcome {
    let bed = Testbed::new()?;
    let (host, dir) = (&bed.lab.host, bed.lab.dir());
    let profile = format!("--user-data-dir={}", dir.join("profile").display());
    let browser = [&CHROMIUM[..], &["--ozone-platform=headless", &profile]].concat();
    let filter = format!("tcp port {}", port::HTTP);
    let [direct, tunnel] = ["eth0", "mobile0"].map(|device| bed.lab.capture(host, device, &filter));
    let (direct, tunnel) = (direct?, tunnel?);
    // The browser shows a page first, because the process that connects starts with the first page.
    let [shown, _] = urls("/page/8");
    let mut first = host.command(browser[0]);
    let first = Process::start("chromium", first.args(&browser[1..]).arg(&shown), &dir.join("first.txt"))?;
    until("the browser to wait for others", || dir.join("profile/SingletonSocket").exists())?;
    direct.wait_packet("GET /page/8")?;
    let open = |url: &str| {
        let argv = [&browser[..], &[url]].concat();
        finish_within(&mut bed.agent.run(&argv), None, PATIENCE)
    };
    // The page is handed to the running browser, and the connection is not mobile, as the warning
    // said.
    let [four, six] = urls("/page/9");
    let done = open(&four)?;
    assert!(done.stdout.contains("existing browser session"), "{done:?}");
    let pids = advised(&done.stderr);
    assert!(pids.contains(&first.pid().to_string()) && pids.len() > 1, "{}: {}", first.pid(), done.stderr);
    direct.wait_packet("GET /page/9")?;
    assert_eq!(tunnel.packets(), [] as [String; 0]);
    // After following the advice it is mobile.
    let attach: Vec<&str> = std::iter::once("attach").chain(pids.iter().map(String::as_str)).collect();
    bed.agent.cli(&attach)?.ok()?;
    let before = direct.packets().len();
    let done = open(&six)?;
    assert!(!done.stderr.contains("mobile: "), "{}", done.stderr);
    tunnel.wait_packet(&format!("{}.{}", addr::SERVER6, port::HTTP))?;
    let beside = direct.stop()?.split_off(before);
    let other = addr::SERVER6.to_string();
    assert!(!beside.iter().any(|line| line.contains(&other)), "{beside:#?}");
    drop(first);
    bed.finish()
}

#[test]
fn a_running_terminal_multiplexer_is_named_by_run_and_by_explain() -> Outcome {
    let bed = Testbed::new()?;
    let socket = bed.lab.dir().join("tmux").display().to_string();
    let tmux = ["tmux", "-f", "/dev/null", "-S", &socket];
    let start = [&tmux[..], &["new-session", "-d", "sh"]].concat();
    bed.lab.host.run(&start)?;
    let server = bed.lab.host.run(&[&tmux[..], &["display-message", "-p", "#{pid}"]].concat())?;
    let mut client = bed.agent.run(&[&tmux[..], &["attach"]].concat());
    let client = Terminal::start(client.env("TERM", "xterm"))?;
    client.expect("mobile attach ")?;
    assert_eq!(advised(&client.transcript())[0], server.trim());
    // The server's command line may follow on the same line; the first word counts.
    let told = format!("as process {} (tmux", server.trim());
    until("explain to name the server", || {
        let said = bed.agent.cli(&["explain", &client.pid().to_string()]);
        said.is_ok_and(|said| said.stdout.contains(&told))
    })?;
    // A server with its own socket belongs to nobody else.
    let own = bed.lab.dir().join("own").display().to_string();
    bed.lab.host.run(&[&tmux[..], &["kill-server"]].concat())?;
    drop(client);
    until("the server's end", || !std::path::Path::new(&format!("/proc/{}", server.trim())).exists())?;
    let mut alone = bed.agent.run(&["tmux", "-f", "/dev/null", "-S", &own, "new-session", "-d", "sh"]);
    let done = finish_within(&mut alone, None, PATIENCE)?;
    assert_eq!((done.code(), done.stderr.as_str()), (0, ""));
    bed.finish()
}

#[test]
fn a_control_master_of_ssh_is_named_and_a_second_plain_session_is_not() -> Outcome {
    let bed = Testbed::new()?;
    let (host, server) = (&bed.lab.host, addr::SERVER4.to_string());
    let _sshd = Services::sshd(&bed.lab.server, bed.lab.dir(), &[&server])?;
    let file = |name: &str| bed.lab.dir().join(name).display().to_string();
    let (identity, known) = (file("id"), format!("UserKnownHostsFile={}", file("known_hosts")));
    let (socket, target) = (file("master"), format!("root@{server}"));
    let ssh = |extra: &[&str]| -> Vec<String> {
        let options = ["ssh", "-F", "none", "-i", &identity, "-o", &known];
        options.iter().chain(extra).map(|&word| word.to_owned()).collect()
    };
    let start = |extra: &[&str], log: &str| {
        Process::start("ssh", &mut host.command_line(&ssh(extra)), &bed.lab.dir().join(log))
    };
    let ask = |socket: &str| {
        let argv = ssh(&["-S", socket, &target, "echo $SSH_CLIENT"]);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        finish_within(&mut bed.agent.run(&argv), None, PATIENCE)
    };
    let seen = |said: &str| said.split(' ').next().and_then(|it| it.parse::<IpAddr>().ok());
    // Plain sessions do not share a connection.
    let _plain = start(&["-S", "none", &target, "echo here; sleep 60"], "plain.txt")?;
    until("the plain session", || {
        std::fs::read_to_string(file("plain.txt")).is_ok_and(|it| it.contains("here"))
    })?;
    let done = ask("none")?;
    assert_eq!((seen(&done.stdout), done.stderr.as_str()), (Some(addr::RELAY4.into()), ""));
    for argv in [&["true"][..], &["sh", "-c", "true"], &["curl", "-s", &urls("/ip")[0]]] {
        assert_eq!(finish_within(&mut bed.agent.run(argv), None, PATIENCE)?.stderr, "");
    }
    // A control master, whose connection the next session uses.
    let master = start(&["-M", "-N", "-S", &socket, &target], "master.txt")?;
    until("the master to listen", || std::path::Path::new(&socket).exists())?;
    let done = ask(&socket)?;
    assert_eq!(seen(&done.stdout), Some(bed.lab.eth().name.nat_address().into()));
    assert_eq!(advised(&done.stderr), [master.pid().to_string()]);
    drop(master);
    // A page fetched at the end takes the tunnel as usual.
    let mut curl = bed.agent.run(&["curl", "-s", &urls("/ip")[0]]);
    assert_eq!(ip_of(&finish_within(&mut curl, None, PATIENCE)?.ok()?), IpAddr::V4(addr::RELAY4));
    bed.finish()
}
