//! Records read back, never make the reader panic, and are never longer than was said before.

use std::sync::Arc;

use holdfast_store::fault::CrashBackend;
use holdfast_store::{Medium, Schema as _};
use proptest::prelude::*;
use proptest::test_runner::TestCaseResult;

use super::super::disk::Disk;
use super::super::op::{Entry, Op, Reply, Stamp};
use super::super::schema::{Account, Ledger, lock};
use super::*;
use crate::exchange::{ConsumerId, Mailbox, Options, Subscription};
use crate::{Broker, Config, Connect, Identity, Peer, Qos, Refusal, Rights};

/// An item as a test wants it.
#[derive(Debug, Clone)]
enum Said {
    Row(u32, u64, bool, Vec<u32>, u8),
    Message(u64, u8),
    Settled(u32, Vec<u64>),
    Released(u32, Vec<u64>),
    Mark(String, String, Mark),
    Received(u32, u16, bool),
    Sent(u32, u64),
}

fn said() -> impl Strategy<Value = Said> {
    let rows = || prop::collection::vec(any::<u64>(), 0..9);
    let ids = prop::collection::vec(any::<u32>(), 0..4);
    let text = || "[a-zä/]{0,9}";
    prop_oneof![
        (any::<u32>(), any::<u64>(), any::<bool>(), ids, any::<u8>())
            .prop_map(|(consumer, row, sole, ids, n)| Said::Row(consumer, row, sole, ids, n)),
        (any::<u64>(), any::<u8>()).prop_map(|(row, n)| Said::Message(row, n)),
        (any::<u32>(), rows()).prop_map(|(consumer, rows)| Said::Settled(consumer, rows)),
        (any::<u32>(), rows()).prop_map(|(consumer, rows)| Said::Released(consumer, rows)),
        (text(), text(), any::<Mark>()).prop_map(|(a, b, mark)| Said::Mark(a, b, mark)),
        any::<(u32, u16, bool)>().prop_map(|(a, b, c)| Said::Received(a, b, c)),
        any::<(u32, u64)>().prop_map(|(consumer, up_to)| Said::Sent(consumer, up_to)),
    ]
}

fn content(n: u8) -> Message {
    Message::new("t/1", vec![n; n.into()]).qos(Qos::ExactlyOnce)
}

fn options(ids: &[u32]) -> Options {
    Options {
        qos: Qos::ExactlyOnce,
        retain_as_published: true,
        ids: ids.to_vec(),
        group: None,
    }
}

fn claim_bytes(sole: bool, ids: &[u32], n: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let claim = Claim {
        message: &content(n),
        options: &options(ids),
        retained: false,
        released: false,
        sole,
        weight: n.into(),
    };
    record::append_claim(&mut bytes, &claim);
    bytes
}

fn say(telling: &mut Telling<'_>, said: &Said) {
    match said {
        Said::Row(consumer, row, sole, ids, n) => {
            let claim = Claim {
                message: &content(*n),
                options: &options(ids),
                retained: false,
                released: false,
                sole: *sole,
                weight: (*n).into(),
            };
            telling.row(*consumer, *row, &claim);
        }
        Said::Message(row, n) => telling.message(*row, &content(*n)),
        Said::Settled(consumer, rows) => telling.settled(*consumer, rows),
        Said::Released(consumer, rows) => telling.released(*consumer, rows),
        Said::Mark(sender, topic, mark) => telling.mark(sender, topic, *mark),
        Said::Received(consumer, id, is_in) => telling.received(*consumer, *id, *is_in),
        Said::Sent(consumer, up_to) => telling.sent(*consumer, *up_to),
    }
}

fn is(item: &Item<'_>, said: &Said) -> bool {
    match (item, said) {
        (
            Item::Row {
                consumer,
                row,
                claim,
            },
            Said::Row(a, b, sole, ids, n),
        ) => (consumer, row) == (a, b) && *claim == claim_bytes(*sole, ids, *n),
        (Item::Message { row, message }, Said::Message(a, n)) => {
            row == a && record::message(message) == Some(content(*n))
        }
        (Item::Settled { consumer, rows }, Said::Settled(a, b))
        | (Item::Released { consumer, rows }, Said::Released(a, b)) => {
            consumer == a && rows.collect::<Vec<_>>() == *b
        }
        (
            Item::Mark {
                sender,
                topic,
                mark,
            },
            Said::Mark(a, b, c),
        ) => (sender, topic, mark) == (&a.as_str(), &b.as_str(), c),
        (
            Item::Received {
                consumer,
                packet_id,
                is_in,
            },
            Said::Received(a, b, c),
        ) => (consumer, packet_id, is_in) == (a, b, c),
        (Item::Sent { consumer, up_to }, Said::Sent(a, b)) => (consumer, up_to) == (a, b),
        _ => false,
    }
}

/// Reads to the end, or to what cannot be read.
fn read_all(mut record: &[u8]) -> Option<usize> {
    head(&mut record)?;
    let mut count = 0;
    while !record.is_empty() {
        if let Item::Settled { rows, .. } | Item::Released { rows, .. } = item(&mut record)? {
            rows.for_each(drop);
        }
        count += 1;
    }
    Some(count)
}

proptest! {
    #[test]
    fn a_record_reads_back(
        all in prop::collection::vec(said(), 0..20),
        numbers: (u64, u64, u64),
        before in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let said = Head {
            next_row: numbers.0,
            broker_seconds: numbers.1,
            wall_seconds: numbers.2,
        };
        // The store has its own head before it.
        let mut record = before.clone();
        let mut telling = Telling::begin(&mut record);
        all.iter().for_each(|one| say(&mut telling, one));
        telling.end(said);
        prop_assert_eq!(&record[..before.len()], &before);
        let whole = &record[before.len()..];
        let mut rest = whole;
        prop_assert_eq!(head(&mut rest), Some(said));
        for one in &all {
            let read = item(&mut rest);
            prop_assert!(read.as_ref().is_some_and(|item| is(item, one)), "{read:?} {one:?}");
        }
        prop_assert!(rest.is_empty());
        // Cut anywhere, it is read to its end or not at all, and never beyond.
        for end in 0..whole.len() {
            prop_assert!(read_all(&whole[..end]).is_none_or(|count| count < all.len() || all.is_empty()));
        }
    }

    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = read_all(&bytes);
    }

    /// As above, with what a record really looks like at its beginning.
    #[test]
    fn no_changed_record_makes_the_reader_panic(
        all in prop::collection::vec(said(), 1..8),
        at: prop::sample::Index,
        byte: u8,
    ) {
        let mut record = Vec::new();
        let mut telling = Telling::begin(&mut record);
        all.iter().for_each(|one| say(&mut telling, one));
        telling.end(Head::default());
        let at = at.index(record.len());
        record[at] = byte;
        let _ = read_all(&record);
    }
}

/// Sessions may take everything.
struct AnyTaker;

impl Rights for AnyTaker {
    fn identify(&self, _: &Peer, _: &Connect<'_>) -> Result<Identity, Refusal> {
        Err(Refusal::NotAuthorized)
    }

    fn may_receive(&self, _: &Identity, _: &str) -> bool {
        true
    }
}

/// A session's subscription: filter, share name, QoS, no local, retain as published, identifier.
type Asked = (usize, u8, Option<u8>, u8, bool, bool, Option<u32>);

/// Payload, QoS, publisher, owned, a property's length, expiry, stamp, incoming packet id, for one only.
type Sent = (
    (u8, u16, u8, Option<u8>),
    (bool, u8, Option<u32>),
    (Option<u8>, Option<u16>, Option<u8>),
);

/// Few share, so that what is reckoned for their copies does not hide what is missing elsewhere.
fn asked() -> impl Strategy<Value = Asked> {
    let group = prop::option::weighted(0.15, any::<u8>());
    let id = prop::option::weighted(0.7, any::<u32>());
    (
        0..SESSIONS,
        any::<u8>(),
        group,
        1..3_u8,
        any::<bool>(),
        any::<bool>(),
        id,
    )
}

/// Half have nothing beside their content.
fn sent() -> impl Strategy<Value = Sent> {
    let number = || prop::option::weighted(0.2, any::<u8>());
    let content = (any::<u8>(), any::<u16>(), any::<u8>(), number());
    let named = (any::<bool>(), any::<u8>(), any::<Option<u32>>());
    let beside = (
        number(),
        prop::option::weighted(0.2, any::<u16>()),
        number(),
    );
    (content, named, beside)
}

const SESSIONS: usize = 3;

/// Longer than what is reckoned beside it.
const SENDER: &str = "a sender whose name is as long as a device's certificate makes it";

/// A ledger of its own, with sessions, over the tables of a broker that nobody uses.
struct Bench {
    broker: Broker,
    ledger: Ledger,
    mailboxes: Vec<Arc<Mailbox>>,
}

fn identity(name: &str) -> Identity {
    Identity {
        client_id: name.into(),
        subject: format!("subject of {name}").into(),
    }
}

impl Bench {
    fn new(asked: &[Asked]) -> Self {
        let config = Config {
            reserve_bytes: 0,
            log_bytes: 0,
            ..Config::default()
        };
        let medium = Medium::Backend(Arc::new(CrashBackend::new()));
        let broker = Broker::open(config, medium.clone(), Arc::new(AnyTaker)).unwrap();
        let core = &broker.shared().journal.core;
        let (mut ledger, _) = Ledger::new(Arc::clone(core), Disk::of(&medium), Arc::default());
        lock(&ledger.recent).begin_from(1);
        let mut mailboxes = Vec::new();
        for number in 0..SESSIONS {
            let id = u32::try_from(number).unwrap() + 1;
            let session = identity(&format!("session {number}"));
            let mailbox = Mailbox::new(core.next_key(), session, core.queue_bounds());
            let mailbox = Arc::new(mailbox);
            mailbox.set_consumer(Some(ConsumerId(id)));
            let account = Account {
                rows: 0,
                bytes: 0,
                max_rows: u64::MAX,
                max_bytes: u64::MAX,
                when_full: None,
                mailbox: Arc::clone(&mailbox),
            };
            ledger.accounts.insert(id, account);
            mailboxes.push(mailbox);
        }
        for (session, filter, group, qos, no_local, retain_as_published, id) in asked {
            let filter = ["#", "t/#", "t/1", "+/1"][usize::from(filter % 4)];
            let name = group.map(|group| ["one", "another longer one"][usize::from(group % 2)]);
            let subscription = Subscription {
                mailbox: Arc::clone(&mailboxes[session % SESSIONS]),
                qos: Qos::from_bits(qos % 3).unwrap(),
                no_local: *no_local && group.is_none(),
                retain_as_published: *retain_as_published,
                id: *id,
            };
            core.exchange.subscribe(filter, name, subscription);
        }
        Self {
            broker,
            ledger,
            mailboxes,
        }
    }

    fn entry(&self, sent: &Sent) -> Entry {
        let ((n, length, qos, publisher), (owned, property, expiry), (stamp, received, only)) =
            sent;
        let core = &self.broker.shared().journal.core;
        let qos = Qos::from_bits(qos % 3).unwrap();
        let mut message = Message::new("t/1", vec![*n; usize::from(*length % 400)]).qos(qos);
        if *property > 0 {
            message = message.user_property("name", &"v".repeat((*property).into()));
        }
        message.expiry = *expiry;
        message.owner = owned.then(|| Arc::new(identity("owner")));
        let mailbox = |n: u8| &self.mailboxes[usize::from(n) % SESSIONS];
        let publisher = publisher.map(|n| mailbox(n).key);
        let mut entry = Entry::new(Arc::new(message), core.route("t/1"), publisher);
        entry.stamp = stamp.map(|n| Stamp {
            number: (1, n.into()),
            sender: SENDER.into(),
            from: None,
        });
        entry.received = received.map(|id| (ConsumerId(1), id));
        entry.only = only.map(|n| {
            let mut options = options(&[u32::from(n); 3]);
            options.group = (n % 2 == 0).then(|| "group/t/1".into());
            (Arc::clone(mailbox(n)), Arc::new(options))
        });
        entry
    }

    /// Tells a batch, after it was said how long it may get; gives its record.
    fn tell(&mut self, mut ops: Vec<Op>) -> Result<Vec<u8>, TestCaseError> {
        let most = self.ledger.most_told(&ops);
        let Some(most) = most else {
            return Err(TestCaseError::fail("not to be told"));
        };
        let reader = self.broker.shared().journal.writer.reader();
        let mut record = Vec::new();
        self.ledger.tell(&reader, &mut ops, &mut record).unwrap();
        prop_assert!(record.len() <= most, "{} of {most}", record.len());
        prop_assert!(read_all(&record).is_some());
        self.ledger.done(ops);
        Ok(record)
    }
}

/// Publishes, then all that may come of them; the records tell another ledger the same.
fn told(asked: &[Asked], batches: &[Vec<Sent>], picks: u64) -> TestCaseResult {
    let mut bench = Bench::new(asked);
    let mut records = Vec::new();
    for sent in batches {
        let entries = sent.iter().map(|sent| bench.entry(sent)).collect();
        let accept = Op::Accept {
            entries,
            reply: Reply::None,
        };
        records.push(bench.tell(vec![accept, Op::Tick])?);
        let mut ops = Vec::new();
        for (index, mailbox) in bench.mailboxes.iter().enumerate() {
            let consumer = mailbox.consumer().unwrap();
            let recent = lock(&bench.ledger.recent);
            let (rows, _) = recent.after(consumer.0, 0, usize::MAX, usize::MAX);
            let rows = rows.iter().map(|row| row.row.id);
            let (some, others) =
                rows.partition(|row| picks >> ((row + index as u64) % 64) & 1 == 1);
            ops.push(Op::Settle {
                consumer,
                rows: some,
                answer: None,
            });
            let mailbox = Arc::clone(mailbox);
            ops.push(Op::Release {
                consumer,
                rows: others,
                mailbox: Arc::clone(&mailbox),
            });
            ops.push(Op::Forget {
                consumer,
                packet_ids: (0..40).collect(),
                codes: Vec::new(),
                mailbox: Arc::clone(&mailbox),
            });
            ops.push(Op::Sent {
                consumer,
                up_to: u64::MAX,
                mailbox,
            });
        }
        records.push(bench.tell(ops)?);
    }
    let core = &bench.broker.shared().journal.core;
    let nowhere = Disk::of(&Medium::Backend(Arc::new(CrashBackend::new())));
    let (mut again, _) = Ledger::new(Arc::clone(core), nowhere, Arc::default());
    again.begin_recall();
    for record in &records {
        again.recall(record).unwrap();
    }
    prop_assert_eq!(again.recalled, Some(bench.ledger.head()));
    let (was, is) = (lock(&bench.ledger.recent), lock(&again.recent));
    prop_assert_eq!(was.told_of(), is.told_of());
    prop_assert_eq!(was.mark(SENDER, "t/1"), is.mark(SENDER, "t/1"));
    for consumer in 1..=u32::try_from(SESSIONS).unwrap() {
        let rows = |recent: &super::super::recent::Recent| -> Vec<_> {
            let (rows, _) = recent.after(consumer, 0, usize::MAX, usize::MAX);
            let each = rows.into_iter().map(|stored| {
                let row = stored.row;
                let qos = row.message.qos.min(row.options.qos);
                let ids = row.options.ids.clone();
                let payload = row.message.payload.clone();
                (row.id, stored.released, row.retained, qos, ids, payload)
            });
            each.collect()
        };
        prop_assert_eq!(rows(&was), rows(&is));
        let ids = |recent: &super::super::recent::Recent| {
            let mut ids: Vec<_> = recent.received_of(consumer).collect();
            ids.sort_unstable();
            ids
        };
        prop_assert_eq!(ids(&was), ids(&is));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn no_record_is_longer_than_was_said_and_each_is_recalled_as_it_was_told(
        asked in prop::collection::vec(asked(), 0..9),
        batches in prop::collection::vec(prop::collection::vec(sent(), 0..9), 1..4),
        picks: u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _in_it = runtime.enter();
        told(&asked, &batches, picks)?;
    }
}
