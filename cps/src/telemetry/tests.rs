//! The ledger against a model: each stamp once, order of the sender, retention that forgets
//! content but never lets a repeat back in.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_store::{Medium, Options};
use proptest::prelude::*;

use super::*;

fn ledger(keep: u64) -> (tempfile::TempDir, Ledger) {
    let folder = tempfile::tempdir().unwrap();
    let medium = Medium::File(folder.path().join("ledger.redb"));
    let store = Store::open(medium, Options::default(), prepare).unwrap();
    (folder, Ledger::new(store, keep, Metrics::default()))
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
            let got = runtime.block_on(ledger.record_all(messages, 1)).unwrap();
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
    ledger.record_all(all, 5).await.unwrap();
    ledger.record(message("a", "y", 1, 0), 6).await.unwrap();
    ledger.record(message("b", "x", 1, 0), 6).await.unwrap();
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
        first.record(message("a", "x", 1, 1), 1).await.unwrap(),
        Recorded::New
    );
    drop(first);
    let again = open();
    assert_eq!(
        again.record(message("a", "x", 1, 1), 2).await.unwrap(),
        Recorded::Repeat
    );
    assert_eq!(everything(&again, "a").len(), 1);
}
