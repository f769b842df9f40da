//! Requests that cannot work fail with a clear error and leave nothing behind.

use std::process::Command;

use mobile_tests::{
    CommandOutput, LineProcess, Ns, PATIENCE, Process, Relay, Testbed, addr, finish_within,
    in_mount_namespace, port, wait_for,
};

use crate::{Outcome, copy, installed_without_delay, server, urls};

/// Runs a daemon that must refuse to start (exit with code 1), and returns its stderr.
fn refused(command: &mut Command) -> anyhow::Result<String> {
    let done: CommandOutput = finish_within(command, None, PATIENCE)?;
    assert_eq!(done.code(), 1, "{done:?}");
    assert!(!done.stderr.contains("panicked"), "{}", done.stderr);
    Ok(done.stderr)
}

/// Runs a daemon that must refuse to start, in a mount namespace that the shell command `prepare`
/// has changed, and returns its stderr.
fn refused_after(bed: &Testbed, prepare: &str, command: &Command) -> anyhow::Result<String> {
    let mut shell = bed.lab.host.command_line(&in_mount_namespace(prepare));
    shell.arg(command.get_program()).args(command.get_args());
    refused(&mut shell)
}

fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "no {part:?} in {text:?}");
    }
}

#[test]
fn a_wrong_relay_key_is_refused_by_the_agent() -> Outcome {
    let mut bed = installed_without_delay()?;
    let other =
        bed.agent.cli(&["keygen", "--out", &bed.lab.dir().join("other.key").display().to_string()])?.ok()?;
    bed.agent.configure("relay", "public_key", other.trim())?;
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_status("the refusal", |status| status["session"] == "refused")?;
    let problem = bed.agent.status()?["problem"].to_string();
    assert_says(&problem, &["key"]);
    assert!(bed.relay.sessions()?.is_empty());
    bed.expect_warning("key");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn an_unauthorised_client_is_refused_by_the_relay_and_told_so() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    bed.relay.start()?;
    bed.agent.start()?;
    bed.agent.wait_status("the refusal", |status| status["session"] == "refused")?;
    let problem = bed.agent.status()?["problem"].to_string();
    assert_says(&problem, &["authorize"]);
    assert!(bed.relay.sessions()?.is_empty());
    // Once the relay authorises the client, the agent connects by itself.
    let addresses = bed.relay.authorize("laptop", &bed.agent.public_key.clone())?;
    assert_eq!(addresses.len(), 2);
    bed.agent.wait_connected()?;
    bed.expect_warning("authori");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_revoked_client_is_cut_off_at_once_and_stays_out() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.start()?;
    let [four, _] = server(port::ECHO);
    let mut talk = bed.mobile_labtool(&["tcp", &four])?;
    talk.next_line()?;
    assert_eq!(talk.request("before")?, "before");
    bed.relay.cli(&["revoke", "laptop"])?.ok()?;
    assert!(bed.relay.sessions()?.is_empty(), "the session is still there");
    bed.agent.wait_status("the refusal", |status| status["session"] == "refused")?;
    talk.send_line("after")?;
    assert!(
        talk.next_line_within(std::time::Duration::from_secs(2)).is_err(),
        "a revoked client still gets answers"
    );
    assert!(bed.relay.cli(&["revoke", "laptop"])?.code() == 1, "revoking it twice is an error");
    drop(talk);
    bed.expect_warning("revoked");
    bed.expect_warning("authori");
    bed.expect_warning("relay");
    bed.finish()
}

#[test]
fn a_packet_with_another_source_address_goes_no_further_than_the_relay() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.start()?;
    let (own4, own6) = (bed.agent.address4.octets(), bed.agent.address6.segments());
    let foreign4 = std::net::Ipv4Addr::from([own4[0], own4[1], own4[2], own4[3] ^ 0x55]).to_string();
    let mut six = own6;
    six[7] ^= 0x5555;
    let foreign6 = std::net::Ipv6Addr::from(six).to_string();
    let before = rejected(&bed)?;
    let at_relay =
        bed.lab.capture(&bed.lab.relay, "home0", &format!("host {foreign4} or host {foreign6}"))?;
    // The address is set on lo, because the agent restores its own device.
    bed.lab.host.ip(&[
        &format!("address add {foreign4}/32 dev lo"),
        &format!("address add {foreign6}/128 dev lo nodad"),
    ])?;
    for (source, target) in [(&foreign4, addr::SERVER4.to_string()), (&foreign6, addr::SERVER6.to_string())] {
        let mut ping =
            bed.agent.run(&["ping", "-n", "-c", "3", "-i", "0.1", "-W", "1", "-I", source, &target]);
        let done = finish_within(&mut ping, None, PATIENCE)?;
        assert_eq!(done.code(), 1, "someone answers {source}: {done:?}");
    }
    wait_for("the relay to count six packets", PATIENCE, || {
        Ok((rejected(&bed)? >= before + 6).then_some(()))
    })?;
    // A packet with the right source shows that the capture works.
    assert!(
        finish_within(&mut bed.agent.run(&["curl", "-sf", &urls("/ip")[0]]), None, PATIENCE)?
            .status
            .success()
    );
    assert_eq!(at_relay.stop()?, Vec::<String>::new());
    bed.lab
        .host
        .ip(&[&format!("address del {foreign4}/32 dev lo"), &format!("address del {foreign6}/128 dev lo")])?;
    bed.expect_warning("source");
    bed.finish()
}

/// Returns the number of clients' packets that the relay has dropped because of a foreign source
/// address.
fn rejected(bed: &Testbed) -> anyhow::Result<u64> {
    let text = bed.lab.relay.run(&[
        "curl",
        "-sS",
        "--fail",
        &format!("http://{}/metrics", mobile_tests::METRICS),
    ])?;
    let counted = text.lines().filter(|line| line.starts_with("homerelay_") && line.contains("source"));
    let value =
        |line: &str| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).unwrap_or(0.0);
    Ok(counted.map(value).sum::<f64>() as u64)
}

#[test]
fn an_unknown_key_in_a_config_is_named_with_its_place_and_the_nearest_known_one() -> Outcome {
    let bed = installed_without_delay()?;
    for (config, command, wrong, right) in [
        (bed.agent.config(), bed.agent.command(&["agent"]), "devcie", "device"),
        (bed.relay.config(), bed.relay.command(&["serve"]), "devcie", "device"),
    ] {
        let text = std::fs::read_to_string(config)?;
        let text = text.replace("[tunnel]\n", "");
        let line = text.lines().count() + 2;
        std::fs::write(config, format!("{text}[tunnel]\n{wrong} = \"m1\"\n"))?;
        let mut command = command;
        let said = refused(&mut command)?;
        assert_says(&said, &[&format!("{}:{line}", config.display()), wrong, right]);
        std::fs::write(config, &text)?;
    }
    bed.assert_clean()?;
    bed.finish()
}

#[test]
fn a_refused_value_in_a_config_is_named_with_its_key_and_what_to_write() -> Outcome {
    let bed = installed_without_delay()?;
    for (config, command, lines, parts) in [
        (
            bed.agent.config(),
            bed.agent.command(&["agent"]),
            "[routing]\nbypass = [\"192.168.1.0\"]",
            &["[routing] bypass: \"192.168.1.0\" has", "\"192.168.1.0/24\"", "\"192.168.1.0/32\""][..],
        ),
        (
            bed.agent.config(),
            bed.agent.command(&["agent"]),
            "[tunnel]\nqueue = fifo",
            &["[tunnel] queue: fifo is not accepted: write \"fair\" or \"fifo\""],
        ),
        (
            bed.relay.config(),
            bed.relay.command(&["serve"]),
            "[clients]\nisolate = no",
            &["[clients] isolate: no is not accepted: write true or false"],
        ),
        (
            bed.relay.config(),
            bed.relay.command(&["serve"]),
            "[limits]\nsession_idle = \"a day\"",
            &["[limits] session_idle: \"a day\" is not accepted", "\"24h\""],
        ),
        (
            bed.relay.config(),
            bed.relay.command(&["serve"]),
            "[clients]\nreach = [\"10.1.2.3/16\"]",
            &["[clients] reach: \"10.1.2.3/16\" has address bits beyond", "\"10.1.0.0/16\""],
        ),
    ] {
        let text = std::fs::read_to_string(config)?;
        let (section, setting) = lines.split_once('\n').expect("a section and a setting");
        let key = setting.split('=').next().expect("a key");
        // The setting comes first in its section, and replaces the one that is there.
        let others = text.lines().filter(|line| *line != section && !line.starts_with(key));
        let rest: Vec<&str> = text.lines().skip_while(|line| *line != section).skip(1).collect();
        let rest = rest.iter().take_while(|line| !line.starts_with('[')).copied();
        let own: Vec<&str> = rest.filter(|line| !line.starts_with(key)).collect();
        let others: Vec<&str> = others.filter(|line| !own.contains(line)).collect();
        std::fs::write(config, [&[section, setting], &own[..], &others[..]].concat().join("\n"))?;
        let mut command = command;
        let said = refused(&mut command)?;
        assert_says(&said, parts);
        assert!(said.contains(&format!("{}:2", config.display())), "{said}");
        std::fs::write(config, &text)?;
    }
    bed.assert_clean()?;
    bed.finish()
}

#[test]
fn a_missing_key_is_named_with_the_next_step_of_the_program_that_needs_it() -> Outcome {
    let bed = installed_without_delay()?;
    for (key, mut command, right, wrong) in [
        (
            bed.agent.config().with_file_name("agent.key"),
            bed.agent.command(&["agent"]),
            "`mobile keygen",
            "home-relay init",
        ),
        (
            bed.relay.config().with_file_name("relay.key"),
            bed.relay.command(&["serve"]),
            "`home-relay init`",
            "keygen",
        ),
    ] {
        std::fs::remove_file(&key)?;
        let said = refused(&mut command)?;
        assert_says(&said, &["[identity] private_key_file: no key at", &key.display().to_string(), right]);
        assert!(!said.contains(wrong), "{said}");
        std::fs::write(&key, "c2hvcnQ=\n")?;
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        assert_says(&refused(&mut command)?, &["[identity] private_key_file", "44 characters of base64"]);
    }
    bed.assert_clean()?;
    bed.finish()
}

#[test]
fn root_without_a_capability_is_told_which_one_is_missing() -> Outcome {
    let bed = installed_without_delay()?;
    for command in [bed.agent.command(&["agent"]), bed.relay.command(&["serve"])] {
        let mut without = bed.lab.host.command_line(&["setpriv", "--bounding-set", "-net_admin"]);
        without.arg(command.get_program()).args(command.get_args());
        let said = refused(&mut without)?;
        assert_says(&said, &["root has no CAP_NET_ADMIN here"]);
        assert!(!said.contains("run as root"), "{said}");
        bed.assert_clean()?;
    }
    bed.finish()
}

/// Occupies a TCP port of a namespace with a separate program.
///
/// A socket of the test process could live on for a moment in a child that another case has forked
/// and that has not yet executed its program.
fn squat(bed: &Testbed, ns: &Ns, port: u16) -> anyhow::Result<Process> {
    let mut command = ns.command("iperf3");
    command.args(["--server", "--forceflush", "--port", &port.to_string()]);
    let mut squatter =
        Process::start("squatter", &mut command, &bed.lab.dir().join(format!("squatter-{port}.txt")))?;
    squatter.wait_output("Server listening", PATIENCE)?;
    Ok(squatter)
}

#[test]
fn a_busy_port_is_named_and_nothing_is_left() -> Outcome {
    let mut bed = installed_without_delay()?;
    let squatter = squat(&bed, &bed.lab.relay, mobile_tests::RELAY_PORT)?;
    let said = refused(&mut bed.relay.command(&["serve"]))?;
    assert_says(&said, &["443", "in use"]);
    bed.assert_clean()?;
    drop(squatter);
    bed.relay.start()?;

    let squatter = squat(&bed, &bed.lab.host, 9478)?;
    let said = refused(&mut bed.agent.command(&["agent"]))?;
    assert_says(&said, &["9478", "in use"]);
    assert!(!bed.agent.pin_dir.exists());
    drop(squatter);
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    let said = refused(&mut bed.agent.command(&["agent"]))?;
    assert_says(&said, &["already running"]);
    let said = refused(&mut bed.relay.command(&["serve"]))?;
    assert_says(&said, &["already running"]);
    // The refused second daemons took nothing from the first ones.
    assert!(
        finish_within(&mut bed.agent.run(&["curl", "-sf", &urls("/ip")[0]]), None, PATIENCE)?
            .status
            .success()
    );
    bed.finish()
}

#[test]
fn without_a_tun_device_both_say_so_and_leave_nothing() -> Outcome {
    let bed = installed_without_delay()?;
    for command in [bed.agent.command(&["agent"]), bed.relay.command(&["serve"])] {
        let said = refused_after(&bed, "mount -t tmpfs none /dev/net", &command)?;
        assert_says(&said, &["/dev/net/tun"]);
        bed.assert_clean()?;
    }
    bed.finish()
}

#[test]
fn without_cgroup2_the_agent_says_so_and_leaves_nothing() -> Outcome {
    let bed = installed_without_delay()?;
    let said =
        refused_after(&bed, "umount -l $(findmnt -nt cgroup2 -o TARGET)", &bed.agent.command(&["agent"]))?;
    assert_says(&said, &["cgroup2"]);
    bed.assert_clean()?;
    bed.finish()
}

#[test]
fn without_root_both_say_so_and_leave_nothing() -> Outcome {
    let bed = installed_without_delay()?;
    let open = bed.lab.dir().join("open");
    std::fs::create_dir(&open)?;
    // All files may be read and written; only the right to make devices and routes is missing.
    bed.lab.host.run(&["chown", "-R", "65534", &bed.lab.dir().display().to_string()])?;
    for command in [bed.agent.command(&["agent"]), bed.relay.command(&["serve"])] {
        let program = open.join("program");
        copy(&bed, command.get_program(), &program)?;
        let said = refused(bed.lab.host.command_as(65_534, &program).args(command.get_args()))?;
        assert_says(&said, &["root"]);
        bed.assert_clean()?;
        std::fs::remove_file(&program)?;
    }
    bed.finish()
}

#[test]
fn a_missing_configuration_or_one_that_exists_leaves_a_running_relay_alone() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.start()?;
    let mut shell = LineProcess::start(&mut bed.agent.run(&["sh"]))?;
    let missing = bed.lab.dir().join("nowhere/relay.toml");
    let mut second = bed.lab.relay.command(mobile_tests::program("home-relay")?);
    let said = refused(second.args(["serve", "--config"]).arg(&missing))?;
    assert_says(&said, &["nowhere/relay.toml"]);
    assert!(Relay::install(&bed.lab).is_err(), "init overwrote a configuration");
    assert!(shell.request(&format!("curl -sf {}", urls("/ip")[0]))?.starts_with(&addr::RELAY4.to_string()));
    bed.finish()
}

#[test]
fn cleanup_leaves_the_rules_of_a_relay_that_lost_its_socket() -> Outcome {
    let mut bed = installed_without_delay()?;
    bed.start()?;
    std::fs::remove_file(bed.lab.dir().join("relay.sock"))?;
    assert_says(&refused(&mut bed.relay.command(&["cleanup"]))?, &["home0", "in use", "stop the relay"]);
    assert_says(&bed.lab.relay.run(&["nft", "list", "tables"])?, &["inet home_relay"]);
    bed.finish()
}
