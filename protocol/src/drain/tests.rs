//! The drain against a journal, a lossy link and a receiver, all simulated: exactly once per id
//! when acknowledgements are honoured, order per topic never broken, memory bounded; and a checker
//! of histories that is itself shown to catch each fault.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::fixture::Dice;

/// What the link saw, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    Sent(RowId),
    Acknowledged(RowId),
    Dead(RowId),
    Lost,
}

/// A journal row of the world.
#[derive(Debug, Clone)]
struct Record {
    topic: Arc<str>,
    class: Class,
    size: usize,
}

/// Everything beside the drain.
struct World {
    drain: Drain<RowId>,
    settings: Settings,
    /// Rows not deleted yet.
    journal: BTreeMap<RowId, Record>,
    /// Every row there ever was.
    all: BTreeMap<RowId, Record>,
    /// Acknowledged, but the journal has not deleted them yet.
    to_delete: Vec<RowId>,
    next_id: u64,
    on_the_link: Vec<RowId>,
    history: Vec<Event>,
    /// A page was asked for and is being read: what is written meanwhile is not in it.
    reading: Option<(Want, Vec<RowId>, bool)>,
    pages_read: usize,
    dice: Dice,
}

impl World {
    fn new(settings: Settings, seed: u64) -> Self {
        Self {
            drain: Drain::new(settings),
            settings,
            journal: BTreeMap::new(),
            all: BTreeMap::new(),
            to_delete: Vec::new(),
            next_id: 1,
            on_the_link: Vec::new(),
            history: Vec::new(),
            reading: None,
            pages_read: 0,
            dice: Dice::new(seed),
        }
    }

    fn write(&mut self, topic: &str, class: Class) -> RowId {
        let id = RowId(self.next_id);
        self.next_id += 1 + self.dice.below(3);
        let size = usize::try_from(self.dice.below(2_000)).unwrap();
        let record = Record {
            topic: topic.into(),
            class,
            size,
        };
        self.journal.insert(id, record.clone());
        self.all.insert(id, record);
        self.drain.journal_grew();
        id
    }

    fn begin_read(&mut self) {
        if self.reading.is_some() {
            return;
        }
        let Some(want) = self.drain.wants() else {
            return;
        };
        let mut rows: Vec<RowId> = self
            .journal
            .range(RowId(want.after.0 + 1)..)
            .map(|(id, _)| *id)
            .take(want.max + 1)
            .collect();
        // A page may be shorter than asked for without being the end.
        let short = self.dice.chance(10);
        let limit = if short {
            want.max.div_ceil(2)
        } else {
            want.max
        };
        let exhausted = rows.len() <= limit;
        rows.truncate(limit);
        self.reading = Some((want, rows, exhausted));
        self.pages_read += 1;
    }

    fn end_read(&mut self) {
        let Some((want, rows, exhausted)) = self.reading.take() else {
            return;
        };
        let offered: Vec<Offered<RowId>> = rows
            .into_iter()
            .map(|id| {
                let Record { topic, class, size } = self.all[&id].clone();
                Offered {
                    id,
                    topic,
                    class,
                    size,
                    item: id,
                }
            })
            .collect();
        self.drain.offer(want, offered, exhausted);
        self.check_bounds();
    }

    fn check_bounds(&self) {
        let most = self.settings.rows + self.settings.topics;
        assert!(self.drain.held() <= most, "{} rows held", self.drain.held());
        assert!(self.drain.topics() <= self.settings.topics);
        assert!(self.drain.under_way() <= self.settings.window);
    }

    fn send(&mut self) -> bool {
        let Some(sending) = self.drain.next() else {
            return false;
        };
        let id = sending.id;
        assert_eq!(*sending.item, id);
        self.on_the_link.push(id);
        self.history.push(Event::Sent(id));
        true
    }

    /// An acknowledgement or a refusal of any row under way, whichever comes first.
    fn answer(&mut self, refuse: u64) {
        if self.on_the_link.is_empty() {
            return;
        }
        let at = usize::try_from(self.dice.below(self.on_the_link.len() as u64)).unwrap();
        let id = self.on_the_link.remove(at);
        if self.dice.chance(refuse) {
            let never = self.dice.chance(20);
            let refusal = if never {
                Refusal::Never
            } else {
                Refusal::Later
            };
            match self.drain.refused(id, refusal) {
                Refused::Kept => {}
                Refused::Dead(item) => {
                    assert_eq!(item, id);
                    self.history.push(Event::Dead(id));
                    self.to_delete.push(id);
                }
                Refused::Unknown => panic!("{id:?} is under way"),
            }
            return;
        }
        assert_eq!(self.drain.acknowledged(id), Some(id));
        assert_eq!(
            self.drain.acknowledged(id),
            None,
            "a second acknowledgement is nothing"
        );
        self.history.push(Event::Acknowledged(id));
        self.to_delete.push(id);
    }

    fn lose_link(&mut self) {
        self.on_the_link.clear();
        self.history.push(Event::Lost);
        self.drain.link_lost();
    }

    fn delete(&mut self) {
        for id in std::mem::take(&mut self.to_delete) {
            self.journal.remove(&id);
        }
    }

    /// Lets everything come to rest; nothing may then be left.
    fn finish(&mut self) {
        let mut rounds = 0;
        while !(self.journal.is_empty() && self.drain.is_idle()) {
            self.begin_read();
            self.end_read();
            while self.send() {}
            while !self.on_the_link.is_empty() {
                self.answer(0);
            }
            self.drain.retry();
            self.delete();
            rounds += 1;
            assert!(rounds < 200_000, "no progress: {} left", self.journal.len());
        }
        assert_eq!((self.drain.held(), self.drain.topics()), (0, 0));
    }
}

/// Judges a history without knowing how the drain works.
fn judge(all: &BTreeMap<RowId, Record>, history: &[Event], finished: bool) -> Result<(), String> {
    let key = |id: &RowId| (all[id].class, all[id].topic.clone());
    let mut done: BTreeSet<RowId> = BTreeSet::new();
    let mut on_link: BTreeSet<RowId> = BTreeSet::new();
    // Per topic and class: the last id sent on this link, and those that were not sent on it.
    let mut last: BTreeMap<(Class, Arc<str>), RowId> = BTreeMap::new();
    let mut unsent: BTreeMap<(Class, Arc<str>), BTreeSet<RowId>> = BTreeMap::new();
    for id in all.keys() {
        unsent.entry(key(id)).or_default().insert(*id);
    }
    for event in history {
        match event {
            Event::Sent(id) => {
                if done.contains(id) {
                    return Err(format!("{id:?} sent after its acknowledgement"));
                }
                if !on_link.insert(*id) {
                    return Err(format!("{id:?} sent twice over one link"));
                }
                if last.insert(key(id), *id).is_some_and(|before| before > *id) {
                    return Err(format!("{id:?} sent after a younger one of its topic"));
                }
                let waiting = unsent.entry(key(id)).or_default();
                waiting.remove(id);
                let elder = waiting.first().is_some_and(|first| first < id);
                if elder {
                    return Err(format!("{id:?} sent before an elder of its topic"));
                }
            }
            Event::Acknowledged(id) | Event::Dead(id) => {
                on_link.remove(id);
                if !done.insert(*id) {
                    return Err(format!("{id:?} settled twice"));
                }
            }
            Event::Lost => {
                for id in std::mem::take(&mut on_link) {
                    unsent.entry(key(&id)).or_default().insert(id);
                }
                last.clear();
            }
        }
    }
    match all.keys().find(|id| finished && !done.contains(id)) {
        Some(id) => Err(format!("{id:?} never arrived")),
        None => Ok(()),
    }
}

fn small() -> Settings {
    Settings {
        window: 8,
        urgent_reserve: 2,
        rows: 40,
        bytes: 30_000,
        rows_per_topic: 12,
        topics: 10,
        page: 16,
        attempts: 3,
    }
}

/// A random life of a drain.
fn live(settings: Settings, seed: u64, steps: u32, refuse: u64) -> World {
    let mut world = World::new(settings, seed);
    let topics: Vec<String> = (0..14).map(|n| format!("t{n}")).collect();
    // Some seeds have one topic that floods, some have many even ones.
    let flood = seed % 3;
    for _ in 0..steps {
        match world.dice.below(12) {
            0..=2 => {
                let burst = 1 + world.dice.below(if flood == 0 { 30 } else { 6 });
                for _ in 0..burst {
                    let hot = flood == 0 && world.dice.chance(80);
                    let topic = if hot {
                        "t0"
                    } else {
                        world.dice.pick(&topics).as_str()
                    }
                    .to_owned();
                    let urgent = world.dice.chance(10);
                    world.write(&topic, if urgent { Class::Urgent } else { Class::Normal });
                }
            }
            3 | 4 => world.begin_read(),
            5 | 6 => world.end_read(),
            7 => {
                world.send();
            }
            8 => while world.send() {},
            9 => world.answer(refuse),
            10 => {
                for _ in 0..world.dice.below(8) {
                    world.answer(refuse);
                }
                world.drain.retry();
            }
            _ if world.dice.chance(15) => world.lose_link(),
            _ => world.delete(),
        }
    }
    world
}

#[test]
fn every_row_arrives_exactly_once_and_in_order_per_topic() {
    for seed in 0..400 {
        let mut world = live(small(), seed, 600, 0);
        world.finish();
        judge(&world.all, &world.history, true)
            .unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
        let settled = world
            .history
            .iter()
            .filter(|event| matches!(event, Event::Acknowledged(_)));
        assert_eq!(settled.count(), world.all.len());
    }
}

/// With refusals a refused row is sent again over the same link, after others of its topic that
/// were under way with it; that is all that may differ.
#[test]
fn refused_rows_come_again_or_become_dead_letters() {
    let mut dead = 0;
    for seed in 0..200 {
        let mut world = live(small(), 1_000 + seed, 600, 15);
        world.finish();
        let (mut settled, mut waits) = (BTreeSet::new(), BTreeMap::<_, u32>::new());
        for event in &world.history {
            match event {
                Event::Sent(id) => {
                    assert!(!settled.contains(id), "seed {seed}: {id:?} after its end");
                    *waits.entry(*id).or_default() += 1;
                }
                Event::Acknowledged(id) => assert!(settled.insert(*id)),
                Event::Dead(id) => {
                    dead += 1;
                    assert!(settled.insert(*id));
                }
                Event::Lost => {}
            }
        }
        assert_eq!(settled.len(), world.all.len(), "seed {seed}");
    }
    assert!(dead > 50, "{dead}");
}

#[test]
fn the_judge_catches_every_fault() {
    let mut world = live(small(), 7, 400, 0);
    world.finish();
    let (all, good) = (&world.all, &world.history);
    assert_eq!(judge(all, good, true), Ok(()));
    let sent: Vec<usize> = (0..good.len())
        .filter(|at| matches!(good[*at], Event::Sent(_)))
        .collect();
    let id = |at: usize| match &good[at] {
        Event::Sent(id) => *id,
        other => panic!("{other:?} is no sending"),
    };
    // Two neighbours of one topic and class swapped.
    let swapped = sent.windows(2).find(|pair| {
        let (a, b) = (&all[&id(pair[0])], &all[&id(pair[1])]);
        pair[1] == pair[0] + 1 && a.topic == b.topic && a.class == b.class
    });
    let swapped = swapped.expect("a flooding topic has neighbours");
    let mut bad = good.clone();
    bad.swap(swapped[0], swapped[1]);
    assert!(judge(all, &bad, true).is_err());
    // A row sent twice, one never settled, one settled twice, one sent after its end.
    for (at, event) in [
        (sent[3] + 1, Event::Sent(id(sent[3]))),
        (good.len(), Event::Sent(id(sent[3]))),
        (good.len(), Event::Acknowledged(id(sent[3]))),
    ] {
        let mut bad = good.clone();
        bad.insert(at, event);
        assert!(judge(all, &bad, true).is_err());
    }
    let without: Vec<Event> = good
        .iter()
        .filter(
            |event| !matches!(event, Event::Sent(x) | Event::Acknowledged(x) if *x == id(sent[5])),
        )
        .cloned()
        .collect();
    assert!(judge(all, &without, true).is_err());
}

#[test]
fn a_live_message_passes_a_long_backlog_of_another_topic() {
    let settings = Settings::default();
    let mut world = World::new(settings, 1);
    for _ in 0..72_000 {
        world.write("old", Class::Normal);
    }
    let live = world.write("live", Class::Normal);
    let urgent = world.write("old", Class::Urgent);
    while world.drain.wants().is_some() {
        world.begin_read();
        world.end_read();
    }
    // All was looked through with a bounded memory.
    assert!(world.drain.held() <= settings.rows_per_topic + 2);
    let mut place = 0;
    let mut found = BTreeMap::new();
    while found.len() < 2 && world.send() {
        place += 1;
        let last = *world.on_the_link.last().unwrap();
        if last == live || last == urgent {
            found.insert(last, place);
        }
    }
    assert_eq!(
        (found[&urgent], found[&live]),
        (1, 3),
        "the urgent first, the live one in turn"
    );
    world.finish();
    judge_order_only(&world);
    // Two passes over the journal and a page per refill, not one pass per row.
    assert!(world.pages_read < 500, "{} pages", world.pages_read);
}

/// The judge's search for elders is quadratic; for long runs the order of each topic suffices.
fn judge_order_only(world: &World) {
    let mut sent: Vec<RowId> = Vec::new();
    for event in &world.history {
        if let Event::Sent(id) = event
            && world.all[id].topic.as_ref() == "old"
            && world.all[id].class == Class::Normal
        {
            assert!(sent.last().is_none_or(|last| last < id));
            sent.push(*id);
        }
    }
    assert_eq!(sent.len(), 72_000);
}

#[test]
fn a_lost_link_puts_back_what_was_under_way_in_order() {
    let mut world = World::new(small(), 2);
    let ids: Vec<RowId> = (0..6)
        .map(|n| world.write(["a", "b"][n % 2], Class::Normal))
        .collect();
    world.begin_read();
    world.end_read();
    while world.send() {}
    assert_eq!(world.drain.under_way(), 6);
    assert_eq!(world.drain.acknowledged(ids[2]), Some(ids[2]));
    world.drain.link_lost();
    assert_eq!(
        world.drain.acknowledged(ids[0]),
        None,
        "an answer of the old link is nothing"
    );
    let mut again = Vec::new();
    while let Some(sending) = world.drain.next() {
        assert!(sending.again);
        again.push(sending.id);
    }
    // Topic a has 0 and 4 left, b has 1, 3 and 5; the longest waiting goes first, then by turns.
    assert_eq!(again, [ids[0], ids[1], ids[4], ids[3], ids[5]]);
}

#[test]
fn normal_rows_leave_a_part_of_the_window_to_urgent_ones() {
    let mut world = World::new(small(), 3);
    for _ in 0..12 {
        world.write("a", Class::Normal);
    }
    world.begin_read();
    world.end_read();
    while world.send() {}
    assert_eq!(world.drain.under_way(), 6);
    let urgent = world.write("alarm", Class::Urgent);
    world.begin_read();
    world.end_read();
    assert_eq!(world.drain.next().map(|sending| sending.id), Some(urgent));
}

#[test]
fn what_is_written_while_a_page_is_read_is_not_forgotten() {
    let mut world = World::new(small(), 4);
    world.write("a", Class::Normal);
    world.begin_read();
    world.write("a", Class::Normal);
    world.end_read();
    world.finish();
    assert_eq!(judge(&world.all, &world.history, true), Ok(()));
}
