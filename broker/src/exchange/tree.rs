//! The subscription tree: filters by level, so that a publish costs depth and matches.
//!
//! Pure; used by `route` under its lock. Tested against the plain matcher of `topic`.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::Mailbox;
use crate::Qos;
use crate::rare::Rare;

/// One subscription of one receiver.
#[derive(Debug, Clone)]
pub(crate) struct Subscription {
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) qos: Qos,
    pub(crate) no_local: bool,
    pub(crate) retain_as_published: bool,
    pub(crate) id: Option<u32>,
}

/// A shared subscription: one of its members gets each message.
#[derive(Debug, Clone, Default)]
pub(crate) struct Group {
    name: Box<str>,
    /// `<share name>/<filter>`: what tells it from other shared subscriptions.
    pub(crate) key: Arc<str>,
    /// Whose turn it is; outlives changes of the members.
    pub(crate) turn: Arc<AtomicUsize>,
    pub(crate) members: Vec<Subscription>,
}

#[derive(Debug, Default)]
pub(crate) struct Tree {
    root: Node,
    count: usize,
}

/// Small, since a filter has one for each of its levels: what a node rarely has is elsewhere.
#[derive(Debug, Default)]
#[expect(clippy::box_collection, reason = "an empty map is 48 bytes")]
struct Node {
    children: Option<Box<HashMap<Box<str>, Self>>>,
    any: Option<Box<Self>>,
    here: Option<Box<Place>>,
    rest: Option<Box<Place>>,
}

#[derive(Debug, Default)]
struct Place {
    single: Single,
    groups: Rare<Vec<Group>>,
}

/// The subscriptions to one filter, each for itself: most filters are one client's.
#[derive(Debug, Default)]
struct Single {
    /// None only when there are no more either.
    first: Option<Subscription>,
    more: Rare<Vec<Subscription>>,
}

impl Single {
    fn iter(&self) -> impl Iterator<Item = &Subscription> {
        self.first.iter().chain(self.more.iter())
    }

    /// True when it is new.
    fn put(&mut self, subscription: Subscription) -> bool {
        let key = subscription.mailbox.key;
        match &mut self.first {
            Some(first) if first.mailbox.key != key => put(&mut self.more, subscription),
            first => first.replace(subscription).is_none(),
        }
    }

    /// True when it was there.
    fn take(&mut self, key: u64) -> bool {
        if self
            .first
            .as_ref()
            .is_some_and(|first| first.mailbox.key == key)
        {
            self.first = self.more.pop();
            return true;
        }
        !self.more.is_empty() && take(&mut self.more, key)
    }
}

/// Adds or replaces; true when it is new.
fn put(list: &mut Vec<Subscription>, subscription: Subscription) -> bool {
    let key = subscription.mailbox.key;
    match list.iter_mut().find(|known| known.mailbox.key == key) {
        Some(known) => {
            *known = subscription;
            false
        }
        None => {
            list.push(subscription);
            true
        }
    }
}

/// True when it was there.
fn take(list: &mut Vec<Subscription>, key: u64) -> bool {
    let found = list.iter().position(|known| known.mailbox.key == key);
    found.map(|index| list.swap_remove(index)).is_some()
}

impl Tree {
    /// How many subscriptions there are.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Adds or replaces; true when it was not there before.
    pub(crate) fn insert(
        &mut self,
        filter: &str,
        group: Option<&str>,
        subscription: Subscription,
    ) -> bool {
        let place = self.root.place(filter.split('/'));
        let new = match group {
            None => place.single.put(subscription),
            Some(name) => put(place.group(name, filter), subscription),
        };
        self.count += usize::from(new);
        new
    }

    /// True when it was there.
    pub(crate) fn remove(&mut self, filter: &str, group: Option<&str>, key: u64) -> bool {
        let removed = self.root.remove(filter, group, key);
        if removed {
            self.count -= 1;
        }
        removed
    }

    /// Calls `single` for every matching subscription and `group` for every matching group.
    pub(crate) fn matching<'a>(
        &'a self,
        topic: &str,
        mut single: impl FnMut(&'a Subscription),
        mut group: impl FnMut(&'a Group),
    ) {
        let mut take = |place: &'a Place| {
            place.single.iter().for_each(&mut single);
            place.groups.iter().for_each(&mut group);
        };
        self.root.visit(topic, !topic.starts_with('$'), &mut take);
    }
}

impl Place {
    fn group(&mut self, name: &str, filter: &str) -> &mut Vec<Subscription> {
        let index = self
            .groups
            .iter()
            .position(|group| &*group.name == name)
            .unwrap_or_else(|| {
                self.groups.push(Group {
                    name: name.into(),
                    key: format!("{name}/{filter}").into(),
                    turn: Arc::default(),
                    members: Vec::new(),
                });
                self.groups.len() - 1
            });
        &mut self.groups[index].members
    }

    fn take(&mut self, group: Option<&str>, key: u64) -> bool {
        let Some(name) = group else {
            return self.single.take(key);
        };
        let Some(index) = self.groups.iter().position(|group| &*group.name == name) else {
            return false;
        };
        let taken = take(&mut self.groups[index].members, key);
        if self.groups[index].members.is_empty() {
            self.groups.remove(index);
        }
        taken
    }

    fn is_empty(&self) -> bool {
        self.single.first.is_none() && self.groups.is_empty()
    }
}

/// Takes a subscription out of a place, and the place when it was the last one.
fn take_from(slot: &mut Option<Box<Place>>, group: Option<&str>, key: u64) -> bool {
    let Some(place) = slot else { return false };
    let taken = place.take(group, key);
    if place.is_empty() {
        *slot = None;
    }
    taken
}

impl Node {
    fn place<'a>(&mut self, mut levels: impl Iterator<Item = &'a str>) -> &mut Place {
        match levels.next() {
            None => self.here.get_or_insert_default(),
            Some("#") => self.rest.get_or_insert_default(),
            Some("+") => self.any.get_or_insert_default().place(levels),
            Some(level) => {
                let children = self.children.get_or_insert_default();
                if !children.contains_key(level) {
                    children.insert(level.into(), Self::default());
                }
                children
                    .get_mut(level)
                    .expect("inserted above")
                    .place(levels)
            }
        }
    }

    fn child_mut(&mut self, level: &str) -> Option<&mut Self> {
        match level {
            "+" => self.any.as_deref_mut(),
            _ => self.children.as_mut()?.get_mut(level),
        }
    }

    /// Removes and prunes the path. `filter` is what is left of it.
    fn remove(&mut self, filter: &str, group: Option<&str>, key: u64) -> bool {
        let (level, after) = match filter.split_once('/') {
            Some((level, after)) => (level, Some(after)),
            None => (filter, None),
        };
        if level == "#" {
            return take_from(&mut self.rest, group, key);
        }
        let Some(child) = self.child_mut(level) else {
            return false;
        };
        let removed = match after {
            None => take_from(&mut child.here, group, key),
            Some(after) => child.remove(after, group, key),
        };
        if removed && child.is_empty() {
            self.prune(level);
        }
        removed
    }

    fn prune(&mut self, level: &str) {
        if level == "+" {
            self.any = None;
        } else if let Some(children) = &mut self.children {
            children.remove(level);
            if children.is_empty() {
                self.children = None;
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.children.is_none() && self.any.is_none() && self.here.is_none() && self.rest.is_none()
    }

    /// `wild` is off at the first level of a `$` topic [MQTT-4.7.2-1].
    fn visit<'a>(&'a self, topic: &str, wild: bool, take: &mut impl FnMut(&'a Place)) {
        if wild && let Some(rest) = &self.rest {
            take(rest);
        }
        let (level, after) = match topic.split_once('/') {
            Some((level, after)) => (level, Some(after)),
            None => (topic, None),
        };
        let named = (self.children.as_ref()).and_then(|children| children.get(level));
        let any = self.any.as_deref().filter(|_| wild);
        for child in named.into_iter().chain(any) {
            match after {
                Some(after) => child.visit(after, true, take),
                None => {
                    // `a/#` also matches `a`.
                    let places = child.here.iter().chain(&child.rest);
                    places.for_each(|place| take(place));
                }
            }
        }
    }
}
