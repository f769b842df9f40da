//! The relay's announcement to its clients, and what they confirm of it.

use std::sync::{Arc, PoisonError};

use mobile_proto::Announcement;

use super::Registry;
use super::client_entry::{ClientEntry, Confirmation};
use crate::store::Confirmed;

impl Registry {
    /// Announces a key and an endpoint to all clients, now and whenever they connect.
    pub(crate) async fn announce(&self, announcement: Announcement) {
        let settings = {
            let mut settings = self.settings.write().unwrap_or_else(PoisonError::into_inner);
            settings.push.relay = announcement.into_shared();
            settings.clone()
        };
        self.push_to_all(&settings).await;
    }

    /// Takes a client's confirmation. One of anything else than the present announcement, which
    /// crossed a change or was made up, changes nothing, so a client causes a write for each
    /// announcement at most.
    pub(super) fn confirmed(&self, entry: &ClientEntry, announcement: &Arc<Announcement>) {
        if self.settings().push.relay.as_ref() != Some(announcement) {
            return;
        }
        let mut confirmation = entry.confirmation.lock().unwrap_or_else(PoisonError::into_inner);
        let confirmed = Confirmed::from(&**announcement);
        if confirmation.confirmed != confirmed {
            *confirmation = Confirmation { confirmed, is_unsaved: true };
            self.confirmations.notify_one();
        }
    }

    /// Waits until clients have confirmed the announcement, and returns what is to be stored, by
    /// the clients' names.
    pub(crate) async fn next_confirmations(&self) -> Vec<(String, Confirmed)> {
        self.confirmations.notified().await;
        let mut unsaved = Vec::new();
        for entry in self.all_entries() {
            let mut confirmation = entry.confirmation.lock().unwrap_or_else(PoisonError::into_inner);
            if std::mem::take(&mut confirmation.is_unsaved) {
                unsaved.push((entry.name.clone(), confirmation.confirmed.clone()));
            }
        }
        unsaved
    }
}
