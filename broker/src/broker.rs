//! The in-process handle: open, serve, publish, consume, list and cut.
//!
//! Clone it freely; all clones are one broker.

use std::io;
use std::sync::Arc;

use holdfast_store::StoreError;
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::topic::Filter;
use crate::{
    Config, Consumer, ConsumerError, ConsumerOptions, CutReason, Door, Event, Figures, Identity,
    JournalMedium, Message, Rights,
};

/// The broker.
#[derive(Clone, Debug)]
pub struct Broker {}

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
        let _ = (config, medium, rights);
        todo!()
    }

    /// Serves a listener until cancelled, then says goodbye to its clients within the grace time.
    /// The door's name is its local address.
    ///
    /// # Errors
    /// When the listener itself fails for good.
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
    /// When the listener itself fails for good.
    #[allow(clippy::unused_async)]
    pub async fn serve_named(
        &self,
        name: &str,
        listener: TcpListener,
        door: Door,
        cancel: CancellationToken,
    ) -> io::Result<()> {
        let _ = (name, listener, door, cancel);
        todo!()
    }

    /// Publishes in the embedding program's own name (no rights asked for publishing; receivers'
    /// rights hold). Returns after the commit when a durable consumer or the retained slot wants it.
    /// The repeat filter works here too.
    ///
    /// # Errors
    /// When it was not taken.
    #[allow(clippy::unused_async)]
    pub async fn publish(&self, message: Message) -> Result<(), PublishError> {
        let _ = message;
        todo!()
    }

    /// Opens (or makes) the durable consumer of that name; its filters are replaced by these. What
    /// was journalled for it stays.
    ///
    /// # Errors
    /// When a text is no filter, or the journal fails.
    #[allow(clippy::unused_async)]
    pub async fn consumer(
        &self,
        name: &str,
        filters: Vec<Filter>,
        options: ConsumerOptions,
    ) -> Result<Consumer, ConsumerError> {
        let _ = (name, filters, options);
        todo!()
    }

    /// Removes a durable consumer and all that waits for it.
    ///
    /// # Errors
    /// When the journal fails.
    #[allow(clippy::unused_async)]
    pub async fn remove_consumer(&self, name: &str) -> Result<(), ConsumerError> {
        let _ = name;
        todo!()
    }

    /// All sessions, connected or not.
    #[must_use]
    pub fn sessions(&self) -> Vec<SessionView> {
        todo!()
    }

    /// Ends a client's connection (its session stays). True when there was one.
    pub fn cut(&self, client_id: &str, reason: CutReason) -> bool {
        let _ = (client_id, reason);
        todo!()
    }

    /// Ends every connection whose identity the predicate picks, e.g. after a revocation; returns
    /// how many.
    pub fn cut_where(&self, reason: CutReason, pick: impl Fn(&Identity) -> bool) -> usize {
        let _ = (reason, &pick);
        todo!()
    }

    /// Says that the rights' answers may differ from now on: what was remembered is forgotten.
    pub fn rights_changed(&self) {
        todo!()
    }

    /// What happens from now on; a listener that is too slow loses the oldest.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        todo!()
    }

    /// The figures now.
    #[must_use]
    pub fn metrics(&self) -> Figures {
        todo!()
    }

    /// Registers the figures, names beginning with `broker_`.
    pub fn register_metrics(&self, registry: &mut prometheus_client::registry::Registry) {
        let _ = registry;
        todo!()
    }
}
