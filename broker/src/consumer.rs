//! A durable in-process consumer: a bridge rule reads its rows, and takes them away one by one.
//!
//! Made by [`crate::Broker::consumer`]. A row stays until it is acknowledged, over restarts.

use std::sync::Arc;

use crate::broker::{Bridge, Shared};
use crate::exchange::{ConsumerId, Mailbox, TailRow, Taken};
use crate::journal::{ConsumerRecord, Kind, Op, SubscriptionRecord};
use crate::session::subscription;
use crate::{DropReason, Filter, Message, Qos, WhenFull};

/// Identifies a row of one consumer; later rows have higher ids, ids are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowId(pub u64);

impl RowId {
    /// Before the first row.
    pub const START: Self = Self(0);
}

/// One journalled message of a consumer.
#[derive(Debug, Clone)]
pub struct Row {
    /// Its id.
    pub id: RowId,
    /// The message.
    pub message: Arc<Message>,
}

/// The bounds of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// Messages it may have waiting.
    pub max_rows: u64,
    /// Bytes it may have waiting.
    pub max_bytes: u64,
    /// What happens to the next one.
    pub when_full: WhenFull,
    /// Whether QoS 0 messages are journalled for it too (they are never acknowledged).
    pub take_qos0: bool,
}

impl Default for ConsumerOptions {
    fn default() -> Self {
        Self {
            max_rows: 10_000_000,
            max_bytes: 1 << 30,
            when_full: WhenFull::Refuse,
            take_qos0: false,
        }
    }
}

/// Why a consumer cannot go on.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConsumerError {
    /// The journal's disk.
    #[error("the journal failed: {0}")]
    Store(#[from] holdfast_store::StoreError),
    /// The consumer was removed.
    #[error("the consumer {0} was removed")]
    Gone(Arc<str>),
}

/// The handle of a durable consumer. One reader at a time makes sense; clones see the same rows.
#[derive(Clone, Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    id: ConsumerId,
    mailbox: Arc<Mailbox>,
}

impl Consumer {
    pub(crate) async fn open(
        shared: &Arc<Shared>,
        name: &str,
        filters: Vec<Filter>,
        options: ConsumerOptions,
    ) -> Result<Self, ConsumerError> {
        let name: Arc<str> = name.into();
        let known = shared.bridges().get(&name).cloned();
        let mailbox = match &known {
            Some(bridge) => Arc::clone(&bridge.mailbox),
            None => {
                let key = shared.core.next_key();
                let bounds = shared.core.queue_bounds();
                Arc::new(Mailbox::for_bridge(key, &name, &bounds, options.take_qos0))
            }
        };
        mailbox.set_take_qos0(options.take_qos0);
        let record = ConsumerRecord {
            kind: Kind::Bridge {
                name: Arc::clone(&name),
                options,
            },
        };
        let id = shared
            .journal
            .call(|answer| Op::Open {
                id: known.as_ref().map(|bridge| bridge.id),
                record,
                mailbox: Arc::clone(&mailbox),
                answer: Some(answer),
            })
            .await?;
        mailbox.set_consumer(Some(id));
        let old = known.map(|bridge| bridge.filters).unwrap_or_default();
        replace_filters(shared, id, &mailbox, &old, &filters).await?;
        let bridge = Bridge {
            id,
            mailbox: Arc::clone(&mailbox),
            filters: filters.iter().map(Filter::to_string).collect(),
        };
        shared.bridges().insert(name, bridge);
        Ok(Self {
            shared: Arc::clone(shared),
            id,
            mailbox,
        })
    }

    #[cfg(test)]
    pub(crate) fn of(shared: &Arc<Shared>, bridge: &Bridge) -> Self {
        Self {
            shared: Arc::clone(shared),
            id: bridge.id,
            mailbox: Arc::clone(&bridge.mailbox),
        }
    }

    pub(crate) async fn remove(shared: &Arc<Shared>, name: &str) -> Result<(), ConsumerError> {
        let Some(bridge) = shared.bridges().remove(name) else {
            return Ok(());
        };
        for filter in &bridge.filters {
            shared
                .core
                .exchange
                .unsubscribe(filter, None, bridge.mailbox.key);
        }
        bridge.mailbox.set_consumer(None);
        let id = bridge.id;
        shared
            .journal
            .call(|answer| Op::Drop {
                id,
                answer: Some(answer),
            })
            .await?;
        Ok(())
    }

    /// The rows after `after`, oldest first, at most `max`; from memory or the journal's snapshot.
    /// Rows stay until acknowledged, so a reader keeps its own place. Expired messages are left out
    /// (and removed).
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn read(&self, after: RowId, max: usize) -> Result<Vec<Row>, ConsumerError> {
        self.still_there()?;
        if max == 0 {
            return Ok(Vec::new());
        }
        if after.0 != self.mailbox.taken() {
            self.mailbox.rewind(after.0);
        }
        let rows = match self.mailbox.take_rows(max, usize::MAX) {
            Taken::Rows(rows) => rows,
            Taken::Behind(after) => {
                let stored = match self.shared.journal.rows(self.id, after, max) {
                    Ok(stored) => stored,
                    Err(error) => {
                        self.mailbox.read_done(None, true);
                        return Err(error.into());
                    }
                };
                let last = stored.last().map(|stored| stored.row.id);
                self.mailbox.read_done(last, stored.len() == max);
                stored.into_iter().map(|stored| stored.row).collect()
            }
        };
        Ok(self.live(rows).await)
    }

    /// Waits until a row after `after` may be there; a following read may still find none.
    ///
    /// Returns at once when the consumer was removed: the read says so.
    pub async fn ready(&self, after: RowId) {
        // Each consumer's mailbox has some.
        let Some(listeners) = self.mailbox.listeners() else {
            return;
        };
        loop {
            let changed = listeners.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.still_there().is_err() || self.mailbox.has_rows() {
                return;
            }
            if self.mailbox.taken() > after.0
                && let Ok(rows) = self.shared.journal.rows(self.id, after.0, 1)
                && !rows.is_empty()
            {
                return;
            }
            changed.await;
        }
    }

    /// Takes rows away for good; returns after the commit. Unknown ids do nothing.
    ///
    /// # Errors
    /// When the journal fails: acknowledge again.
    pub async fn acknowledge(&self, rows: &[RowId]) -> Result<(), ConsumerError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.still_there()?;
        let rows = rows.iter().map(|row| row.0).collect();
        self.shared
            .journal
            .call(|answer| Op::Settle {
                consumer: self.id,
                rows,
                answer: Some(answer),
            })
            .await?;
        Ok(())
    }

    /// What is left now of the life of a message that was read here: `None` is for ever, `Some(0)`
    /// is over. Whoever sends it on tells this, not what it was published with.
    #[must_use]
    pub fn seconds_left(&self, message: &Message) -> Option<u32> {
        message.seconds_left(self.shared.core.clock.now())
    }

    /// How many rows wait, read or not.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.mailbox.rows()
    }

    fn still_there(&self) -> Result<(), ConsumerError> {
        if self.mailbox.consumer().is_some() {
            Ok(())
        } else {
            Err(ConsumerError::Gone(Arc::clone(&self.mailbox.name)))
        }
    }

    /// Leaves out what has expired and takes it away.
    async fn live(&self, rows: Vec<TailRow>) -> Vec<Row> {
        let now = self.shared.core.clock.now();
        let (gone, live): (Vec<TailRow>, Vec<TailRow>) =
            rows.into_iter().partition(|row| row.message.expired(now));
        if !gone.is_empty() {
            let name = &self.mailbox.name;
            self.shared
                .core
                .dropped(name, DropReason::Expired, gone.len());
            let rows = gone.iter().map(|row| row.id).collect();
            let settle = Op::Settle {
                consumer: self.id,
                rows,
                answer: None,
            };
            // When the journal fails now, the next read finds them again.
            let _ = self.shared.journal.send(settle).await;
        }
        live.into_iter()
            .map(|row| Row {
                id: RowId(row.id),
                message: row.message,
            })
            .collect()
    }
}

async fn replace_filters(
    shared: &Shared,
    consumer: ConsumerId,
    mailbox: &Arc<Mailbox>,
    old: &[String],
    new: &[Filter],
) -> Result<(), ConsumerError> {
    let record = SubscriptionRecord {
        qos: Qos::ExactlyOnce,
        no_local: false,
        retain_as_published: true,
        id: None,
    };
    let wanted = |text: &String| new.iter().any(|filter| filter.as_str() == text);
    let gone: Vec<String> = old.iter().filter(|text| !wanted(text)).cloned().collect();
    let mut changes: Vec<_> = gone.iter().map(|text| (text.clone(), None)).collect();
    changes.extend(new.iter().map(|filter| (filter.to_string(), Some(record))));
    if !changes.is_empty() {
        shared
            .journal
            .call(|answer| Op::Subscriptions {
                consumer,
                changes,
                answer,
            })
            .await?;
    }
    for text in gone {
        shared.core.exchange.unsubscribe(&text, None, mailbox.key);
    }
    for filter in new {
        shared
            .core
            .exchange
            .subscribe(filter.as_str(), None, subscription(mailbox, &record));
    }
    Ok(())
}
