//! Listed keys: operators at two places who see each other's words now and then, against a model of
//! what each strike must beat.

use super::{super::*, keys, now, site};
use crate::{
    crypto::VerifyingKey,
    fixture::Dice,
    id::{ClientName, ServerId},
};

const ROLE: ListedAs = ListedAs::Installer;

fn entry(origin: &str, seq: u64, rank: u64, listing: Listing) -> Entry {
    Entry {
        id: EntryId {
            origin: origin.parse().unwrap(),
            epoch: 1,
            seq,
        },
        rank,
        site: site(),
        at: now(),
        device: None,
        change: Change::KeyListing(Box::new(listing)),
    }
}

/// One place where an operator lists and strikes.
#[derive(Clone)]
struct Office {
    name: ServerId,
    listings: Listings,
    /// The entries that it has, its own and those it heard.
    seen: Vec<usize>,
    seq: u64,
    rank: u64,
}

/// What was written, and which entries its author had seen.
struct Written {
    entry: Entry,
    knew: Vec<usize>,
}

fn offices() -> Vec<Office> {
    let office = |name: &str| Office {
        name: name.parse().unwrap(),
        listings: Listings::default(),
        seen: Vec::new(),
        seq: 0,
        rank: 0,
    };
    vec![office("cloud"), office("gw1"), office("gw2")]
}

impl Office {
    /// Lists or strikes as an operator would who sees what this office knows.
    fn write(&mut self, key: &VerifyingKey, strikes: bool, log: &mut Vec<Written>) {
        let state = self.listings.state(ROLE, key);
        if strikes != state.name().is_some() {
            return;
        }
        let name: ClientName = "anna".parse().unwrap();
        let (round, name) = match strikes {
            true => (state.striking_round(), None),
            false => (state.listing_round().unwrap(), Some(name)),
        };
        let listing = Listing {
            role: ROLE,
            key: key.clone(),
            round,
            name,
        };
        (self.seq, self.rank) = (self.seq + 1, self.rank + 1);
        let entry = entry(self.name.as_str(), self.seq, self.rank, listing);
        self.listings.apply(&entry);
        let knew = self.seen.clone();
        self.seen.push(log.len());
        log.push(Written { entry, knew });
    }

    fn hear(&mut self, other: &Self, log: &[Written]) {
        for at in &other.seen {
            if !self.seen.contains(at) {
                self.seen.push(*at);
                self.listings.apply(&log[*at].entry);
                self.rank = self.rank.max(log[*at].entry.rank);
            }
        }
    }
}

/// The promise, said without rounds: a key is listed if some listing of it knew of every strike
/// that is not itself older than a listing it had to end.
fn promised(key: &VerifyingKey, log: &[Written]) -> bool {
    let about = |written: &&Written| matches!(&written.entry.change, Change::KeyListing(it) if it.key == *key);
    let strikes = |written: &Written| matches!(&written.entry.change, Change::KeyListing(it) if it.name.is_none());
    let all: Vec<(usize, &Written)> = log.iter().enumerate().filter(|(_, it)| about(it)).collect();
    let round = |written: &Written| match &written.entry.change {
        Change::KeyListing(it) => it.round,
        _ => 0,
    };
    all.iter()
        .filter(|(_, it)| !strikes(it))
        .any(|(_, listing)| {
            all.iter()
                .filter(|(_, it)| strikes(it))
                .all(|(at, strike)| {
                    // Known to whoever listed it, or about a round that was over before.
                    listing.knew.contains(at) || round(strike) < round(listing)
                })
        })
}

#[test]
fn a_strike_beats_every_listing_whose_author_did_not_know_of_it() {
    let keys = keys();
    let (mut held, mut raced) = (0, 0);
    for seed in 0..2_000 {
        let mut dice = Dice::new(seed);
        let (mut offices, mut log) = (offices(), Vec::new());
        for _ in 0..dice.below(20) + 2 {
            let at = usize::try_from(dice.below(3)).unwrap();
            if dice.chance(40) {
                let other = offices[usize::try_from(dice.below(3)).unwrap()].clone();
                offices[at].hear(&other, &log);
            } else {
                let key = dice.pick(&keys[..2]).clone();
                let strikes = dice.chance(50);
                offices[at].write(&key, strikes, &mut log);
            }
        }
        let mut whole = Listings::default();
        log.iter().for_each(|it| whole.apply(&it.entry));
        let mut backwards = Listings::default();
        log.iter().rev().for_each(|it| backwards.apply(&it.entry));
        assert_eq!(whole, backwards, "seed {seed}: any order");
        let mut merged = Listings::default();
        offices.iter().for_each(|it| merged.merge(&it.listings));
        assert_eq!(whole, merged, "seed {seed}: merging");
        for key in &keys[..2] {
            assert_eq!(whole.holds(ROLE, key), promised(key, &log), "seed {seed}");
            held += u32::from(whole.holds(ROLE, key));
            raced += u32::from(last_word(key, &log) != whole.holds(ROLE, key));
        }
    }
    // Control: the histories tell this rule from "the highest order wins".
    assert!(held > 500 && raced > 40, "{held} {raced}");
}

/// The naive rule.
fn last_word(key: &VerifyingKey, log: &[Written]) -> bool {
    let of_key = log
        .iter()
        .filter_map(|written| match &written.entry.change {
            Change::KeyListing(it) if it.key == *key => Some((written.entry.order(), it)),
            _ => None,
        });
    let last = of_key.max_by(|one, other| one.0.cmp(&other.0));
    last.is_some_and(|(_, it)| it.name.is_some())
}

#[test]
fn a_removal_in_an_outage_wins_over_what_is_listed_meanwhile_and_can_be_taken_back() {
    let key = &keys()[0];
    let mut log = Vec::new();
    let mut all = offices();
    let (mut cloud, mut gw1) = (all.remove(0), all.remove(0));
    cloud.write(key, false, &mut log);
    gw1.hear(&cloud, &log);
    // Cut: the site strikes the installer off; the cloud gives it another name meanwhile.
    gw1.write(key, true, &mut log);
    let renamed = Listing {
        role: ROLE,
        key: key.clone(),
        round: 1,
        name: Some("anna-2".parse().unwrap()),
    };
    cloud.rank += 9;
    let again = entry("cloud", 2, cloud.rank, renamed);
    cloud.listings.apply(&again);
    cloud.listings.merge(&gw1.listings.clone());
    assert!(!cloud.listings.holds(ROLE, key));
    assert_eq!(cloud.listings.listed(ROLE).count(), 0);
    assert_eq!(cloud.listings.heard_of(ROLE).count(), 1);
    assert!(!cloud.listings.holds(ListedAs::Manufacturer, key));
    // Now that it knows, the cloud lists it again.
    cloud.write(key, false, &mut log);
    gw1.listings.merge(&cloud.listings);
    assert!(gw1.listings.holds(ROLE, key));
}

#[test]
fn a_key_struck_off_for_good_has_no_round_left() {
    let key = &keys()[0];
    let mut listings = Listings::default();
    let strike = Listing {
        role: ROLE,
        key: key.clone(),
        round: u32::MAX,
        name: None,
    };
    listings.apply(&entry("gw1", 1, 1, strike));
    assert_eq!(listings.state(ROLE, key).listing_round(), None);
}
