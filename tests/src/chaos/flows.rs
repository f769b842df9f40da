//! The flows: connections of mobile processes to the server that carry checked bytes all the time.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::stream::Stream;
use crate::binaries::program;
use crate::lab::addr;
use crate::services::TcpService;
use crate::talk::Talk;
use crate::testbed::Testbed;

/// Where the server's side listens.
const PORT: u16 = 1_003;

/// How many there are.
const COUNT: usize = 20;

/// What a person's session or a chat makes, in bytes a second. All of them together fit a tenth of the uplinks' rate.
const MODEST: u64 = 8_000;

/// What is written at a time: with [`MODEST`], one packet every 50 ms.
const BLOCK: usize = 400;

/// What a bulk flow writes at a time.
const BULK_BLOCK: usize = 16_384;

/// The longest a flow may stand still. Inner TCP doubles its pause with each try in an outage, and several outages
/// and lossy times may follow each other.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);

/// The longest the rest of a flow may take once it is told to end.
const REST: Duration = Duration::from_secs(90);

/// What one flow does.
#[derive(Debug, Clone, Copy)]
struct Plan {
    up: bool,
    down: bool,
    /// Bytes a second in each direction; `None` is as many as pass.
    rate: Option<u64>,
    seed: u64,
}

impl Plan {
    fn new(number: usize, seed: u64) -> Self {
        // 8 up, 8 down, 4 both ways; the first two of the first two kinds are bulk.
        let (up, down) = match number {
            0..8 => (true, false),
            8..16 => (false, true),
            _ => (true, true),
        };
        let bulk = matches!(number, 0 | 1 | 8 | 9);
        Self { up, down, rate: (!bulk).then_some(MODEST), seed: seed.wrapping_add(2 * number as u64) }
    }

    fn words(&self) -> [String; 3] {
        let ways = match (self.up, self.down) {
            (true, true) => "both",
            (true, false) => "up",
            _ => "down",
        };
        [ways.to_owned(), self.rate.unwrap_or(0).to_string(), self.seed.to_string()]
    }
}

/// What one end has done.
#[derive(Debug, Default)]
struct End {
    sent: AtomicU64,
    received: AtomicU64,
    done: AtomicBool,
    trouble: Mutex<Option<String>>,
}

struct Flow {
    plan: Plan,
    client: Talk,
    server: Arc<End>,
    /// The client's own counters, as it last told them.
    sent: u64,
    received: u64,
    /// When each direction last moved, and how far it was.
    moved: [(Instant, u64); 2],
}

/// All flows, with the server's side of them.
pub(super) struct Flows {
    flows: Vec<Flow>,
    _service: TcpService,
}

impl Flows {
    /// Starts both sides, half of the flows over either family, and waits until every one moves.
    pub(super) fn start(bed: &Testbed, seed: u64) -> Result<Self> {
        let plans: Arc<Vec<(Plan, Arc<End>)>> =
            Arc::new((0..COUNT).map(|number| (Plan::new(number, seed), Arc::default())).collect());
        let served = Arc::clone(&plans);
        let service = TcpService::start(&bed.lab.server, PORT, move |stream, _| {
            let mut number = [0];
            if (&stream).read_exact(&mut number).is_err() {
                return;
            }
            let Some((plan, end)) = served.get(usize::from(number[0])) else { return };
            if let Err(error) = serve(&stream, plan, end) {
                *end.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(format!("{error:#}"));
            }
        })?;
        let tool = program("chaosflow")?.display().to_string();
        let mut flows = Vec::new();
        for (number, (plan, end)) in plans.iter().enumerate() {
            let server = if number % 2 == 0 {
                format!("{}:{PORT}", addr::SERVER4)
            } else {
                format!("[{}]:{PORT}", addr::SERVER6)
            };
            let [ways, rate, seed] = plan.words();
            let argv = [tool.as_str(), &server, &number.to_string(), &ways, &rate, &seed];
            flows.push(Flow {
                plan: *plan,
                client: Talk::start(&mut bed.agent.run(&argv))?,
                server: Arc::clone(end),
                sent: 0,
                received: 0,
                moved: [(Instant::now(), 0); 2],
            });
        }
        let mut all = Self { flows, _service: service };
        all.wait_moved()?;
        Ok(all)
    }

    /// Hears what the clients tell, and fails if any flow has failed or stands still for too long.
    pub(super) fn supervise(&mut self) -> Result<()> {
        for (number, flow) in self.flows.iter_mut().enumerate() {
            flow.supervise().with_context(|| format!("flow {number}: {:?}", flow.plan))?;
        }
        Ok(())
    }

    /// Waits until each has moved on, in every direction it has.
    pub(super) fn wait_moved(&mut self) -> Result<()> {
        let before = Instant::now();
        loop {
            self.supervise()?;
            if self.flows.iter().all(|flow| flow.moves_since(before)) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends each in order, and proves that what either end has sent the other has received, to the last byte.
    /// Returns the bytes that have passed.
    pub(super) fn finish(mut self) -> Result<u64> {
        for flow in &mut self.flows {
            flow.client.say("stop")?;
        }
        let mut bytes = 0;
        for (number, flow) in self.flows.iter_mut().enumerate() {
            bytes += flow.finish().with_context(|| format!("flow {number}: {:?}", flow.plan))?;
        }
        Ok(bytes)
    }
}

impl Flow {
    fn supervise(&mut self) -> Result<()> {
        for line in self.client.overhear() {
            self.heard(&line)?;
        }
        self.check_server()?;
        ensure!(!self.server.done.load(Ordering::Acquire), "the connection ended before it was told to");
        let places = [self.server.received.load(Ordering::Relaxed), self.received];
        let used = [self.plan.up, self.plan.down];
        for ((moved, place), used) in self.moved.iter_mut().zip(places).zip(used) {
            if !used || place > moved.1 {
                *moved = (Instant::now(), place);
            }
            let pause = moved.0.elapsed();
            ensure!(pause < LONGEST_PAUSE, "stands still for {pause:?} at {places:?} bytes");
        }
        Ok(())
    }

    fn moves_since(&self, before: Instant) -> bool {
        self.moved.iter().all(|(moved, _)| *moved > before)
    }

    fn check_server(&self) -> Result<()> {
        match &*self.server.trouble.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(trouble) => bail!("the server's end: {trouble}"),
            None => Ok(()),
        }
    }

    /// `sent N received N`, `done` before it at the end; everything else is trouble.
    fn heard(&mut self, line: &str) -> Result<bool> {
        let words: Vec<&str> = line.split(' ').collect();
        let (done, sent, received) = match words[..] {
            ["sent", sent, "received", received] => (false, sent, received),
            ["done", "sent", sent, "received", received] => (true, sent, received),
            _ => bail!("the client's end: {line}"),
        };
        (self.sent, self.received) = (sent.parse()?, received.parse()?);
        Ok(done)
    }

    fn finish(&mut self) -> Result<u64> {
        let end = Instant::now() + REST;
        loop {
            let line = self.client.hear_within(end.saturating_duration_since(Instant::now()))?;
            if self.heard(&line)? {
                break;
            }
        }
        while !self.server.done.load(Ordering::Acquire) {
            self.check_server()?;
            ensure!(Instant::now() < end, "the server's end does not come to an end");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (sent, received) =
            (self.server.sent.load(Ordering::Relaxed), self.server.received.load(Ordering::Relaxed));
        ensure!(self.sent == received, "up: {} bytes sent, {received} received", self.sent);
        ensure!(sent == self.received, "down: {sent} bytes sent, {} received", self.received);
        ensure!(!self.plan.up || received > 0, "nothing went up");
        ensure!(!self.plan.down || sent > 0, "nothing came down");
        Ok(sent + received)
    }
}

/// The server's end: sends and checks until the client has sent its last byte.
fn serve(mut stream: &TcpStream, plan: &Plan, end: &End) -> Result<()> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        let sender = scope.spawn(|| {
            let sent =
                if plan.down { send(stream, plan.seed + 1, plan.rate, &stop, &end.sent) } else { Ok(()) };
            // The end of the stream is the answer to the client's.
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

/// Sends the stream of `seed` at a rate until `stop`; the bytes sent are counted in `sent`.
pub(super) fn send(
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

/// Receives to the end of the stream and compares each byte with the stream of `seed`; without one, none is due.
pub(super) fn receive(stream: &mut impl Read, seed: Option<u64>, received: &AtomicU64) -> Result<()> {
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
            None => bail!("{count} bytes where none are due"),
        }
        received.fetch_add(count as u64, Ordering::Relaxed);
    }
}

/// The client's end, a program of its own: `ADDRESS NUMBER up|down|both RATE SEED`. Tells its counters twice a second,
/// ends when told to on stdin.
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
            // A word, or the end of whoever would say it.
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
        let checked = receive(&mut &stream, down.then_some(seed + 1), &received).and_then(|()| {
            ensure!(stop.load(Ordering::Relaxed), "the server ended the stream");
            Ok(())
        });
        ended.store(true, Ordering::Relaxed);
        if let Err(error) = checked {
            // The other threads may be blocked: whoever supervises has to know now.
            println!("! {error:#}");
            std::process::exit(1);
        }
        sender.join().map_err(|_| anyhow::anyhow!("the sender panicked"))?
    })?;
    tell("done ").context("the last word")
}
