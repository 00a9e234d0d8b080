//! The folds: any order gives the same record, merging is a join, and the rule case by case.

use super::{super::*, changes, device, guid, keys, now, onboarded, site};
use crate::{
    crypto::VerifyingKey,
    fixture::Dice,
    id::{Guid, ServerId},
    time::{Time, TimeQuality},
};

/// A site's life on three servers that see each other's entries now and then.
fn history(dice: &mut Dice, keys: &[VerifyingKey]) -> Vec<(Entry, Standing)> {
    let names = ["gw1", "cloud", "gw2"];
    let mut authors: Vec<(ServerId, u64, u64)> = names
        .iter()
        .map(|name| (name.parse().unwrap(), 0, 0))
        .collect();
    let mut all: Vec<(Entry, Standing)> = Vec::new();
    for _ in 0..dice.below(24) + 2 {
        let at = usize::try_from(dice.below(3)).unwrap();
        if let Some((seen, _)) = dice.chance(40).then(|| all.last().cloned()).flatten() {
            authors[at].2 = authors[at].2.max(seen.rank);
        }
        let (origin, seq, rank) = &mut authors[at];
        (*seq, *rank) = (*seq + 1, *rank + 1);
        let small = |dice: &mut Dice| u8::try_from(dice.below(5)).unwrap();
        let change = match dice.below(10) {
            0..=3 => onboarded(small(dice), small(dice), dice.pick(keys)),
            4 => Change::CertificateRevoked {
                serial: Serial::new(&[small(dice) + 1]).unwrap(),
            },
            5 => Change::ClientAdmitted {
                name: "scada".parse().unwrap(),
                publish: vec![format!("a/{}", small(dice)).parse().unwrap()],
                subscribe: vec![],
            },
            6 => Change::KeyListing(Box::new(Listing {
                role: ListedAs::Installer,
                key: dice.pick(keys).clone(),
                round: u32::from(small(dice)),
                name: dice.chance(60).then(|| "anna".parse().unwrap()),
            })),
            _ => dice.pick(&changes(dice.clone().pick(keys))).clone(),
        };
        let entry = Entry {
            id: EntryId {
                origin: origin.clone(),
                epoch: 1,
                seq: *seq,
            },
            rank: *rank,
            site: site(),
            at: Time::new(dice.below(3), TimeQuality::None),
            device: dice.chance(90).then(device),
            change,
        };
        let standing = if dice.chance(40) {
            Standing::Proved
        } else {
            Standing::Attested
        };
        all.push((entry, standing));
    }
    // A thief of a key writes one number twice, with another content.
    if dice.chance(20) {
        let (mut twin, _) = dice.pick(&all).clone();
        twin.change = onboarded(0, 4, dice.pick(keys));
        all.push((twin, Standing::Attested));
    }
    all
}

fn fold<'a>(entries: impl IntoIterator<Item = &'a (Entry, Standing)>) -> SiteRecord {
    let mut record = SiteRecord::default();
    entries
        .into_iter()
        .for_each(|(entry, standing)| record.apply(entry, *standing));
    record
}

fn shuffled<T: Clone>(dice: &mut Dice, from: &[T]) -> Vec<T> {
    let mut left = from.to_vec();
    let mut out = Vec::new();
    while !left.is_empty() {
        out.push(left.swap_remove(usize::try_from(dice.below(left.len() as u64)).unwrap()));
    }
    out
}

#[test]
fn any_order_and_any_repetition_give_the_same_record() {
    let keys = keys();
    let mut naive_differs = 0;
    for seed in 0..1_500 {
        let mut dice = Dice::new(seed);
        let all = history(&mut dice, &keys);
        let expected = fold(&all);
        let mut delivered = shuffled(&mut dice, &all);
        for _ in 0..dice.below(6) {
            let again = dice.pick(&all).clone();
            delivered.insert(
                usize::try_from(dice.below(delivered.len() as u64)).unwrap(),
                again,
            );
        }
        let record = fold(&delivered);
        assert_eq!(record, expected, "seed {seed}");
        let owner = |record: &SiteRecord| {
            let owner = record.device(device())?.owner()?;
            Some((owner.claim.clone(), owner.standing, owner.contested))
        };
        assert_eq!(owner(&record), owner(&expected), "seed {seed}");
        // Control: who lets the last arrival win gets another answer now and then.
        naive_differs += u32::from(last_arrival(&all) != last_arrival(&delivered));
    }
    assert!(
        naive_differs > 300,
        "the histories must tell a naive fold apart: {naive_differs}"
    );
}

fn last_arrival(entries: &[(Entry, Standing)]) -> Option<Guid> {
    entries
        .iter()
        .rev()
        .find_map(|(entry, _)| match &entry.change {
            Change::Onboarded(onboarded) => Some(onboarded.new_guid),
            _ => None,
        })
}

#[test]
fn merging_is_commutative_associative_and_idempotent() {
    let keys = keys();
    for seed in 0..1_500 {
        let mut dice = Dice::new(10_000 + seed);
        let all = history(&mut dice, &keys);
        // Three replicas saw overlapping parts.
        let [a, b, c] = [0; 3].map(|_| {
            fold(
                &all.iter()
                    .filter(|_| dice.chance(60))
                    .cloned()
                    .collect::<Vec<_>>(),
            )
        });
        let join = |x: &SiteRecord, y: &SiteRecord| {
            let mut joined = x.clone();
            joined.merge(y);
            joined
        };
        assert_eq!(join(&a, &b), join(&b, &a), "seed {seed}: commutative");
        assert_eq!(
            join(&join(&a, &b), &c),
            join(&a, &join(&b, &c)),
            "seed {seed}: associative"
        );
        assert_eq!(join(&a, &a), a, "seed {seed}: idempotent");
        assert_eq!(
            join(&join(&a, &b), &b),
            join(&a, &b),
            "seed {seed}: absorbing"
        );
        let whole = fold(&all);
        assert_eq!(join(&whole, &a), whole, "seed {seed}: a part adds nothing");
    }
}

/// A claim: origin, rank, old GUID, new GUID, standing.
type Told<'a> = (&'a str, u64, u8, u8, Standing);

/// A case of the rule: in words, what is told, and the GUID that holds, how far, contested or not.
type Case<'a> = (&'a str, &'a [Told<'a>], (u8, Standing, bool));

/// A record of these claims, told in the order given.
fn record_of(claims: &[Told]) -> DeviceRecord {
    let key = &keys()[0];
    let mut record = DeviceRecord::new(device());
    for (origin, rank, old, new, standing) in claims {
        let entry = Entry {
            id: EntryId {
                origin: origin.parse().unwrap(),
                epoch: 1,
                seq: *rank,
            },
            rank: *rank,
            site: site(),
            at: now(),
            device: Some(device()),
            change: onboarded(*old, *new, key),
        };
        record.apply(&entry, *standing);
    }
    record
}

fn holds(claims: &[Told]) -> (Guid, Standing, bool) {
    let record = record_of(claims);
    let owner = record.owner().unwrap();
    (owner.claim.new_guid, owner.standing, owner.contested)
}

#[test]
fn the_rule_for_two_sided_claims() {
    use Standing::{Attested, Proved, UnknownMaker};
    let cases: [Case; 13] = [
        (
            "one claim",
            &[("cloud", 1, 0, 1, Proved)],
            (1, Proved, false),
        ),
        (
            "what follows replaces, proved or not, whatever its rank",
            &[("cloud", 9, 0, 1, Proved), ("gw1", 1, 1, 2, Attested)],
            (2, Attested, false),
        ),
        (
            "of two from one GUID the proved one holds",
            &[("cloud", 1, 0, 1, Proved), ("gw1", 9, 0, 2, Attested)],
            (1, Proved, true),
        ),
        (
            "an attested chain of any length does not outweigh a proof",
            &[
                ("cloud", 1, 0, 1, Proved),
                ("gw1", 2, 0, 2, Attested),
                ("gw1", 3, 2, 3, Attested),
            ],
            (1, Proved, true),
        ),
        (
            "of equals the longer chain",
            &[
                ("cloud", 9, 0, 1, Proved),
                ("gw1", 1, 0, 2, Proved),
                ("gw1", 2, 2, 3, Proved),
            ],
            (3, Proved, true),
        ),
        (
            "of equal chains the higher rank",
            &[("cloud", 2, 0, 1, Attested), ("gw1", 1, 0, 2, Attested)],
            (1, Attested, true),
        ),
        (
            "of equal ranks the origin",
            &[("cloud", 1, 0, 1, Attested), ("gw1", 1, 0, 2, Attested)],
            (2, Attested, true),
        ),
        (
            "a fork is settled by the next TO2 of either branch that is the longer, and stays shown",
            &[
                ("cloud", 1, 0, 1, Proved),
                ("gw1", 1, 0, 2, Proved),
                ("cloud", 2, 1, 3, Proved),
            ],
            (3, Proved, true),
        ),
        (
            "the same server again from the same GUID: what it recorded before never reached the device",
            &[("gw1", 1, 0, 1, Proved), ("gw1", 2, 0, 2, Proved)],
            (2, Proved, false),
        ),
        (
            "as often as it was tried",
            &[
                ("gw1", 1, 0, 1, Proved),
                ("gw1", 2, 0, 2, Proved),
                ("gw1", 3, 0, 3, Proved),
                ("gw1", 4, 3, 4, Proved),
            ],
            (4, Proved, false),
        ),
        (
            "but no proof is replaced by less",
            &[("gw1", 1, 0, 1, Proved), ("gw1", 2, 0, 2, Attested)],
            (1, Proved, true),
        ),
        (
            "nor what the device was seen with",
            &[
                ("gw1", 1, 0, 1, Proved),
                ("gw1", 2, 1, 3, Proved),
                ("gw1", 3, 0, 2, Proved),
            ],
            (3, Proved, true),
        ),
        (
            "a made-up device weighs less than an attested one",
            &[("cloud", 1, 0, 1, Attested), ("gw1", 9, 0, 2, UnknownMaker)],
            (1, Attested, true),
        ),
    ];
    for (words, claims, (new, standing, contested)) in cases {
        assert_eq!(holds(claims), (guid(new), standing, contested), "{words}");
        let reversed: Vec<_> = claims.iter().rev().copied().collect();
        assert_eq!(
            holds(&reversed),
            (guid(new), standing, contested),
            "{words}, reversed"
        );
    }
}

#[test]
fn rings_of_claims_are_contested_and_end() {
    use Standing::Attested;
    let (_, _, contested) = holds(&[("gw1", 1, 0, 1, Attested), ("gw1", 2, 1, 0, Attested)]);
    assert!(contested);
    let (_, _, contested) = holds(&[("gw1", 1, 3, 3, Attested)]);
    assert!(contested);
    // Many claims in many rings: bounded work.
    let many: Vec<Told> = (0..2_000u64)
        .map(|n| {
            (
                "gw1",
                n + 1,
                u8::try_from(n % 250).unwrap(),
                u8::try_from(n * 7 % 250).unwrap(),
                Attested,
            )
        })
        .collect();
    assert!(record_of(&many).owner().is_some());
}

#[test]
fn every_guid_is_kept_and_the_device_keeps_its_id() {
    use Standing::Proved;
    let record = record_of(&[
        ("cloud", 1, 0, 1, Proved),
        ("cloud", 2, 1, 2, Proved),
        ("gw1", 3, 2, 3, Proved),
    ]);
    let all: Vec<Guid> = record.guids().into_iter().collect();
    assert_eq!(all, [guid(0), guid(1), guid(2), guid(3)]);
    assert_eq!((record.guid(), record.device()), (guid(3), device()));
    assert_eq!(DeviceRecord::new(device()).guid(), guid(0));
}

#[test]
fn a_revocation_beats_an_issue_that_comes_after_it() {
    let serial = Serial::new(&[1, 2, 3]).unwrap();
    let entry = |rank, change| Entry {
        id: EntryId {
            origin: "gw1".parse().unwrap(),
            epoch: 1,
            seq: rank,
        },
        rank,
        site: site(),
        at: now(),
        device: Some(device()),
        change,
    };
    let mut record = SiteRecord::default();
    let revoked = Change::CertificateRevoked {
        serial: serial.clone(),
    };
    record.apply(&entry(1, revoked), Standing::Attested);
    record.apply(&entry(2, changes(&keys()[0]).remove(3)), Standing::Attested);
    assert!(record.is_revoked(&serial));
    let held = record.device(device()).unwrap();
    assert!(held.certificates().all(|(_, revoked)| revoked) && held.certificates().count() == 1);
}

#[test]
fn the_highest_epoch_of_a_gateway_holds() {
    let (old, new) = (&keys()[0], &keys()[1]);
    let enrolled = |seq, epoch, key: &VerifyingKey| {
        let entry = Entry {
            id: EntryId {
                origin: "cloud".parse().unwrap(),
                epoch: 1,
                seq,
            },
            rank: seq,
            site: site(),
            at: now(),
            device: None,
            change: Change::GatewayEnrolled {
                gateway: "gw1".parse().unwrap(),
                epoch,
                record_key: key.clone(),
                owner_key: key.clone(),
            },
        };
        (entry, Standing::Attested)
    };
    let all = [enrolled(1, 2, new), enrolled(2, 1, old)];
    let gateway: ServerId = "gw1".parse().unwrap();
    for order in [[0, 1], [1, 0]] {
        let record = fold(order.map(|at| &all[at]));
        let held = record.gateway(&gateway).unwrap();
        assert_eq!((held.epoch, &held.record_key), (2, new));
    }
}
