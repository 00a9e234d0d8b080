//! How each remote stands, for `status`, metrics and tests: connected or why not, what waits, what it
//! denies.
//!
//! Written by [`super::Bridge`], read by [`crate::admin`] and [`crate::metrics`] from any task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_broker::Consumer;
use holdfast_link::mqtt;
use serde::Serialize;
use tokio::sync::watch;

/// One remote as it is now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// Its name; the Holdfast cloud is `cloud`.
    pub name: String,
    /// Whether a connection stands.
    pub connected: bool,
    /// Since when that is so, unix seconds.
    pub since: u64,
    /// One sentence.
    pub reason: String,
    /// 5 or 3.1.1, while connected.
    pub version: Option<&'static str>,
    /// The address that answered, while connected.
    pub peer: Option<String>,
    /// Why it sends nothing of what was subscribed to, if it refused.
    pub subscription_refused: Option<String>,
    /// Messages that wait for it.
    pub waiting: u64,
    /// Topics that it denies now; their messages wait and are tried again.
    pub denied_topics: u64,
    /// One of them, and its words.
    pub denied: Option<String>,
    /// Messages that it will never take, put aside.
    pub dead_letters: u64,
}

/// The part that changes with the connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Connection {
    pub(super) connected: bool,
    pub(super) since: u64,
    pub(super) reason: String,
    pub(super) version: Option<&'static str>,
    pub(super) peer: Option<String>,
    pub(super) subscription_refused: Option<String>,
    pub(super) denied_topics: u64,
    pub(super) denied: Option<String>,
}

/// Tells how a remote stands; cheap to clone.
#[derive(Debug, Clone)]
pub struct Watched {
    name: Arc<str>,
    connection: watch::Receiver<Connection>,
    consumers: Vec<Consumer>,
    dead: Arc<AtomicU64>,
}

impl Watched {
    /// How it stands now.
    #[must_use]
    pub fn now(&self) -> Standing {
        let seen = self.connection.borrow().clone();
        Standing {
            name: self.name.to_string(),
            connected: seen.connected,
            since: seen.since,
            reason: seen.reason,
            version: seen.version,
            peer: seen.peer,
            subscription_refused: seen.subscription_refused,
            waiting: self.consumers.iter().map(Consumer::waiting).sum(),
            denied_topics: seen.denied_topics,
            denied: seen.denied,
            dead_letters: self.dead.load(Ordering::Relaxed),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Writes how a remote stands.
#[derive(Debug)]
pub(super) struct Board {
    name: Arc<str>,
    connection: watch::Sender<Connection>,
    dead: Arc<AtomicU64>,
}

impl Board {
    pub(super) fn new(name: &str, now: u64) -> Self {
        let (connection, _) = watch::channel(Connection {
            connected: false,
            since: now,
            reason: "not tried yet".to_owned(),
            version: None,
            peer: None,
            subscription_refused: None,
            denied_topics: 0,
            denied: None,
        });
        Self {
            name: name.into(),
            connection,
            dead: Arc::default(),
        }
    }

    pub(super) fn watched(&self, consumers: Vec<Consumer>) -> Watched {
        Watched {
            name: Arc::clone(&self.name),
            connection: self.connection.subscribe(),
            consumers,
            dead: Arc::clone(&self.dead),
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_up(&self, now: u64, peer: std::net::SocketAddr, version: mqtt::Version) {
        self.connection.send_modify(|it| {
            it.connected = true;
            it.since = now;
            it.reason = "connected".to_owned();
            it.peer = Some(peer.to_string());
            it.version = Some(match version {
                mqtt::Version::Five => "5",
                mqtt::Version::Three => "3.1.1",
            });
            it.subscription_refused = None;
        });
    }

    /// Whether that is news.
    pub(super) fn is_down(&self, now: u64, reason: &str) -> bool {
        self.connection.send_if_modified(|it| {
            if it.connected {
                it.since = now;
            }
            let is_news = it.connected || it.reason != reason;
            it.connected = false;
            reason.clone_into(&mut it.reason);
            (it.peer, it.version) = (None, None);
            is_news
        })
    }

    pub(super) fn refused_subscription(&self, why: String) {
        self.connection
            .send_modify(|it| it.subscription_refused = Some(why));
    }

    pub(super) fn denies(&self, topics: usize, one: Option<String>) {
        self.connection.send_if_modified(|it| {
            let is_news = it.denied_topics != topics as u64 || it.denied != one;
            it.denied_topics = topics as u64;
            it.denied = one;
            is_news
        });
    }

    pub(super) fn died(&self) {
        self.dead.fetch_add(1, Ordering::Relaxed);
    }
}
