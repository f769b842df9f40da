//! Creates invitations, redeems each once, and forgets them some time after they expire.

use std::time::Duration;

use mobile_transport::invitation::TokenHash;
use mobile_transport::keys::PublicKey;
use redb::ReadableDatabase as _;

use super::address_tables::AddressTables;
use super::schema::{CLIENTS, INVITATIONS, read_one};
use super::{Client, Store, StoreError, StoredInvitation, check_name, database};
use crate::pool::{Lease, Pools};

/// How long a used or expired invitation is remembered after it expires (30 days), so that the
/// relay can tell its holder why it is refused.
const RETENTION_SECONDS: u64 = 30 * 24 * 3600;
/// How far the clock may be set back, in seconds, before a new invitation counts as invalid.
const CLOCK_SLACK_SECONDS: u64 = 120;

impl StoredInvitation {
    /// Returns whether the invitation can be redeemed at the time `now`. A time before its creation
    /// is refused, because the clock was then set back and the remaining time is unknown.
    pub(crate) fn is_pending(&self, now: u64) -> bool {
        self.used_by.is_none() && self.is_valid(now)
    }

    /// Returns whether this is an unused invitation of that name, expired or not.
    pub(super) fn is_unused_of(&self, name: &str) -> bool {
        self.name == name && self.used_by.is_none()
    }

    fn is_valid(&self, now: u64) -> bool {
        now < self.expires && !self.is_from_future(now)
    }

    /// Returns whether the clock was set back to before the invitation was made.
    fn is_from_future(&self, now: u64) -> bool {
        now + CLOCK_SLACK_SECONDS < self.created
    }

    /// Checks `key`, which presents this invitation's token. Returns the client that the key has
    /// already become with the token, `None` when the key may become one, or the refusal. `known`
    /// is the client of this invitation's name.
    fn check_redemption(
        &self,
        key: &PublicKey,
        known: Option<Client>,
        now: u64,
    ) -> Result<Option<Client>, StoreError> {
        if let Some(by) = self.used_by {
            let same = known.filter(|client| by == *key && client.public_key == *key);
            return same.map(Some).ok_or_else(|| StoreError::TokenUsed(self.name.clone()));
        }
        if self.is_from_future(now) {
            return Err(StoreError::TokenFromFuture(self.name.clone()));
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
    ) -> Result<StoredInvitation, StoreError> {
        check_name(name)?;
        let transaction = self.database.begin_write().map_err(database)?;
        let invited = {
            let mut tables = AddressTables::open(&transaction)?;
            if tables.client(name).is_some() {
                return Err(StoreError::AlreadyClient(name.into()));
            }
            let mut taken = tables.taken(now);
            let invited = StoredInvitation {
                name: name.into(),
                token,
                lease: tables.assign_lease(name, wanted, pools, now, &mut taken)?,
                created: now,
                expires: now.saturating_add(lifetime.as_secs()),
                used_by: None,
            };
            tables.withdraw(|old| {
                let forgotten = old.expires.saturating_add(RETENTION_SECONDS) < now;
                forgotten || old.is_unused_of(name)
            })?;
            tables.put_invitation(&invited)?;
            invited
        };
        transaction.commit().map_err(database)?;
        Ok(invited)
    }

    /// Returns the client that `key` has already become with this token, or `None` when the token
    /// can be redeemed; fails if the token is refused.
    ///
    /// Reads one row of each table, and waits for no writer, so that the tokens guessed by
    /// strangers cost little.
    pub(crate) fn find_redeemed(
        &self,
        token: TokenHash,
        key: &PublicKey,
        now: u64,
    ) -> Result<Option<Client>, StoreError> {
        let transaction = self.database.begin_read().map_err(database)?;
        let invitations = transaction.open_table(INVITATIONS).map_err(database)?;
        let invited: Option<StoredInvitation> = read_one(&invitations, &token.to_string())?;
        let invited = invited.ok_or(StoreError::TokenUnknown)?;
        let known = read_one(&transaction.open_table(CLIENTS).map_err(database)?, &invited.name)?;
        invited.check_redemption(key, known, now)
    }

    /// Redeems a token: makes the holder of `key` a client. A repeated request of the same key
    /// returns the same client, because the first reply may have been lost.
    pub(crate) fn redeem(
        &self,
        token: TokenHash,
        key: &PublicKey,
        pools: &Pools,
        now: u64,
    ) -> Result<Client, StoreError> {
        if let Some(client) = self.find_redeemed(token, key, now)? {
            return Ok(client);
        }
        let transaction = self.database.begin_write().map_err(database)?;
        let client = {
            let mut tables = AddressTables::open(&transaction)?;
            // Check again: the token may have been redeemed, or its invitation withdrawn, in the
            // meantime.
            let found = tables.invitations.iter().find(|invited| invited.token == token).cloned();
            let mut invited = found.ok_or(StoreError::TokenUnknown)?;
            if let Some(client) = invited.check_redemption(key, tables.client(&invited.name).cloned(), now)? {
                return Ok(client);
            }
            tables.check_key(&invited.name, key)?;
            let mut taken = tables.taken(now);
            let lease = tables.assign_lease(&invited.name, Lease::default(), pools, now, &mut taken)?;
            let client = Client::new(invited.name.clone(), *key, lease, now);
            invited.used_by = Some(*key);
            tables.put_invitation(&invited)?;
            tables.put_client(&client)?;
            client
        };
        transaction.commit().map_err(database)?;
        Ok(client)
    }
}
