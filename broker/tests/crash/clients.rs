//! The clients: they give and take, come back when they are cut, send again what was not answered, and note it all.
//!
//! Run as tasks beside each other; they end when their part is done or the world stops.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Consumer, RowId};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::common::{Hello, Wire, expiry, packet, publish};
use crate::ledger::{Event, Ledger, SLOTS};

/// Messages a giver has under way.
const WINDOW: usize = 6;
/// Before a second try.
const PAUSE: Duration = Duration::from_millis(2);

/// What all clients share.
pub(crate) struct World {
    pub(crate) address: SocketAddr,
    pub(crate) ledger: Ledger,
    pub(crate) stop: CancellationToken,
    /// The planted defect: as if the server had acknowledged a QoS 1 message before its commit.
    pub(crate) early: bool,
}

impl World {
    /// Connects; `None` when the server does not take it now.
    pub(crate) async fn connect(&self, id: &str, lasting: bool) -> Option<(Wire, bool)> {
        connect(self.address, id, lasting).await
    }
}

/// A MQTT 5 connection and whether the session was there.
pub(crate) async fn connect(address: SocketAddr, id: &str, lasting: bool) -> Option<(Wire, bool)> {
    let stream = TcpStream::connect(address).await.ok()?;
    stream.set_nodelay(true).ok()?;
    let mut wire = Wire::new(stream);
    wire.v5 = true;
    let mut hello = Hello::v5(id);
    if lasting {
        hello.clean = false;
        hello.properties = expiry(3600);
    }
    wire.stream.write_all(&hello.bytes()).await.ok()?;
    match wire.packet().await? {
        (0x20, body) if body[1] == 0 => Some((wire, body[0] == 1)),
        _ => None,
    }
}

async fn give(wire: &mut Wire, bytes: &[u8]) -> bool {
    wire.stream.write_all(bytes).await.is_ok()
}

/// Subscribes; false when it was not taken.
pub(crate) async fn subscribe(wire: &mut Wire, filter: &str, qos: u8) -> bool {
    let mut body = vec![0, 1, 0];
    body.extend(crate::common::text(filter));
    body.push(qos);
    if !give(wire, &packet(0x82, &body)).await {
        return false;
    }
    while let Some((first, body)) = wire.packet().await {
        if first == 0x90 {
            return body.last() == Some(&qos);
        }
    }
    false
}

/// 0, which is no id, of a packet that has none.
fn id_of(body: &[u8]) -> u16 {
    body.first_chunk().map_or(0, |id| u16::from_be_bytes(*id))
}

fn is_refusal(body: &[u8]) -> bool {
    body.get(2).is_some_and(|code| *code >= 0x80)
}

/// Publishes QoS 1 messages until `count` are acknowledged.
pub(crate) async fn give1(world: Arc<World>, count: u32) {
    let mut due: VecDeque<u32> = (0..count).collect();
    let mut open: BTreeMap<u16, u32> = BTreeMap::new();
    loop {
        for number in std::mem::take(&mut open).into_values().rev() {
            due.push_front(number);
        }
        if due.is_empty() || world.stop.is_cancelled() {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        let Some((mut wire, _)) = world.connect("give1", false).await else {
            continue;
        };
        'connected: while !(due.is_empty() && open.is_empty()) {
            while open.len() < WINDOW
                && let Some(number) = due.pop_front()
            {
                let id = wire.id();
                world.ledger.note(Event::Sent1(number));
                if world.early {
                    world.ledger.note(Event::Acked1(number));
                }
                open.insert(id, number);
                let payload = format!("1-{number}");
                let bytes = publish(true, 2, "m/one", id, &[], payload.as_bytes());
                if !give(&mut wire, &bytes).await {
                    break 'connected;
                }
            }
            let Some((0x40, body)) = wire.packet().await else {
                break;
            };
            let number = open.remove(&id_of(&body)).unwrap();
            if is_refusal(&body) {
                due.push_front(number);
                tokio::time::sleep(PAUSE).await;
            } else {
                world.ledger.note(Event::Acked1(number));
            }
        }
    }
}

/// Publishes QoS 2 messages in a lasting session until `count` are complete.
pub(crate) async fn give2(world: Arc<World>, count: u32) {
    let mut due: VecDeque<u32> = (0..count).collect();
    let mut published: BTreeMap<u16, u32> = BTreeMap::new();
    let mut released: BTreeSet<u16> = BTreeSet::new();
    while !(due.is_empty() && published.is_empty() && released.is_empty()) {
        if world.stop.is_cancelled() {
            return;
        }
        let Some((mut wire, _)) = world.connect("give2", true).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let mut bytes = again2(&published, released.iter().copied());
        while !(due.is_empty() && published.is_empty() && released.is_empty()) {
            while published.len() + released.len() < WINDOW
                && let Some(number) = due.pop_front()
            {
                let free = |id: &u16| !published.contains_key(id) && !released.contains(id);
                let id = (1..).find(free).unwrap();
                world.ledger.note(Event::Sent2(id, number));
                published.insert(id, number);
                bytes.extend(message2(4, id, number));
            }
            if !give(&mut wire, &std::mem::take(&mut bytes)).await {
                break;
            }
            let Some((first, body)) = wire.packet().await else {
                break;
            };
            let id = id_of(&body);
            match first {
                0x50 if is_refusal(&body) => {
                    // Not taken, and its id is free: once more under the same one.
                    let number = published[&id];
                    bytes.extend(message2(4, id, number));
                    tokio::time::sleep(PAUSE).await;
                }
                0x50 => {
                    published.remove(&id);
                    released.insert(id);
                    world.ledger.note(Event::Rec2(id));
                    bytes.extend(packet(0x62, &body[..2]));
                }
                0x70 => {
                    released.remove(&id);
                    world.ledger.note(Event::Comp2(id));
                }
                _ => break,
            }
        }
    }
}

fn message2(flags: u8, id: u16, number: u32) -> Vec<u8> {
    publish(
        true,
        flags,
        "m/two",
        id,
        &[],
        format!("2-{number}").as_bytes(),
    )
}

/// What a QoS 2 giver sends when it is back.
pub(crate) fn again2(
    published: &BTreeMap<u16, u32>,
    released: impl Iterator<Item = u16>,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (id, number) in published {
        bytes.extend(message2(12, *id, *number));
    }
    for id in released {
        bytes.extend(packet(0x62, &id.to_be_bytes()));
    }
    bytes
}

/// Takes everything under `m/#` in a lasting session; goes away now and then, so that rows pile up.
pub(crate) async fn take(world: Arc<World>) {
    let mut open: BTreeMap<u16, u32> = BTreeMap::new();
    loop {
        let taking = async {
            let Some((mut wire, _)) = world.connect("take", true).await else {
                return;
            };
            for _ in 0..40 {
                let Some((first, body)) = wire.packet().await else {
                    return;
                };
                let Some(answer) = answer(&wire, first, &body, &mut open, &world.ledger) else {
                    return;
                };
                if !give(&mut wire, &answer).await {
                    return;
                }
            }
        };
        tokio::select! {
            () = world.stop.cancelled() => return,
            () = taking => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What the taker answers to a packet, after noting what it learnt; `None` at the server's goodbye.
pub(crate) fn answer(
    wire: &Wire,
    first: u8,
    body: &[u8],
    open: &mut BTreeMap<u16, u32>,
    ledger: &Ledger,
) -> Option<Vec<u8>> {
    match first >> 4 {
        3 => {
            let arrived = wire.parse(first, body);
            let (kind, number) = arrived.text().split_once('-').unwrap();
            let number = number.parse().unwrap();
            if kind == "1" {
                ledger.note(Event::Took1(number));
                return Some(packet(0x40, &arrived.id.to_be_bytes()));
            }
            // Known already: the same message once more under its id.
            open.entry(arrived.id).or_insert_with(|| {
                ledger.note(Event::Got2(arrived.id, number));
                number
            });
            Some(packet(0x50, &arrived.id.to_be_bytes()))
        }
        6 => {
            if open.remove(&id_of(body)).is_some() {
                ledger.note(Event::Used2(id_of(body)));
            }
            Some(packet(0x70, &body[..2]))
        }
        13 => Some(Vec::new()),
        _ => None,
    }
}

/// Fills and clears retained slots, one after the other.
pub(crate) async fn keep(world: Arc<World>, rounds: u32) {
    let mut next = (1..=rounds)
        .flat_map(|version| (0..SLOTS).map(move |slot| (slot, version)))
        .peekable();
    while next.peek().is_some() && !world.stop.is_cancelled() {
        let Some((mut wire, _)) = world.connect("keep", false).await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while let Some((slot, version)) = next.peek().copied() {
            world.ledger.note(Event::Kept(slot, version));
            let payload = if version % 5 == 0 {
                String::new()
            } else {
                version.to_string()
            };
            let id = wire.id();
            let topic = format!("r/{slot}");
            let bytes = publish(true, 3, &topic, id, &[], payload.as_bytes());
            if !give(&mut wire, &bytes).await {
                break;
            }
            match wire.packet().await {
                Some((0x40, body)) if !is_refusal(&body) => {
                    world.ledger.note(Event::KeptAcked(slot, version));
                    next.next();
                }
                Some((0x40, _)) => tokio::time::sleep(PAUSE).await,
                _ => break,
            }
        }
    }
}

/// Makes lasting sessions, and ends every third of them again.
pub(crate) async fn come_and_go(world: Arc<World>, count: u32) {
    let mut number = 0;
    while number < count && !world.stop.is_cancelled() {
        let id = format!("s-{number}");
        let made = match world.connect(&id, true).await {
            Some((mut wire, _)) => subscribe(&mut wire, &format!("x/{number}"), 1).await,
            None => false,
        };
        if !made {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        world.ledger.note(Event::Made(number));
        if number % 3 == 2 {
            world.ledger.note(Event::Leaving(number));
            // Taken or not: nothing is due for it any more.
            world.connect(&id, false).await;
        }
        number += 1;
    }
}

/// The bridge rule: reads in order, takes away what it has read.
pub(crate) async fn rule(world: Arc<World>, consumer: Consumer) {
    let mut after = RowId::START;
    loop {
        let taking = async {
            consumer.ready(after).await;
            let Ok(rows) = consumer.read(after, 5).await else {
                tokio::time::sleep(PAUSE).await;
                return;
            };
            let Some(last) = rows.last() else { return };
            after = last.id;
            // Every other message stays, so that the judge has something to find.
            let (ids, gone): (Vec<RowId>, Vec<_>) = rows
                .iter()
                .map(|row| (row.id, crate::judge::named(row.message.payload())))
                .filter(|(_, (_, number))| number % 2 == 0)
                .unzip();
            for (qos, number) in gone {
                world.ledger.note(Event::Gone(qos, number));
            }
            // A failure leaves them: they may be gone, and need not be.
            let _ = consumer.acknowledge(&ids).await;
        };
        tokio::select! {
            () = world.stop.cancelled() => return,
            () = taking => {}
        }
    }
}
