//! `cargo xtask bench handover`: the longest gap that an application sees, for each kind of
//! handover.

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use mobile_tests::competitors::CompetitorKind;

use self::event::Event;
use self::measure::measure;
use self::table::{Column, Figures};
use super::machine;
use super::subject::{OURS, unavailable_reason};
use crate::shell::step;

mod event;
mod machine_lock;
mod measure;
mod subject;
mod table;
mod trigger;

/// Arguments of `cargo xtask bench handover`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Runs each event this many times; the table shows median and maximum
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Runs each event this many times with each competitor
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    peer_runs: u32,
    /// Runs only these events
    #[arg(long, value_delimiter = ',')]
    only: Vec<Event>,
    /// Leaves out the competitors
    #[arg(long)]
    no_peers: bool,
    /// Measures only these competitors, by their names in the table
    #[arg(long, value_delimiter = ',')]
    peers: Vec<String>,
    /// Leaves out mobile, to try out the competitors
    #[arg(long)]
    no_mobile: bool,
    /// Gives up a competitor after this many seconds in which the application receives nothing
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    cap: u64,
    /// Runs this many labs in parallel for outages of 10 s and longer, in which the labs only wait
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    parallel: u32,
}

/// The time without data after which a run with mobile is given up. It is as long as an
/// application's timeout, because even a bad figure says more than "> 3 s".
const OUR_PATIENCE: Duration = Duration::from_secs(30);

/// One run of one event for one participant (mobile or a competitor), by indexes.
#[derive(Clone, Copy)]
struct Job {
    event: usize,
    column: usize,
    run: u32,
}

/// A participant, which is mobile or a competitor: a column of the table.
#[derive(Clone, Copy)]
struct Participant {
    competitor: Option<&'static CompetitorKind>,
    runs: u32,
    patience: Duration,
}

impl Participant {
    fn name(self) -> &'static str {
        self.competitor.map_or(OURS, |competitor| competitor.name)
    }
}

/// Runs all chosen measurements and prints the tables.
pub(crate) fn run(args: &Args) -> Result<()> {
    let began = Instant::now();
    let events: Vec<Event> =
        Event::ALL.into_iter().filter(|event| args.only.is_empty() || args.only.contains(event)).collect();
    let everyone = everyone(args);
    let mut columns: Vec<Column> = everyone.iter().map(|participant| column(*participant, &events)).collect();
    let jobs = jobs(&events, &everyone, &columns);
    let (long, short): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| events[job.event].is_long());
    let machine = Mutex::new(());
    let done = |job: Job| -> (Job, Result<Vec<f64>>) {
        let (event, participant) = (events[job.event], everyone[job.column]);
        let gaps = measure(event, participant.competitor, participant.patience, &machine);
        let text = match &gaps {
            Ok(gaps) => format_gaps(gaps, participant.patience),
            Err(error) => format!("failed: {error:#}"),
        };
        step(&format!(
            "{}, {}, run {} of {}: {text}",
            event.title(),
            participant.name(),
            job.run,
            participant.runs
        ));
        (job, gaps)
    };
    let mut results: Vec<(Job, Result<Vec<f64>>)> = short.into_iter().map(done).collect();
    results.extend(run_in_parallel(long, args.parallel, &done));
    for (job, gaps) in results {
        if let Ok(figures) = &mut columns[job.column].cells[job.event] {
            match gaps {
                Ok(gaps) => figures.runs.push(gaps),
                Err(error) => figures.failures.push(format!("{error:#}")),
            }
        }
    }
    print(args, &events, &columns, began.elapsed());
    Ok(())
}

fn everyone(args: &Args) -> Vec<Participant> {
    let mut everyone = Vec::new();
    if !args.no_mobile {
        everyone.push(Participant { competitor: None, runs: args.runs, patience: OUR_PATIENCE });
    }
    let wanted = |competitor: &&CompetitorKind| {
        args.peers.is_empty() || args.peers.iter().any(|name| name.eq_ignore_ascii_case(competitor.name))
    };
    if !args.no_peers {
        let patience = Duration::from_secs(args.cap);
        let peers = CompetitorKind::ALL.iter().filter(wanted);
        everyone.extend(peers.map(|competitor| Participant {
            competitor: Some(competitor),
            runs: args.peer_runs,
            patience,
        }));
    }
    everyone
}

/// Returns a participant's column of the table, still without results. The cell of an event that
/// cannot be measured has the reason.
fn column(participant: Participant, events: &[Event]) -> Column {
    let unavailable_reason = participant.competitor.and_then(unavailable_reason);
    let cell = |event: &Event| match (participant.competitor, &unavailable_reason) {
        (Some(_), _) if !event.is_for_competitors() => Err("mobile only".to_owned()),
        (_, Some(reason)) => Err(reason.clone()),
        _ => Ok(Figures::default()),
    };
    Column {
        name: participant.name(),
        patience: participant.patience.as_secs_f64(),
        cells: events.iter().map(cell).collect(),
    }
}

/// Returns all runs, ordered round by round, so that other load on the machine disturbs all
/// participants alike.
fn jobs(events: &[Event], everyone: &[Participant], columns: &[Column]) -> Vec<Job> {
    let mut jobs = Vec::new();
    for event in 0..events.len() {
        for run in 1..=everyone.iter().map(|participant| participant.runs).max().unwrap_or(0) {
            for (column, participant) in everyone.iter().enumerate() {
                if run <= participant.runs && columns[column].cells[event].is_ok() {
                    jobs.push(Job { event, column, run });
                }
            }
        }
    }
    jobs
}

/// Formats the gaps of one run, in milliseconds, for the progress output.
fn format_gaps(gaps: &[f64], patience: Duration) -> String {
    let one = |gap: &f64| table::number(*gap, patience.as_secs_f64());
    let unit = if gaps.last().is_some_and(|gap| gap.is_finite()) { " ms" } else { "" };
    gaps.iter().map(one).collect::<Vec<_>>().join(" and ") + unit
}

/// Runs `parallel` jobs at a time, the longest first, so that no long one is left over at the end.
fn run_in_parallel<T: Send>(mut jobs: Vec<Job>, parallel: u32, work: &(impl Fn(Job) -> T + Sync)) -> Vec<T> {
    // Jobs are popped from the end.
    jobs.sort_by_key(|job| (job.event, std::cmp::Reverse(job.run)));
    let (queue, results) = (Mutex::new(jobs), Mutex::new(Vec::new()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
    thread::scope(|scope| {
        for _ in 0..parallel {
            // A lab's programs die with the thread that starts them, so each lab lives on one
            // thread.
            scope.spawn(|| {
                while let Some(job) = next() {
                    let result = work(job);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn print(args: &Args, events: &[Event], columns: &[Column], took: Duration) {
    if let Some(ours) = columns.iter().find(|column| column.name == OURS) {
        println!("Longest gap, ms\n\n{}", table::ours(events, ours, columns));
    }
    if columns.iter().any(|column| column.name != OURS) {
        println!("The same beside others: median (least–greatest)\n\n{}", table::all(events, columns));
    }
    let notes = table::notes(events, columns);
    if !notes.is_empty() {
        println!("{notes}");
    }
    println!("{}; cubic in every namespace, 20 ms of round trip; a number every 5 ms", machine::describe());
    if events.iter().any(|event| event.is_long()) {
        println!(
            "Outages of 10 s and more: {} labs at a time, which wait together and are measured one after the other",
            args.parallel
        );
    }
    println!("Took {} min {} s", took.as_secs() / 60, took.as_secs() % 60);
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn participant(competitor: Option<&'static CompetitorKind>, runs: u32) -> Participant {
        Participant { competitor, runs, patience: Duration::from_secs(3) }
    }

    #[test]
    fn each_participant_takes_part_in_its_rounds() {
        let events = [Event::KillAgent, Event::Better];
        let everyone = [participant(None, 3), participant(Some(&CompetitorKind::ALL[0]), 2)];
        let columns: Vec<Column> = everyone.iter().map(|participant| column(*participant, &events)).collect();
        let jobs = jobs(&events, &everyone, &columns);
        let order: Vec<_> = jobs.iter().map(|job| (job.event, job.run, job.column)).collect();
        // Only mobile can be killed.
        assert_eq!(order[..3], [(0, 1, 0), (0, 2, 0), (0, 3, 0)]);
        assert_eq!(order[3..], [(1, 1, 0), (1, 1, 1), (1, 2, 0), (1, 2, 1), (1, 3, 0)]);
    }

    #[test]
    fn jobs_run_once_each_with_limited_parallelism() {
        let jobs: Vec<Job> = (1..=12).map(|run| Job { event: 0, column: 0, run }).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let mut runs = run_in_parallel(jobs, 3, &|job| {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(5));
            now.fetch_sub(1, Ordering::SeqCst);
            job.run
        });
        runs.sort_unstable();
        assert_eq!(runs, (1..=12).collect::<Vec<_>>());
        assert!((2..=3).contains(&most.into_inner()));
    }

    #[test]
    fn gaps_are_formatted_with_their_unit() {
        assert_eq!(format_gaps(&[21.4], Duration::from_secs(3)), "21 ms");
        assert_eq!(format_gaps(&[21.0, f64::INFINITY], Duration::from_secs(3)), "21 and > 3 s");
    }
}
