//! Every bound of the broker, with its default.
//!
//! Made by the embedding program; read by all rooms. No environment, no file: those are its caller's.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::topic::Filter;

/// The broker's settings. `Config::default()` suits a gateway.
#[derive(Debug, Clone)]
pub struct Config {
    /// The bounds.
    pub limits: Limits,
    /// What to do when the journal is full, by topic; the first match counts, no match refuses.
    pub when_full: Vec<(Filter, WhenFull)>,
    /// The user properties that make a publish repeatable without being stored twice.
    pub repeats: RepeatNames,
    /// Time from accept to the end of CONNECT, TLS included.
    pub connect_deadline: Duration,
    /// Keep-alive forced upon MQTT 5 clients that ask for none or a longer one, in seconds; 0 = never.
    /// A 3.1.1 client cannot be told: its own value holds.
    pub keep_alive_max: u16,
    /// Sessions outlive their connection by this at most, in seconds; `u32::MAX` = for ever.
    pub session_expiry_max: u32,
    /// Whether a client without an id gets one from us.
    pub assign_client_ids: bool,
    /// Whether an MQTT 5 client hears that a subscription was refused for want of rights (0x87) or
    /// only that it failed (0x80). A 3.1.1 client hears 0x80 anyway.
    pub tell_refused_subscriptions: bool,
    /// The root of response topics, told as `<root>/<client id>` to MQTT 5 clients that ask; the
    /// rights decide about them as about all others. `None` = not said.
    pub response_topics: Option<Box<str>>,
    /// How often the broker's own figures are published below `$SYS/`; zero = never.
    pub figures_every: Duration,
    /// How long a stopping door waits for its connections.
    pub grace: Duration,
    /// Damaged journals are moved away and the broker begins empty; false = refuse to start.
    pub quarantine: bool,
    /// Bytes of the log in front of the journal's tables: a publish is safe once it is told there. Decided when the journal is
    /// made; on a small file system less is taken.
    pub log_bytes: u64,
    /// Disk space kept back for what frees space and for control writes, in bytes.
    pub reserve_bytes: u64,
    /// The wall clock (unix seconds), for one question at the start: how long were we away? Sessions
    /// and messages age by its answer, so give one that is trusted; one that stands still is safe.
    pub wall: Wall,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            when_full: Vec::new(),
            repeats: RepeatNames::default(),
            connect_deadline: Duration::from_secs(10),
            keep_alive_max: 3600,
            session_expiry_max: u32::MAX,
            assign_client_ids: true,
            tell_refused_subscriptions: true,
            response_topics: None,
            figures_every: Duration::from_secs(10),
            grace: Duration::from_secs(5),
            quarantine: true,
            log_bytes: 32 << 20,
            reserve_bytes: 8 << 20,
            wall: Wall::default(),
        }
    }
}

/// What happens to a durable message for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// The publisher is told (0x97) or gets no acknowledgement (3.1.1); nothing is lost.
    Refuse,
    /// The oldest message of that consumer goes; counted.
    DropOldest,
    /// The new message is not kept for that consumer; counted.
    DropNewest,
}

/// Names of the two user properties of the repeat filter; both values are decimal `u64`. The filter
/// goes by (sender's client id, topic); (epoch, seq) must only grow there.
#[derive(Debug, Clone)]
pub struct RepeatNames {
    /// The sender's epoch.
    pub epoch: Box<str>,
    /// The sequence number within epoch and topic.
    pub seq: Box<str>,
}

impl Default for RepeatNames {
    fn default() -> Self {
        Self {
            epoch: "hf-epoch".into(),
            seq: "hf-seq".into(),
        }
    }
}

/// The quotas. Zero never means "no limit".
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections at one time, all doors together.
    pub connections: usize,
    /// Connections from one address (IPv4 address, IPv6 /64) that have not finished CONNECT.
    pub handshakes_per_address: usize,
    /// Bytes of the first packet.
    pub connect_bytes: usize,
    /// Bytes of any later packet, both ways.
    pub packet_bytes: usize,
    /// Bytes of a topic name or filter.
    pub topic_bytes: usize,
    /// Levels of a topic name or filter.
    pub topic_levels: usize,
    /// QoS > 0 messages a client may have on the way to us.
    pub receive_maximum: u16,
    /// QoS > 0 messages on the way to one client.
    pub inflight: u16,
    /// Topic aliases a client may set, and at most as many of ours that it gets to know.
    pub topic_aliases: u16,
    /// Sessions, connected or not.
    pub sessions: usize,
    /// Subscriptions of one session.
    pub subscriptions: usize,
    /// Subscriptions of all sessions together.
    pub subscriptions_in_all: usize,
    /// Messages in one session's memory queue.
    pub queue_messages: usize,
    /// Bytes in one session's memory queue.
    pub queue_bytes: usize,
    /// Bytes in the memory queues of all sessions together, and in output that their sockets have not
    /// taken. Half of it is split into equal parts for `connections`, so that the others leave room to
    /// each; three eighths are for all: when they are used up, the fullest queues are emptied, and what
    /// they lose is counted (`DropReason::MemoryFull`). An eighth is for output: when half of it is used,
    /// who has unwritten output gets no more; when all of it is, those whose sockets have taken nothing
    /// for a second or two are cut (`CutReason::TooSlow`), the largest first.
    pub queued_bytes: usize,
    /// Journalled messages of one durable session.
    pub session_rows: u64,
    /// Journalled bytes of one durable session.
    pub session_row_bytes: u64,
    /// Journalled messages of all consumers together.
    pub journal_rows: u64,
    /// Journalled bytes of all consumers together.
    pub journal_bytes: u64,
    /// Retained messages.
    pub retained: usize,
    /// Those of one client (a bridge is one client for all its devices).
    pub retained_per_client: usize,
    /// Bytes of all retained messages.
    pub retained_bytes: usize,
    /// (Sender, topic) pairs whose repeats are remembered.
    pub repeat_topics: usize,
    /// Those of one client (a bridge is one client for all its devices): beyond them its publishes
    /// are taken without the filter, and counted.
    pub repeat_topics_per_client: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            handshakes_per_address: 64,
            connect_bytes: 16 << 10,
            packet_bytes: 256 << 10,
            topic_bytes: 1024,
            topic_levels: 32,
            receive_maximum: 1000,
            inflight: 100,
            topic_aliases: 16,
            sessions: 20_000,
            subscriptions: 200,
            subscriptions_in_all: 1_000_000,
            queue_messages: 4096,
            queue_bytes: 1 << 20,
            queued_bytes: 256 << 20,
            session_rows: 100_000,
            session_row_bytes: 64 << 20,
            journal_rows: 20_000_000,
            journal_bytes: 1 << 30,
            retained: 100_000,
            retained_per_client: 20_000,
            retained_bytes: 64 << 20,
            repeat_topics: 100_000,
            repeat_topics_per_client: 20_000,
        }
    }
}

/// A wall clock as a value, so that tests can set it.
#[derive(Clone)]
pub struct Wall(Arc<dyn Fn() -> u64 + Send + Sync>);

impl Wall {
    /// A clock that gives unix seconds.
    pub fn new(seconds: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(seconds))
    }

    pub(crate) fn seconds(&self) -> u64 {
        (self.0)()
    }
}

impl Default for Wall {
    fn default() -> Self {
        Self::new(|| {
            std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .map_or(0, |since| since.as_secs())
        })
    }
}

impl fmt::Debug for Wall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wall")
    }
}
