//! The tree against the plain matcher, the queue's accounting against a model.

use std::collections::BTreeSet;
use std::sync::Arc;

use proptest::prelude::*;

use super::mailbox::{Bounds, Mailbox};
use super::tree::{Subscription, Tree};
use super::{Batch, Delivery, Options, Pool, TailRow, Taken};
use crate::{Identity, Message, Qos, topic};

fn mailbox(key: u64, messages: usize) -> Arc<Mailbox> {
    let identity = Identity {
        client_id: key.to_string().into(),
        subject: "".into(),
    };
    let mailbox = Mailbox::new(
        key,
        identity,
        Arc::new(Bounds {
            messages,
            bytes: 100_000,
            own: 0,
            pool: Arc::new(Pool::new(1_000_000, 0)),
        }),
    );
    mailbox.set_connected(true);
    Arc::new(mailbox)
}

fn subscription(mailbox: &Arc<Mailbox>) -> Subscription {
    Subscription {
        mailbox: Arc::clone(mailbox),
        qos: Qos::AtLeastOnce,
        no_local: false,
        retain_as_published: false,
        id: None,
    }
}

fn level() -> impl Strategy<Value = String> {
    prop_oneof![Just(String::new()), "[ab]", Just("$s".to_owned())]
}

fn filter() -> impl Strategy<Value = String> {
    let one = prop_oneof![3 => level(), 1 => Just("+".to_owned())];
    (proptest::collection::vec(one, 1..4), any::<bool>()).prop_map(|(mut levels, rest)| {
        if rest {
            levels.push("#".to_owned());
        }
        levels.join("/")
    })
}

fn options() -> Arc<Options> {
    Arc::new(Options {
        qos: Qos::AtLeastOnce,
        retain_as_published: false,
        ids: Vec::new(),
        group: None,
    })
}

proptest! {
    #[test]
    fn model_the_tree_finds_what_the_matcher_finds(
        steps in proptest::collection::vec((filter(), 0u64..4, any::<bool>(), any::<bool>()), 1..60),
        topics in proptest::collection::vec(proptest::collection::vec(level(), 1..5), 1..10),
    ) {
        let mailboxes: Vec<_> = (0..4).map(|key| mailbox(key, 10)).collect();
        let mut tree = Tree::default();
        let mut model = BTreeSet::new();
        for (filter, key, shared, add) in steps {
            if topic::Filter::new(&filter).is_err() {
                continue;
            }
            let group = shared.then_some("g");
            let entry = (filter.clone(), key, shared);
            if add {
                let new = tree.insert(&filter, group, subscription(&mailboxes[key as usize]));
                prop_assert_eq!(new, model.insert(entry));
            } else {
                prop_assert_eq!(tree.remove(&filter, group, key), model.remove(&entry));
            }
            prop_assert_eq!(tree.count(), model.len());
        }
        for levels in topics {
            let name = levels.join("/");
            if !topic::is_topic(&name) {
                continue;
            }
            let mut found = Vec::new();
            let mut shared = Vec::new();
            tree.matching(
                &name,
                |single| found.push(single.mailbox.key),
                |group| shared.extend(group.members.iter().map(|member| member.mailbox.key)),
            );
            found.sort_unstable();
            shared.sort_unstable();
            let expected = |wanted: bool| {
                let mut keys: Vec<u64> = model
                    .iter()
                    .filter(|(filter, _, shared)| *shared == wanted && topic::matches(filter, &name))
                    .map(|(_, key, _)| *key)
                    .collect();
                keys.sort_unstable();
                keys
            };
            prop_assert_eq!(found, expected(false), "{}", name);
            prop_assert_eq!(shared, expected(true), "{}", name);
        }
    }

    #[test]
    fn model_what_a_queue_takes_and_gives_is_what_it_counts(
        steps in proptest::collection::vec((any::<bool>(), any::<bool>(), 1usize..8), 1..80),
        bound in 1usize..20,
    ) {
        let mailbox = mailbox(1, bound);
        let (mut offered, mut refused, mut got) = (0, 0, 0);
        for (deliver, careful, count) in steps {
            if deliver {
                let qos = if careful { Qos::AtLeastOnce } else { Qos::AtMostOnce };
                let messages = (0..count).map(|_| Arc::new(Message::new("t", "x").qos(qos))).collect();
                let delivery = Delivery {
                    batch: Arc::new(Batch::new(messages)),
                    from: 0,
                    to: count,
                    options: options(),
                    retained: false,
                };
                let place = mailbox.deliver(delivery);
                prop_assert_eq!(place.taken + place.refused, count);
                offered += count;
                refused += place.refused;
            } else if careful {
                let taken = mailbox.next_careful(count);
                let messages = taken.as_ref().map_or(0, |delivery| delivery.messages().len());
                prop_assert!(messages <= count);
                got += messages;
            } else {
                got += mailbox.next_fast().map_or(0, |delivery| delivery.messages().len());
            }
            let (waiting, bytes) = mailbox.waiting();
            prop_assert!(waiting <= bound);
            prop_assert_eq!(offered, refused + got + waiting);
            prop_assert_eq!(waiting == 0, bytes == 0);
        }
        let unsent = mailbox.set_connected(false);
        prop_assert_eq!(offered, refused + got + unsent);
    }

    #[test]
    fn model_a_reader_gets_every_row_once_and_in_order(
        steps in row_steps(),
        bound in 1usize..6,
    ) {
        let (got, journal) = read_rows(&steps, bound, Defect::None);
        prop_assert_eq!(got, journal);
    }
}

/// What the model of rows can be planted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// Rows that were handed over before their commit are not handed over after it.
    Once,
    /// After the commit the mailbox does not know what it had before.
    Forgetful,
}

/// What happens, how many rows, how many are read in between.
type RowStep = (u8, usize, usize);

fn row_steps() -> impl Strategy<Value = Vec<RowStep>> {
    proptest::collection::vec((0u8..5, 1usize..9, 0usize..9), 1..200)
}

/// Rows come in order through a small memory and a journal that holds them all in the end: some are
/// handed over before their commit and again after it, and in between the reader reads, looks into a
/// journal without them, or begins anew. What it got, and what there was.
fn read_rows(steps: &[RowStep], bound: usize, defect: Defect) -> (Vec<u64>, Vec<u64>) {
    let mailbox = mailbox(1, bound);
    let mut journal: Vec<u64> = Vec::new();
    let mut got: Vec<u64> = Vec::new();
    let read = |journal: &[u64], got: &mut Vec<u64>, max: usize| match mailbox
        .take_rows(max, usize::MAX)
    {
        Taken::Rows(rows) => got.extend(rows.iter().map(|row| row.id)),
        Taken::Behind(after) => {
            let later = journal.iter().copied().filter(|id| *id > after);
            let rows: Vec<u64> = later.take(max).collect();
            mailbox.read_done(rows.last().copied(), rows.len() == max);
            got.extend(rows);
        }
    };
    for &(kind, count, between) in steps {
        if kind < 2 {
            read(&journal, &mut got, count);
            continue;
        }
        let first = journal.len() as u64 + 1;
        let ids = first..first + count as u64;
        let rows = || -> Vec<TailRow> {
            let row = |id| TailRow {
                id,
                message: Arc::new(Message::new("t", "x")),
                options: options(),
                retained: false,
            };
            ids.clone().map(row).collect()
        };
        let early = kind > 2;
        if early {
            mailbox.push_rows(rows());
            if between > 0 {
                read(&journal, &mut got, between);
            }
        }
        if kind > 3 {
            mailbox.rewind(got.last().copied().unwrap_or(0));
            read(&journal, &mut got, 3);
        }
        journal.extend(ids.clone());
        if early && defect == Defect::Once {
            continue;
        }
        if early && defect == Defect::Forgetful {
            mailbox.rewind(first - 1);
        }
        mailbox.push_rows(rows());
    }
    while mailbox.has_rows() {
        read(&journal, &mut got, 3);
    }
    (got, journal)
}

/// Whether the model finds it, by the same steps that the test takes.
fn found(defect: Defect) -> bool {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let judged = runner.run(&(row_steps(), 1usize..6), |(steps, bound)| {
        let (got, journal) = read_rows(&steps, bound, defect);
        prop_assert_eq!(got, journal);
        Ok(())
    });
    judged.is_err()
}

#[test]
fn control_rows_handed_over_only_before_their_commit_are_missed() {
    assert!(!found(Defect::None));
    assert!(found(Defect::Once), "the model is blind");
}

#[test]
fn control_rows_handed_over_twice_to_a_forgetful_mailbox_are_doubled() {
    assert!(found(Defect::Forgetful), "the model is blind");
}
