//! The flows: connections of mobile processes to the server that carry checked bytes all the time.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::ends::{End, serve};
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

/// The longest a flow may stand still. Inner TCP doubles its pause with each try in an outage, and several outages
/// and lossy times may follow each other.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);

/// The longest the rest of a flow may take once it is told to end.
const REST: Duration = Duration::from_secs(90);

/// What one flow does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) up: bool,
    pub(super) down: bool,
    /// Bytes a second in each direction; `None` is as many as pass.
    pub(super) rate: Option<u64>,
    /// Of the bytes that go up; the next number is of those that come down.
    pub(super) seed: u64,
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
            _ => {
                // What the client hears of the server's trouble is the end of the stream.
                self.check_server()?;
                let End { sent, received, done, .. } = &*self.server;
                let (sent, received, done) = (
                    sent.load(Ordering::Relaxed),
                    received.load(Ordering::Relaxed),
                    done.load(Ordering::Acquire),
                );
                bail!(
                    "the client's end: {line}, {} bytes sent and {} received a moment ago; the server's: {sent} and \
                     {received}, done: {done}",
                    self.sent,
                    self.received
                )
            }
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
