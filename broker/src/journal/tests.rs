//! Acknowledged means durable: crash images and failing disks, each with a control that it catches.

mod recalled;
mod told;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_store::Medium;
use holdfast_store::fault::{Call, CrashBackend, FailingBackend, Fault, Times};

use super::{Entry, Op, Reply, Stamp, Verdict};
use crate::codec::code;
use crate::exchange::{Mailbox, Outcome};
use crate::{
    Broker, Config, Connect, Consumer, ConsumerOptions, Filter, Identity, Message, Peer, Qos,
    Refusal, Rights, Row, RowId,
};

/// The planted defect: the sender is answered, then the operation goes to the journal.
pub(super) fn answered_early(op: Op) -> Op {
    let Op::Accept { entries, reply } = op else {
        return op;
    };
    let waiting = entries
        .iter()
        .filter(|entry| entry.message.qos != Qos::AtMostOnce)
        .count();
    match reply {
        Reply::None => {}
        Reply::Mailbox(mailbox) => {
            mailbox.push_outcome(Outcome::Codes(vec![code::SUCCESS; waiting]));
        }
        Reply::Caller(answer) => {
            let _ = answer.send(Ok(vec![Verdict::Taken; entries.len()]));
        }
    }
    Op::Accept {
        entries,
        reply: Reply::None,
    }
}

struct Nobody;

impl Rights for Nobody {
    fn identify(&self, _: &Peer, _: &Connect<'_>) -> Result<Identity, Refusal> {
        Err(Refusal::NotAuthorized)
    }
}

fn config() -> Config {
    Config {
        reserve_bytes: 0,
        // So small that it is full every now and then.
        log_bytes: 4 << 10,
        ..Config::default()
    }
}

async fn open(medium: Medium) -> (Broker, Consumer) {
    let broker = Broker::open(config(), medium, Arc::new(Nobody)).unwrap();
    let consumer = broker
        .consumer(
            "rule",
            vec![Filter::new("t/#").unwrap()],
            ConsumerOptions::default(),
        )
        .await
        .unwrap();
    (broker, consumer)
}

fn message(number: u32) -> Message {
    Message::new(&format!("t/{}", number % 3), number.to_string()).qos(Qos::AtLeastOnce)
}

fn number(row: &Row) -> u32 {
    std::str::from_utf8(row.message.payload())
        .unwrap()
        .parse()
        .unwrap()
}

async fn all(consumer: &Consumer) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    loop {
        let after = rows.last().map_or(RowId::START, |row| row.id);
        let more = consumer.read(after, 100).await.unwrap();
        if more.is_empty() {
            return rows;
        }
        rows.extend(more);
    }
}

/// A small generator of our own: the tests must not depend on the run.
fn random(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

/// Publishes on a recording disk; then every image must hold what had been acknowledged by then and
/// was not taken away. Gives (images, losses).
async fn crash(disk: CrashBackend, early: bool) -> (usize, usize) {
    let (broker, consumer) = open(Medium::Backend(Arc::new(disk.clone()))).await;
    let born = disk.position();
    broker.shared_core().early.store(early, Ordering::Relaxed);
    // (position when acknowledged, number); (position when the removal was asked for, number)
    let mut acknowledged = Vec::new();
    let mut removed = Vec::new();
    for n in 0..60 {
        broker.publish(message(n)).await.unwrap();
        acknowledged.push((disk.position(), n));
        if n % 10 == 9 {
            let rows = all(&consumer).await;
            let Some(first) = rows.first() else { continue };
            removed.push((disk.position(), number(first)));
            consumer.acknowledge(&[first.id]).await.unwrap();
        }
    }
    drop((consumer, broker));
    let mut images = Vec::new();
    disk.each_image(4, random(7), |image| images.push(image));
    let count = images.len();
    let mut losses = 0;
    for image in images {
        let at = image.at;
        let due: BTreeSet<u32> = acknowledged
            .iter()
            .filter(|(position, n)| {
                let taken_away = removed
                    .iter()
                    .any(|(asked, gone)| gone == n && *asked <= at);
                *position <= at && !taken_away
            })
            .map(|(_, n)| *n)
            .collect();
        let opened = Broker::open(config(), image.into_medium(), Arc::new(Nobody));
        let broker = match opened {
            Ok(broker) => broker,
            // A file torn while it was being made: the next start moves it away.
            Err(_) if at < born => continue,
            Err(error) => panic!("image at {at}: {error}"),
        };
        let held: BTreeSet<u32> = match broker.known_consumer("rule") {
            None => BTreeSet::new(),
            Some(consumer) => {
                let rows = all(&consumer).await;
                let numbers: Vec<u32> = rows.iter().map(number).collect();
                assert!(numbers.is_sorted(), "out of order at {at}");
                numbers.into_iter().collect()
            }
        };
        losses += due.difference(&held).count();
    }
    (count, losses)
}

#[tokio::test]
async fn every_crash_image_opens_and_holds_what_was_acknowledged() {
    let (images, losses) = crash(CrashBackend::new(), false).await;
    assert!(images > 300, "{images}");
    assert_eq!(losses, 0);
}

#[tokio::test]
async fn control_an_acknowledgement_before_the_commit_is_caught() {
    let (_, losses) = crash(CrashBackend::new(), true).await;
    assert!(losses > 0, "the crash test is blind");
}

/// Publishes while the n-th call fails; after the failure all is sent again until it is taken.
async fn failing(fault: Fault) {
    let disk = CrashBackend::new();
    let backend = FailingBackend::new(Arc::new(disk));
    let (broker, consumer) = open(Medium::Backend(Arc::new(backend.clone()))).await;
    backend.plan(Some(fault));
    let mut acknowledged = Vec::new();
    for n in 0..20 {
        let mut attempts = 0;
        while broker.publish(message(n)).await.is_err() {
            attempts += 1;
            if attempts == 3 {
                backend.plan(None);
            }
            assert!(attempts < 2000, "never taken again");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        acknowledged.push(n);
    }
    let rows = loop {
        // The store may be on its way back from the fault.
        match consumer.read(RowId::START, 1000).await {
            Ok(rows) => break rows,
            Err(_) => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    };
    let held: BTreeSet<u32> = rows.iter().map(number).collect();
    assert_eq!(held, acknowledged.into_iter().collect(), "{fault:?}");
}

#[tokio::test]
async fn a_failing_disk_loses_nothing_acknowledged() {
    for os_error in [5, 28] {
        for times in [Times::Once, Times::Forever] {
            for at in [1, 2, 3, 5, 8, 13, 21] {
                for call in [Call::Sync, Call::Write] {
                    failing(Fault {
                        call,
                        at,
                        os_error,
                        times,
                    })
                    .await;
                }
            }
        }
    }
}

#[tokio::test]
async fn control_a_disk_that_fails_before_an_early_acknowledgement_loses() {
    let disk = CrashBackend::new();
    let backend = FailingBackend::new(Arc::new(disk));
    let (broker, consumer) = open(Medium::Backend(Arc::new(backend.clone()))).await;
    broker.shared_core().early.store(true, Ordering::Relaxed);
    backend.plan(Some(Fault {
        call: Call::Sync,
        at: 1,
        os_error: 5,
        times: Times::Once,
    }));
    broker.publish(message(1)).await.unwrap();
    broker.shared_core().early.store(false, Ordering::Relaxed);
    while broker.publish(message(2)).await.is_err() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let held: Vec<u32> = all(&consumer).await.iter().map(number).collect();
    assert_eq!(held, [2], "the failing disk was not noticed");
}

#[tokio::test]
async fn a_full_consumer_refuses_without_a_trace_and_takes_again() {
    let disk = CrashBackend::new();
    let broker = Broker::open(config(), Medium::Backend(Arc::new(disk)), Arc::new(Nobody)).unwrap();
    let options = ConsumerOptions {
        max_rows: 3,
        ..ConsumerOptions::default()
    };
    let filters = vec![Filter::new("t/#").unwrap()];
    let consumer = broker.consumer("rule", filters, options).await.unwrap();
    for n in 0..3 {
        broker.publish(message(n)).await.unwrap();
    }
    let refused = broker.publish(message(3)).await;
    assert!(matches!(refused, Err(crate::PublishError::Full)));
    assert_eq!(broker.metrics().refused_full, 1);
    assert_eq!(consumer.waiting(), 3);
    let rows = all(&consumer).await;
    consumer.acknowledge(&[rows[0].id]).await.unwrap();
    broker.publish(message(4)).await.unwrap();
    let held: Vec<u32> = all(&consumer).await.iter().map(number).collect();
    assert_eq!(held, [1, 2, 4]);
}

#[tokio::test]
async fn drop_oldest_drops_what_was_not_read_yet_and_counts_it() {
    let disk = CrashBackend::new();
    let broker = Broker::open(config(), Medium::Backend(Arc::new(disk)), Arc::new(Nobody)).unwrap();
    let options = ConsumerOptions {
        max_rows: 3,
        when_full: crate::WhenFull::DropOldest,
        ..ConsumerOptions::default()
    };
    let filters = vec![Filter::new("t/#").unwrap()];
    let consumer = broker.consumer("rule", filters, options).await.unwrap();
    broker.publish(message(0)).await.unwrap();
    let first = consumer.read(RowId::START, 1).await.unwrap();
    assert_eq!(number(&first[0]), 0);
    for n in 1..10 {
        broker.publish(message(n)).await.unwrap();
    }
    // 0 is with the reader and stays; 1 to 7 made room for 8 and 9.
    let rest = consumer.read(first[0].id, 10).await.unwrap();
    assert_eq!(rest.iter().map(number).collect::<Vec<_>>(), [8, 9]);
    assert_eq!(broker.metrics().dropped[&crate::DropReason::JournalFull], 7);
}

#[tokio::test]
async fn a_consumer_reads_memory_and_journal_without_a_seam() {
    let mut config = config();
    // Memory holds ten: most rows come from the snapshot.
    config.limits.queue_messages = 10;
    let disk = CrashBackend::new();
    let broker = Broker::open(config, Medium::Backend(Arc::new(disk)), Arc::new(Nobody)).unwrap();
    let filters = vec![Filter::new("t/#").unwrap()];
    let consumer = broker
        .consumer("rule", filters, ConsumerOptions::default())
        .await
        .unwrap();
    let publishing = {
        let broker = broker.clone();
        tokio::spawn(async move {
            for n in 0..500 {
                broker.publish(message(n)).await.unwrap();
            }
        })
    };
    let mut after = RowId::START;
    let mut next = 0;
    while next < 500 {
        consumer.ready(after).await;
        for row in consumer.read(after, 7).await.unwrap() {
            assert_eq!(number(&row), next);
            next += 1;
            after = row.id;
            if next % 2 == 0 {
                consumer.acknowledge(&[row.id]).await.unwrap();
            }
        }
    }
    publishing.await.unwrap();
    assert_eq!(consumer.waiting(), 250);
    assert_eq!(all(&consumer).await.len(), 250);
}

#[tokio::test]
async fn a_removed_consumer_leaves_nothing() {
    let disk = CrashBackend::new();
    let (broker, consumer) = open(Medium::Backend(Arc::new(disk))).await;
    broker.publish(message(1)).await.unwrap();
    broker.remove_consumer("rule").await.unwrap();
    assert!(consumer.read(RowId::START, 1).await.is_err());
    broker.publish(message(2)).await.unwrap();
    assert_eq!(broker.metrics().journal_rows, 0);
    assert_eq!(broker.metrics().journal_bytes, 0);
}

/// Publishes a numbered message of a connection; its verdict.
async fn numbered(broker: &Broker, from: &Arc<Mailbox>, seq: u64) -> Verdict {
    let message = Message::new("t/0", seq.to_string()).qos(Qos::AtLeastOnce);
    let route = broker.shared_core().route("t/0");
    let mut entry = Entry::new(Arc::new(message), route, Some(from.key));
    entry.stamp = Some(Stamp {
        number: (1, seq),
        sender: Arc::clone(&from.name),
        from: Some(Arc::clone(from)),
    });
    let verdicts = broker
        .shared()
        .journal
        .call(|answer| Op::Accept {
            entries: vec![entry],
            reply: Reply::Caller(answer),
        })
        .await;
    verdicts.unwrap()[0]
}

#[tokio::test]
async fn after_a_refusal_no_later_number_overtakes_on_that_connection() {
    let disk = CrashBackend::new();
    let broker = Broker::open(config(), Medium::Backend(Arc::new(disk)), Arc::new(Nobody)).unwrap();
    let options = ConsumerOptions {
        max_rows: 2,
        ..ConsumerOptions::default()
    };
    let filters = vec![Filter::new("t/#").unwrap()];
    let consumer = broker.consumer("rule", filters, options).await.unwrap();
    let identity = Identity {
        client_id: "device".into(),
        subject: "device".into(),
    };
    let from = Arc::new(Mailbox::new(
        99,
        identity,
        broker.shared_core().queue_bounds(),
    ));
    from.set_connected(true);
    assert_eq!(numbered(&broker, &from, 1).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &from, 2).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &from, 3).await, Verdict::Full);
    // A repeat is a repeat, full or not.
    assert_eq!(numbered(&broker, &from, 2).await, Verdict::Repeat);
    let rows = all(&consumer).await;
    consumer
        .acknowledge(&[rows[0].id, rows[1].id])
        .await
        .unwrap();
    // There is room again, but 3 must come first.
    assert_eq!(numbered(&broker, &from, 4).await, Verdict::Full);
    assert_eq!(numbered(&broker, &from, 3).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &from, 4).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &from, 4).await, Verdict::Repeat);
    // A gap left by a refusal is forgotten with the connection.
    assert_eq!(numbered(&broker, &from, 5).await, Verdict::Full);
    from.set_connected(false);
    let rows = all(&consumer).await;
    consumer
        .acknowledge(&[rows[0].id, rows[1].id])
        .await
        .unwrap();
    assert_eq!(numbered(&broker, &from, 6).await, Verdict::Taken);
}

#[tokio::test]
async fn repeats_go_by_sender_and_topic() {
    let disk = CrashBackend::new();
    let (broker, consumer) = open(Medium::Backend(Arc::new(disk))).await;
    let mailbox = |name: &str| {
        let identity = Identity {
            client_id: name.into(),
            subject: "any".into(),
        };
        Arc::new(Mailbox::new(
            1,
            identity,
            broker.shared_core().queue_bounds(),
        ))
    };
    let (gateway, device) = (mailbox("gateway"), mailbox("device"));
    // The device came directly with 5 and 6; 3 and 4 still arrive through the gateway.
    assert_eq!(numbered(&broker, &device, 5).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &device, 6).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &gateway, 3).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &gateway, 4).await, Verdict::Taken);
    assert_eq!(numbered(&broker, &gateway, 4).await, Verdict::Repeat);
    assert_eq!(all(&consumer).await.len(), 4);
}

#[tokio::test]
async fn one_sender_cannot_take_the_repeat_filter_from_the_others() {
    let mut config = config();
    config.limits.repeat_topics_per_client = 2;
    let disk = CrashBackend::new();
    let medium = || Medium::Backend(Arc::new(disk.clone()));
    let publish = async |broker: &Broker, sender: &str, topic: &str| {
        let message = Message::new(topic, "m").qos(Qos::AtLeastOnce);
        let mut entry = Entry::new(Arc::new(message), broker.shared_core().route(topic), None);
        entry.stamp = Some(Stamp {
            number: (1, 1),
            sender: sender.into(),
            from: None,
        });
        let accept = |answer| Op::Accept {
            entries: vec![entry],
            reply: Reply::Caller(answer),
        };
        broker.shared().journal.call(accept).await.unwrap()[0]
    };
    for round in 0..2 {
        let broker = Broker::open(config.clone(), medium(), Arc::new(Nobody)).unwrap();
        let known = if round == 0 {
            Verdict::Taken
        } else {
            Verdict::Repeat
        };
        assert_eq!(publish(&broker, "greedy", "t/1").await, known);
        assert_eq!(publish(&broker, "greedy", "t/2").await, known);
        // Beyond its share: taken each time, and counted.
        assert_eq!(publish(&broker, "greedy", "t/3").await, Verdict::Taken);
        assert_eq!(publish(&broker, "greedy", "t/3").await, Verdict::Taken);
        assert_eq!(broker.metrics().unfiltered, 2);
        assert_eq!(publish(&broker, "other", "t/3").await, known);
        assert_eq!(publish(&broker, "other", "t/3").await, Verdict::Repeat);
    }
}
