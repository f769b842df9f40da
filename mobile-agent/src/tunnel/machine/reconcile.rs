//! From what is known to what is done: which path carries the session, which stand by, which are tried, which go.
//!
//! - A path that cannot go on goes: its link, address or route is gone.
//! - The session is on the best path that works. While one does, it moves only to a better uplink.
//! - While one works, every uplink of `[uplink] standby` holds another path; while none does, every usable uplink is
//!   tried, the best first and the next a moment later, and the first whose relay has proved itself wins.
//! - A path under suspicion is no reason to wait, and no reason to hang up: it is left, and has some seconds to answer.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mobile_proto::PathId;

use super::super::cause::{Cause, Fault};
use super::line::{Line, Stage};
use super::{Action, Current, Damping, Machine, judge_life};
use crate::uplinks::policy;

/// The head start of the better uplink when none is active: several usual round-trip times, less than a person notices.
pub(super) const STAGGER: Duration = Duration::from_millis(250);
/// An attempt's patience: two of TCP's SYN retransmissions; doubled while it keeps failing, for slow links.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// The most patience: a link this slow carries no session.
const MAX_PATIENCE: Duration = Duration::from_secs(12);
/// A path that was left under suspicion is closed after this long without a sign of life. The outer TCP has repeated
/// itself four times by then.
pub(super) const PROBATION: Duration = Duration::from_secs(5);

impl Machine {
    pub(super) fn reconcile(&mut self, now: Instant) {
        self.wake = None;
        self.drop_the_late(now);
        self.decide(now);
        self.drop_the_blocked(now);
        self.decide(now);
        self.choose(now);
        let wanted = self.wanted();
        self.drop_the_unwanted(now, &wanted);
        self.start(now, &wanted);
        let deadlines = self.lines.iter().filter(|line| !line.is_ready()).map(|line| line.deadline);
        let probations = self.lines.iter().filter_map(|line| Some(line.suspect? + PROBATION));
        let records = self.damping.values().chain(self.flapping.values());
        let avoided = records.filter_map(Damping::avoided_until);
        let due = deadlines.chain(probations).chain(avoided).filter(|at| *at > now);
        self.wake = self.wake.into_iter().chain(due).min();
    }

    /// Closes what matches, and gives it.
    pub(super) fn give_up(&mut self, which: impl Fn(&Line) -> bool) -> Vec<Line> {
        let (gone, kept): (Vec<_>, _) = std::mem::take(&mut self.lines).into_iter().partition(which);
        self.lines = kept;
        for Line { path, stage, .. } in &gone {
            let path = *path;
            let opened = *stage != Stage::Dialing;
            self.actions.push_back(if opened { Action::Close { path } } else { Action::Abort { path } });
            self.current.take_if(|current| current.path == path);
        }
        gone
    }

    /// Whether a path is in use that works, as far as is known.
    fn is_calm(&self) -> bool {
        let current = self.current.as_ref().and_then(|current| self.line(current.path));
        current.is_some_and(|line| line.is_ready() && line.is_trusted())
    }

    fn decide(&mut self, now: Instant) {
        // The one in use stays first while nothing is wrong with it now.
        let current = self.current.as_ref().and_then(|current| self.line(current.path));
        let current = current.filter(|line| line.is_trusted()).map(|line| line.uplink.as_str());
        let failing: BTreeSet<String> = self
            .damping
            .iter()
            .chain(&self.flapping)
            .filter(|(name, damping)| {
                damping.avoided_until().is_some_and(|until| until > now) && current != Some(name.as_str())
            })
            .map(|(name, _)| name.clone())
            .collect();
        self.decision = policy::decide(
            &self.uplinks,
            &policy::Wishes {
                forced: self.forced.as_deref(),
                prefer: &self.wishes.prefer,
                exclude: &self.wishes.exclude,
                families: self.families,
                current,
                failing: &failing,
            },
        );
    }

    /// Attempts that have taken too long.
    fn drop_the_late(&mut self, now: Instant) {
        for line in self.give_up(|line| !line.is_ready() && line.deadline <= now) {
            let jitter = (self.jitter)();
            self.damping.entry(line.uplink.clone()).or_default().blame(now, Fault::Uplink, jitter);
            let opened = line.local().is_some();
            self.actions.push_back(Action::TimedOut { uplink: line.uplink, opened });
        }
    }

    /// Paths whose uplink does not carry them any more.
    fn drop_the_blocked(&mut self, now: Instant) {
        let blocked: Vec<(PathId, Cause)> = self
            .lines
            .iter()
            .filter_map(|line| Some((line.path, line.obstacle(&self.uplinks, &self.decision)?)))
            .collect();
        for (path, cause) in blocked {
            let used = self.current.as_ref().is_some_and(|current| current.path == path);
            for mut line in self.give_up(|line| line.path == path) {
                // Before the welcome it carried nothing, so nothing was interrupted.
                if !line.is_ready() {
                    continue;
                }
                if used {
                    self.begin_outage(cause, &line.uplink, now);
                }
                let usable = self.decision.candidates.contains(&line.uplink);
                if !judge_life(&mut self.flapping, now, &mut line) && !usable {
                    self.flapping.entry(line.uplink).or_default().flapped(now);
                }
            }
        }
    }

    /// The policy's opinion of an uplink: the smaller, the better.
    fn rank(&self, uplink: &str) -> usize {
        let candidates = &self.decision.candidates;
        candidates.iter().position(|name| name == uplink).unwrap_or(candidates.len())
    }

    /// Moves the session to the best path that works, if it is not there.
    fn choose(&mut self, now: Instant) {
        let current = self.current.as_ref().and_then(|current| self.line(current.path));
        let trusted = current.filter(|line| line.is_trusted());
        let others = || {
            let current = current.map(|line| line.path);
            self.lines.iter().filter(move |line| Some(line.path) != current && line.is_trusted())
        };
        let ready = others().filter(|line| line.is_ready()).min_by_key(|line| self.rank(&line.uplink));
        let greeting = || {
            others()
                .filter(|line| matches!(line.stage, Stage::Greeting(_)))
                .min_by_key(|line| self.rank(&line.uplink))
        };
        let next = match (trusted, ready) {
            // One that does not answer yet gives way to any that did; one that works, to a better uplink only.
            (Some(used), Some(ready)) => {
                (!used.is_ready() || self.rank(&ready.uplink) < self.rank(&used.uplink)).then_some(ready)
            }
            (Some(_), None) => None,
            (None, Some(ready)) => Some(ready),
            // The relay has proved itself in TLS already: its welcome need not be waited for.
            (None, None) => greeting(),
        };
        let Some((path, to)) = next.map(|line| (line.path, line.uplink.clone())) else { return };
        if let Some(left) = current.filter(|line| self.outage.is_none() && line.is_ready()) {
            let forced = self.forced.as_deref() == Some(to.as_str());
            let cause = if forced { Cause::Forced } else { Cause::BetterUplink };
            self.leaving = Some((cause, left.uplink.clone()));
        }
        let open = self.lines.iter().filter(|line| line.local().is_some() && line.path != path);
        let keep = open.map(|line| line.path).collect();
        self.actions.push_back(Action::Activate { path, keep });
        self.current = Some(Current { path, since: now, confirmed: false, replayed: 0 });
    }

    /// The uplinks that should have a path beside the one in use, the best first.
    fn wanted(&self) -> Vec<String> {
        let candidates = &self.decision.candidates;
        let Some(current) = self.current.as_ref().filter(|_| self.is_calm()) else {
            return candidates.clone();
        };
        let used = self.line(current.path).map(|line| line.uplink.as_str());
        let standby = |name: &str| self.wishes.standby.iter().any(|glob| glob.is_match(name));
        candidates
            .iter()
            .enumerate()
            .filter(|(place, name)| used != Some(name.as_str()) && (*place == 0 || standby(name)))
            .map(|(_, name)| name.clone())
            .collect()
    }

    /// What is not wanted, what has been silent for too long, and what is one too many on its uplink. While the path in
    /// use is not proved, no other is closed that may work.
    fn drop_the_unwanted(&mut self, now: Instant, wanted: &[String]) {
        let used = self.current.as_ref().map(|current| current.path);
        let proved = self.current.as_ref().is_none_or(|current| current.confirmed);
        let order = |line: &Line| (Some(line.path) != used, !line.is_ready(), line.started, line.path);
        // A silent one waits for what takes its place to be ready.
        let surpassed = |line: &Line| {
            let better = |other: &&Line| {
                let comes_first =
                    if line.is_trusted() { order(other) < order(line) } else { other.is_ready() };
                other.path != line.path && other.uplink == line.uplink && other.is_trusted() && comes_first
            };
            self.lines.iter().find(better).is_some()
        };
        let doomed = |line: &&Line| {
            let hopeless = line.suspect.is_some_and(|since| now >= since + PROBATION);
            let needless = surpassed(line) || (!wanted.contains(&line.uplink) && line.is_trusted());
            Some(line.path) != used
                && (hopeless || (needless && (proved || !line.is_ready() || !line.is_trusted())))
        };
        let doomed: Vec<PathId> = self.lines.iter().filter(doomed).map(|line| line.path).collect();
        self.give_up(|line| doomed.contains(&line.path));
    }

    fn start(&mut self, now: Instant, wanted: &[String]) {
        let calm = self.is_calm();
        for name in wanted {
            if self.lines.iter().any(|line| line.uplink == *name && line.is_trusted()) {
                continue;
            }
            let damping = self.damping.get(name);
            let pause = damping.and_then(|it| if calm { it.calm_until() } else { it.retry_at() });
            if let Some(at) = pause.filter(|at| *at > now) {
                self.wake_by(at);
                continue;
            }
            let attempts = self.lines.iter().filter(|line| !line.is_ready());
            if let Some(turn) = attempts.map(|line| line.started + STAGGER).max().filter(|turn| *turn > now) {
                self.wake_by(turn);
                return;
            }
            self.connect(now, name);
        }
    }

    fn wake_by(&mut self, at: Instant) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    fn connect(&mut self, now: Instant, name: &str) {
        let Some(uplink) = self.uplinks.iter().find(|uplink| uplink.name == name) else { return };
        let families = policy::serves(uplink, self.families);
        let damping = self.damping.get(name);
        let patience = damping.map_or(PATIENCE, |damping| damping.patience(PATIENCE, MAX_PATIENCE));
        let path = PathId(self.next_path);
        // Four thousand million attempts outlast any session.
        self.next_path = self.next_path.wrapping_add(1);
        self.lines.push(Line {
            path,
            uplink: name.to_owned(),
            stage: Stage::Dialing,
            started: now,
            deadline: now + patience,
            suspect: None,
            good_since: None,
        });
        self.actions.push_back(Action::Connect { path, uplink: name.to_owned(), families, patience });
    }
}
