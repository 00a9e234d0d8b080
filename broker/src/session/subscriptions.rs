//! SUBSCRIBE and UNSUBSCRIBE: rights, limits, the journal, the tree, retained messages.
//!
//! Called by `run` between frames, since a durable session's change is committed before it is
//! answered.

use std::collections::HashSet;
use std::sync::Arc;

use tracing::warn;

use super::inbound::Client;
use crate::codec::{self, Entry as Asking, Subscribe, Unsubscribe, code};
use crate::exchange::{Options, Subscription};
use crate::journal::{Journal, Op, SubscriptionRecord};
use crate::rights;
use crate::topic::{self, Asked};

/// Bytes of a SUBACK or UNSUBACK besides its codes, at most.
const ANSWER_BYTES: usize = 8;

/// A filter that was granted.
struct Granted {
    asked: Asked,
    text: String,
    record: SubscriptionRecord,
    /// Whether retained messages are to be sent.
    retained: bool,
}

impl Client {
    /// Whether the answer was one that the client takes.
    pub(super) async fn subscribe(&mut self, journal: &Journal, subscribe: Subscribe) -> bool {
        if ANSWER_BYTES + subscribe.entries.len() > self.max_packet {
            return false;
        }
        let mut codes = Vec::with_capacity(subscribe.entries.len());
        let mut granted = Vec::new();
        for entry in &subscribe.entries {
            match self.grant(entry, subscribe.id, &granted) {
                Ok(grant) => {
                    codes.push(grant.record.qos as u8);
                    granted.push(grant);
                }
                Err(code) => codes.push(if self.v5 { code } else { 0x80 }),
            }
        }
        if !self.write_down(journal, changes(&granted)).await {
            for code in &mut codes {
                *code = (*code).max(code::UNSPECIFIED);
            }
            codec::suback(&mut self.out, subscribe.packet_id, &codes, self.v5);
            return true;
        }
        for grant in &granted {
            self.enter(grant);
        }
        codec::suback(&mut self.out, subscribe.packet_id, &codes, self.v5);
        for grant in granted.into_iter().filter(|grant| grant.retained) {
            self.send_retained(journal, grant).await;
        }
        true
    }

    /// Whether the answer was one that the client takes.
    pub(super) async fn unsubscribe(
        &mut self,
        journal: &Journal,
        unsubscribe: Unsubscribe,
    ) -> bool {
        if ANSWER_BYTES + unsubscribe.filters.len() > self.max_packet {
            return false;
        }
        // As if the filters had come one by one [MQTT-3.10.4-6].
        let mut seen = HashSet::new();
        let known: Vec<bool> = unsubscribe
            .filters
            .iter()
            .map(|filter| self.mailbox.wanted.contains(filter) && seen.insert(filter))
            .collect();
        let changes = unsubscribe
            .filters
            .iter()
            .zip(&known)
            .filter(|(_, known)| **known)
            .map(|(filter, _)| (filter.clone(), None))
            .collect();
        let written = self.write_down(journal, changes).await;
        let codes: Vec<u8> = unsubscribe
            .filters
            .iter()
            .zip(known)
            .map(|(filter, known)| match (known, written) {
                (false, _) => code::NO_SUBSCRIPTION_EXISTED,
                (true, false) => code::UNSPECIFIED,
                (true, true) => {
                    self.leave(filter);
                    code::SUCCESS
                }
            })
            .collect();
        codec::unsuback(&mut self.out, unsubscribe.packet_id, &codes, self.v5);
        true
    }

    /// The code of a refusal, else what is granted.
    fn grant(
        &mut self,
        entry: &Asking,
        id: Option<u32>,
        before: &[Granted],
    ) -> Result<Granted, u8> {
        let core = Arc::clone(&self.core);
        let limits = &core.config.limits;
        let text = &entry.filter;
        if text.len() > limits.topic_bytes || topic::levels(text) > limits.topic_levels {
            return Err(code::FILTER);
        }
        let asked = Asked::parse(text).ok_or(code::FILTER)?;
        let filter = asked.filter.as_str();
        let group = asked.group.as_deref();
        if !rights::may_subscribe(&*core.rights, &self.identity, group, filter) {
            self.core.counters.denied();
            if !std::mem::replace(&mut self.denied_filter_before, true) {
                warn!(
                    client = self.client_id(),
                    filter,
                    "subscription refused: the client has no right to this filter; further ones of this connection are only counted"
                );
            }
            return Err(if core.config.tell_refused_subscriptions {
                code::NOT_AUTHORIZED
            } else {
                code::UNSPECIFIED
            });
        }
        // As if the filters had come one by one [MQTT-3.8.4-5].
        let new = !self.mailbox.wanted.contains(text)
            && before.iter().all(|earlier| earlier.text != *text);
        let own = self.mailbox.wanted.len() + before.len();
        let all = core.exchange.subscriptions() + before.len();
        if new && (own >= limits.subscriptions || all >= limits.subscriptions_in_all) {
            core.counters.refused_quota();
            return Err(code::QUOTA);
        }
        let retained = asked.group.is_none()
            && match entry.retain_handling {
                0 => true,
                1 => new,
                _ => false,
            };
        Ok(Granted {
            asked,
            text: text.clone(),
            record: SubscriptionRecord {
                qos: entry.qos,
                no_local: entry.no_local,
                retain_as_published: entry.retain_as_published,
                id,
            },
            retained,
        })
    }

    /// Commits changes of a durable session; true when all is well.
    async fn write_down(
        &self,
        journal: &Journal,
        changes: Vec<(String, Option<SubscriptionRecord>)>,
    ) -> bool {
        let Some(consumer) = self.consumer() else {
            return true;
        };
        if changes.is_empty() {
            return true;
        }
        let written = journal
            .call(|answer| Op::Subscriptions {
                consumer,
                changes,
                answer,
            })
            .await;
        written.is_ok()
    }

    fn enter(&mut self, grant: &Granted) {
        self.core.exchange.subscribe(
            grant.asked.filter.as_str(),
            grant.asked.group.as_deref(),
            subscription(&self.mailbox, &grant.record),
        );
        self.mailbox.wanted.insert(&grant.text, grant.record);
    }

    fn leave(&mut self, text: &str) {
        self.mailbox.wanted.remove(text);
        if let Some(asked) = Asked::parse(text) {
            self.core.exchange.unsubscribe(
                asked.filter.as_str(),
                asked.group.as_deref(),
                self.mailbox.key,
            );
        }
    }

    async fn send_retained(&mut self, journal: &Journal, grant: Granted) {
        let options = Arc::new(Options {
            qos: grant.record.qos,
            retain_as_published: grant.record.retain_as_published,
            ids: grant.record.id.into_iter().collect(),
            group: None,
        });
        self.begin_retained(journal, grant.asked.filter, options)
            .await;
    }
}

/// As it stands in the tree.
pub(crate) fn subscription(
    mailbox: &Arc<crate::exchange::Mailbox>,
    record: &SubscriptionRecord,
) -> Subscription {
    Subscription {
        mailbox: Arc::clone(mailbox),
        qos: record.qos,
        no_local: record.no_local,
        retain_as_published: record.retain_as_published,
        id: record.id,
    }
}

fn changes(granted: &[Granted]) -> Vec<(String, Option<SubscriptionRecord>)> {
    granted
        .iter()
        .map(|grant| (grant.text.clone(), Some(grant.record)))
        .collect()
}
