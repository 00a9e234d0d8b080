//! The ledger against a model: each stamp once, order of the sender, retention that forgets
//! content but never lets a repeat back in.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_link::time::{ManualClock, Time};
use holdfast_store::{Medium, Options};
use proptest::prelude::*;

use super::*;

fn ledger(keep: u64) -> (tempfile::TempDir, Ledger) {
    let folder = tempfile::tempdir().unwrap();
    let medium = Medium::File(folder.path().join("ledger.redb"));
    let store = Store::open(medium, Options::default(), prepare).unwrap();
    (folder, Ledger::new(store, keep, Metrics::default()))
}

fn at(secs: u64) -> Reading {
    ManualClock::at(secs).read()
}

fn message(source: &str, topic: &str, epoch: u64, seq: u64) -> Message {
    let payload = format!("{source}/{topic}/{epoch}/{seq}").into();
    Message {
        source: source.into(),
        topic: topic.into(),
        epoch,
        seq,
        payload,
    }
}

fn everything(ledger: &Ledger, source: &str) -> Vec<Row> {
    let query = Query {
        source: source.into(),
        topic: None,
        after: None,
        max: usize::MAX,
    };
    ledger.query(&query).unwrap()
}

#[derive(Default)]
struct Model {
    seen: BTreeSet<(u64, u64)>,
    kept: BTreeSet<(u64, u64)>,
    removed: Option<(u64, u64)>,
}

impl Model {
    fn record(&mut self, stamp: (u64, u64), keep: usize) -> Recorded {
        if self.removed.is_some_and(|removed| stamp <= removed) || !self.kept.insert(stamp) {
            return Recorded::Repeat;
        }
        self.seen.insert(stamp);
        while self.kept.len() > keep {
            self.removed = self.removed.max(self.kept.pop_first());
        }
        Recorded::New
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn ledger_equals_model(
        arrivals in prop::collection::vec((0..2u8, 0..2u8, 1..3u64, 0..12u64), 1..80),
        keep in 1..9usize,
        batch in 1..9usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (_folder, ledger) = ledger(keep as u64);
        let mut models: BTreeMap<(u8, u8), Model> = BTreeMap::new();
        for chunk in arrivals.chunks(batch) {
            let messages = chunk.iter().map(|(s, t, e, q)| {
                message(&format!("s{s}"), &format!("t{t}"), *e, *q)
            }).collect();
            let got = runtime.block_on(ledger.record_all(messages, at(1))).unwrap();
            let want: Vec<_> = chunk.iter().map(|(s, t, e, q)| {
                models.entry((*s, *t)).or_default().record((*e, *q), keep)
            }).collect();
            prop_assert_eq!(got, want);
        }
        for source in 0..2u8 {
            let got: Vec<_> = everything(&ledger, &format!("s{source}")).into_iter()
                .map(|row| (row.message.topic.to_string(), row.message.epoch, row.message.seq))
                .collect();
            let want: Vec<_> = models.iter().filter(|((s, _), _)| *s == source)
                .flat_map(|((_, t), model)| {
                    model.kept.iter().map(move |(e, q)| (format!("t{t}"), *e, *q))
                })
                .collect();
            prop_assert_eq!(got, want);
        }
    }
}

#[tokio::test]
async fn pages_follow_each_other_without_gap_or_repeat_and_a_topic_can_be_asked_alone() {
    let (_folder, ledger) = ledger(1_000);
    let all: Vec<_> = (0..25).map(|seq| message("a", "x", 1, seq)).collect();
    ledger.record_all(all, at(5)).await.unwrap();
    ledger.record(message("a", "y", 1, 0), at(6)).await.unwrap();
    ledger.record(message("b", "x", 1, 0), at(6)).await.unwrap();
    let (mut after, mut seen) = (None, Vec::new());
    loop {
        let query = Query {
            source: "a".into(),
            topic: Some("x".into()),
            after,
            max: 7,
        };
        let page = ledger.query(&query).unwrap();
        let Some(last) = page.last() else { break };
        after = Some((
            last.message.topic.clone(),
            last.message.epoch,
            last.message.seq,
        ));
        seen.extend(page.into_iter().map(|row| row.message.seq));
    }
    assert_eq!(seen, (0..25).collect::<Vec<_>>());
    let mut text = Vec::new();
    assert_eq!(ledger.export("a", &mut text).unwrap(), 26);
    let first: serde_json::Value =
        serde_json::from_slice(text.split(|byte| *byte == b'\n').next().unwrap()).unwrap();
    assert_eq!(first["payload"], "a/x/1/0");
    assert_eq!(
        (&first["arrival"], &first["received"]),
        (&1.into(), &5.into())
    );
}

#[tokio::test]
async fn what_was_recorded_is_there_after_reopening() {
    let folder = tempfile::tempdir().unwrap();
    let open = || {
        let medium = Medium::File(folder.path().join("ledger.redb"));
        let store = Store::open(medium, Options::default(), prepare).unwrap();
        Ledger::new(store, 10, Metrics::default())
    };
    let first = open();
    assert_eq!(
        first.record(message("a", "x", 1, 1), at(1)).await.unwrap(),
        Recorded::New
    );
    drop(first);
    let again = open();
    assert_eq!(
        again.record(message("a", "x", 1, 1), at(2)).await.unwrap(),
        Recorded::Repeat
    );
    assert_eq!(everything(&again, "a").len(), 1);
}

/// A gateway that wakes up without the time, is switched off, wakes up again, and learns it.
#[tokio::test]
async fn messages_from_before_the_time_was_known_get_theirs_afterwards() {
    let (_folder, ledger) = ledger(100);
    let clock = ManualClock::at(1_000);
    let arrive = async |seq| {
        let done = ledger.record(message("a", "x", 1, seq), clock.read()).await;
        assert_eq!(done.unwrap(), Recorded::New);
    };
    let pass = |secs| clock.advance(std::time::Duration::from_secs(secs));
    arrive(0).await;
    // The first run never hears the time.
    clock.reboot();
    clock.set(Time::new(10, TimeQuality::Floor));
    arrive(1).await;
    // The second does, after its guess was corrected once.
    clock.reboot();
    clock.set(Time::new(20, TimeQuality::Floor));
    arrive(2).await;
    pass(5);
    arrive(3).await;
    clock.set(Time::new(500, TimeQuality::Floor));
    arrive(4).await;
    pass(40);
    ledger.learn_times(&clock).await.unwrap();
    let seen = || -> Vec<_> {
        let rows = everything(&ledger, "a").into_iter();
        rows.map(|row| (row.received.at, row.received.quality))
            .collect()
    };
    let word = |secs: u64, quality: &str| (secs, quality.to_owned());
    assert_eq!(seen()[2], word(20, "floor"), "the control: nobody knows");
    clock.set(Time::new(9_000, TimeQuality::Authenticated));
    arrive(5).await;
    ledger.learn_times(&clock).await.unwrap();
    let expected = [
        word(1_000, "authenticated"),
        word(10, "floor"),
        word(8_955, "learnt later"),
        word(8_960, "learnt later"),
        word(8_960, "learnt later"),
        word(9_000, "authenticated"),
    ];
    assert_eq!(seen(), expected);
    let unknown = everything(&ledger, "a").remove(1).received;
    assert_eq!(
        (unknown.not_before, unknown.not_after),
        (Some(10), Some(8_955))
    );
    let mut text = Vec::new();
    ledger.export("a", &mut text).unwrap();
    let lines: Vec<serde_json::Value> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice(line).ok())
        .collect();
    assert_eq!(lines[0].get("received_when"), None);
    assert_eq!(lines[1]["received_when"]["not_after"], 8_955);
    assert_eq!(lines[2]["received"], 8_955);
}

/// A gateway whose clock is never known, started again and again.
#[tokio::test]
async fn marks_are_joined_but_never_lost() {
    let (_folder, ledger) = ledger(u64::MAX);
    let clock = ManualClock::at(1_000);
    for run in 0..1_100 {
        clock.reboot();
        clock.set(Time::new(50 + 10 * run, TimeQuality::Floor));
        let one = message("a", "x", 1, run);
        ledger.record(one, clock.read()).await.unwrap();
    }
    let rows = everything(&ledger, "a");
    assert!(rows.iter().all(|row| row.received.quality == "floor"));
    assert_eq!(rows[0].received.at, 50);
}
