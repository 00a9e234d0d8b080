//! The operations of the journal and who hears of them.

use std::fmt;
use std::sync::Arc;

use holdfast_store::StoreError;
use smallvec::SmallVec;
use tokio::sync::oneshot;

use crate::exchange::{ConsumerId, Mailbox, Options, Route};
use crate::{ConsumerOptions, Identity, Message, Qos};

/// A reply to a caller that waits.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// What became of one accepted publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Committed for all who want it durably.
    Taken,
    /// Committed before: nothing was stored or delivered again.
    Repeat,
    /// No room: nothing was stored.
    Full,
}

/// The sender's own numbering: within (sender, topic) it only grows.
#[derive(Debug, Clone)]
pub(crate) struct Stamp {
    /// (epoch, seq)
    pub(crate) number: (u64, u64),
    /// The sender's client id; empty for the embedding program.
    pub(crate) sender: Arc<str>,
    /// Its connection: once a number was refused there, no later one of the topic may overtake it,
    /// or the refused one would be taken for a repeat when it is sent again.
    pub(crate) from: Option<Arc<Mailbox>>,
}

/// One publish on its way through the journal.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) message: Arc<Message>,
    pub(crate) route: Arc<Route>,
    /// The publishing session, for no-local.
    pub(crate) publisher: Option<u64>,
    /// A single receiver instead of the route's: of a retained message for a new subscription, or of
    /// what a gone member of a shared subscription had not acknowledged.
    pub(crate) only: Option<(Arc<Mailbox>, Arc<Options>)>,
    /// Sent because of a new subscription.
    pub(crate) retained: bool,
    /// What the repeat filter goes by.
    pub(crate) stamp: Option<Stamp>,
    /// An incoming QoS 2 packet id of a durable session, to be committed with the message.
    pub(crate) received: Option<(ConsumerId, u16)>,
    /// Filled by the journal.
    pub(crate) verdict: Verdict,
    /// Filled by the journal: who got a row.
    pub(crate) rows_for: Receivers,
    /// Members of shared subscriptions picked for it that get it live.
    pub(crate) live_picks: Vec<(Arc<Mailbox>, Arc<Options>)>,
}

impl Entry {
    pub(crate) fn new(message: Arc<Message>, route: Arc<Route>, publisher: Option<u64>) -> Self {
        Self {
            message,
            route,
            publisher,
            only: None,
            retained: false,
            stamp: None,
            received: None,
            verdict: Verdict::Taken,
            rows_for: Receivers::new(),
            live_picks: Vec::new(),
        }
    }
}

impl Entry {
    /// Numbers its rows: `first` for each receiver, a number of its own for the second copy of a
    /// receiver that has a subscription of its own beside a shared one. Gives how many such there are.
    pub(super) fn number_rows(&mut self, first: u64, next: &mut u64) -> usize {
        let mut copies = 0;
        for index in 0..self.rows_for.len() {
            let (before, here) = self.rows_for.split_at_mut(index);
            let Some(claimed) = here.first_mut() else {
                break;
            };
            let again = claimed.options.group.is_some()
                && before
                    .iter()
                    .any(|other| Arc::ptr_eq(&other.mailbox, &claimed.mailbox));
            claimed.row = first;
            if again {
                claimed.row = *next;
                *next += 1;
                copies += 1;
            }
        }
        copies
    }
}

/// Most messages are kept for one.
pub(crate) type Receivers = SmallVec<[Claimed; 1]>;

/// A row for a receiver.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) options: Arc<Options>,
    /// Its number: one for all receivers of a message, but for who gets a second copy of it.
    pub(crate) row: u64,
}

impl Claimed {
    pub(super) fn new(mailbox: &Arc<Mailbox>, options: &Arc<Options>) -> Self {
        Self {
            mailbox: Arc::clone(mailbox),
            options: Arc::clone(options),
            row: 0,
        }
    }
}

/// Who hears of an [`Op::Accept`].
#[derive(Debug)]
pub(crate) enum Reply {
    /// Nobody (QoS 0).
    None,
    /// A connection: one code per entry with QoS above 0.
    Mailbox(Arc<Mailbox>),
    /// A waiting caller.
    Caller(Answer<Vec<Verdict>>),
}

/// A session or a bridge rule as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct ConsumerRecord {
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    Session {
        identity: Identity,
        /// Seconds; `u32::MAX` = for ever.
        expiry: u32,
        /// Broker seconds; `None` = connected when it was written.
        left_at: Option<u64>,
    },
    Bridge {
        name: Arc<str>,
        options: ConsumerOptions,
    },
}

/// A subscription as it is stored, beside its filter text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SubscriptionRecord {
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) id: Option<u32>,
}

/// A will as it is stored.
#[derive(Debug, Clone)]
pub(crate) struct WillRecord {
    pub(crate) identity: Identity,
    pub(crate) message: Message,
    /// Seconds after the end of the connection, the session's end already reckoned in.
    pub(crate) delay: u32,
    /// Broker seconds when it fires; `None` while the client is connected.
    pub(crate) due: Option<u64>,
    /// Tells it from earlier and later ones of the same client.
    pub(crate) serial: u64,
}

/// One operation.
pub(crate) enum Op {
    /// Publishes of one connection, in order.
    Accept { entries: Vec<Entry>, reply: Reply },
    /// Rows that are done with.
    Settle {
        consumer: ConsumerId,
        rows: Vec<u64>,
        answer: Option<Answer<()>>,
    },
    /// Outgoing QoS 2 rows whose PUBREC came.
    Release {
        consumer: ConsumerId,
        rows: Vec<u64>,
        mailbox: Arc<Mailbox>,
    },
    /// Rows of limited life up to this one are about to be sent: from then on their time does not run
    /// out, also after a restart [MQTT-4.3.3-7].
    Sent {
        consumer: ConsumerId,
        up_to: u64,
        mailbox: Arc<Mailbox>,
    },
    /// Incoming QoS 2 packet ids whose PUBREL came; answered by one code each.
    Forget {
        consumer: ConsumerId,
        packet_ids: Vec<u16>,
        /// Filled by the journal: one per id.
        codes: Vec<u8>,
        mailbox: Arc<Mailbox>,
    },
    /// Makes a consumer (no id) or changes its record.
    Open {
        id: Option<ConsumerId>,
        record: ConsumerRecord,
        mailbox: Arc<Mailbox>,
        answer: Option<Answer<ConsumerId>>,
    },
    /// The session's connection has ended.
    Left {
        id: ConsumerId,
        record: ConsumerRecord,
    },
    /// Removes a consumer and all that waits for it.
    Drop {
        id: ConsumerId,
        answer: Option<Answer<()>>,
    },
    /// Changes subscriptions: `None` removes.
    Subscriptions {
        consumer: ConsumerId,
        changes: Vec<(String, Option<SubscriptionRecord>)>,
        answer: Answer<()>,
    },
    /// Keeps a client's will in place of an earlier one.
    Will {
        record: Box<WillRecord>,
        answer: Option<Answer<()>>,
    },
    /// Forgets a will, if it is still this one.
    NoWill { client_id: Box<str>, serial: u64 },
    /// Retained messages whose time is over.
    Unretain { topics: Vec<Arc<str>> },
    /// Writes the broker's clock down.
    Tick,
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Accept { .. } => "Accept",
            Self::Settle { .. } => "Settle",
            Self::Release { .. } => "Release",
            Self::Sent { .. } => "Sent",
            Self::Forget { .. } => "Forget",
            Self::Open { .. } => "Open",
            Self::Left { .. } => "Left",
            Self::Drop { .. } => "Drop",
            Self::Subscriptions { .. } => "Subscriptions",
            Self::Will { .. } => "Will",
            Self::NoWill { .. } => "NoWill",
            Self::Unretain { .. } => "Unretain",
            Self::Tick => "Tick",
        })
    }
}
