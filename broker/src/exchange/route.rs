//! A topic's receivers, found once and remembered.
//!
//! Called for every publish. The cache is checked by generation: a change of subscriptions or of
//! rights makes all that was remembered worthless at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::tree::Tree;
use super::{Mailbox, Subscription};
use crate::{Qos, Rights, rights};

/// Topics whose receivers are remembered.
const CACHED_TOPICS: usize = 16_384;
/// A member of a shared subscription with no more messages than this is served in its turn.
const LITTLE_TO_DO: u64 = 64;

/// What one receiver asked for, merged over its matching subscriptions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) qos: Qos,
    pub(crate) retain_as_published: bool,
    pub(crate) ids: Vec<u32>,
    /// The shared subscription that picked this receiver.
    pub(crate) group: Option<Arc<str>>,
}

/// One receiver of a topic.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) mailbox: Arc<Mailbox>,
    /// For messages of others.
    pub(crate) options: Arc<Options>,
    /// For its own messages: `None` when all its subscriptions said no-local [MQTT-3.8.3-3].
    pub(crate) own: Option<Arc<Options>>,
}

impl Target {
    /// What applies to a message of this publisher (`None` = from the embedding program).
    pub(crate) fn options_for(&self, publisher: Option<u64>) -> Option<&Arc<Options>> {
        if publisher == Some(self.mailbox.key) {
            self.own.as_ref()
        } else {
            Some(&self.options)
        }
    }
}

/// The receivers of one topic.
#[derive(Debug)]
pub(crate) struct Route {
    pub(crate) topic: Arc<str>,
    pub(crate) generation: u64,
    pub(crate) targets: Vec<Target>,
    pub(crate) groups: Vec<Shared>,
    /// Receivers left out for want of rights.
    pub(crate) without_right: usize,
}

/// A shared subscription's members, with the turn.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) key: Arc<str>,
    members: Vec<Target>,
    turn: Arc<AtomicUsize>,
}

impl Shared {
    /// The member whose turn it is, among those that keep up: the next connected one with little to
    /// do, else the connected one with the least to do, else a durable one that is away, else any
    /// that is connected.
    pub(crate) fn pick(&self) -> Option<&Target> {
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let mut least: Option<(u64, &Target)> = None;
        let mut away = None;
        let mut full = None;
        for step in 0..self.members.len() {
            let target = &self.members[start.wrapping_add(step) % self.members.len()];
            let mailbox = &target.mailbox;
            if !mailbox.connected() {
                if mailbox.consumer().is_some() {
                    away.get_or_insert(target);
                }
                continue;
            }
            let load = mailbox.load();
            if load <= LITTLE_TO_DO {
                return Some(target);
            }
            if mailbox.crowded() {
                full.get_or_insert(target);
            } else if least.is_none_or(|(known, _)| load < known) {
                least = Some((load, target));
            }
        }
        least.map(|(_, target)| target).or(away).or(full)
    }
}

impl Route {
    /// All who may be given a message: every member of a shared subscription counts.
    pub(crate) fn receivers(&self) -> impl Iterator<Item = &Target> {
        let members = self.groups.iter().flat_map(|group| &group.members);
        self.targets.iter().chain(members)
    }

    /// Whether a message of this quality needs a commit for somebody.
    pub(crate) fn durable(&self, qos: Qos) -> bool {
        let keeps = |target: &Target| target.mailbox.keeps(qos, target.options.qos);
        self.targets.iter().any(keeps)
            || self
                .groups
                .iter()
                .any(|group| group.members.iter().any(keeps))
    }

    /// Whether somebody without a row of it is to be served or counted.
    pub(crate) fn live(&self, qos: Qos) -> bool {
        let keeps = |target: &Target| target.mailbox.keeps(qos, target.options.qos);
        self.without_right > 0 || !self.targets.iter().all(keeps)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.targets.is_empty() && self.groups.is_empty()
    }
}

/// The subscriptions of all receivers.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    tree: RwLock<Tree>,
    generation: AtomicU64,
    cache: RwLock<HashMap<Arc<str>, Arc<Route>>>,
}

impl Exchange {
    /// Adds or replaces a subscription; true when it is new.
    pub(crate) fn subscribe(
        &self,
        filter: &str,
        group: Option<&str>,
        subscription: Subscription,
    ) -> bool {
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        let new = tree.insert(filter, group, subscription);
        self.generation.fetch_add(1, Ordering::Release);
        new
    }

    /// True when it was there.
    pub(crate) fn unsubscribe(&self, filter: &str, group: Option<&str>, key: u64) -> bool {
        let mut tree = self.tree.write().unwrap_or_else(PoisonError::into_inner);
        let removed = tree.remove(filter, group, key);
        self.generation.fetch_add(1, Ordering::Release);
        removed
    }

    pub(crate) fn subscriptions(&self) -> usize {
        self.tree
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .count()
    }

    /// Rights may answer differently now.
    pub(crate) fn forget(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The receivers of `topic`.
    pub(crate) fn route(&self, topic: &str, rights: &dyn Rights) -> Arc<Route> {
        let generation = self.generation();
        let known = self
            .cache
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(topic)
            .cloned();
        if let Some(route) = known
            && route.generation == generation
        {
            return route;
        }
        let route = Arc::new(self.find(topic, generation, rights));
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_TOPICS {
            cache.clear();
        }
        cache.insert(Arc::clone(&route.topic), Arc::clone(&route));
        route
    }

    fn find(&self, topic: &str, generation: u64, rights: &dyn Rights) -> Route {
        let mut found: HashMap<u64, Merge> = HashMap::new();
        let mut order: Vec<u64> = Vec::new();
        let mut groups = Vec::new();
        let tree = self.tree.read().unwrap_or_else(PoisonError::into_inner);
        tree.matching(
            topic,
            |subscription| {
                let key = subscription.mailbox.key;
                found
                    .entry(key)
                    .or_insert_with(|| {
                        order.push(key);
                        Merge::new(subscription)
                    })
                    .add(subscription);
            },
            |group| groups.push(group.clone()),
        );
        drop(tree);
        let all = order.len();
        let targets: Vec<Target> = order
            .iter()
            .filter_map(|key| found.remove(key))
            .map(Merge::target)
            .filter(|target| may_receive(target, topic, rights))
            .collect();
        let without_right = all - targets.len();
        let shared = groups.into_iter().filter_map(|group| {
            let members: Vec<Target> = group
                .members
                .iter()
                .map(|member| {
                    let mut merge = Merge::new(member);
                    merge.add(member);
                    merge.all.group = Some(Arc::clone(&group.key));
                    merge.target()
                })
                .filter(|target| may_receive(target, topic, rights))
                .collect();
            (!members.is_empty()).then(|| Shared {
                key: Arc::clone(&group.key),
                turn: group.turn,
                members,
            })
        });
        Route {
            topic: topic.into(),
            generation,
            groups: shared.collect(),
            targets,
            without_right,
        }
    }
}

fn may_receive(target: &Target, topic: &str, rights: &dyn Rights) -> bool {
    // An in-process consumer is the embedding program itself.
    target.mailbox.bridge || rights::may_receive(rights, &target.mailbox.identity(), topic)
}

/// Merges the matching subscriptions of one receiver: one copy, at the highest QoS [MQTT-3.3.4-2],
/// with all identifiers [MQTT-3.3.4-4].
struct Merge {
    mailbox: Arc<Mailbox>,
    all: Options,
    own: Option<Options>,
}

impl Merge {
    fn new(subscription: &Subscription) -> Self {
        Self {
            mailbox: Arc::clone(&subscription.mailbox),
            all: Options::lowest(),
            own: None,
        }
    }

    fn add(&mut self, subscription: &Subscription) {
        self.all.add(subscription);
        if !subscription.no_local {
            self.own
                .get_or_insert_with(Options::lowest)
                .add(subscription);
        }
    }

    fn target(self) -> Target {
        let options = Arc::new(self.all);
        let own = self.own.map(|own| {
            if own == *options {
                Arc::clone(&options)
            } else {
                Arc::new(own)
            }
        });
        Target {
            mailbox: self.mailbox,
            options,
            own,
        }
    }
}

impl Options {
    fn lowest() -> Self {
        Self {
            qos: Qos::AtMostOnce,
            retain_as_published: false,
            ids: Vec::new(),
            group: None,
        }
    }

    fn add(&mut self, subscription: &Subscription) {
        self.qos = self.qos.max(subscription.qos);
        self.retain_as_published |= subscription.retain_as_published;
        self.ids.extend(subscription.id);
    }
}
