//! Limits the number of connections that each user may have open at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts and limits the open connections of each user, so that no user can exhaust the service's
/// connections or descriptors.
#[derive(Debug, Clone)]
pub struct UserConnectionLimit {
    open: Arc<Mutex<HashMap<u32, usize>>>,
    per_user: usize,
}

/// The permission to keep one connection open; dropping it lets the user open another.
#[derive(Debug)]
pub struct ConnectionPermit {
    uid: u32,
    open: Arc<Mutex<HashMap<u32, usize>>>,
}

impl UserConnectionLimit {
    /// Creates a limit of `per_user` connections for each user.
    #[must_use]
    pub fn new(per_user: usize) -> Self {
        Self { open: Arc::default(), per_user }
    }

    /// Counts one more connection of the user `uid` until the returned permit is dropped; returns
    /// `None` when that user has reached the limit.
    #[must_use]
    pub fn take(&self, uid: u32) -> Option<ConnectionPermit> {
        let mut users = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let count = users.entry(uid).or_default();
        (*count < self.per_user).then(|| {
            *count += 1;
            ConnectionPermit { uid, open: Arc::clone(&self.open) }
        })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut users = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = users.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                users.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_cannot_use_up_the_connections_of_others() {
        let slots = UserConnectionLimit::new(32);
        let mut taken: Vec<_> = (0..32).map(|_| slots.take(1000).unwrap()).collect();
        assert!(slots.take(1000).is_none());
        assert!(slots.take(0).is_some());
        taken.pop();
        assert!(slots.take(1000).is_some());
        taken.clear();
        assert!(slots.open.lock().unwrap().is_empty());
    }
}
