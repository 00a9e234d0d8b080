//! Every quota: it holds exactly, what is beyond it is refused or dropped by policy, counted exactly, and
//! told as an event. The same steps with a planted defect show that each of these can be missed: a bound
//! that is not applied, a loss that is not counted, one that nobody is told of.

mod steps;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_store::fault::CrashBackend;

use crate::common::Server;
use crate::{Config, DropReason, Event, Filter, JournalMedium, Limits, WhenFull};

/// What each quota is set to, in messages, rows, clients or filters.
const BOUND: u64 = 5;
/// What is tried.
const OFFERED: u64 = 12;
/// Bytes of a payload; with a topic of one letter a message weighs `WEIGHT`.
const PAYLOAD: usize = 100;
const WEIGHT: u64 = 1 + PAYLOAD as u64 + 112;
/// Room for `BOUND` messages, and not for one more.
const BYTES: u64 = BOUND * WEIGHT + WEIGHT / 2;

/// A quota and what is to happen beyond it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Quota {
    SessionRows(WhenFull),
    SessionRowsOfOldPublisher,
    SessionRowBytes,
    JournalRows(WhenFull),
    JournalBytes,
    ConsumerRows(WhenFull),
    ConsumerBytes,
    QueueMessages,
    QueueBytes,
    Sessions,
    Connections,
    Handshakes,
    Subscriptions,
    SubscriptionsInAll,
    Retained,
    RetainedPerClient,
    RetainedBytes,
    Inflight,
    ReceiveMaximum,
    RepeatTopics,
    RepeatTopicsPerClient,
}

const ALL: [Quota; 25] = [
    Quota::SessionRows(WhenFull::Refuse),
    Quota::SessionRows(WhenFull::DropOldest),
    Quota::SessionRows(WhenFull::DropNewest),
    Quota::SessionRowsOfOldPublisher,
    Quota::SessionRowBytes,
    Quota::JournalRows(WhenFull::Refuse),
    Quota::JournalRows(WhenFull::DropOldest),
    Quota::JournalBytes,
    Quota::ConsumerRows(WhenFull::Refuse),
    Quota::ConsumerRows(WhenFull::DropNewest),
    Quota::ConsumerBytes,
    Quota::QueueMessages,
    Quota::QueueBytes,
    Quota::Sessions,
    Quota::Connections,
    Quota::Handshakes,
    Quota::Subscriptions,
    Quota::SubscriptionsInAll,
    Quota::Retained,
    Quota::RetainedPerClient,
    Quota::RetainedBytes,
    Quota::Inflight,
    Quota::ReceiveMaximum,
    Quota::RepeatTopics,
    Quota::RepeatTopicsPerClient,
];

impl Quota {
    /// Sets it, and what is to happen beyond it; the others stay out of the way.
    fn set(self, config: &mut Config) {
        let bound = usize::try_from(BOUND).unwrap();
        let bytes = usize::try_from(BYTES).unwrap();
        let few = u16::try_from(BOUND).unwrap();
        let limits: &mut Limits = &mut config.limits;
        match self {
            Self::SessionRows(_) | Self::SessionRowsOfOldPublisher => limits.session_rows = BOUND,
            Self::SessionRowBytes => limits.session_row_bytes = BYTES,
            Self::JournalRows(_) => limits.journal_rows = BOUND,
            Self::JournalBytes => limits.journal_bytes = BYTES,
            // A consumer's own are among its options.
            Self::ConsumerRows(_) | Self::ConsumerBytes => {}
            Self::QueueMessages => limits.queue_messages = bound,
            Self::QueueBytes => limits.queue_bytes = bytes,
            Self::Sessions => limits.sessions = bound,
            Self::Connections => limits.connections = bound,
            Self::Handshakes => limits.handshakes_per_address = bound,
            Self::Subscriptions => limits.subscriptions = bound,
            Self::SubscriptionsInAll => limits.subscriptions_in_all = bound,
            Self::Retained => limits.retained = bound,
            Self::RetainedPerClient => limits.retained_per_client = bound,
            Self::RetainedBytes => limits.retained_bytes = bytes,
            Self::Inflight => limits.inflight = few,
            Self::ReceiveMaximum => limits.receive_maximum = few,
            Self::RepeatTopics => limits.repeat_topics = bound,
            Self::RepeatTopicsPerClient => limits.repeat_topics_per_client = bound,
        }
    }

    /// What is configured for its topic; nothing where the quota has no such choice.
    fn policy(self) -> Option<WhenFull> {
        match self {
            Self::SessionRows(policy) | Self::JournalRows(policy) => Some(policy),
            Self::SessionRowsOfOldPublisher => Some(WhenFull::Refuse),
            _ => None,
        }
    }

    /// Whether those who try are refused; the alternative is that a message is dropped.
    fn refuses(self) -> bool {
        match self {
            Self::SessionRows(policy) | Self::JournalRows(policy) | Self::ConsumerRows(policy) => {
                policy == WhenFull::Refuse
            }
            // A session's own fault is its own loss, unless it was said otherwise.
            Self::SessionRowBytes | Self::QueueMessages | Self::QueueBytes => false,
            // Taken without the filter.
            Self::RepeatTopics | Self::RepeatTopicsPerClient => false,
            // It waits.
            Self::Inflight => false,
            _ => true,
        }
    }

    /// Whether something is lost or refused, and so counted.
    fn costs(self) -> bool {
        self != Self::Inflight
    }

    /// Whether it is told as an event: a message that is lost or refused, a client turned away.
    fn is_told(self) -> bool {
        let quiet = [
            Self::Subscriptions,
            Self::SubscriptionsInAll,
            Self::RepeatTopics,
            Self::RepeatTopicsPerClient,
            Self::Inflight,
            // Its connection's end is told.
            Self::ReceiveMaximum,
        ];
        !quiet.contains(&self)
    }
}

/// What the steps are planted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    /// The bound is not applied.
    Boundless,
    /// What is lost or refused is not counted.
    Uncounted,
    /// Nobody is told.
    Untold,
}

/// What came of it.
#[derive(Debug, Default)]
struct Outcome {
    offered: u64,
    /// Arrived, kept or admitted in the end, as seen from outside.
    taken: u64,
    /// What the quota let through, as seen from outside: the same but where the others wait.
    within: u64,
    /// Told no, by a code, by silence or by the end of the connection.
    refused: u64,
    /// What is there is what the policy says: the first ones, or the last.
    right_ones: bool,
    /// By the figures.
    counted: u64,
    /// By the events.
    told: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Bound,
    Policy,
    Count,
    Event,
}

fn faults(quota: Quota, outcome: &Outcome) -> Vec<Fault> {
    let missing = outcome.offered - outcome.taken;
    let refused = if quota.refuses() { missing } else { 0 };
    let told = if quota.is_told() { missing } else { 0 };
    let mut faults = Vec::new();
    if outcome.within != BOUND {
        faults.push(Fault::Bound);
    }
    if outcome.refused != refused || !outcome.right_ones {
        faults.push(Fault::Policy);
    }
    if outcome.counted != missing {
        faults.push(Fault::Count);
    }
    if outcome.told != told {
        faults.push(Fault::Event);
    }
    faults
}

async fn run(quota: Quota, defect: Defect) -> Outcome {
    let mut config = Config::default();
    if let Some(policy) = quota.policy() {
        config.when_full = vec![(Filter::new("q").unwrap(), policy)];
    }
    if defect != Defect::Boundless {
        quota.set(&mut config);
    }
    let medium = JournalMedium::Backend(Arc::new(CrashBackend::new()));
    let server = Server::on(config, medium).await;
    let core = server.broker.shared_core();
    let uncounted = defect == Defect::Uncounted;
    core.counters.blind.store(uncounted, Ordering::Relaxed);
    core.mute.store(defect == Defect::Untold, Ordering::Relaxed);
    let mut events = server.broker.events();
    let mut outcome = steps::take(quota, defect, &server).await;
    let figures = server.broker.metrics();
    let turned_away = figures.ended.iter();
    let turned_away = turned_away.filter(|(reason, _)| steps::by_quota(**reason));
    let dropped = figures.dropped.iter();
    let dropped = dropped.filter(|(reason, _)| **reason != DropReason::Offline);
    outcome.counted = figures.refused_full
        + figures.refused_subscriptions
        // Each topic is published twice.
        + figures.unfiltered / 2
        + turned_away.map(|(_, count)| count).sum::<u64>()
        + dropped.map(|(_, count)| count).sum::<u64>();
    while let Ok(event) = events.try_recv() {
        outcome.told += match event {
            Event::Dropped { reason, count, .. } if reason != DropReason::Offline => count,
            Event::JournalFull { count, .. } => count,
            Event::TurnedAway { .. } => 1,
            _ => 0,
        };
    }
    server.stop().await;
    outcome
}

/// The quotas in which the steps with this defect do not show that fault.
async fn blind_to(defect: Defect, fault: Fault, of: fn(Quota) -> bool) -> Vec<Quota> {
    let mut blind = Vec::new();
    for quota in ALL.into_iter().filter(|quota| of(*quota)) {
        let outcome = run(quota, defect).await;
        if !faults(quota, &outcome).contains(&fault) {
            blind.push(quota);
        }
    }
    blind
}

#[tokio::test]
async fn every_quota_holds_exactly_and_what_is_beyond_it_is_counted_and_told() {
    for quota in ALL {
        let outcome = run(quota, Defect::None).await;
        assert_eq!(faults(quota, &outcome), [], "{quota:?}: {outcome:?}");
    }
}

#[tokio::test]
async fn control_a_bound_that_is_not_applied_is_found_for_every_quota() {
    let blind = blind_to(Defect::Boundless, Fault::Bound, |_| true).await;
    assert_eq!(blind, []);
}

#[tokio::test]
async fn control_a_loss_that_is_not_counted_is_found_for_every_quota() {
    let blind = blind_to(Defect::Uncounted, Fault::Count, Quota::costs).await;
    assert_eq!(blind, []);
}

#[tokio::test]
async fn control_a_loss_that_nobody_is_told_of_is_found_for_every_quota() {
    let blind = blind_to(Defect::Untold, Fault::Event, Quota::is_told).await;
    assert_eq!(blind, []);
}
