//! Retained messages on their way to a new subscription, a page at a time.
//!
//! Begun by SUBSCRIBE, gone on with whenever the client's queue has room: a subscriber gets them all,
//! however many there are, and costs no more memory than its queue.

use std::sync::Arc;

use super::inbound::Client;
use crate::exchange::{Batch, Delivery, Options};
use crate::journal::{Entry, Journal, Op, Reply};
use crate::{DropReason, Filter, Message, Qos, rights};

/// Messages looked up at once.
const PAGE: usize = 128;

/// A subscription that is being served.
#[derive(Debug)]
pub(super) struct Keepsake {
    filter: Filter,
    options: Arc<Options>,
    /// The last topic that was served.
    after: Option<Arc<str>>,
    /// The others are rows of the journal.
    only_qos_0: bool,
}

impl Client {
    /// Begins to serve a new subscription. A durable session gets rows of what it takes at QoS 1 or 2.
    pub(super) async fn begin_retained(
        &mut self,
        journal: &Journal,
        filter: Filter,
        options: Arc<Options>,
    ) {
        self.bring_figures(&filter, &options);
        let durable = self.consumer().is_some();
        if durable && options.qos != Qos::AtMostOnce {
            self.keep_rows(journal, &filter, &options).await;
        }
        let only_qos_0 = durable;
        self.keepsakes.push_back(Keepsake {
            filter,
            options,
            after: None,
            only_qos_0,
        });
    }

    async fn keep_rows(&self, journal: &Journal, filter: &Filter, options: &Arc<Options>) {
        let mut after: Option<Arc<str>> = None;
        loop {
            let now = self.core.clock.now();
            let page = self.core.retained.page(filter, after.as_deref(), PAGE, now);
            let Some(last) = page.last() else { return };
            after = Some(Arc::clone(&last.topic));
            let rows = page
                .into_iter()
                .filter(|message| message.qos != Qos::AtMostOnce && self.may_have(message));
            let entries: Vec<Entry> = rows.map(|message| self.row(message, options)).collect();
            let reply = Reply::None;
            // When the journal fails now, the next subscription brings them.
            let _ = journal.send(Op::Accept { entries, reply }).await;
        }
    }

    fn row(&self, message: Arc<Message>, options: &Arc<Options>) -> Entry {
        let route = self.core.route(&message.topic);
        let mut entry = Entry::new(message, route, None);
        entry.only = Some((Arc::clone(&self.mailbox), Arc::clone(options)));
        entry.retained = true;
        entry
    }

    fn bring_figures(&self, filter: &Filter, options: &Arc<Options>) {
        for message in self.core.own_figures.matching(filter) {
            if self.may_have(&message) {
                self.keep(message, options);
            }
        }
    }

    /// Brings more while the queue is not half full; true when it brought some.
    pub(super) fn bring_retained(&mut self) -> bool {
        let mut some = false;
        while !self.mailbox.crowded_live()
            && let Some(mut keepsake) = self.keepsakes.pop_front()
        {
            if self.bring_page(&mut keepsake, &mut some) {
                self.keepsakes.push_front(keepsake);
            }
        }
        if self.keepsakes.is_empty() {
            // An idle connection holds no room for them.
            self.keepsakes.clear();
        }
        some
    }

    /// One page, or a part of it; false when that was the last.
    fn bring_page(&self, keepsake: &mut Keepsake, some: &mut bool) -> bool {
        let now = self.core.clock.now();
        let retained = &self.core.retained;
        let page = retained.page(&keepsake.filter, keepsake.after.as_deref(), PAGE, now);
        let last = page.len() < PAGE;
        for message in page {
            if self.mailbox.crowded_live() {
                return true;
            }
            keepsake.after = Some(Arc::clone(&message.topic));
            let qos = message.qos.min(keepsake.options.qos);
            if (keepsake.only_qos_0 && qos != Qos::AtMostOnce) || !self.may_have(&message) {
                continue;
            }
            self.keep(message, &keepsake.options);
            *some = true;
        }
        !last
    }

    fn keep(&self, message: Arc<Message>, options: &Arc<Options>) {
        let batch = Arc::new(Batch::new(vec![message]));
        let delivery = Delivery::new(&batch, 0..1, options, true);
        self.core.put(&self.mailbox, delivery, None);
    }

    /// By today's rights of the receiver, and of the party that had it kept.
    fn may_have(&self, message: &Message) -> bool {
        let rights = &*self.core.rights;
        if !rights::may_receive(rights, &self.identity, &message.topic) {
            return false;
        }
        let owned = self.core.still_owned(message);
        if !owned {
            self.core.dropped(self.client_id(), DropReason::Rights, 1);
        }
        owned
    }
}
