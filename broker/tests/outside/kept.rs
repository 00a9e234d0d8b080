//! What outlives: wills over a restart, slots and their owners, rows of a gone member, and the
//! broker's own figures.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_broker::{
    Broker, Config, Consumer, ConsumerOptions, Door, Filter, JournalMedium, Message, Qos, RowId,
};

use crate::common::{Hello, Server, TestRights, Wire, expiry, packet};
use crate::kit::{Ended, client, example, hello, lasting, server, until};

fn with_will(id: &str, session: u32, delay: u32) -> Hello {
    let mut hello = Hello::v5(id);
    hello.clean = false;
    hello.properties = expiry(session);
    let mut properties = vec![0x18];
    properties.extend(delay.to_be_bytes());
    hello.will = Some((0x08, properties, format!("will/{id}"), b"gone".to_vec()));
    hello
}

/// Connects to the example by its port.
async fn dial(port: u16, hello: &Hello) -> crate::common::Wire {
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    let mut wire = crate::common::Wire::new(stream.unwrap());
    wire.v5 = hello.v5;
    wire.send(&hello.bytes()).await;
    wire.connack(0).await;
    wire
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mqtt5_3_1_2_7_a_will_survives_kill_9_with_its_delay() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.redb");
    let (mut running, port) = example(&journal);
    let mut witness = dial(port, &lasting(true, "witness")).await;
    witness.subscribe("will/#", 1).await;
    let mut others = Vec::new();
    for (id, session, delay) in [
        ("at-once", 60, 0),
        ("later", 60, 4),
        ("back", 60, 4),
        ("bye", 60, 0),
    ] {
        others.push(dial(port, &with_will(id, session, delay)).await);
    }
    others.push(dial(port, &with_will("short", 0, 30)).await);
    // Its delay was running when the server was killed.
    let cut = dial(port, &with_will("cut", 60, 4)).await;
    drop(cut);
    // One says goodbye: its will is gone for good.
    others.remove(3).disconnect().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.0.kill().unwrap();
    running.0.wait().unwrap();
    drop(others);
    drop(witness);
    let begun = tokio::time::Instant::now();
    let (running, port): (Ended, u16) = example(&journal);
    let mut witness = dial(port, &lasting(true, "witness")).await;
    let _back = dial(port, &with_will("back", 60, 4)).await;
    let mut found = Vec::new();
    for _ in 0..4 {
        let topic = witness.receive().await.topic;
        found.push((topic, begun.elapsed() >= Duration::from_secs(2)));
    }
    found.sort();
    let expected = [
        ("at-once", false),
        ("cut", true),
        ("later", true),
        ("short", false),
    ];
    let expected = expected.map(|(id, late)| (format!("will/{id}"), late));
    assert_eq!(found, expected);
    witness.nothing().await;
    drop(running);
}

#[tokio::test]
async fn mqtt5_3_1_2_10_a_stored_will_goes_with_its_firing() {
    let mut server = server().await;
    let mut witness = hello(&server, &lasting(true, "witness")).await;
    witness.subscribe("will/#", 1).await;
    drop(hello(&server, &with_will("x", 60, 0)).await);
    assert_eq!(witness.receive().await.topic, "will/x");
    witness.disconnect().await;
    for _ in 0..2 {
        server = server.restart(Config::default()).await;
        // Longer than the housekeeping takes to look at wills.
        tokio::time::sleep(Duration::from_millis(700)).await;
        let mut witness = hello(&server, &lasting(true, "witness")).await;
        witness.nothing().await;
        witness.disconnect().await;
    }
}

#[tokio::test]
async fn e8_a_slot_whose_publisher_lost_its_right_is_given_to_nobody() {
    let mut server = server().await;
    let mut giver = server.v5("giver").await;
    giver.publish_with("kept/a", 3, &[], "a").await;
    giver.publish_with("kept/b", 3, &[], "b").await;
    let mut will = with_will("willing", 0, 0);
    will.will = Some((0x28, vec![], "kept/will".into(), b"w".to_vec()));
    drop(hello(&server, &will).await);
    until("the will is kept", || server.broker.metrics().retained == 3).await;
    for restarted in [false, true] {
        if restarted {
            server = server.restart(Config::default()).await;
        }
        for (forbidden, left) in [(None, 3), (Some("kept/a"), 2), (Some("kept/will"), 1)] {
            if let Some(topic) = forbidden {
                TestRights::forbid(&server.rights.no_publish, topic);
                server.broker.rights_changed();
            }
            for v5 in [true, false] {
                let mut taker = client(&server, v5, "taker").await;
                taker.subscribe("kept/#", 1).await;
                for _ in 0..left {
                    assert!(taker.receive().await.retain());
                }
                taker.nothing().await;
                // A durable session gets them as rows: the same rule.
                let mut durable = hello(&server, &lasting(v5, "durable")).await;
                durable.subscribe("kept/#", 1).await;
                for _ in 0..left {
                    durable.receive().await;
                }
                durable.nothing().await;
                durable.unsubscribe("kept/#").await;
            }
        }
        server.rights.no_publish.lock().unwrap().clear();
    }
}

#[tokio::test]
async fn a_subscriber_gets_all_retained_messages_however_many() {
    let mut config = Config::default();
    config.limits.queue_messages = 50;
    let server = Server::start(config).await;
    let mut giver = server.v5("giver").await;
    for number in 0..1000 {
        let (flags, topic) = (1 + (number % 2) * 2, format!("r/{number:04}"));
        giver.publish_with(&topic, flags as u8, &[], "m").await;
    }
    giver.nothing().await;
    until("kept", || server.broker.metrics().retained == 1000).await;
    for lasts in [false, true] {
        let mut taker = if lasts {
            hello(&server, &lasting(true, "durable")).await
        } else {
            server.v5("taker").await
        };
        taker.subscribe("r/#", 1).await;
        let mut found = std::collections::BTreeSet::new();
        for _ in 0..1000 {
            assert!(found.insert(taker.receive().await.topic));
        }
        taker.nothing().await;
    }
    assert!(server.broker.metrics().dropped.is_empty());
}

#[tokio::test]
async fn mqtt5_4_8_2_5_the_rows_of_a_gone_member_go_to_another() {
    for restart in [false, true] {
        let mut server = server().await;
        let mut gone = hello(&server, &lasting(true, "gone")).await;
        gone.subscribe("$share/g/s/#", 2).await;
        let mut giver = server.v5("giver").await;
        for number in 0..5 {
            giver.publish("s/x", 1, &number.to_string()).await;
        }
        // Two are in flight, one of QoS 2 among them; nothing is acknowledged.
        for _ in 0..5 {
            gone.arrived().await;
        }
        giver.publish("s/x", 2, "exactly").await;
        gone.arrived().await;
        drop(gone);
        until("away", || server.broker.metrics().connections == 1).await;
        for number in 5..8 {
            giver.publish("s/x", 1, &number.to_string()).await;
        }
        drop(giver);
        if restart {
            server = server.restart(Config::default()).await;
        }
        let mut other = hello(&server, &lasting(true, "other")).await;
        other.subscribe("$share/g/s/#", 2).await;
        other.nothing().await;
        // The member's session ends for good.
        let mut ending = Hello::v5("gone");
        ending.clean = true;
        hello(&server, &ending).await.disconnect().await;
        let mut found: Vec<String> = Vec::new();
        for _ in 0..8 {
            found.push(other.receive().await.text().to_owned());
        }
        found.sort();
        let expected: Vec<String> = (0..8).map(|number| number.to_string()).collect();
        assert_eq!(found, expected, "restart: {restart}");
        // The QoS 2 message may have reached the first: nobody else gets it [MQTT-4.8.2-5].
        other.nothing().await;
        assert_eq!(server.broker.metrics().dropped.values().sum::<u64>(), 1);
    }
}

#[tokio::test]
async fn the_brokers_figures_have_a_right_of_their_own() {
    let server = Server::start(Config {
        figures_every: Duration::from_millis(1),
        ..Config::default()
    })
    .await;
    let mut curious = server.v5("curious").await;
    assert_eq!(curious.subscribe("$SYS/#", 0).await, 0x87);
    assert_eq!(curious.subscribe("$share/g/$SYS/#", 0).await, 0x87);
    server.rights.figures.store(true, Ordering::SeqCst);
    server.broker.rights_changed();
    assert_eq!(curious.subscribe("#", 0).await, 0);
    // Once some were published, a later subscriber gets the last ones at once.
    let mut first = server.v3("first").await;
    first.subscribe("$SYS/broker/uptime", 0).await;
    assert!(first.receive().await.text().ends_with(" seconds"));
    let mut reader = server.v3("reader").await;
    assert_eq!(
        reader.subscribe("$SYS/broker/clients/connected", 1).await,
        1
    );
    for round in 0..3 {
        let arrived = reader.receive().await;
        assert_eq!(arrived.topic, "$SYS/broker/clients/connected");
        assert_eq!(arrived.retain(), round == 0, "{round}");
        assert!(arrived.text().parse::<u64>().unwrap() <= 3);
    }
    // No wildcard reaches them, and nobody publishes there.
    curious.nothing().await;
    assert_eq!(
        curious
            .publish("$SYS/broker/clients/connected", 1, "7")
            .await,
        0x87
    );
    // The right is asked at delivery too.
    server.rights.figures.store(false, Ordering::SeqCst);
    server.broker.rights_changed();
    tokio::time::sleep(Duration::from_millis(600)).await;
    while reader.stream.try_read(&mut [0; 4096]).is_ok() {}
    reader.nothing().await;
}

#[tokio::test]
async fn mqtt5_4_8_2_4_a_begun_qos_2_message_is_finished_with_the_member_it_was_begun_with() {
    // Broken off before PUBREC, and between PUBREC and PUBCOMP; by the network, and by a restart.
    for (received, restart) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut server = server().await;
        let mut chosen = hello(&server, &lasting(true, "chosen")).await;
        chosen.subscribe("$share/g/s", 2).await;
        let mut giver = server.v5("giver").await;
        giver.publish("s", 2, "begun").await;
        let begun = chosen.arrived().await;
        let id = begun.id.to_be_bytes();
        if received {
            chosen.send(&packet(0x50, &id)).await;
            chosen.ack(0x62, begun.id).await;
        }
        drop(chosen);
        until("away", || server.broker.metrics().connections == 1).await;
        // Another member is there: it is not its message.
        let mut other = hello(&server, &lasting(true, "other")).await;
        other.subscribe("$share/g/s", 2).await;
        other.nothing().await;
        if restart {
            drop((giver, other));
            server = server.restart(Config::default()).await;
            other = hello(&server, &lasting(true, "other")).await;
            other.nothing().await;
        }
        let mut chosen = hello(&server, &lasting(true, "chosen")).await;
        if received {
            chosen.ack(0x62, begun.id).await;
            chosen.send(&packet(0x70, &id)).await;
        } else {
            let again = chosen.receive().await;
            assert_eq!(
                (again.id, again.dup(), again.text()),
                (begun.id, true, "begun")
            );
        }
        chosen.nothing().await;
        other.nothing().await;
        until("done with", || server.broker.metrics().journal_rows == 0).await;
    }
}

/// Greets everybody with as many bytes.
struct Greeting(usize);

impl holdfast_broker::Rights for Greeting {
    fn identify(
        &self,
        _: &holdfast_broker::Peer,
        connect: &holdfast_broker::Connect<'_>,
    ) -> Result<holdfast_broker::Identity, holdfast_broker::Refusal> {
        Ok(holdfast_broker::Identity {
            client_id: connect.client_id.into(),
            subject: "".into(),
        })
    }
    fn greeting(&self, _: &holdfast_broker::Identity) -> Vec<(Box<str>, Box<str>)> {
        vec![("name".into(), "v".repeat(self.0).into())]
    }
}

#[tokio::test]
async fn mqtt5_3_2_2_20_user_properties_that_do_not_fit_are_left_out_of_connack() {
    let folder = tempfile::tempdir().unwrap();
    let medium = JournalMedium::File(folder.path().join("journal.redb"));
    let rights = Arc::new(Greeting(50));
    let broker = Broker::open(Config::default(), medium, rights).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let stop = cancel.clone();
    let served = tokio::spawn(async move { broker.serve(listener, Door::Plain, stop).await });
    let mut seen = [false; 2];
    for largest in 20..=120u32 {
        let mut greeting = Hello::v5("x");
        greeting.properties = [&[0x27][..], &largest.to_be_bytes()].concat();
        let mut wire = Wire::new(tokio::net::TcpStream::connect(address).await.unwrap());
        wire.send(&greeting.bytes()).await;
        let (first, body) = wire.packet().await.unwrap();
        assert_eq!((first, body[1]), (0x20, 0), "{largest}");
        assert!(body.len() + 2 <= largest as usize, "{largest}");
        let greeted = body.windows(4).any(|found| found == b"name");
        seen[usize::from(greeted)] = true;
    }
    assert_eq!(seen, [true; 2]);
    cancel.cancel();
    served.await.unwrap().unwrap();
}

/// A broker on a file, as soon as the one before has let go of it.
async fn reopened(path: &std::path::Path) -> Broker {
    reopened_with(path, 4 << 20).await
}

async fn reopened_with(path: &std::path::Path, log_bytes: u64) -> Broker {
    let until = tokio::time::Instant::now() + crate::common::PATIENCE;
    loop {
        let medium = JournalMedium::File(path.to_owned());
        let config = Config {
            reserve_bytes: 0,
            log_bytes,
            ..Config::default()
        };
        match Broker::open(config, medium, Arc::new(TestRights::default())) {
            Ok(broker) => return broker,
            Err(error) => {
                assert!(tokio::time::Instant::now() < until, "{error}");
                tokio::task::yield_now().await;
            }
        }
    }
}

async fn rule(broker: &Broker, name: &str, filter: &str) -> Consumer {
    let filters = vec![Filter::new(filter).unwrap()];
    let options = ConsumerOptions::default();
    broker.consumer(name, filters, options).await.unwrap()
}

async fn rows(consumer: &Consumer) -> Vec<(RowId, Vec<u8>)> {
    let mut all: Vec<(RowId, Vec<u8>)> = Vec::new();
    loop {
        let after = all.last().map_or(RowId::START, |row| row.0);
        let more = consumer.read(after, 500).await.unwrap();
        if more.is_empty() {
            return all;
        }
        let each = more.iter();
        all.extend(each.map(|row| (row.id, row.message.payload().to_vec())));
    }
}

/// How often the mark of the test's content stands in the log, and behind it.
fn marks(path: &std::path::Path) -> (usize, usize) {
    let bytes = std::fs::read(path).unwrap();
    let size = u64::from_be_bytes(bytes[16..24].try_into().unwrap());
    let (log, tables) = bytes.split_at(4096 + usize::try_from(size).unwrap());
    let count = |part: &[u8]| part.windows(6).filter(|found| *found == b"<told>").count();
    (count(log), count(tables))
}

#[tokio::test]
async fn thousands_of_messages_in_the_log_alone_are_all_there_after_a_restart_and_after_another() {
    const MESSAGES: u32 = 5000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.redb");
    let broker = reopened(&path).await;
    let all = rule(&broker, "all", "t/#").await;
    let some = rule(&broker, "some", "t/1").await;
    for first in (0..MESSAGES).step_by(250) {
        let publishing: Vec<_> = (first..first + 250)
            .map(|number| {
                let (broker, topic) = (broker.clone(), format!("t/{}", number % 4));
                let content = format!("<told>{number}");
                let message = Message::new(&topic, content).qos(Qos::AtLeastOnce);
                tokio::spawn(async move { broker.publish(message).await })
            })
            .collect();
        for one in publishing {
            one.await.unwrap().unwrap();
        }
    }
    // Some are done with: the log tells that too.
    let done: Vec<RowId> = rows(&all)
        .await
        .iter()
        .step_by(10)
        .map(|row| row.0)
        .collect();
    for some in done.chunks(50) {
        all.acknowledge(some).await.unwrap();
    }
    let before = (rows(&all).await, rows(&some).await);
    assert_eq!((before.0.len(), before.1.len()), (4500, 1250));
    let numbers = before
        .0
        .iter()
        .map(|row| String::from_utf8(row.1[6..].to_vec()).unwrap());
    let numbers: Vec<u32> = numbers.map(|number| number.parse().unwrap()).collect();
    assert!(numbers.is_sorted() && numbers[0] == 1 && numbers[4499] == MESSAGES - 1);
    let figures = broker.metrics();
    let figures = (figures.journal_rows, figures.journal_bytes);
    assert_eq!(figures.0, 5750);
    let (told, written) = marks(&path);
    assert!(
        told >= 5000 && written == 0,
        "{told} told, {written} written"
    );
    drop((all, some, broker));
    for opening in 1..=3 {
        let broker = reopened(&path).await;
        // Before anything else is written: the opening has put them all into the tables.
        assert!(marks(&path).1 >= 4500, "opening {opening}");
        let again = broker.metrics();
        assert_eq!((again.journal_rows, again.journal_bytes), figures);
        let all = rule(&broker, "all", "t/#").await;
        let some = rule(&broker, "some", "t/1").await;
        assert_eq!((all.waiting(), some.waiting()), (4500, 1250));
        assert_eq!(
            (rows(&all).await, rows(&some).await),
            before,
            "opening {opening}"
        );
    }
}

#[tokio::test]
async fn a_backlog_that_only_grows_goes_straight_to_the_tables_and_is_all_there_after_a_restart() {
    const MESSAGES: u32 = 120;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.redb");
    let broker = reopened_with(&path, 16 << 20).await;
    let all = rule(&broker, "all", "t").await;
    for number in 0..MESSAGES {
        let content = format!("<told>{number:064000}");
        let message = Message::new("t", content).qos(Qos::AtLeastOnce);
        broker.publish(message).await.unwrap();
    }
    // The first 4 MiB were told; then it showed that nobody takes them away.
    let (told, written) = marks(&path);
    assert!((60..80).contains(&told), "{told} told");
    assert!(written >= 100, "{written} written");
    drop((all, broker));
    let broker = reopened_with(&path, 16 << 20).await;
    let all = rule(&broker, "all", "t").await;
    let found = rows(&all).await;
    let numbers = found
        .iter()
        .map(|row| String::from_utf8(row.1[6..].to_vec()).unwrap());
    let numbers: Vec<u32> = numbers.map(|number| number.parse().unwrap()).collect();
    assert_eq!(numbers, (0..MESSAGES).collect::<Vec<_>>());
    let ids: Vec<RowId> = found.iter().map(|row| row.0).collect();
    all.acknowledge(&ids).await.unwrap();
    let figures = broker.metrics();
    assert_eq!((figures.journal_rows, figures.journal_bytes), (0, 0));
}
