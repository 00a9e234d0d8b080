//! Keys that operators list: installers whose vouchers a site takes, manufacturers whose devices
//! are believed. What one entry says of a key, and the fold that tells what holds of it.
//!
//! The rule is a count of rounds, so that it needs no clock and no order of delivery: a key is
//! listed in round 1 at first; striking it ends the rounds up to the highest that was known; who
//! lists it again does so in the round after every strike that he knew. A key is listed if the
//! highest round of its listings is above the highest round that was ended. So a strike beats each
//! listing that its author knew of, and each that was written without knowledge of the strike.

use super::entry::{Entry, Order};
use crate::{crypto::VerifyingKey, id::ClientName};
use std::collections::BTreeMap;

/// What a key is listed as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ListedAs {
    /// Vouchers that it extended to the site's gateway are taken.
    Installer,
    /// Devices whose vouchers begin with it are believed.
    Manufacturer,
}

/// One word about a key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Listing {
    /// As what.
    pub role: ListedAs,
    /// Which key.
    pub key: VerifyingKey,
    /// Which round this listing begins, or up to which this strike ends them.
    pub round: u32,
    /// The name to know it by; `None` strikes the key off.
    pub name: Option<ClientName>,
}

/// All that was said of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeyState {
    listed: Option<(u32, Order, ClientName)>,
    struck: u32,
}

impl KeyState {
    /// Its name, if it is listed.
    #[must_use]
    pub fn name(&self) -> Option<&ClientName> {
        let listed = self
            .listed
            .as_ref()
            .filter(|(round, ..)| *round > self.struck);
        listed.map(|(_, _, name)| name)
    }

    /// The entry that lists it, if it is listed.
    #[must_use]
    pub fn order(&self) -> Option<&Order> {
        let listed = self
            .listed
            .as_ref()
            .filter(|(round, ..)| *round > self.struck);
        listed.map(|(_, order, _)| order)
    }

    /// The round in which a listing written now stands; `None` if it was struck off so often, or by
    /// so hostile a hand, that there is none left.
    #[must_use]
    pub fn listing_round(&self) -> Option<u32> {
        self.struck.checked_add(1)
    }

    /// The round up to which a strike written now reaches.
    #[must_use]
    pub fn striking_round(&self) -> u32 {
        let listed = self.listed.as_ref().map_or(0, |(round, ..)| *round);
        listed.max(self.struck)
    }

    fn hear(&mut self, order: Order, listing: &Listing) {
        match &listing.name {
            None => self.struck = self.struck.max(listing.round),
            Some(name) => {
                let heard = Some((listing.round, order, name.clone()));
                if self.listed < heard {
                    self.listed = heard;
                }
            }
        }
    }

    fn merge(&mut self, other: &Self) {
        self.struck = self.struck.max(other.struck);
        if self.listed < other.listed {
            self.listed.clone_from(&other.listed);
        }
    }
}

/// The fold over everything that was said of keys. Commutative, associative, idempotent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listings {
    keys: BTreeMap<(ListedAs, VerifyingKey), KeyState>,
}

impl Listings {
    /// Adds what an entry says of a key, if it does.
    pub fn apply(&mut self, entry: &Entry) {
        if let super::Change::KeyListing(listing) = &entry.change {
            let key = (listing.role, listing.key.clone());
            let state = self.keys.entry(key).or_default();
            state.hear(entry.order(), listing);
        }
    }

    /// Joins what another side knows.
    pub fn merge(&mut self, other: &Self) {
        for (key, theirs) in &other.keys {
            self.keys.entry(key.clone()).or_default().merge(theirs);
        }
    }

    /// What holds of a key; of one that nobody spoke of, nothing.
    #[must_use]
    pub fn state(&self, role: ListedAs, key: &VerifyingKey) -> KeyState {
        let state = self.keys.get(&(role, key.clone()));
        state.cloned().unwrap_or_default()
    }

    /// Whether a key is listed.
    #[must_use]
    pub fn holds(&self, role: ListedAs, key: &VerifyingKey) -> bool {
        let state = self.keys.get(&(role, key.clone()));
        state.is_some_and(|state| state.name().is_some())
    }

    /// The keys that are listed as `role`.
    pub fn listed(&self, role: ListedAs) -> impl Iterator<Item = (&VerifyingKey, &KeyState)> {
        let of_role = self.keys.iter().filter(move |((of, _), _)| *of == role);
        of_role
            .filter(|(_, state)| state.name().is_some())
            .map(|((_, key), state)| (key, state))
    }

    /// Every key that was ever spoken of as `role`, struck off or not.
    pub fn heard_of(&self, role: ListedAs) -> impl Iterator<Item = (&VerifyingKey, &KeyState)> {
        let of_role = self.keys.iter().filter(move |((of, _), _)| *of == role);
        of_role.map(|((_, key), state)| (key, state))
    }
}
