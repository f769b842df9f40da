//! `mobile ps` reports what each mobile process's connections carried, both open and closed ones.

use mobile_tests::{LineProcess, Testbed, UplinkName, addr, port, until};
use serde_json::{Value, json};

use crate::{Outcome, server};

/// A shell whose file descriptors are TCP connections, which `ps` therefore counts as the shell's
/// own.
struct Shell(LineProcess);

impl Shell {
    /// Opens a TCP connection to the echo service at `address` as the shell's descriptor `fd`.
    fn open(&mut self, fd: u8, address: impl std::fmt::Display) -> Outcome {
        let said = self.0.request(&format!("exec {fd}<>/dev/tcp/{address}/{} && echo open", port::ECHO))?;
        assert_eq!(said, "open");
        Ok(())
    }

    /// Sends `bytes` bytes to the echo service over descriptor `fd` and reads the echo.
    fn echo(&mut self, fd: u8, bytes: u64) -> Outcome {
        self.0.send_line(&format!("printf %0{bytes}d 0 >&{fd}; read -N {bytes} -u {fd} x; echo ${{#x}}"))?;
        assert_eq!(self.0.next_line()?, bytes.to_string());
        Ok(())
    }

    /// Starts a child process that carries 300 bytes each way over a TCP connection of its own, and
    /// returns its process id. Of the shell's connections, it inherits all but descriptor 4.
    fn child_with_connection(&mut self) -> anyhow::Result<i32> {
        let pid = self.0.request(&format!(
            "(exec 5<>/dev/tcp/{}/{} 4>&-; printf %0300d 0 >&5; read -N 300 -u 5 x; echo $BASHPID; read -u 5 x) &",
            addr::SERVER4,
            port::ECHO
        ))?;
        Ok(pid.parse()?)
    }

    fn close(&mut self, fd: u8) -> Outcome {
        assert_eq!(self.0.request(&format!("exec {fd}>&-; echo closed"))?, "closed");
        Ok(())
    }
}

/// Returns the entry of the process `pid` in the output of `mobile ps --json`, if the process is
/// mobile.
fn listed(bed: &Testbed, pid: i32) -> anyhow::Result<Option<Value>> {
    let list: Vec<Value> = serde_json::from_str(&bed.agent.cli(&["ps", "--json"])?.ok()?)?;
    Ok(list.into_iter().find(|process| process["pid"] == pid))
}

/// Checks what `mobile ps` reports of a process: `made` TCP connections in total, `open` of them
/// still open, and `bytes` carried in each direction.
fn carried(bed: &Testbed, pid: i32, open: usize, made: u64, bytes: u64) -> Outcome {
    let process = listed(bed, pid)?.expect("it is mobile");
    let expected = json!({"connections": made, "bytes_sent": bytes, "bytes_received": bytes});
    assert_eq!(process["tcp"], expected, "{process}");
    assert_eq!(process["connections"].as_array().map(Vec::len), Some(open), "{process}");
    Ok(())
}

#[test]
fn ps_reports_the_exact_bytes_of_each_process_over_a_handover_and_a_restart() -> Outcome {
    let mut bed = Testbed::new()?;
    let mut shell = Shell(LineProcess::start(&mut bed.agent.run(&["bash"]))?);
    let mut ordinary = Shell(LineProcess::start(&mut bed.lab.host.command("bash"))?);
    let pid = shell.0.pid();
    // The command runs once its process is mobile.
    assert_eq!(shell.0.request("echo mobile")?, "mobile");
    carried(&bed, pid, 0, 0, 0)?;
    for shell in [&mut shell, &mut ordinary] {
        shell.open(3, addr::SERVER4)?;
        shell.echo(3, 1000)?;
        shell.open(4, addr::SERVER6)?;
        shell.echo(4, 20_000)?;
        shell.close(3)?;
    }
    carried(&bed, pid, 1, 2, 21_000)?;
    assert_eq!(listed(&bed, ordinary.0.pid())?, None);

    bed.lab.eth().cut()?;
    bed.lab.eth().give_up_address()?;
    bed.agent.wait_active(UplinkName::Wlan)?;
    shell.echo(4, 500)?;
    carried(&bed, pid, 1, 2, 21_500)?;

    // A child has an account of its own; inherited connections stay on its parent's.
    let child = shell.child_with_connection()?;
    carried(&bed, child, 1, 1, 300)?;
    carried(&bed, pid, 1, 2, 21_500)?;

    // Connections made before the process was mobile are not on its account.
    bed.agent.cli(&["attach", &ordinary.0.pid().to_string()])?.ok()?;
    carried(&bed, ordinary.0.pid(), 0, 0, 0)?;

    bed.agent.kill()?;
    bed.agent.start()?;
    bed.agent.wait_connected()?;
    carried(&bed, pid, 1, 2, 21_500)?;
    carried(&bed, child, 1, 1, 300)?;
    shell.echo(4, 70)?;
    shell.close(4)?;
    shell.open(6, addr::SERVER4)?;
    shell.echo(6, 8)?;
    carried(&bed, pid, 1, 3, 21_578)?;
    bed.agent.stop()?;
    shell.close(6)?;
    bed.agent.start()?;
    carried(&bed, pid, 0, 3, 21_578)?;

    let text = bed.agent.cli(&["ps"])?.ok()?;
    let row = text.lines().find(|line| line.split_whitespace().next() == Some(&pid.to_string()));
    let cells: Vec<&str> = row.expect("the shell's line").split_whitespace().collect();
    assert_eq!(cells[2..6], ["0", "3", "21578", "21578"], "{text}");

    drop(shell);
    until("the end of the shell", || listed(&bed, pid).is_ok_and(|process| process.is_none()))?;
    drop(ordinary);
    bed.finish()
}

#[test]
fn a_connection_to_a_bypassed_network_is_on_no_account() -> Outcome {
    let bed = Testbed::new()?;
    bed.agent.cli(&["bypass", "add", &format!("{}/32", addr::SERVER4)])?.ok()?;
    let mut talk = bed.mobile_labtool(&["tcp", &server(port::ECHO)[0]])?;
    talk.next_line()?;
    assert_eq!(talk.request("direct")?, "direct");
    carried(&bed, talk.pid(), 0, 0, 0)?;
    bed.finish()
}
