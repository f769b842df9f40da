//! The two ends of a flow (a TCP connection of the chaos test): the server's in the test process,
//! the client's in a mobile process.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::flow_plan::FlowPlan;
use super::stream::Stream;

/// The bytes per write of an interactive flow, which at its rate make one packet every 50 ms.
const BLOCK: usize = 400;

/// The bytes per write of a bulk flow.
const BULK_BLOCK: usize = 16_384;

/// The progress of the server's end of a flow, shared with the thread that supervises the flows.
#[derive(Debug, Default)]
pub(super) struct EndState {
    pub(super) sent: AtomicU64,
    pub(super) received: AtomicU64,
    pub(super) done: AtomicBool,
    pub(super) trouble: Mutex<Option<String>>,
}

/// Runs the server's end of a flow: sends data and checks received data until the client has closed
/// its direction.
pub(super) fn serve(mut stream: &TcpStream, plan: &FlowPlan, end: &EndState) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| {
            let sent = if plan.down {
                send(stream, plan.seed.wrapping_add(1), plan.rate, &stop, &end.sent)
            } else {
                Ok(())
            };
            // The server closes its direction only after the client has closed the other.
            while plan.up && !plan.down && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            sent.and_then(|()| stream.shutdown(Shutdown::Write).context("the end of the stream"))
        });
        let received = receive(&mut stream, plan.up.then_some(plan.seed), &end.received);
        stop.store(true, Ordering::Relaxed);
        received?;
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })?;
    end.done.store(true, Ordering::Release);
    Ok(())
}

/// Sends the pseudorandom bytes of `seed` at `rate` (in bytes per second, `None` for no limit)
/// until `stop` is set, and counts them in `sent`.
fn send(
    mut stream: &TcpStream,
    seed: u64,
    rate: Option<u64>,
    stop: &AtomicBool,
    sent: &AtomicU64,
) -> Result<()> {
    let mut bytes = Stream::new(seed);
    let mut block = vec![0; if rate.is_some() { BLOCK } else { BULK_BLOCK }];
    while !stop.load(Ordering::Relaxed) {
        bytes.fill(&mut block);
        stream.write_all(&block).context("send")?;
        sent.fetch_add(block.len() as u64, Ordering::Relaxed);
        if let Some(rate) = rate {
            std::thread::sleep(Duration::from_secs_f64(block.len() as f64 / rate as f64));
        }
    }
    Ok(())
}

/// Receives until the end of the connection and compares each byte with the pseudorandom bytes of
/// `seed`. Without a seed, any byte is an error.
fn receive(stream: &mut impl Read, seed: Option<u64>, received: &AtomicU64) -> Result<()> {
    let mut bytes = seed.map(Stream::new);
    let mut buffer = vec![0; 65_536];
    loop {
        let count = stream.read(&mut buffer).context("receive")?;
        if count == 0 {
            return Ok(());
        }
        let so_far = received.load(Ordering::Relaxed);
        match &mut bytes {
            Some(bytes) => bytes
                .check(&buffer[..count])
                .map_err(|place| anyhow::anyhow!("byte {} is wrong", so_far + place as u64))?,
            None => bail!("received {count} bytes in a direction without data"),
        }
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// Runs the client's end of a flow with the arguments `ADDRESS NUMBER up|down|both RATE SEED`.
///
/// Prints the counts of sent and received bytes twice a second, and ends the flow when stdin has a
/// line or is closed.
pub fn client(args: &[&str]) -> Result<()> {
    let [address, number, ways, rate, seed] = args else {
        bail!("usage: chaosflow ADDRESS NUMBER up|down|both RATE SEED")
    };
    let (up, down) = (*ways != "down", *ways != "up");
    let rate = Some(rate.parse()?).filter(|rate| *rate > 0);
    let seed: u64 = seed.parse()?;
    let stream = TcpStream::connect(address).context("connect")?;
    stream.set_nodelay(true)?;
    (&stream).write_all(&[number.parse()?]).context("send")?;
    let (sent, received, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let tell = |word: &str| {
        let (sent, received) = (sent.load(Ordering::Relaxed), received.load(Ordering::Relaxed));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{word}sent {sent} received {received}").and_then(|()| out.flush())
    };
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| -> Result<()> {
            if up {
                send(&stream, seed, rate, &stop, &sent)?;
            }
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20));
            }
            stream.shutdown(Shutdown::Write).context("the end of the stream")
        });
        scope.spawn(|| {
            // A line, or the end of the supervising process.
            let _ = std::io::stdin().read_line(&mut String::new());
            stop.store(true, Ordering::Relaxed);
        });
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if tell("").is_err() {
                    std::process::exit(1);
                }
                std::thread::sleep(Duration::from_millis(500));
            }
        });
        let checked = receive(&mut &stream, down.then_some(seed.wrapping_add(1)), &received).and_then(|()| {
            ensure!(stop.load(Ordering::Relaxed), "the server ended the stream");
            Ok(())
        });
        ended.store(true, Ordering::Relaxed);
        if let Err(error) = checked {
            // The other threads may be blocked, and the supervisor must learn of the error
            // immediately.
            println!("! {error:#}");
            std::process::exit(1);
        }
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })?;
    tell("done ").context("the last report")
}
