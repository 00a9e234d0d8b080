//! kill -9 under load, with a ledger: what was acknowledged arrives, QoS 2 arrives once, repeats of a
//! numbered sender are dropped. The victim is the example server in a process of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::common::{Wire, packet, publish, stamp};
use crate::kit::{Ended, Numbers, example, lasting};

/// Messages a publisher has under way.
const WINDOW: usize = 20;

/// A server that is killed and started again on the same journal.
struct Victim {
    process: Ended,
    port: u16,
}

impl Victim {
    fn new(journal: &Path) -> Self {
        let (process, port) = example(journal);
        Self { process, port }
    }

    /// Kills after that time, from a task of its own.
    fn killer(&self, after: Duration) -> tokio::task::JoinHandle<()> {
        let pid = self.process.0.id().to_string();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            Command::new("kill").args(["-9", &pid]).status().unwrap();
        })
    }

    async fn again(&mut self, journal: &Path, killer: tokio::task::JoinHandle<()>) {
        killer.await.unwrap();
        self.process.0.wait().unwrap();
        *self = Self::new(journal);
    }

    async fn wire(&self, v5: bool, id: &str) -> (Wire, bool) {
        let mut wire = Wire::new(TcpStream::connect(("127.0.0.1", self.port)).await.unwrap());
        wire.v5 = v5;
        wire.send(&lasting(v5, id).bytes()).await;
        let present = wire.connack(0).await;
        (wire, present)
    }
}

/// Sends without caring whether anybody is there.
async fn offer(wire: &mut Wire, bytes: &[u8]) -> bool {
    wire.stream.write_all(bytes).await.is_ok()
}

/// Reads everything that waits for a session, answering as the protocol asks: (topic, payload) in
/// order, a QoS 2 message at its PUBREL.
async fn drain(
    wire: &mut Wire,
    open: &mut BTreeMap<u16, (String, String)>,
) -> Vec<(String, String)> {
    let mut got = Vec::new();
    // Two pings with nothing between them: nothing waits.
    let mut quiet = 0;
    wire.send(&[0xC0, 0]).await;
    loop {
        let (first, body) = wire.packet().await.expect("the server is there");
        match first >> 4 {
            13 if quiet == 2 => return got,
            13 => {
                quiet += 1;
                tokio::time::sleep(Duration::from_millis(30)).await;
                wire.send(&[0xC0, 0]).await;
            }
            6 => {
                let id = u16::from_be_bytes([body[0], body[1]]);
                got.extend(open.remove(&id));
                wire.send(&packet(0x70, &body[..2])).await;
                quiet = 0;
            }
            3 => {
                quiet = 0;
                let arrived = wire.parse(first, &body);
                let message = (arrived.topic.clone(), arrived.text().to_owned());
                if arrived.qos() == 2 {
                    open.insert(arrived.id, message);
                    wire.send(&packet(0x50, &arrived.id.to_be_bytes())).await;
                } else {
                    got.push(message);
                    wire.send(&packet(0x40, &arrived.id.to_be_bytes())).await;
                }
            }
            _ => panic!("{first:#x}"),
        }
    }
}

/// What the tests here can be planted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// As if the server acknowledged on receipt: what was sent is taken for acknowledged.
    Early,
    /// A QoS 2 publisher that does not know its packet ids when it comes back.
    Forgetful,
    /// The sender's messages have no numbers.
    Unnumbered,
}

/// Five deaths under a window of QoS 1: how many were acknowledged, and what then waited for the taker.
async fn window(v5: bool, defect: Defect) -> (Vec<String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.redb");
    let mut victim = Victim::new(&journal);
    let (mut taker, _) = victim.wire(v5, "taker").await;
    assert_eq!(taker.subscribe("x/#", 1).await, 1);
    taker.disconnect().await;
    let mut acknowledged = Vec::new();
    let mut numbers = Numbers(0x1ED6_E200);
    for round in 0..5 {
        let (mut giver, _) = victim.wire(v5, "giver").await;
        let after = Duration::from_millis(20 + numbers.next() % 80);
        let killer = victim.killer(after);
        let mut sent: BTreeMap<u16, String> = BTreeMap::new();
        'alive: for number in 0.. {
            while sent.len() >= WINDOW {
                match giver.packet().await {
                    Some((0x40, body)) => {
                        let id = u16::from_be_bytes([body[0], body[1]]);
                        assert!(body.len() == 2 || body[2] < 0x80);
                        acknowledged.extend(sent.remove(&id));
                    }
                    Some(other) => panic!("{other:?}"),
                    None => break 'alive,
                }
            }
            let (id, payload) = (giver.id(), format!("{round}-{number}"));
            let bytes = publish(v5, 2, "x/y", id, &[], payload.as_bytes());
            sent.insert(id, payload);
            if !offer(&mut giver, &bytes).await {
                break;
            }
        }
        if defect == Defect::Early {
            acknowledged.extend(sent.into_values());
        }
        victim.again(&journal, killer).await;
    }
    let (mut taker, present) = victim.wire(v5, "taker").await;
    assert!(present);
    let got = drain(&mut taker, &mut BTreeMap::new()).await;
    let got = got.into_iter().map(|(_, payload)| payload).collect();
    (acknowledged, got)
}

/// Of the first, those that are not among the second.
fn lost(acknowledged: &[String], got: &[String]) -> usize {
    let all: BTreeSet<&String> = got.iter().collect();
    let missing = acknowledged.iter().filter(|one| !all.contains(one));
    missing.count()
}

/// How many come more than once.
fn doubled(got: &[String]) -> usize {
    got.len() - got.iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test]
async fn kill_9_under_a_window_of_qos_1_loses_nothing_acknowledged() {
    for v5 in [false, true] {
        let (acknowledged, got) = window(v5, Defect::None).await;
        assert!(acknowledged.len() > 100, "too few to mean anything");
        assert_eq!(lost(&acknowledged, &got), 0, "of {}", acknowledged.len());
        assert_eq!(doubled(&got), 0, "in the journal");
        // Order holds within the topic.
        let key = |text: &String| {
            let (round, number) = text.split_once('-').unwrap();
            let number: u32 = number.parse().unwrap();
            (round.parse::<u32>().unwrap(), number)
        };
        assert!(got.is_sorted_by_key(key));
    }
}

#[tokio::test]
async fn control_what_was_acknowledged_on_receipt_is_lost_by_kill_9() {
    let (acknowledged, got) = window(true, Defect::Early).await;
    assert!(lost(&acknowledged, &got) > 0, "the ledger is blind");
}

/// A QoS 2 publisher that keeps its state through the server's deaths.
#[derive(Default)]
struct Exact {
    /// Sent, no PUBREC yet.
    published: BTreeMap<u16, String>,
    /// PUBREC came: PUBREL is due until PUBCOMP.
    released: BTreeSet<u16>,
    next: u32,
    started: Vec<String>,
    done: usize,
}

impl Exact {
    /// Until the connection ends, or `until` messages are done.
    async fn run(&mut self, wire: &mut Wire, until: usize) {
        let v5 = wire.v5;
        let mut bytes = Vec::new();
        for (id, payload) in &self.published {
            bytes.extend(publish(v5, 12, "x", *id, &[], payload.as_bytes()));
        }
        for id in &self.released {
            bytes.extend(packet(0x62, &id.to_be_bytes()));
        }
        if !offer(wire, &bytes).await {
            return;
        }
        while self.done < until {
            while self.published.len() + self.released.len() < WINDOW {
                let id = (1..)
                    .find(|id| !self.published.contains_key(id) && !self.released.contains(id));
                let (id, payload) = (id.unwrap(), self.next.to_string());
                self.next += 1;
                self.started.push(payload.clone());
                let bytes = publish(v5, 4, "x", id, &[], payload.as_bytes());
                self.published.insert(id, payload);
                if !offer(wire, &bytes).await {
                    return;
                }
            }
            let Some((first, body)) = wire.packet().await else {
                return;
            };
            let id = u16::from_be_bytes([body[0], body[1]]);
            match first {
                0x50 => {
                    assert!(body.len() == 2 || body[2] < 0x80, "{body:?}");
                    self.published.remove(&id);
                    self.released.insert(id);
                    if !offer(wire, &packet(0x62, &body[..2])).await {
                        return;
                    }
                }
                0x70 => {
                    self.released.remove(&id);
                    self.done += 1;
                }
                other => panic!("{other:#x} {body:?}"),
            }
        }
    }
}

/// Deaths of the server in the middle of QoS 2, on the way in and on the way out: the publisher's state,
/// and what the taker used.
async fn exactly_once(v5: bool, defect: Defect) -> (Exact, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.redb");
    let mut victim = Victim::new(&journal);
    let (mut taker, _) = victim.wire(v5, "taker").await;
    assert_eq!(taker.subscribe("x", 2).await, 2);
    taker.disconnect().await;
    let mut giver = Exact::default();
    let mut numbers = Numbers(0x0E_AC70_0000 + u64::from(v5));
    let mut open = BTreeMap::new();
    let mut got = Vec::new();
    for _ in 0..5 {
        let (mut wire, _) = victim.wire(v5, "giver").await;
        let killer = victim.killer(Duration::from_millis(20 + numbers.next() % 80));
        giver.run(&mut wire, usize::MAX).await;
        victim.again(&journal, killer).await;
        if defect == Defect::Forgetful {
            let published = std::mem::take(&mut giver.published).into_iter();
            giver.published = published
                .map(|(id, payload)| (id + 1000, payload))
                .collect();
        }
        // The receiver is killed in the middle, too: it reads while the server dies.
        let (mut taker, present) = victim.wire(v5, "taker").await;
        assert!(present);
        let killer = victim.killer(Duration::from_millis(5 + numbers.next() % 30));
        half_drain(&mut taker, &mut open, &mut got).await;
        victim.again(&journal, killer).await;
    }
    let (mut wire, present) = victim.wire(v5, "giver").await;
    assert!(present, "a session with QoS 2 in the middle is not lost");
    let until = giver.done + giver.published.len() + giver.released.len() + 50;
    giver.run(&mut wire, until).await;
    wire.disconnect().await;
    let (mut taker, _) = victim.wire(v5, "taker").await;
    let rest = drain(&mut taker, &mut open).await.into_iter();
    got.extend(rest.map(|(_, payload)| payload));
    (giver, got)
}

#[tokio::test]
async fn kill_9_under_qos_2_delivers_everything_exactly_once() {
    for v5 in [false, true] {
        let (giver, got) = exactly_once(v5, Defect::None).await;
        assert!(giver.done > 100, "too few to mean anything: {}", giver.done);
        assert_eq!(doubled(&got), 0);
        let open: BTreeSet<&String> = giver.published.values().collect();
        let finished = giver.started.iter().filter(|one| !open.contains(one));
        let finished: Vec<String> = finished.cloned().collect();
        assert_eq!(lost(&finished, &got), 0);
    }
}

#[tokio::test]
async fn control_a_publisher_that_forgets_its_packet_ids_doubles() {
    // The kill has to fall between the commit and its answer.
    for _ in 0..KILLS {
        if doubled(&exactly_once(true, Defect::Forgetful).await.1) > 0 {
            return;
        }
    }
    panic!("the ledger is blind");
}

/// Reads as a receiver that keeps its QoS 2 state, until the server is gone.
async fn half_drain(
    wire: &mut Wire,
    open: &mut BTreeMap<u16, (String, String)>,
    got: &mut Vec<String>,
) {
    while let Some((first, body)) = wire.packet().await {
        let answer = match first >> 4 {
            6 => {
                let id = u16::from_be_bytes([body[0], body[1]]);
                got.extend(open.remove(&id).map(|(_, payload)| payload));
                packet(0x70, &body[..2])
            }
            3 => {
                let arrived = wire.parse(first, &body);
                // Known already: a duplicate under its id.
                let message = (arrived.topic.clone(), arrived.text().to_owned());
                open.insert(arrived.id, message);
                packet(0x50, &arrived.id.to_be_bytes())
            }
            other => panic!("{other}"),
        };
        if !offer(wire, &answer).await {
            return;
        }
    }
}

/// Runs of five deaths in which a control must see its defect once.
const KILLS: u32 = 10;

/// A sender with an outbox that goes through five deaths: the first number that is not acknowledged, and
/// what the taker got.
async fn numbered(defect: Defect) -> (u64, Vec<u64>) {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.redb");
    let mut victim = Victim::new(&journal);
    let (mut taker, _) = victim.wire(true, "taker").await;
    taker.subscribe("x", 1).await;
    taker.disconnect().await;
    let mut numbers = Numbers(0x5E0_0001);
    // The sender's outbox: everything from the first unacknowledged number is sent again.
    let mut first = 1u64;
    for round in 0..6 {
        let (mut giver, _) = victim.wire(true, "giver").await;
        let after = Duration::from_millis(20 + numbers.next() % 80);
        let killer = (round < 5).then(|| victim.killer(after));
        let limit = if round == 5 { first + 100 } else { u64::MAX };
        let mut next = first;
        let mut under_way = std::collections::VecDeque::new();
        'alive: while next < limit || !under_way.is_empty() {
            while under_way.len() < WINDOW && next < limit {
                let (id, payload) = (giver.id(), next.to_string());
                let properties = match defect {
                    Defect::Unnumbered => Vec::new(),
                    _ => stamp(7, next),
                };
                let bytes = publish(true, 2, "x", id, &properties, payload.as_bytes());
                under_way.push_back((id, next));
                next += 1;
                if !offer(&mut giver, &bytes).await {
                    break 'alive;
                }
            }
            let Some((0x40, body)) = giver.packet().await else {
                break;
            };
            assert!(body.len() == 2 || body[2] < 0x80, "{body:?}");
            let (id, number) = under_way.pop_front().unwrap();
            assert_eq!(body[..2], id.to_be_bytes());
            first = number + 1;
        }
        if let Some(killer) = killer {
            victim.again(&journal, killer).await;
        }
    }
    let (mut taker, _) = victim.wire(true, "taker").await;
    let got = drain(&mut taker, &mut BTreeMap::new()).await;
    let got = got.iter().map(|(_, payload)| payload.parse().unwrap());
    (first, got.collect())
}

#[tokio::test]
async fn kill_9_under_a_numbered_sender_gives_every_message_exactly_once_in_order() {
    let (first, got) = numbered(Defect::None).await;
    assert!(got.len() > 150);
    let expected: Vec<u64> = (1..=got.len() as u64).collect();
    assert_eq!(got, expected);
    assert!(got.len() as u64 >= first - 1);
}

#[tokio::test]
async fn control_a_sender_without_numbers_doubles() {
    for _ in 0..KILLS {
        let (_, got) = numbered(Defect::Unnumbered).await;
        let once: BTreeSet<u64> = got.iter().copied().collect();
        if once.len() < got.len() {
            return;
        }
    }
    panic!("the ledger is blind");
}

#[tokio::test]
async fn kill_9_keeps_what_a_client_was_told_about_its_session_and_its_slots() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.redb");
    let mut victim = Victim::new(&journal);
    for round in 0..4u8 {
        let (mut wire, present) = victim.wire(round % 2 == 0, "s").await;
        assert_eq!(present, round > 0);
        assert_eq!(wire.subscribe(&format!("f/{round}"), 1).await, 1);
        if round > 1 {
            wire.unsubscribe(&format!("f/{}", round - 1)).await;
        }
        assert!(
            wire.publish_with(&format!("r/{round}"), 3, &[], "kept")
                .await
                < 0x80
        );
        if round > 1 {
            wire.publish_with(&format!("r/{}", round - 1), 3, &[], "")
                .await;
        }
        let killer = victim.killer(Duration::ZERO);
        victim.again(&journal, killer).await;
    }
    let (mut wire, _) = victim.wire(true, "s").await;
    let (mut giver, _) = victim.wire(true, "giver").await;
    for round in 0..4 {
        giver
            .publish(&format!("f/{round}"), 1, &round.to_string())
            .await;
    }
    assert_eq!(wire.receive().await.text(), "0");
    assert_eq!(wire.receive().await.text(), "3");
    wire.nothing().await;
    wire.subscribe("r/#", 1).await;
    assert_eq!(wire.receive().await.topic, "r/0");
    assert_eq!(wire.receive().await.topic, "r/3");
    wire.nothing().await;
}
