//! The end of a session: its subscriptions, its rows, its record, and what others are to have of it.
//!
//! Called when a session is left for good, expires, or is begun anew. What a member of a shared
//! subscription had not acknowledged goes to another member (MQTT 5, section 4.8.2).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_store::StoreError;

use super::registry::Held;
use super::subscription;
use crate::broker::Shared;
use crate::exchange::{Batch, ConsumerId, Delivery};
use crate::journal::{Entry, Op, Reply, StoredRow};
use crate::topic::Asked;
use crate::{DropReason, Message, Qos};

/// Rows read and handed on at once.
const PAGE: usize = 500;

/// A message and the shared subscription it was for.
type Orphan = (Arc<str>, Arc<Message>);

impl Shared {
    /// Ends a session for good: subscriptions, rows, record.
    pub(crate) async fn end_session(&self, held: &mut Held) -> Result<(), StoreError> {
        if let Some(id) = held.mailbox.consumer() {
            // Before its rows are handed on, nothing new may come to it.
            self.leave_groups(held);
            if let Err(error) = self.drop_consumer(held, id).await {
                self.join_groups(held);
                return Err(error);
            }
            held.mailbox.set_consumer(None);
        }
        held.exists = false;
        let kept = held.inflight.take_shared().into_iter();
        let mut orphans: Vec<Orphan> = kept.map(|kept| (kept.group, kept.message)).collect();
        for delivery in held.mailbox.take_shared() {
            let messages = delivery.messages().iter().cloned();
            let group = delivery.options.group.clone();
            orphans.extend(group.into_iter().flat_map(|group| {
                messages
                    .clone()
                    .map(move |message| (Arc::clone(&group), message))
            }));
        }
        for (text, _) in held.mailbox.wanted.take() {
            if let Some(asked) = Asked::parse(&text) {
                self.core.exchange.unsubscribe(
                    asked.filter.as_str(),
                    asked.group.as_deref(),
                    held.mailbox.key,
                );
            }
        }
        self.redeliver(orphans).await
    }

    async fn drop_consumer(&self, held: &mut Held, id: ConsumerId) -> Result<(), StoreError> {
        if held.inflight.has_shared_rows() || groups(held).next().is_some() {
            self.hand_rows_on(held, id).await?;
        }
        self.journal
            .call(|answer| Op::Drop {
                id,
                answer: Some(answer),
            })
            .await
    }

    /// Gives the journalled rows of shared subscriptions to other members.
    async fn hand_rows_on(&self, held: &mut Held, id: ConsumerId) -> Result<(), StoreError> {
        // What is in flight has its row, which says more.
        held.inflight.forget_shared_rows();
        let (mut after, taken) = (0, held.mailbox.taken());
        loop {
            let page = self.journal.rows(id, after, PAGE)?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.row.id;
            let mut orphans = Vec::new();
            let mut rows = Vec::new();
            for stored in page {
                let Some(group) = stored.row.options.group.clone() else {
                    continue;
                };
                if self.may_hand_on(&stored, taken) {
                    rows.push(stored.row.id);
                    orphans.push((group, stored.row.message));
                } else {
                    let name = &held.mailbox.name;
                    self.core.dropped(name, DropReason::Offline, 1);
                }
            }
            self.redeliver(orphans).await?;
            // In the same order at the journal: should the drop fail, none is handed on twice.
            let settle = Op::Settle {
                consumer: id,
                rows,
                answer: None,
            };
            self.journal.send(settle).await?;
        }
    }

    /// A QoS 2 message that may have been sent is nobody else's [MQTT-4.8.2-5]. Whether it was is
    /// known only of what came in this run.
    fn may_hand_on(&self, stored: &StoredRow, taken: u64) -> bool {
        let row = &stored.row;
        let exactly = row.message.qos.min(row.options.qos) == Qos::ExactlyOnce;
        let fresh = row.id > taken && row.id >= self.core.first_row.load(Ordering::Relaxed);
        !exactly || fresh
    }

    /// Gives what a gone member of a shared subscription had not acknowledged to another.
    async fn redeliver(&self, orphans: Vec<Orphan>) -> Result<(), StoreError> {
        let mut entries = Vec::new();
        for (group, message) in orphans {
            let route = self.core.route(&message.topic);
            let picked = route
                .groups
                .iter()
                .find(|shared| shared.key == group)
                .and_then(|shared| shared.pick());
            let Some(target) = picked else {
                self.core.dropped(&group, DropReason::Offline, 1);
                continue;
            };
            let (mailbox, options) = (Arc::clone(&target.mailbox), Arc::clone(&target.options));
            if mailbox.keeps(message.qos, options.qos) {
                let mut entry = Entry::new(message, Arc::clone(&route), None);
                entry.only = Some((mailbox, options));
                entries.push(entry);
            } else {
                let batch = Arc::new(Batch::new(vec![message]));
                let delivery = Delivery::new(&batch, 0..1, &options, false);
                self.core.put(&mailbox, delivery, None);
            }
        }
        if entries.is_empty() {
            return Ok(());
        }
        let reply = Reply::None;
        self.journal.send(Op::Accept { entries, reply }).await
    }

    fn leave_groups(&self, held: &Held) {
        for asked in groups(held) {
            let (filter, group) = (asked.filter.as_str(), asked.group.as_deref());
            self.core
                .exchange
                .unsubscribe(filter, group, held.mailbox.key);
        }
    }

    fn join_groups(&self, held: &Held) {
        for (text, record) in held.mailbox.wanted.all() {
            let Some(asked) = Asked::parse(&text).filter(|asked| asked.group.is_some()) else {
                continue;
            };
            self.core.exchange.subscribe(
                asked.filter.as_str(),
                asked.group.as_deref(),
                subscription(&held.mailbox, &record),
            );
        }
    }
}

/// The shared subscriptions of a session.
fn groups(held: &Held) -> impl Iterator<Item = Asked> + use<> {
    let all = held.mailbox.wanted.all().into_iter();
    let asked = all.filter_map(|(text, _)| Asked::parse(&text));
    asked.filter(|asked| asked.group.is_some())
}
