//! The open paths of a session, and which of them is active.

use std::ops::{Index, IndexMut};
use std::time::Instant;

use crate::PathId;
use crate::path::Path;

/// The open paths of a session.
///
/// A path is found by its id once and then addressed by its index. An index is valid until a path
/// is removed.
#[derive(Debug, Default)]
pub(super) struct Paths {
    /// The paths, in no order. A session has few paths, so a list is faster than a map.
    list: Vec<Path>,
    active: Option<PathId>,
}

impl Paths {
    /// Adds a path. Grows the list by one, because `Vec` would reserve room for four paths at once,
    /// while nearly every session has one or two, and a relay has thousands of sessions.
    pub(super) fn add(&mut self, path: Path) {
        self.list.reserve_exact(1);
        self.list.push(path);
    }

    /// Removes a path, if it is open.
    pub(super) fn remove(&mut self, path: PathId) {
        if let Some(index) = self.find(path) {
            self.list.swap_remove(index);
        }
        self.deactivate(path);
    }

    /// Removes the paths other than the one at `index` for which `doomed` returns true. Returns the
    /// new index of that path, and the ids of the removed paths.
    pub(super) fn remove_others(
        &mut self,
        index: usize,
        doomed: impl Fn(&Path) -> bool,
    ) -> (usize, Vec<PathId>) {
        let (mut at, mut moved_to) = (0, index);
        let mut removed = Vec::new();
        self.list.retain(|path| {
            let keep = at == index || !doomed(path);
            if !keep {
                removed.push(path.id);
                moved_to -= usize::from(at < index);
            }
            at += 1;
            keep
        });
        removed.iter().for_each(|&path| self.deactivate(path));
        (moved_to, removed)
    }

    /// Removes the paths whose CLOSE could not be sent by `now`.
    pub(super) fn remove_unclosable(&mut self, now: Instant) {
        self.list.retain(|path| path.forget_at().is_none_or(|at| at > now));
    }

    /// Returns the index of a path.
    pub(super) fn find(&self, path: PathId) -> Option<usize> {
        self.list.iter().position(|open| open.id == path)
    }

    /// Returns the number of open paths.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    /// Returns the open paths, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.list.iter()
    }

    /// Returns the open paths for a change, in no order.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Path> {
        self.list.iter_mut()
    }

    /// Returns the paths that stand by, for a change.
    pub(super) fn standby_mut(&mut self) -> impl Iterator<Item = &mut Path> {
        self.list.iter_mut().filter(|path| self.active != Some(path.id))
    }

    /// Returns the standby path that has been silent for the longest time.
    pub(super) fn quietest_standby(&self) -> Option<PathId> {
        let standby = self.list.iter().filter(|path| !self.is_active(path.id));
        standby.min_by_key(|path| path.stats.last_heard).map(|path| path.id)
    }

    /// Makes a path active, and returns the path that was active before.
    pub(super) fn activate(&mut self, path: PathId) -> Option<PathId> {
        self.active.replace(path)
    }

    /// Records that a path carries no records any more, if it is active.
    pub(super) fn deactivate(&mut self, path: PathId) {
        self.active.take_if(|active| *active == path);
    }

    /// Returns whether a path carries the records.
    pub(super) fn is_active(&self, path: PathId) -> bool {
        self.active == Some(path)
    }

    /// Returns the id of the active path.
    pub(super) fn active_id(&self) -> Option<PathId> {
        self.active
    }

    /// Returns the index of the active path.
    pub(super) fn active_index(&self) -> Option<usize> {
        self.active.and_then(|path| self.find(path))
    }

    /// Returns whether nothing gets through: no path is active, or the active one is unresponsive.
    /// (A relay keeps a silent path for long, because the client is the one to act first.)
    pub(super) fn is_cut_off(&self) -> bool {
        self.active_index().is_none_or(|index| self.list[index].health.is_unresponsive())
    }

    /// Returns since when nothing gets through; `None` if records do.
    pub(super) fn cut_off_since(&self, now: Instant) -> Option<Instant> {
        match self.active_index().map(|index| &self.list[index].health) {
            Some(health) if !health.is_unresponsive() => None,
            // A path becomes unresponsive long after it fell silent.
            Some(health) => Some(health.stalled_since().unwrap_or(now)),
            None => Some(now),
        }
    }
}

impl Index<usize> for Paths {
    type Output = Path;

    fn index(&self, index: usize) -> &Path {
        &self.list[index]
    }
}

impl IndexMut<usize> for Paths {
    fn index_mut(&mut self, index: usize) -> &mut Path {
        &mut self.list[index]
    }
}
