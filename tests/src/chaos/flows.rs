//! The flows of a chaos test: TCP connections of mobile processes whose every byte is checked.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::ends::{EndState, serve};
use super::flow_plan::FlowPlan;
use crate::addr;
use crate::binaries::program;
use crate::line_process::LineProcess;
use crate::services::TcpService;
use crate::testbed::Testbed;

/// The server's port at which the clients of all flows connect.
const PORT: u16 = 1_003;

/// The number of flows in a chaos test.
const COUNT: usize = 20;

/// The longest time that a flow may make no progress. TCP doubles its retransmission timeout with
/// each attempt during an outage, and several outages and lossy times may follow each other.
const LONGEST_PAUSE: Duration = Duration::from_secs(90);

/// The longest time that a flow may take to finish after the order to end.
const FINISH_TIMEOUT: Duration = Duration::from_secs(90);

struct ChaosFlow {
    plan: FlowPlan,
    client: LineProcess,
    server: Arc<EndState>,
    /// The number of bytes that the client has sent, according to its last report; `received`
    /// likewise.
    sent: u64,
    received: u64,
    /// For each direction (up, down), when it last made progress and its byte count then.
    moved: [(Instant, u64); 2],
}

/// All flows of a chaos test, with the service that runs their server ends.
pub(super) struct Flows {
    flows: Vec<ChaosFlow>,
    _service: TcpService,
}

impl Flows {
    /// Starts both ends of every flow, half of them over IPv4 and half over IPv6, and waits until
    /// each flow makes progress.
    pub(super) fn start(bed: &Testbed, seed: u64) -> Result<Self> {
        let plans: Arc<Vec<(FlowPlan, Arc<EndState>)>> =
            Arc::new((0..COUNT).map(|number| (FlowPlan::new(number, seed), Arc::default())).collect());
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
            let [ways, rate, seed] = plan.client_arguments();
            let argv = [tool.as_str(), &server, &number.to_string(), &ways, &rate, &seed];
            flows.push(ChaosFlow {
                plan: *plan,
                client: LineProcess::start(&mut bed.agent.run(&argv))?,
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

    /// Reads the clients' reports. Fails if any flow has failed or has made no progress for
    /// [`LONGEST_PAUSE`].
    pub(super) fn supervise(&mut self) -> Result<()> {
        for (number, flow) in self.flows.iter_mut().enumerate() {
            flow.supervise().with_context(|| format!("flow {number}: {:?}", flow.plan))?;
        }
        Ok(())
    }

    /// Waits until every flow has made progress in each of its directions.
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

    /// Ends every flow and checks that each end has received all that the other has sent. Returns
    /// the number of bytes transferred.
    pub(super) fn finish(mut self) -> Result<u64> {
        for flow in &mut self.flows {
            flow.client.send_line("stop")?;
        }
        let mut bytes = 0;
        for (number, flow) in self.flows.iter_mut().enumerate() {
            bytes += flow.finish().with_context(|| format!("flow {number}: {:?}", flow.plan))?;
        }
        Ok(bytes)
    }
}

impl ChaosFlow {
    fn supervise(&mut self) -> Result<()> {
        for line in self.client.take_lines() {
            self.parse_report(&line)?;
        }
        self.check_server()?;
        ensure!(!self.server.done.load(Ordering::Acquire), "the connection ended early");
        let places = [self.server.received.load(Ordering::Relaxed), self.received];
        let used = [self.plan.up, self.plan.down];
        for ((moved, place), used) in self.moved.iter_mut().zip(places).zip(used) {
            if !used || place > moved.1 {
                *moved = (Instant::now(), place);
            }
            let pause = moved.0.elapsed();
            ensure!(pause < LONGEST_PAUSE, "no progress for {pause:?} at {places:?} bytes");
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

    /// Parses a client's report `[done ]sent N received N`, and returns whether the flow is done.
    /// Any other line is an error.
    fn parse_report(&mut self, line: &str) -> Result<bool> {
        let words: Vec<&str> = line.split(' ').collect();
        let (done, sent, received) = match words[..] {
            ["sent", sent, "received", received] => (false, sent, received),
            ["done", "sent", sent, "received", received] => (true, sent, received),
            _ => {
                // A failure at the server's end reaches the client only as the end of the stream,
                // so the server's error is reported first.
                self.check_server()?;
                let EndState { sent, received, done, .. } = &*self.server;
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
        let end = Instant::now() + FINISH_TIMEOUT;
        loop {
            let line = self.client.next_line_within(end.saturating_duration_since(Instant::now()))?;
            if self.parse_report(&line)? {
                break;
            }
        }
        while !self.server.done.load(Ordering::Acquire) {
            self.check_server()?;
            ensure!(Instant::now() < end, "the server's end does not finish");
            std::thread::sleep(Duration::from_millis(5));
        }
        let (sent, received) =
            (self.server.sent.load(Ordering::Relaxed), self.server.received.load(Ordering::Relaxed));
        ensure!(self.sent == received, "up: {} bytes sent, {received} received", self.sent);
        ensure!(sent == self.received, "down: {sent} bytes sent, {} received", self.received);
        ensure!(!self.plan.up || received > 0, "no byte was sent up");
        ensure!(!self.plan.down || sent > 0, "no byte was sent down");
        Ok(sent + received)
    }
}
