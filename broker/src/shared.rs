//! What all rooms share: settings, rights, the exchange, retained messages, counters, the clock.
//!
//! Built once by [`crate::Broker::open`]. Holds no task and no socket.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::codec::property::Properties;
use crate::events::EVENTS_KEPT;
use crate::exchange::{Batch, Bounds, Delivery, Exchange, Mailbox, Pool, Rest, Retained, Route};
use crate::figures::OwnFigures;
use crate::metrics::Counters;
use crate::rare::Rare;
use crate::{Config, CutReason, DropReason, Event, Message, Rights, rights};

/// The log hears of the same fault of the same address once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// Seconds without a written byte after which a connection is stuck.
const STUCK: u32 = 1;
/// Faults remembered for that.
const REMEMBERED_SAYINGS: usize = 1024;

/// The shared parts.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) rights: Arc<dyn Rights>,
    pub(crate) exchange: Exchange,
    pub(crate) retained: Retained,
    pub(crate) own_figures: OwnFigures,
    pub(crate) counters: Counters,
    pub(crate) events: broadcast::Sender<Event>,
    pub(crate) clock: Ages,
    /// The memory of all queues.
    pool: Arc<Pool>,
    bounds: Arc<Bounds>,
    /// Rows below this were in the journal when it was opened: they may have been sent before.
    pub(crate) first_row: AtomicU64,
    keys: AtomicU64,
    said: Mutex<HashMap<(IpAddr, CutReason), Instant>>,
    /// The planted defect of the durability tests: answers before the commit.
    #[cfg(test)]
    pub(crate) early: std::sync::atomic::AtomicBool,
    /// A planted defect of the quota tests: nobody is told of anything.
    #[cfg(test)]
    pub(crate) mute: std::sync::atomic::AtomicBool,
    /// The planted defect of the full-output test: what was left in the queues is not looked for again.
    #[cfg(test)]
    pub(crate) content: std::sync::atomic::AtomicBool,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").finish_non_exhaustive()
    }
}

impl Core {
    pub(crate) fn new(config: Config, rights: Arc<dyn Rights>) -> Self {
        let limits = &config.limits;
        let pool = Arc::new(Pool::new(limits.queued_bytes, limits.connections));
        let bounds = Bounds {
            messages: limits.queue_messages,
            bytes: limits.queue_bytes,
            own: pool.own(),
            pool: Arc::clone(&pool),
        };
        Self {
            config,
            rights,
            bounds: Arc::new(bounds),
            pool,
            exchange: Exchange::default(),
            retained: Retained::default(),
            own_figures: OwnFigures::default(),
            counters: Counters::default(),
            events: broadcast::Sender::new(EVENTS_KEPT),
            clock: Ages::new(),
            first_row: AtomicU64::new(0),
            keys: AtomicU64::new(1),
            said: Mutex::default(),
            #[cfg(test)]
            early: std::sync::atomic::AtomicBool::new(false),
            #[cfg(test)]
            mute: std::sync::atomic::AtomicBool::new(false),
            #[cfg(test)]
            content: std::sync::atomic::AtomicBool::new(false),
        }
    }

    /// A mailbox key, unique in this run.
    pub(crate) fn next_key(&self) -> u64 {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    /// The bounds of a session's memory queue.
    pub(crate) fn queue_bounds(&self) -> Arc<Bounds> {
        Arc::clone(&self.bounds)
    }

    /// Tells whoever listens.
    pub(crate) fn tell(&self, event: Event) {
        #[cfg(test)]
        if self.mute.load(Ordering::Relaxed) {
            return;
        }
        // No listener is no fault.
        let _ = self.events.send(event);
    }

    /// Counts, tells and, once a minute for each address and reason, logs a connection that ends
    /// before a session began.
    pub(crate) fn turn_away(&self, address: SocketAddr, reason: CutReason, why: Option<&str>) {
        self.counters.ended(reason);
        self.tell(Event::TurnedAway { address, reason });
        // The refusal has been logged with more detail where it was decided.
        if reason != CutReason::Refused && self.worth_saying(address.ip(), reason) {
            info!(%address, reason = %reason, detail = why, "connection turned away");
        }
    }

    /// Counts a numbered publish that gets no mark of the repeat filter; logged once a minute.
    pub(crate) fn unfiltered(&self, client: &str, topic: &str) {
        self.counters.unfiltered();
        if self.worth_saying(Ipv4Addr::UNSPECIFIED.into(), CutReason::Quota) {
            warn!(
                client,
                topic,
                "no room for the repeat filter of another topic: raise `repeat_topics`, or find out why one client uses so many topics; until then its repeats are stored twice"
            );
        }
    }

    /// Whether the log has not heard of this in the last minute.
    pub(crate) fn worth_saying(&self, address: IpAddr, reason: CutReason) -> bool {
        let now = Instant::now();
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= REMEMBERED_SAYINGS {
            said.retain(|_, at| now.duration_since(*at) < QUIET);
            if said.len() >= REMEMBERED_SAYINGS {
                return false;
            }
        }
        let last = said.insert((address, reason), now);
        last.is_none_or(|at| now.duration_since(at) >= QUIET)
    }

    /// Counts drops and tells of them.
    pub(crate) fn dropped(&self, name: &str, reason: DropReason, count: usize) {
        if count == 0 {
            return;
        }
        let count = count as u64;
        self.counters.dropped(reason, count);
        self.tell(Event::Dropped {
            name: name.into(),
            reason,
            count,
        });
    }

    /// Whether the party that had a message kept may still publish it.
    pub(crate) fn still_owned(&self, message: &Message) -> bool {
        let may = |owner| rights::may_publish(&*self.rights, owner, &message.topic);
        message.owner.as_deref().is_none_or(may)
    }

    /// The receivers of a topic.
    pub(crate) fn route(&self, topic: &str) -> Arc<Route> {
        self.exchange.route(topic, &*self.rights)
    }

    /// The repeat filter's (epoch, seq), when both properties are there and are numbers.
    pub(crate) fn stamp(&self, properties: &[u8]) -> Option<(u64, u64)> {
        let names = &self.config.repeats;
        let mut epoch = None;
        let mut seq = None;
        for (name, value) in Properties::trusted(properties).user() {
            // The first of each counts, as in `Message::user_value`.
            if name == &*names.epoch && epoch.is_none() {
                epoch = Some(value.parse());
            } else if name == &*names.seq && seq.is_none() {
                seq = Some(value.parse());
            }
        }
        Some((epoch?.ok()?, seq?.ok()?))
    }

    /// Delivers messages of one topic and QoS to every receiver that takes them live; those that
    /// have them as rows are left out. Shared subscriptions are served when `groups` says so (else
    /// the journal has picked). True when a queue is getting full. What does not fit is put into
    /// `rest` for a sender that can wait, and is dropped and counted without one.
    pub(crate) fn deliver(
        &self,
        route: &Route,
        publisher: Option<u64>,
        messages: Vec<Arc<Message>>,
        groups: bool,
        mut rest: Option<&mut Rare<Vec<Rest>>>,
    ) -> bool {
        let Some(first) = messages.first() else {
            return false;
        };
        let qos = first.qos;
        if route.without_right > 0 {
            let count = route.without_right * messages.len();
            self.counters.dropped(DropReason::Rights, count as u64);
        }
        if route.is_empty() {
            return false;
        }
        let batch = Arc::new(Batch::new(messages));
        let all = batch.messages().len();
        let mut crowded = false;
        for target in &route.targets {
            let Some(options) = target.options_for(publisher) else {
                continue;
            };
            if !target.mailbox.keeps(qos, options.qos) {
                let delivery = Delivery::new(&batch, 0..all, options, false);
                crowded |= self.put(&target.mailbox, delivery, rest.as_deref_mut());
            }
        }
        if groups {
            for group in &route.groups {
                for index in 0..all {
                    if let Some(target) = group.pick()
                        && !target.mailbox.keeps(qos, target.options.qos)
                    {
                        let range = index..index + 1;
                        let delivery = Delivery::new(&batch, range, &target.options, false);
                        crowded |= self.put(&target.mailbox, delivery, rest.as_deref_mut());
                    }
                }
            }
        }
        crowded
    }

    /// Delivers to one receiver's memory queue. What does not fit waits in `rest`, if the receiver is
    /// worth it, or is dropped and counted.
    pub(crate) fn put(
        &self,
        mailbox: &Arc<Mailbox>,
        mut delivery: Delivery,
        rest: Option<&mut Rare<Vec<Rest>>>,
    ) -> bool {
        if mailbox.bridge {
            return false;
        }
        let mut place = mailbox.deliver(delivery.clone());
        if place.starved {
            self.make_memory();
            place = mailbox.deliver(delivery.clone());
        }
        if place.grown {
            self.pool.remember(mailbox);
        }
        if place.refused == 0 {
            return place.crowded;
        }
        if let Some(rest) = rest
            && mailbox.connected()
            && mailbox.patience().worth_waiting()
        {
            delivery.from += place.taken;
            rest.push(Rest::new(mailbox, Some(delivery)));
        } else {
            self.lost(mailbox, place.refused);
        }
        place.crowded
    }

    /// Empties the fullest queues, and counts what they lose.
    fn make_memory(&self) {
        for (emptied, lost) in self.pool.relieve() {
            self.dropped(&emptied.name, DropReason::MemoryFull, lost);
        }
    }

    /// Whether what is held beside the queues gets too much.
    pub(crate) fn memory_is_short(&self) -> bool {
        self.pool.is_short()
    }

    /// The broker's second, from 1 on.
    pub(crate) fn second(&self) -> u32 {
        u32::try_from(self.clock.running() + 1).unwrap_or(u32::MAX)
    }

    /// Whether a connection's socket has taken nothing for a while.
    pub(crate) fn is_stuck(&self, mailbox: &Mailbox) -> bool {
        let from = mailbox.blocked_from();
        from > 0 && self.second().saturating_sub(from) > STUCK
    }

    /// So much more is held beside the queues than may be.
    pub(crate) fn overdrawn(&self) -> usize {
        self.pool.overdrawn()
    }

    /// Counts what a receiver could not take.
    pub(crate) fn lost(&self, mailbox: &Mailbox, count: usize) {
        let reason = if mailbox.connected() {
            DropReason::QueueFull
        } else {
            DropReason::Offline
        };
        self.dropped(&mailbox.name, reason, count);
    }
}

/// The broker's own seconds: they go on over restarts by what the wall clock says was missed, and
/// never back. Ages of messages and sessions are measured in them.
#[derive(Debug)]
pub(crate) struct Ages {
    start: Instant,
    base: AtomicU64,
}

impl Ages {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            base: AtomicU64::new(0),
        }
    }

    pub(crate) fn set_base(&self, seconds: u64) {
        self.base.store(seconds, Ordering::Relaxed);
    }

    /// Broker seconds, and microseconds since the start, at one look at the clock.
    pub(crate) fn now_and_micros(&self) -> (u64, u64) {
        let running = self.start.elapsed();
        let micros = u64::try_from(running.as_micros()).unwrap_or(u64::MAX);
        let base = self.base.load(Ordering::Relaxed);
        (base + running.as_secs(), micros.max(1))
    }

    /// Seconds since the start.
    pub(crate) fn running(&self) -> u64 {
        self.start.elapsed().as_secs()
    }

    pub(crate) fn now(&self) -> u64 {
        self.base.load(Ordering::Relaxed) + self.start.elapsed().as_secs()
    }
}
