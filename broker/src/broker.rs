//! The in-process handle: open, serve, publish, consume, list and cut.
//!
//! Clone it freely; all clones are one broker. The last one dropped ends the housekeeping and lets the
//! journal write what waits.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_store::StoreError;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::door::Budget;
use crate::exchange::{ConsumerId, Mailbox};
use crate::exposition::Exposition;
use crate::journal::{Entry, Journal, Kind, Loaded, Op, Reply, Stamp, Verdict};
use crate::metrics::Counters;
use crate::session::{Held, Sessions, Wills, subscription};
use crate::shared::Core;
use crate::topic::{self, Asked, Filter};
use crate::{
    Config, Consumer, ConsumerError, ConsumerOptions, CutReason, Door, Event, Figures, Identity,
    JournalMedium, Message, Qos, Rights, door, housekeeping,
};

/// The broker.
#[derive(Clone, Debug)]
pub struct Broker {
    shared: Arc<Shared>,
    _housekeeping: Arc<AbortOnDropHandle<()>>,
}

/// Why a broker does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The journal.
    #[error("the message journal: {0}")]
    Journal(#[from] StoreError),
}

/// Why an in-process publish was not taken.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PublishError {
    /// The topic is no topic name, or above the limits.
    #[error("not a topic name: {0:?}")]
    Topic(Box<str>),
    /// No room in the journal; nothing was stored.
    #[error("the journal is full: wait until its consumers have caught up")]
    Full,
    /// The journal failed; whether the message is in is unknown: publish again.
    #[error("the journal failed: {0}")]
    Store(#[from] StoreError),
}

/// A session as the console sees it.
#[derive(Debug, Clone)]
pub struct SessionView {
    /// Whose it is.
    pub identity: Identity,
    /// Whether it is connected now.
    pub connected: bool,
    /// Its subscriptions, as text.
    pub subscriptions: Vec<String>,
    /// Messages waiting for it.
    pub waiting: u64,
}

impl Broker {
    /// Opens the journal, restores sessions, subscriptions and retained messages. Must be called
    /// within a tokio runtime (the housekeeping task is spawned there).
    ///
    /// # Errors
    /// When the journal cannot be opened.
    pub fn open(
        config: Config,
        medium: JournalMedium,
        rights: Arc<dyn Rights>,
    ) -> Result<Self, OpenError> {
        let core = Arc::new(Core::new(config, rights));
        let (journal, loaded) = Journal::open(medium, &core)?;
        let shared = Arc::new(Shared::new(core, journal));
        shared.restore(loaded);
        let housekeeping = tokio::spawn(housekeeping::run(Arc::downgrade(&shared)));
        Ok(Self {
            shared,
            _housekeeping: Arc::new(AbortOnDropHandle::new(housekeeping)),
        })
    }

    /// Serves a listener until cancelled, then says goodbye to its clients within the grace time.
    /// The door's name is its local address.
    ///
    /// # Errors
    /// When the listener has no address.
    pub async fn serve(
        &self,
        listener: TcpListener,
        door: Door,
        cancel: CancellationToken,
    ) -> io::Result<()> {
        let name = listener.local_addr()?.to_string();
        self.serve_named(&name, listener, door, cancel).await
    }

    /// [`Broker::serve`] with a name of its own, which the rights see in [`crate::Peer::door`].
    ///
    /// # Errors
    /// None today; a failing accept is tried again.
    pub async fn serve_named(
        &self,
        name: &str,
        listener: TcpListener,
        door: Door,
        cancel: CancellationToken,
    ) -> io::Result<()> {
        door::serve(
            Arc::clone(&self.shared),
            name.into(),
            listener,
            door,
            cancel,
        )
        .await;
        Ok(())
    }

    /// Publishes in the embedding program's own name (no rights asked for publishing; receivers'
    /// rights hold). Returns after the commit when a durable consumer or the retained slot wants it.
    /// The repeat filter works here too.
    ///
    /// # Errors
    /// When it was not taken.
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        self.shared.publish(message).await
    }

    /// Opens (or makes) the durable consumer of that name; its filters are replaced by these. What
    /// was journalled for it stays.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn consumer(
        &self,
        name: &str,
        filters: Vec<Filter>,
        options: ConsumerOptions,
    ) -> Result<Consumer, ConsumerError> {
        Consumer::open(&self.shared, name, filters, options).await
    }

    /// Removes a durable consumer and all that waits for it.
    ///
    /// # Errors
    /// When the journal fails.
    pub async fn remove_consumer(&self, name: &str) -> Result<(), ConsumerError> {
        Consumer::remove(&self.shared, name).await
    }

    /// The names of all durable consumers, those of earlier runs that nobody opened yet among them.
    #[must_use]
    pub fn consumers(&self) -> Vec<String> {
        self.shared
            .bridges()
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    /// All sessions, connected or not.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        let view = |cell: &crate::session::Cell| {
            let mailbox = cell.shown();
            SessionView {
                identity: Identity::clone(&mailbox.identity()),
                connected: mailbox.connected(),
                subscriptions: mailbox
                    .wanted
                    .all()
                    .into_iter()
                    .map(|(filter, _)| filter.into())
                    .collect(),
                waiting: mailbox.rows() + mailbox.waiting().0 as u64,
            }
        };
        let cells = self.shared.sessions.all();
        cells.iter().map(|cell| view(cell)).collect()
    }

    /// Ends a client's connection (its session stays). True when there was one.
    pub fn cut(&self, client_id: &str, reason: CutReason) -> bool {
        let Some(cell) = self.shared.sessions.find(client_id) else {
            return false;
        };
        let connected = cell.shown().connected();
        if connected {
            cell.end(reason);
        }
        connected
    }

    /// Ends every connection whose identity the predicate picks, e.g. after a revocation; returns
    /// how many.
    pub fn cut_where(&self, reason: CutReason, pick: impl Fn(&Identity) -> bool) -> usize {
        let mut count = 0;
        for cell in self.shared.sessions.all() {
            let mailbox = cell.shown();
            if mailbox.connected() && pick(&mailbox.identity()) {
                cell.end(reason);
                count += 1;
            }
        }
        count
    }

    /// Says that the rights' answers may differ from now on: what was remembered is forgotten.
    pub fn rights_changed(&self) {
        self.shared.core.exchange.forget();
    }

    /// What happens from now on; a listener that is too slow loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.core.events.subscribe()
    }

    /// The journal's health, for alarms.
    #[must_use]
    pub fn journal_health(&self) -> watch::Receiver<holdfast_store::Health> {
        self.shared.journal.health()
    }

    /// The figures now.
    #[must_use]
    pub fn metrics(&self) -> Figures {
        self.shared.figures()
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.shared.core.counters
    }

    /// Registers the figures, names beginning with `broker_`.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        registry.register_collector(Box::new(Exposition(self.clone())));
    }
}

#[cfg(test)]
impl Broker {
    pub(crate) fn shared_core(&self) -> &Core {
        &self.shared.core
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// The consumer of that name as the journal had it.
    pub(crate) fn known_consumer(&self, name: &str) -> Option<Consumer> {
        let bridge = self.shared.bridges().get(name).cloned()?;
        Some(Consumer::of(&self.shared, &bridge))
    }
}

/// What connections, consumers and the housekeeping work on.
pub(crate) struct Shared {
    pub(crate) core: Arc<Core>,
    pub(crate) journal: Journal,
    pub(crate) sessions: Sessions,
    pub(crate) wills: Wills,
    pub(crate) budget: Arc<Budget>,
    bridges: Mutex<HashMap<Arc<str>, Bridge>>,
    assigned: AtomicU64,
}

/// A durable in-process consumer.
#[derive(Debug, Clone)]
pub(crate) struct Bridge {
    pub(crate) id: ConsumerId,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) filters: Vec<String>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Shared {
    fn new(core: Arc<Core>, journal: Journal) -> Self {
        Self {
            core,
            journal,
            sessions: Sessions::default(),
            wills: Wills::default(),
            budget: Arc::default(),
            bridges: Mutex::default(),
            assigned: AtomicU64::new(0),
        }
    }

    /// A client id for a client that has none: no other session of this run has it.
    pub(crate) fn new_client_id(&self) -> String {
        loop {
            let number = self.assigned.fetch_add(1, Ordering::Relaxed);
            let id = format!("auto-{:x}-{number:x}", self.core.clock.now());
            if self.sessions.find(&id).is_none() {
                return id;
            }
        }
    }

    pub(crate) fn bridges(&self) -> MutexGuard<'_, HashMap<Arc<str>, Bridge>> {
        self.bridges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The figures now.
    pub(crate) fn figures(&self) -> Figures {
        let core = &self.core;
        let mut figures = Figures {
            sessions: self.sessions.count() as u64,
            subscriptions: core.exchange.subscriptions() as u64,
            retained: core.retained.count() as u64,
            retained_bytes: core.counters.retained_bytes(),
            wills_waiting: self.wills.count() as u64,
            journal_waiting: self.journal.waiting() as u64,
            ..core.counters.figures()
        };
        self.count_sessions(&mut figures);
        figures
    }

    /// Puts what the journal held in its place.
    fn restore(&self, loaded: Loaded) {
        let now = self.core.clock.now();
        let newest = newest_of_each_client(&loaded);
        let mut helds: HashMap<ConsumerId, Held> = HashMap::new();
        let mut bridges: HashMap<ConsumerId, (Arc<str>, Bridge)> = HashMap::new();
        for (id, record, mailbox) in loaded.consumers {
            match record.kind {
                Kind::Session {
                    expiry,
                    left_at,
                    identity,
                } => {
                    if newest.get(&identity.client_id) != Some(&id) {
                        // Left behind by a session end that the journal refused.
                        self.journal.offer(Op::Drop { id, answer: None });
                        continue;
                    }
                    let mut held = Held::new(mailbox);
                    held.expiry = expiry;
                    held.left_at = left_at.unwrap_or(now);
                    held.exists = true;
                    helds.insert(id, held);
                }
                Kind::Bridge { name, .. } => {
                    let bridge = Bridge {
                        id,
                        mailbox,
                        filters: Vec::new(),
                    };
                    bridges.insert(id, (name, bridge));
                }
            }
        }
        for (id, text, record) in loaded.subscriptions {
            let Some(asked) = Asked::parse(&text) else {
                continue;
            };
            let mailbox = if let Some(held) = helds.get_mut(&id) {
                held.mailbox.wanted.insert(&text, record);
                Arc::clone(&held.mailbox)
            } else if let Some((_, bridge)) = bridges.get_mut(&id) {
                bridge.filters.push(text);
                Arc::clone(&bridge.mailbox)
            } else {
                continue;
            };
            self.core.exchange.subscribe(
                asked.filter.as_str(),
                asked.group.as_deref(),
                subscription(&mailbox, &record),
            );
        }
        for (id, packet_id) in loaded.received {
            if let Some(held) = helds.get_mut(&id) {
                held.received.insert(packet_id);
            }
        }
        for held in helds.into_values() {
            self.sessions.restore(held);
        }
        for will in loaded.wills {
            self.restore_will(will);
        }
        self.bridges().extend(bridges.into_values());
    }

    /// Publishes in nobody's name.
    pub(crate) async fn publish(&self, mut message: Message) -> Result<(), PublishError> {
        let limits = &self.core.config.limits;
        if !topic::is_topic(&message.topic)
            || message.topic.len() > limits.topic_bytes
            || topic::levels(&message.topic) > limits.topic_levels
        {
            return Err(PublishError::Topic((&*message.topic).into()));
        }
        let route = self.core.route(&message.topic);
        message.topic = Arc::clone(&route.topic);
        (message.at, message.came) = self.core.clock.now_and_micros();
        let stamp = if message.qos == Qos::AtMostOnce {
            None
        } else {
            self.core.stamp(&message.properties).map(|number| Stamp {
                number,
                sender: "".into(),
                from: None,
            })
        };
        self.core.counters.received(1);
        if !message.retain && stamp.is_none() && !route.durable(message.qos) {
            self.core
                .deliver(&route, None, vec![Arc::new(message)], true, None);
            return Ok(());
        }
        let mut entry = Entry::new(Arc::new(message), route, None);
        entry.stamp = stamp;
        let verdicts = self
            .journal
            .call(|answer| Op::Accept {
                entries: vec![entry],
                reply: Reply::Caller(answer),
            })
            .await?;
        if verdicts.contains(&Verdict::Full) {
            return Err(PublishError::Full);
        }
        Ok(())
    }
}

fn newest_of_each_client(loaded: &Loaded) -> HashMap<Arc<str>, ConsumerId> {
    let mut newest: HashMap<Arc<str>, ConsumerId> = HashMap::new();
    for (id, record, _) in &loaded.consumers {
        if let Kind::Session { identity, .. } = &record.kind {
            let known = newest.entry(identity.client_id.clone()).or_insert(*id);
            *known = (*id).max(*known);
        }
    }
    newest
}
