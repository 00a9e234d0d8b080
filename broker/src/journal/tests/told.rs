//! What the log tells on its own: it holds when a checkpoint comes in between, and for those alone who are there.

use super::*;
use crate::exchange::{ConsumerId, Route};

/// As the disk would be found if the power went now: another opening of it.
fn cut(disk: &CrashBackend) -> Medium {
    disk.image(disk.position(), || false).into_medium()
}

/// The rule's mailbox and number.
fn target(route: &Route) -> (Arc<Mailbox>, ConsumerId) {
    let mailbox = Arc::clone(&route.targets[0].mailbox);
    let id = mailbox.consumer().unwrap();
    (mailbox, id)
}

async fn accept(broker: &Broker, entries: Vec<Entry>) -> Vec<Verdict> {
    let accept = |answer| Op::Accept {
        entries,
        reply: Reply::Caller(answer),
    };
    broker.shared().journal.call(accept).await.unwrap()
}

fn released(broker: &Broker, id: ConsumerId) -> Vec<bool> {
    let rows = broker.shared().journal.rows(id, 0, 1000).unwrap();
    rows.iter().map(|row| row.released).collect()
}

/// After so many short records the log is full, once just when a release comes.
#[tokio::test]
async fn a_release_holds_whenever_the_log_begins_anew() {
    for before in 50..80 {
        let disk = CrashBackend::new();
        let (broker, consumer) = open(Medium::Backend(Arc::new(disk.clone()))).await;
        let (mailbox, id) = target(&broker.shared_core().route("t/0"));
        let message = Message::new("t/0", "exactly").qos(Qos::ExactlyOnce);
        broker.publish(message).await.unwrap();
        let row = all(&consumer).await.remove(0).id;
        for _ in 0..before {
            // No such row: the record says so all the same.
            consumer.acknowledge(&[RowId(u64::MAX)]).await.unwrap();
        }
        let op = Op::Release {
            consumer: id,
            rows: vec![row.0],
            mailbox: Arc::clone(&mailbox),
        };
        broker.shared().journal.send(op).await.unwrap();
        while !matches!(mailbox.next_outcome(), Some(Outcome::Released(_))) {
            tokio::task::yield_now().await;
        }
        assert_eq!(released(&broker, id), [true], "{before}");
        let again = Broker::open(config(), cut(&disk), Arc::new(Nobody)).unwrap();
        assert_eq!(released(&again, id), [true], "{before} and a cut");
    }
}

/// More rows than are known of one consumer after a checkpoint: the oldest are settled one by one, whenever it comes.
#[tokio::test]
async fn a_settled_row_stays_gone_whenever_the_log_begins_anew() {
    let disk = CrashBackend::new();
    let (broker, consumer) = open(Medium::Backend(Arc::new(disk.clone()))).await;
    let route = broker.shared_core().route("t/0");
    let (_, id) = target(&route);
    let entry = |n| Entry::new(Arc::new(message(n)), Arc::clone(&route), None);
    accept(&broker, (0..8500).map(entry).collect()).await;
    let journal = &broker.shared().journal;
    let mut left = 8500;
    for _ in 0..200 {
        let first = journal.rows(id, 0, 1).unwrap().remove(0).row.id;
        consumer.acknowledge(&[RowId(first)]).await.unwrap();
        left -= 1;
        assert_eq!(consumer.waiting(), left);
        let next = journal.rows(id, 0, 1).unwrap().remove(0).row.id;
        assert!(next > first, "{first} is there again");
    }
    let again = Broker::open(config(), cut(&disk), Arc::new(Nobody)).unwrap();
    let rule = again.known_consumer("rule").unwrap();
    assert_eq!(rule.waiting(), left);
    let rows = again.shared().journal.rows(id, 0, usize::MAX).unwrap();
    assert_eq!(rows.len() as u64, left);
}

/// A publish that was on its way when its receiver was dropped: nothing is kept for nobody.
#[tokio::test]
async fn what_comes_for_a_dropped_consumer_leaves_nothing() {
    // In the log, and in the tables because a retained slot is written in the same batch.
    for in_tables in [false, true] {
        let disk = CrashBackend::new();
        let (broker, _consumer) = open(Medium::Backend(Arc::new(disk.clone()))).await;
        let route = broker.shared_core().route("t/0");
        let (_, id) = target(&route);
        let journal = &broker.shared().journal;
        let drop = |answer| Op::Drop {
            id,
            answer: Some(answer),
        };
        journal.call(drop).await.unwrap();
        let message = message(1).retain(in_tables);
        let entry = Entry::new(Arc::new(message), route, None);
        assert_eq!(accept(&broker, vec![entry]).await, [Verdict::Taken]);
        let left = || {
            let figures = broker.metrics();
            (figures.journal_rows, figures.journal_bytes)
        };
        assert_eq!(left(), (0, 0), "tables: {in_tables}");
        assert!(journal.rows(id, 0, 10).unwrap().is_empty());
        let again = Broker::open(config(), cut(&disk), Arc::new(Nobody)).unwrap();
        assert!(again.shared().journal.rows(id, 0, 10).unwrap().is_empty());
    }
}
