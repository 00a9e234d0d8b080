//! The stored form of messages, rows, consumers and subscriptions: short, fixed, little.
//!
//! Every decoder gives `None` on anything it did not write; the caller calls that damage.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::op::{ConsumerRecord, Kind, SubscriptionRecord, WillRecord};
use crate::exchange::Options;
use crate::{ConsumerOptions, Identity, Message, Qos, WhenFull};

const RETAIN: u8 = 0b0000_0100;
const EXPIRY: u8 = 0b0000_1000;
const OWNER: u8 = 0b0001_0000;

/// flags, at, [expiry], [owner], topic, properties, payload.
pub(super) fn put_message(out: &mut Vec<u8>, message: &Message) {
    out.clear();
    append_message(out, message);
}

pub(super) fn append_message(out: &mut Vec<u8>, message: &Message) {
    let mut flags = message.qos as u8;
    if message.retain {
        flags |= RETAIN;
    }
    if message.expiry.is_some() {
        flags |= EXPIRY;
    }
    if message.owner.is_some() {
        flags |= OWNER;
    }
    out.put_u8(flags);
    out.put_u64(message.at);
    if let Some(seconds) = message.expiry {
        out.put_u32(seconds);
    }
    if let Some(owner) = &message.owner {
        put_identity(out, owner);
    }
    put_bytes(out, message.topic.as_bytes());
    put_bytes(out, &message.properties);
    out.put_slice(&message.payload);
}

pub(super) fn message(mut bytes: &[u8]) -> Option<Message> {
    let flags = bytes.try_get_u8().ok()?;
    let at = bytes.try_get_u64().ok()?;
    let expiry = if flags & EXPIRY != 0 {
        Some(bytes.try_get_u32().ok()?)
    } else {
        None
    };
    let owner = if flags & OWNER != 0 {
        Some(Arc::new(identity(&mut bytes)?))
    } else {
        None
    };
    let topic = Arc::from(text(&mut bytes)?);
    let properties = Bytes::copy_from_slice(slice(&mut bytes)?);
    Some(Message {
        topic,
        payload: Bytes::copy_from_slice(bytes),
        qos: Qos::from_bits(flags & 3)?,
        retain: flags & RETAIN != 0,
        properties,
        expiry,
        at,
        came: 0,
        owner,
    })
}

/// A will: due, delay, serial, owner, message.
pub(super) fn will_bytes(record: &WillRecord) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_u64(record.due.unwrap_or(u64::MAX));
    out.put_u32(record.delay);
    out.put_u64(record.serial);
    put_identity(&mut out, &record.identity);
    append_message(&mut out, &record.message);
    out
}

pub(super) fn will(mut bytes: &[u8]) -> Option<WillRecord> {
    Some(WillRecord {
        due: Some(bytes.try_get_u64().ok()?).filter(|due| *due != u64::MAX),
        delay: bytes.try_get_u32().ok()?,
        serial: bytes.try_get_u64().ok()?,
        identity: identity(&mut bytes)?,
        message: message(bytes)?,
    })
}

const RETAIN_AS_PUBLISHED: u8 = 1 << 2;
const RETAINED: u8 = 1 << 3;
const RELEASED: u8 = 1 << 4;
const SOLE: u8 = 1 << 5;
const GROUP: u8 = 1 << 6;
const HOLDS: u8 = 1 << 7;

/// A consumer's claim on a message, to be written.
#[derive(Debug)]
pub(super) struct Claim<'a> {
    pub(super) message: &'a Message,
    pub(super) options: &'a Options,
    /// Sent because of a new subscription.
    pub(super) retained: bool,
    /// Its PUBREC was seen.
    pub(super) released: bool,
    /// No other row has this message: it is written with the claim.
    pub(super) sole: bool,
    pub(super) weight: u32,
}

/// flags, weight, [group], number of ids, ids, message; without the number when the message is
/// elsewhere.
pub(super) fn append_claim(out: &mut Vec<u8>, claim: &Claim<'_>) {
    let Claim {
        message, options, ..
    } = claim;
    let set = |on: bool, flag: u8| if on { flag } else { 0 };
    out.put_u8(
        message.qos.min(options.qos) as u8
            | set(options.retain_as_published, RETAIN_AS_PUBLISHED)
            | set(claim.retained, RETAINED)
            | set(claim.released, RELEASED)
            | set(claim.sole, SOLE | HOLDS)
            | set(options.group.is_some(), GROUP),
    );
    out.put_u32(claim.weight);
    if let Some(group) = &options.group {
        put_bytes(out, group.as_bytes());
    }
    if claim.sole {
        let ids = u32::try_from(options.ids.len()).expect("bounded by the subscriptions");
        out.put_u32(ids);
    }
    for id in &options.ids {
        out.put_u32(*id);
    }
    if claim.sole {
        append_message(out, message);
    }
}

/// Bytes of [`append_message`].
pub(super) fn message_bytes(message: &Message) -> usize {
    let owner = message
        .owner
        .as_ref()
        .map_or(0, |owner| 8 + owner.client_id.len() + owner.subject.len());
    let head = 1 + 8 + 4 + 4 + 4 + owner;
    head + message.topic.len() + message.properties.len() + message.payload.len()
}

/// Bytes of [`append_claim`] without the message, at most.
pub(super) fn claim_bytes(options: &Options) -> usize {
    let group = options.group.as_ref().map_or(0, |group| 4 + group.len());
    1 + 4 + group + 4 + options.ids.len() * 4
}

/// Notes in a written claim that its PUBREC was seen.
pub(super) fn release(claim: &mut [u8]) {
    if let Some(flags) = claim.first_mut() {
        *flags |= RELEASED;
    }
}

/// What its end asks about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// No other row has the message.
    pub(super) sole: bool,
    /// The message is within the row.
    pub(super) holds: bool,
    pub(super) weight: u32,
}

pub(super) fn head(mut bytes: &[u8]) -> Option<Head> {
    let flags = bytes.try_get_u8().ok()?;
    Some(Head {
        sole: flags & SOLE != 0,
        holds: flags & HOLDS != 0,
        weight: bytes.try_get_u32().ok()?,
    })
}

/// A consumer's claim on a message, as it was written.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) qos: Qos,
    pub(super) retain_as_published: bool,
    /// Sent because of a new subscription.
    pub(super) retained: bool,
    pub(super) released: bool,
    pub(super) ids: Vec<u32>,
    /// The shared subscription that picked this consumer.
    pub(super) group: Option<Arc<str>>,
    /// When it is not in a table of its own.
    pub(super) message: Option<Message>,
}

impl Row {
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let flags = bytes.try_get_u8().ok()?;
        let _weight = bytes.try_get_u32().ok()?;
        let group = if flags & GROUP != 0 {
            Some(text(&mut bytes)?.into())
        } else {
            None
        };
        let holds = flags & HOLDS != 0;
        let count = if holds {
            usize::try_from(bytes.try_get_u32().ok()?).ok()?
        } else {
            bytes.len() / size_of::<u32>()
        };
        let mut ids = Vec::new();
        for _ in 0..count {
            ids.push(bytes.try_get_u32().ok()?);
        }
        if !holds && bytes.has_remaining() {
            return None;
        }
        Some(Self {
            qos: Qos::from_bits(flags & 3)?,
            retain_as_published: flags & RETAIN_AS_PUBLISHED != 0,
            retained: flags & RETAINED != 0,
            released: flags & RELEASED != 0,
            ids,
            group,
            message: if holds { Some(message(bytes)?) } else { None },
        })
    }
}

const SESSION: u8 = 1;
const BRIDGE: u8 = 2;

pub(super) fn consumer_bytes(record: &ConsumerRecord) -> Vec<u8> {
    let mut out = Vec::new();
    match &record.kind {
        Kind::Session {
            identity,
            expiry,
            left_at,
        } => {
            out.put_u8(SESSION);
            out.put_u32(*expiry);
            out.put_u64(left_at.unwrap_or(u64::MAX));
            put_identity(&mut out, identity);
        }
        Kind::Bridge { name, options } => {
            out.put_u8(BRIDGE);
            out.put_u64(options.max_rows);
            out.put_u64(options.max_bytes);
            out.put_u8(match options.when_full {
                WhenFull::Refuse => 0,
                WhenFull::DropOldest => 1,
                WhenFull::DropNewest => 2,
            });
            out.put_u8(u8::from(options.take_qos0));
            put_bytes(&mut out, name.as_bytes());
        }
    }
    out
}

pub(super) fn consumer(mut bytes: &[u8]) -> Option<ConsumerRecord> {
    let kind = match bytes.try_get_u8().ok()? {
        SESSION => {
            let expiry = bytes.try_get_u32().ok()?;
            let left_at = Some(bytes.try_get_u64().ok()?).filter(|at| *at != u64::MAX);
            Kind::Session {
                identity: identity(&mut bytes)?,
                expiry,
                left_at,
            }
        }
        BRIDGE => {
            let max_rows = bytes.try_get_u64().ok()?;
            let max_bytes = bytes.try_get_u64().ok()?;
            let when_full = match bytes.try_get_u8().ok()? {
                0 => WhenFull::Refuse,
                1 => WhenFull::DropOldest,
                2 => WhenFull::DropNewest,
                _ => return None,
            };
            let take_qos0 = bytes.try_get_u8().ok()? != 0;
            Kind::Bridge {
                name: text(&mut bytes)?.into(),
                options: ConsumerOptions {
                    max_rows,
                    max_bytes,
                    when_full,
                    take_qos0,
                },
            }
        }
        _ => return None,
    };
    Some(ConsumerRecord { kind })
}

pub(super) fn subscription_bytes(record: &SubscriptionRecord) -> [u8; 5] {
    let flags = record.qos as u8
        | u8::from(record.no_local) << 2
        | u8::from(record.retain_as_published) << 3;
    let [a, b, c, d] = record.id.unwrap_or(0).to_be_bytes();
    [flags, a, b, c, d]
}

pub(super) fn subscription(bytes: &[u8]) -> Option<SubscriptionRecord> {
    let [flags, id @ ..] = bytes else { return None };
    let id = u32::from_be_bytes(id.try_into().ok()?);
    Some(SubscriptionRecord {
        qos: Qos::from_bits(flags & 3)?,
        no_local: flags & 4 != 0,
        retain_as_published: flags & 8 != 0,
        id: (id != 0).then_some(id),
    })
}

fn put_identity(out: &mut Vec<u8>, identity: &Identity) {
    put_bytes(out, identity.client_id.as_bytes());
    put_bytes(out, identity.subject.as_bytes());
}

fn identity(bytes: &mut &[u8]) -> Option<Identity> {
    Some(Identity {
        client_id: text(bytes)?.into(),
        subject: text(bytes)?.into(),
    })
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.put_u32(u32::try_from(bytes.len()).expect("bounded by the packet size"));
    out.put_slice(bytes);
}

pub(super) fn slice<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
    if length > bytes.len() {
        return None;
    }
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    Some(taken)
}

pub(super) fn text<'a>(bytes: &mut &'a [u8]) -> Option<&'a str> {
    std::str::from_utf8(slice(bytes)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_message_reads_back(
            topic in "[a-z/]{1,40}",
            payload in proptest::collection::vec(any::<u8>(), 0..300),
            name in "[a-z]{0,8}",
            expiry in proptest::option::of(any::<u32>()),
            qos in 0u8..3,
            retain: bool,
            owned: bool,
            at: u64,
        ) {
            let mut sent = Message::new(&topic, payload)
                .qos(Qos::from_bits(qos).unwrap())
                .retain(retain)
                .user_property(&name, "value");
            sent.expiry = expiry;
            sent.at = at;
            sent.owner = owned.then(|| Arc::new(Identity { client_id: "owner".into(), subject: "s".into() }));
            let mut bytes = Vec::new();
            put_message(&mut bytes, &sent);
            prop_assert_eq!(message(&bytes), Some(sent));
        }

        #[test]
        fn a_will_reads_back(due in proptest::option::of(0..u64::MAX), delay: u32, serial: u64) {
            let record = WillRecord {
                due,
                delay,
                serial,
                identity: Identity { client_id: "c".into(), subject: "s".into() },
                message: Message::new("w", "gone").retain(true),
            };
            let read = will(&will_bytes(&record)).unwrap();
            prop_assert_eq!((read.due, read.delay, read.serial), (due, delay, serial));
            prop_assert_eq!((read.identity, read.message), (record.identity, record.message));
        }

        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = message(&bytes);
            let _ = Row::decode(&bytes);
            let _ = consumer(&bytes);
            let _ = subscription(&bytes);
            let _ = will(&bytes);
        }

        #[test]
        fn a_row_reads_back(flags in 0u8..32, qos in 0u8..3, weight: u32, ids in proptest::collection::vec(any::<u32>(), 0..5), group in proptest::option::of("[a-z/]{1,9}")) {
            let options = Options {
                qos: Qos::from_bits(qos).unwrap(),
                retain_as_published: flags & 1 != 0,
                ids,
                group: group.map(Into::into),
            };
            let sent = Message::new("t/1", "content").qos(Qos::ExactlyOnce);
            let claim = Claim {
                message: &sent,
                options: &options,
                retained: flags & 2 != 0,
                released: flags & 16 != 0,
                sole: flags & 8 != 0,
                weight,
            };
            let mut bytes = Vec::new();
            append_claim(&mut bytes, &claim);
            if flags & 4 != 0 {
                release(&mut bytes);
            }
            let sole = claim.sole;
            prop_assert_eq!(head(&bytes), Some(Head { sole, holds: sole, weight }));
            prop_assert_eq!(Row::decode(&bytes), Some(Row {
                qos: options.qos,
                retain_as_published: options.retain_as_published,
                retained: claim.retained,
                released: flags & (4 | 16) != 0,
                message: sole.then(|| sent.clone()),
                ids: options.ids,
                group: options.group,
            }));
        }
    }
}
