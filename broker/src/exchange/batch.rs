//! What one read brought for one topic, shared by all its receivers and encoded once.
//!
//! Made by the publishing connection (or the journal after a commit), read by the receivers' tasks.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};

use super::Options;
use crate::codec::{self, Hop};
use crate::{Message, Qos};

/// A run of messages of one topic, in order.
#[derive(Debug)]
pub(crate) struct Batch {
    messages: Vec<Arc<Message>>,
    /// The QoS 0 encodings without anything of one receiver's own, per version.
    plain: [OnceLock<Option<Bytes>>; 2],
}

impl Batch {
    pub(crate) fn new(messages: Vec<Arc<Message>>) -> Self {
        Self {
            messages,
            plain: Default::default(),
        }
    }

    /// The messages.
    pub(crate) fn messages(&self) -> &[Arc<Message>] {
        &self.messages
    }

    /// All messages as QoS 0, retain flag off: `None` when one has an expiry to be counted down.
    pub(crate) fn plain(&self, v5: bool) -> Option<&Bytes> {
        self.plain[usize::from(v5)]
            .get_or_init(|| self.encode(v5))
            .as_ref()
    }

    fn encode(&self, v5: bool) -> Option<Bytes> {
        let mut out = BytesMut::new();
        let hop = Hop {
            v5,
            qos: Qos::AtMostOnce,
            retain: false,
            dup: false,
            packet_id: 0,
            expiry: None,
            subscription_ids: &[],
            alias: None,
        };
        for message in &self.messages {
            if message.expiry.is_some() {
                return None;
            }
            codec::publish(&mut out, message, &hop);
        }
        Some(out.freeze())
    }
}

/// A part of a batch for one receiver.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) batch: Arc<Batch>,
    /// First and one past the last message.
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) options: Arc<Options>,
    /// Sent because of a new subscription: the retain flag stays [MQTT-3.3.1-8].
    pub(crate) retained: bool,
}

impl Delivery {
    pub(crate) fn new(
        batch: &Arc<Batch>,
        range: std::ops::Range<usize>,
        options: &Arc<Options>,
        retained: bool,
    ) -> Self {
        Self {
            batch: Arc::clone(batch),
            from: range.start,
            to: range.end,
            options: Arc::clone(options),
            retained,
        }
    }

    /// Whether it waits for the receiver's window: QoS 1 or 2.
    pub(crate) fn careful(&self) -> bool {
        let first = self.messages().first();
        first.is_some_and(|first| first.qos.min(self.options.qos) != Qos::AtMostOnce)
    }

    pub(crate) fn messages(&self) -> &[Arc<Message>] {
        &self.batch.messages[self.from..self.to]
    }

    /// The shared encoding, when this receiver needs nothing of its own.
    pub(crate) fn shared(&self, v5: bool) -> Option<&Bytes> {
        let whole = self.from == 0 && self.to == self.batch.messages.len();
        let own = self.retained || self.options.retain_as_published || !self.options.ids.is_empty();
        if whole && !own {
            self.batch.plain(v5)
        } else {
            None
        }
    }
}
