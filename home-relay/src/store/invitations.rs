//! Creates invitations, redeems each once, and forgets them some time after they expire.

use std::time::Duration;

use mobile_io::invitation::TokenHash;
use mobile_io::keys::PublicKey;
use redb::ReadableDatabase as _;

use super::clients::Book;
use super::schema::{CLIENTS, INVITATIONS, read_one};
use super::{Client, Invited, Store, StoreError, check_name, database};
use crate::pool::{Lease, Pools};

/// How long a used or expired invitation is remembered after it expires (30 days), so that the
/// relay can tell its holder why it is refused.
const REMEMBERED: u64 = 30 * 24 * 3600;
/// The largest step back of an adjusted clock, in seconds.
const CLOCK_SLACK: u64 = 120;

impl Invited {
    /// Returns whether the invitation can be redeemed. It cannot before it was made: on a clock
    /// that was set back, the remaining time is unknown.
    pub(crate) fn is_pending(&self, now: u64) -> bool {
        self.used_by.is_none() && self.is_valid(now)
    }

    /// Returns whether this is an unused invitation of that name, expired or not.
    pub(super) fn is_unused_of(&self, name: &str) -> bool {
        self.name == name && self.used_by.is_none()
    }

    fn is_valid(&self, now: u64) -> bool {
        now < self.expires && now + CLOCK_SLACK >= self.created
    }

    /// Checks `key`, which presents this invitation's token. Returns the client that the key has
    /// already become with the token, `None` when the key may become one, or the refusal. `known`
    /// is the client of this invitation's name.
    fn answer_to(
        &self,
        key: &PublicKey,
        known: Option<Client>,
        now: u64,
    ) -> Result<Option<Client>, StoreError> {
        if let Some(by) = self.used_by {
            let same = known.filter(|client| by == *key && client.public_key == *key);
            return same.map(Some).ok_or_else(|| StoreError::TokenUsed(self.name.clone()));
        }
        if !self.is_valid(now) {
            return Err(StoreError::TokenExpired(self.name.clone()));
        }
        // A name belongs to an invitation or to a client, never to both. Should it belong to both,
        // the client keeps its key.
        if known.is_some() {
            return Err(StoreError::TokenUnknown);
        }
        Ok(None)
    }
}

impl Store {
    /// Creates an invitation for `name` and sets addresses aside for it. Replaces an unused
    /// invitation of that name, expired or not.
    pub(crate) fn invite(
        &self,
        name: &str,
        token: TokenHash,
        lifetime: Duration,
        wanted: Lease,
        pools: &Pools,
        now: u64,
    ) -> Result<Invited, StoreError> {
        check_name(name)?;
        let transaction = self.database.begin_write().map_err(database)?;
        let invited = {
            let mut book = Book::open(&transaction)?;
            if book.client(name).is_some() {
                return Err(StoreError::Present(name.into()));
            }
            let mut taken = book.taken(now);
            let invited = Invited {
                name: name.into(),
                token,
                lease: book.lease(name, wanted, pools, now, &mut taken)?,
                created: now,
                expires: now.saturating_add(lifetime.as_secs()),
                used_by: None,
            };
            book.withdraw(|old| {
                let forgotten = old.expires.saturating_add(REMEMBERED) < now;
                forgotten || old.is_unused_of(name)
            })?;
            book.put_invitation(&invited)?;
            invited
        };
        transaction.commit().map_err(database)?;
        Ok(invited)
    }

    /// Returns the client that `key` has already become with this token, or `None` when the token
    /// can be redeemed.
    ///
    /// Reads one row of each table, and waits for no writer. Strangers can guess tokens as often as
    /// the limits on handshakes allow, and a wrong guess costs no more than this.
    pub(crate) fn redeemed(
        &self,
        token: TokenHash,
        key: &PublicKey,
        now: u64,
    ) -> Result<Option<Client>, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        let invitations = transaction.open_table(INVITATIONS).map_err(database)?;
        let invited: Option<Invited> = read_one(&invitations, &token.to_string())?;
        let invited = invited.ok_or(StoreError::TokenUnknown)?;
        let known = read_one(&transaction.open_table(CLIENTS).map_err(database)?, &invited.name)?;
        invited.answer_to(key, known, now)
    }

    /// Makes the key a client with a token. A repeated request of the same key gets the same
    /// answer, because the first one may have been lost.
    pub(crate) fn redeem(
        &self,
        token: TokenHash,
        key: &PublicKey,
        pools: &Pools,
        now: u64,
    ) -> Result<Client, StoreError> {
        if let Some(client) = self.redeemed(token, key, now)? {
            return Ok(client);
        }
        let transaction = self.database.begin_write().map_err(database)?;
        let client = {
            let mut book = Book::open(&transaction)?;
            // Check again: the token may have been redeemed, or its invitation withdrawn, in the
            // meantime.
            let found = book.invitations.iter().find(|invited| invited.token == token).cloned();
            let mut invited = found.ok_or(StoreError::TokenUnknown)?;
            if let Some(client) = invited.answer_to(key, book.client(&invited.name).cloned(), now)? {
                return Ok(client);
            }
            book.check_key(&invited.name, key)?;
            let mut taken = book.taken(now);
            let lease = book.lease(&invited.name, Lease::default(), pools, now, &mut taken)?;
            let client =
                Client { name: invited.name.clone(), public_key: *key, lease, created: now, reach: None };
            invited.used_by = Some(*key);
            book.put_invitation(&invited)?;
            book.put_client(&client)?;
            client
        };
        transaction.commit().map_err(database)?;
        Ok(client)
    }
}
