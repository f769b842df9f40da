//! The MOBILE attribute selects, process by process, which route is taken.

use std::fs::{self, Permissions};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;

use mobile_tests::{LineProcess, PATIENCE, Testbed, addr, finish_within, port, program};

use crate::{Outcome, copy, ip_of, server, urls};

/// The relay's addresses, which the server sees as the source of a mobile process's connections.
const RELAY: [IpAddr; 2] = [IpAddr::V4(addr::RELAY4), IpAddr::V6(addr::RELAY6)];

#[test]
fn mobile_and_ordinary_processes_take_their_own_routes_at_the_same_time() -> Outcome {
    let bed = Testbed::new()?;
    let eth = bed.lab.eth();
    let persistent = [IpAddr::V4(bed.agent.address4), IpAddr::V6(bed.agent.address6)];
    let own = [IpAddr::V4(eth.address4()), IpAddr::V6(eth.address6())];
    let direct = [IpAddr::V4(eth.name.nat_address()), own[1]];
    for (family, server) in server(port::WHOAMI).iter().enumerate() {
        let mut mobile = bed.mobile_labtool(&["tcp", server])?;
        let mut ordinary = bed.ordinary_labtool(&["tcp", server])?;
        let local = |greeting: &str| ip_of(greeting.split(' ').nth(1).expect("connected LOCAL PEER"));
        assert_eq!(local(&mobile.next_line()?), persistent[family]);
        assert_eq!(local(&ordinary.next_line()?), own[family]);
        for _ in 0..3 {
            assert_eq!(ip_of(&mobile.request("who am I")?), RELAY[family]);
            assert_eq!(ip_of(&ordinary.request("who am I")?), direct[family]);
        }
        for kind in ["udp", "udp-connected"] {
            // The first datagram of each socket is tested.
            assert_eq!(
                ip_of(&bed.mobile_labtool(&[kind, server])?.request("first")?),
                RELAY[family],
                "{kind}"
            );
            assert_eq!(
                ip_of(&bed.ordinary_labtool(&[kind, server])?.request("first")?),
                direct[family],
                "{kind}"
            );
        }
    }
    bed.finish()
}

#[test]
fn children_and_grandchildren_inherit_the_attribute() -> Outcome {
    let bed = Testbed::new()?;
    for (family, url) in urls("/ip").iter().enumerate() {
        let child = format!("curl -s {url}; sh -c 'curl -s {url}; :'; (curl -s {url} &) ; sleep 1");
        let said = finish_within(&mut bed.agent.run(&["sh", "-c", &child]), None, PATIENCE)?.ok()?;
        let seen: Vec<IpAddr> = said.lines().map(ip_of).collect();
        assert_eq!(seen, [RELAY[family]; 3]);
    }
    bed.finish()
}

#[test]
fn attach_and_detach_change_the_next_connection_of_a_running_shell() -> Outcome {
    let bed = Testbed::new()?;
    let ask = format!("curl -s {}", urls("/ip")[0]);
    let direct = IpAddr::V4(bed.lab.eth().name.nat_address());
    let mut shell = LineProcess::start(&mut bed.lab.host.command("sh"))?;
    let pid = shell.pid().to_string();
    for _ in 0..2 {
        assert_eq!(ip_of(&shell.request(&ask)?), direct);
        bed.agent.cli(&["attach", &pid])?.ok()?;
        assert_eq!(ip_of(&shell.request(&ask)?), RELAY[0]);
        let listed = bed.agent.cli(&["ps"])?.ok()?;
        assert!(listed.lines().any(|line| line.split_whitespace().next() == Some(&pid)), "{listed}");
        bed.agent.cli(&["detach", &pid])?.ok()?;
    }
    assert_eq!(ip_of(&shell.request(&ask)?), direct);
    let listed = bed.agent.cli(&["ps"])?.ok()?;
    assert!(!listed.lines().any(|line| line.split_whitespace().next() == Some(&pid)), "{listed}");
    bed.finish()
}

#[test]
fn attach_names_the_sockets_that_keep_their_route_and_detach_leaves_them_mobile() -> Outcome {
    let bed = Testbed::new()?;
    let [server, _] = server(port::WHOAMI);
    let mut talk = bed.ordinary_labtool(&["tcp", &server])?;
    talk.next_line()?;
    let pid = talk.pid().to_string();
    let said = bed.agent.cli(&["attach", &pid])?.ok()?;
    assert!(said.contains(&server), "attach does not name the connection: {said}");
    assert_eq!(ip_of(&talk.request("still")?), IpAddr::V4(bed.lab.eth().name.nat_address()));
    bed.agent.cli(&["detach", &pid])?.ok()?;

    let mut talk = bed.mobile_labtool(&["tcp", &server])?;
    talk.next_line()?;
    let said = bed.agent.cli(&["detach", &talk.pid().to_string()])?.ok()?;
    assert!(said.contains(&server), "detach does not name the connection: {said}");
    assert_eq!(ip_of(&talk.request("still")?), RELAY[0]);
    bed.finish()
}

/// The user ids of `nobody` and of another unprivileged user; neither owns any process or file.
const USERS: [u32; 2] = [65_534, 65_533];

#[test]
fn an_unprivileged_user_runs_commands_and_attaches_only_its_own_processes() -> Outcome {
    let bed = Testbed::new()?;
    let host = &bed.lab.host;
    // The directory of the binaries may be closed to other users.
    let mobile = bed.lab.dir().join("mobile");
    copy(&bed, bed.agent.binary().as_os_str(), &mobile)?;
    let as_user = |args: &[&str]| {
        let mut command = host.command_as(USERS[0], &mobile);
        command.arg("--config").arg(bed.agent.config()).args(args);
        finish_within(&mut command, None, PATIENCE)
    };
    let url = &urls("/ip")[0];
    let said = as_user(&["run", "--", "sh", "-c", &format!("id -u; curl -s {url}")])?.ok()?;
    let (uid, seen) = said.split_once('\n').expect("two lines");
    assert_eq!((uid, ip_of(seen)), (USERS[0].to_string().as_str(), RELAY[0]));

    let ask = format!("curl -s {url}");
    let mut own = LineProcess::start(&mut host.command_as(USERS[0], "sh"))?;
    as_user(&["attach", &own.pid().to_string()])?.ok()?;
    assert_eq!(ip_of(&own.request(&ask)?), RELAY[0]);
    as_user(&["detach", &own.pid().to_string()])?.ok()?;

    let mut foreign = LineProcess::start(&mut host.command_as(USERS[1], "sh"))?;
    let mut roots = LineProcess::start(&mut host.command("sh"))?;
    for shell in [&mut foreign, &mut roots] {
        let refused = as_user(&["attach", &shell.pid().to_string()])?;
        assert_eq!(refused.code(), 1, "{refused:?}");
        assert!(refused.stderr.contains(&shell.pid().to_string()), "{refused:?}");
        assert_eq!(ip_of(&shell.request(&ask)?), IpAddr::V4(bed.lab.eth().name.nat_address()));
    }
    bed.agent.cli(&["attach", &foreign.pid().to_string()])?.ok()?;
    let refused = as_user(&["detach", &foreign.pid().to_string()])?;
    assert_eq!(refused.code(), 1, "{refused:?}");
    assert_eq!(ip_of(&foreign.request(&ask)?), RELAY[0]);
    assert_eq!(as_user(&["cleanup"])?.code(), 1);
    bed.finish()
}

#[test]
fn a_setuid_program_is_mobile_as_who_starts_it_and_changed_by_its_owner_only() -> Outcome {
    let bed = Testbed::new()?;
    let host = &bed.lab.host;
    let (mobile, tool) = (bed.lab.dir().join("mobile"), bed.lab.dir().join("tool-of-root"));
    copy(&bed, bed.agent.binary().as_os_str(), &mobile)?;
    copy(&bed, program("labtool")?.as_os_str(), &tool)?;
    fs::set_permissions(&tool, Permissions::from_mode(0o4755))?;
    let as_user = |args: &[&str]| {
        let mut command = host.command_as(USERS[0], &mobile);
        command.arg("--config").arg(bed.agent.config()).args(args);
        command
    };
    let [server, _] = server(port::WHOAMI);
    let tool = tool.display().to_string();
    let direct = IpAddr::V4(bed.lab.eth().name.nat_address());
    let start_ordinary = || LineProcess::start(host.command_as(USERS[0], &tool).args(["udp", &server]));
    for (mut talk, seen, verb) in [
        (LineProcess::start(&mut as_user(&["run", "--", &tool, "udp", &server]))?, RELAY[0], "detach"),
        (start_ordinary()?, direct, "attach"),
    ] {
        assert_eq!(ip_of(&talk.request("first")?), seen);
        let status = fs::read_to_string(format!("/proc/{}/status", talk.pid()))?;
        assert!(status.contains(&format!("Uid:\t{}\t0\t0\t0\n", USERS[0])), "it is not setuid:\n{status}");
        let refused = finish_within(&mut as_user(&[verb, &talk.pid().to_string()]), None, PATIENCE)?;
        assert_eq!(refused.code(), 1, "{refused:?}");
        assert_eq!(ip_of(&talk.request("second")?), seen, "after {verb}");
    }
    bed.finish()
}

#[test]
fn what_another_user_chose_does_not_reach_the_terminal_raw() -> Outcome {
    let bed = Testbed::new()?;
    // A command line that clears the screen, ends the line, forges a process, and reverses the
    // direction of writing.
    let forged = "\u{1b}[2J\n1 root 0 - - - init \u{9b}31m\u{202e}";
    let argv = ["-c", "while read line; do :; done", forged];
    let user = LineProcess::start(bed.lab.host.command_as(USERS[1], "sh").args(argv))?;
    bed.agent.cli(&["attach", &user.pid().to_string()])?.ok()?;
    let ordinary = |text: &str| !text.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{202e}');
    let shown = bed.agent.cli(&["ps"])?.ok()?;
    assert!(ordinary(&shown), "{shown:?}");
    assert!(shown.contains("\\u{1b}[2J\\n1 root"), "{shown:?}");
    assert!(!shown.lines().any(|line| line.starts_with("1 root")), "{shown:?}");
    let json = bed.agent.cli(&["ps", "--json"])?.ok()?;
    assert!(ordinary(&json), "{json:?}");
    let processes: serde_json::Value = serde_json::from_str(&json)?;
    let commands = processes.as_array().into_iter().flatten().map(|process| process["command"].to_string());
    let exact = serde_json::Value::from(forged).to_string();
    assert!(commands.into_iter().any(|command| command.contains(exact.trim_matches('"'))), "{json}");
    bed.finish()
}

#[test]
fn a_process_that_a_user_may_not_see_is_not_named_to_that_user() -> Outcome {
    let bed = Testbed::new()?;
    let host = &bed.lab.host;
    let (name, owner) = ("secretname", "root");
    let secret = bed.lab.dir().join(name);
    copy(&bed, program("labtool")?.as_os_str(), &secret)?;
    let [server, _] = server(port::WHOAMI);
    let hidden = LineProcess::start(host.command(&secret).args(["udp", &server]))?;
    let pid = hidden.pid().to_string();
    let mobile = bed.lab.dir().join("mobile");
    copy(&bed, bed.agent.binary().as_os_str(), &mobile)?;
    for verb in ["attach", "detach"] {
        let mut command = host.command_as(USERS[0], &mobile);
        command.arg("--config").arg(bed.agent.config()).args([verb, &pid]);
        let refused = finish_within(&mut command, None, PATIENCE)?;
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert_eq!(refused.code(), 1, "{said}");
        assert!(said.contains(&pid), "{said}");
        assert!(!said.contains(name) && !said.contains(&format!("belongs to {owner}")), "{said}");
        // Nor in the agent's own answers. The agent rejects the HTTP lines before the request.
        let socket = bed.lab.dir().join("laptop").join("agent.sock");
        let ask = format!("{{\"{verb}\":{{\"pids\":[{pid}]}}}}\n");
        let mut raw = host.command_as(USERS[0], "curl");
        raw.args(["-s", "--http0.9", "-m", "2", "--data-binary", &ask, "http://agent/", "--unix-socket"]);
        let answer = finish_within(raw.arg(&socket), None, PATIENCE)?.stdout;
        assert!(answer.contains("belongs to another user") && !answer.contains(name), "{answer}");
    }
    // The owner, root here, sees the process's name.
    assert!(bed.agent.cli(&["attach", &pid])?.ok()?.contains(name));
    bed.finish()
}
