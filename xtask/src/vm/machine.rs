//! One boot of a virtual machine: runs qemu and reads its console.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use mobile_tests::{VM_ENDED, VM_STARTED};

use crate::shell::{self, step};

/// The timeout of a boot with all end-to-end cases. An otherwise idle machine needs a quarter of
/// it.
const PATIENCE: Duration = Duration::from_mins(10);

/// The number of console lines shown after a failure.
const TAIL: usize = 60;

/// The kernel's command line. Warnings and oopses panic, so that a kernel warning that the programs
/// cause is a failure.
const KERNEL: &str = "console=ttyS0 loglevel=4 panic=-1 oops=panic panic_on_warn=1 random.trust_cpu=on";

/// Boots the kernel `vmlinuz` with the initramfs `image`, and returns once its init has ended with
/// success.
pub(super) fn run(series: &str, vmlinuz: &Path, image: &Path, folder: &Path) -> Result<()> {
    let log = folder.join(format!("console-{series}.log"));
    let mut file = File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
    let begin = Instant::now();
    let mut qemu = Qemu(start(vmlinuz, image)?);
    let console = qemu.0.stdout.take().context("qemu has no console")?;
    let (sender, lines) = mpsc::channel();
    // The thread ends with qemu, whose output it reads.
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut tail = VecDeque::new();
    let (mut started, mut ended) = (false, None);
    let how = loop {
        match lines.recv_timeout((begin + PATIENCE).saturating_duration_since(Instant::now())) {
            Ok(line) => {
                writeln!(file, "{line}").with_context(|| format!("cannot write {}", log.display()))?;
                if let Some((_, release)) = line.split_once(VM_STARTED) {
                    step(&format!("{} is up after {:.1} s", release.trim(), begin.elapsed().as_secs_f32()));
                    started = true;
                } else if let Some((_, status)) = line.split_once(VM_ENDED) {
                    ended = Some(status.trim() == "0");
                } else if started {
                    println!("{line}");
                }
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            Err(RecvTimeoutError::Disconnected) => break "ended before its cases did",
            Err(RecvTimeoutError::Timeout) => break "did not end in time",
        }
    };
    match ended {
        Some(true) => {
            step(&format!("Linux {series}: every case passed, {} s in all", begin.elapsed().as_secs()));
            Ok(())
        }
        Some(false) => bail!("cases failed on Linux {series}; the console log is in {}", log.display()),
        None => {
            for line in tail {
                eprintln!("{line}");
            }
            bail!("the machine with Linux {series} {how}; the console log is in {}", log.display())
        }
    }
}

/// A qemu process, killed when dropped.
struct Qemu(Child);

impl Drop for Qemu {
    fn drop(&mut self) {
        // qemu may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(vmlinuz: &Path, image: &Path) -> Result<Child> {
    let program = shell::find("qemu-system-x86_64").context("qemu-system-x86_64 is missing")?;
    let mut qemu = Command::new(program);
    qemu.args([
        "-accel",
        accelerator(),
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        "2048",
        "-nodefaults",
        "-no-reboot",
        "-display",
        "none",
    ])
    .args(["-serial", "stdio", "-append", KERNEL])
    .arg("-kernel")
    .arg(vmlinuz)
    .arg("-initrd")
    .arg(image)
    .stdin(Stdio::null())
    .stdout(Stdio::piped())
    .spawn()
    .context("cannot start qemu-system-x86_64")
}

/// Returns qemu's accelerator: KVM if the processor reports hardware virtualisation.
///
/// The existence of `/dev/kvm` is not enough, because on some machines KVM stops at instructions it
/// does not know.
fn accelerator() -> &'static str {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let able = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
    if able && File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        "kvm"
    } else {
        "tcg,thread=multi"
    }
}
