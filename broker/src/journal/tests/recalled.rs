//! Random histories, cut anywhere: what is recalled is the state after a whole number of steps, with its counts, its marks and
//! its packet ids.

use std::collections::BTreeMap;

use holdfast_store::fault::Image;

use super::*;
use crate::exchange::{ConsumerId, Subscription};
use crate::journal::{ConsumerRecord, Kind};

const NAMES: [&str; 2] = ["rule", "other"];

/// Sessions may take everything.
struct AnyTaker;

impl Rights for AnyTaker {
    fn identify(&self, _: &Peer, _: &Connect<'_>) -> Result<Identity, Refusal> {
        Err(Refusal::NotAuthorized)
    }

    fn may_receive(&self, _: &Identity, _: &str) -> bool {
        true
    }
}

/// What there is after a step: rows by consumer, oldest first, as content and whether they are released; the newest number
/// of each topic; packet ids that wait for their PUBREL.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct State {
    rows: [Vec<(String, bool)>; 3],
    marks: BTreeMap<u64, u64>,
    received: BTreeSet<u16>,
}

struct World {
    disk: CrashBackend,
    broker: Broker,
    consumers: [ConsumerId; 3],
    session: Arc<Mailbox>,
    state: State,
    /// The disk's position after each step, and what there is.
    history: Vec<(usize, State)>,
}

fn filters(text: &str) -> Vec<Filter> {
    vec![Filter::new(text).unwrap()]
}

impl World {
    async fn new(early: bool) -> Self {
        let disk = CrashBackend::new();
        let medium = Medium::Backend(Arc::new(disk.clone()));
        let broker = Broker::open(config(), medium, Arc::new(AnyTaker)).unwrap();
        for (name, filter) in NAMES.into_iter().zip(["t/#", "t/1"]) {
            let options = ConsumerOptions::default();
            broker
                .consumer(name, filters(filter), options)
                .await
                .unwrap();
        }
        let core = broker.shared_core();
        let identity = Identity {
            client_id: "session".into(),
            subject: "session".into(),
        };
        let mailbox = Mailbox::new(core.next_key(), identity.clone(), core.queue_bounds());
        let session = Arc::new(mailbox);
        let open = |answer| Op::Open {
            id: None,
            record: ConsumerRecord {
                kind: Kind::Session {
                    identity,
                    expiry: u32::MAX,
                    left_at: None,
                },
            },
            mailbox: Arc::clone(&session),
            answer: Some(answer),
        };
        let third = broker.shared().journal.call(open).await.unwrap();
        let subscription = Subscription {
            mailbox: Arc::clone(&session),
            qos: Qos::ExactlyOnce,
            no_local: false,
            retain_as_published: false,
            id: Some(3),
        };
        core.exchange.subscribe("+/1", None, subscription);
        let route = core.route("t/1");
        let mut consumers = [third; 3];
        for target in &route.targets {
            if let Some(at) = NAMES.iter().position(|name| *name == &*target.mailbox.name) {
                consumers[at] = target.mailbox.consumer().unwrap();
            }
        }
        core.early.store(early, Ordering::Relaxed);
        let history = vec![(disk.position(), State::default())];
        Self {
            disk,
            broker,
            consumers,
            session,
            state: State::default(),
            history,
        }
    }

    /// A numbered message of a topic.
    async fn publish(&self, topic: u64, seq: u64, retain: bool, received: Option<u16>) -> Verdict {
        let content = format!("{topic}-{seq}-{}", "x".repeat((seq * 37 % 90) as usize));
        let name = format!("t/{topic}");
        let message = Message::new(&name, content).qos(Qos::ExactlyOnce);
        let route = self.broker.shared_core().route(&name);
        let mut entry = Entry::new(Arc::new(message.retain(retain)), route, None);
        entry.stamp = Some(stamp(seq));
        entry.received = received.map(|id| (self.consumers[2], id));
        let journal = &self.broker.shared().journal;
        let accept = |answer| Op::Accept {
            entries: vec![entry],
            reply: Reply::Caller(answer),
        };
        journal.call(accept).await.unwrap()[0]
    }

    async fn step(&mut self, random: &mut impl FnMut() -> u64) {
        let choice = random() % 20;
        let which = (random() % 3) as usize;
        match choice {
            0..10 => {
                let topic = random() % 3;
                let seq = self.state.marks.get(&topic).map_or(1, |mark| mark + 1);
                let received = random().is_multiple_of(2).then(|| (random() % 30) as u16);
                let verdict = self.publish(topic, seq, choice == 0, received).await;
                assert_eq!(verdict, Verdict::Taken);
                self.state.marks.insert(topic, seq);
                self.state.received.extend(received);
                let content = format!("{topic}-{seq}");
                let takers = if topic == 1 { 3 } else { 1 };
                for rows in self.state.rows.iter_mut().take(takers) {
                    rows.push((content.clone(), false));
                }
            }
            10..12 => {
                // Once more what was taken: neither rows nor marks, but the packet id.
                let Some((topic, mark)) = self.state.marks.first_key_value() else {
                    return;
                };
                let again = 1 + random() % mark;
                if !self.broker.shared_core().early.load(Ordering::Relaxed) {
                    let verdict = self.publish(*topic, again, false, Some(77)).await;
                    assert_eq!(verdict, Verdict::Repeat);
                    self.state.received.insert(77);
                }
            }
            12..16 => {
                let rows = rows_of(&self.broker, self.consumers[which]);
                let mut gone = Vec::new();
                for at in 0..rows.len() {
                    if random().is_multiple_of(3) {
                        gone.push(at);
                    }
                }
                let consumer = self.consumers[which];
                let rows = gone.iter().map(|at| rows[*at].0).collect();
                let settle = |answer| Op::Settle {
                    consumer,
                    rows,
                    answer: Some(answer),
                };
                self.broker.shared().journal.call(settle).await.unwrap();
                for at in gone.into_iter().rev() {
                    if at < self.state.rows[which].len() {
                        self.state.rows[which].remove(at);
                    }
                }
            }
            16..18 => {
                let rows = rows_of(&self.broker, self.consumers[2]);
                let Some(at) = (random() as usize).checked_rem(rows.len()) else {
                    return;
                };
                let release = Op::Release {
                    consumer: self.consumers[2],
                    rows: vec![rows[at].0],
                    mailbox: Arc::clone(&self.session),
                };
                self.broker.shared().journal.send(release).await.unwrap();
                while !matches!(self.session.next_outcome(), Some(Outcome::Released(_))) {
                    tokio::task::yield_now().await;
                }
                if let Some(row) = self.state.rows[2].get_mut(at) {
                    row.1 = true;
                }
            }
            _ => {
                let ids: Vec<u16> = (0..10).map(|_| (random() % 30) as u16).collect();
                let forget = Op::Forget {
                    consumer: self.consumers[2],
                    packet_ids: ids.clone(),
                    codes: Vec::new(),
                    mailbox: Arc::clone(&self.session),
                };
                self.broker.shared().journal.send(forget).await.unwrap();
                let codes = loop {
                    match self.session.next_outcome() {
                        Some(Outcome::Completed(codes)) => break codes,
                        _ => tokio::task::yield_now().await,
                    }
                };
                for (id, code) in ids.iter().zip(codes) {
                    assert_eq!(self.state.received.remove(id), code == 0, "{id}");
                }
            }
        }
        self.history
            .push((self.disk.position(), self.state.clone()));
    }
}

fn stamp(seq: u64) -> Stamp {
    Stamp {
        number: (1, seq),
        sender: "device".into(),
        from: None,
    }
}

/// Numbers, contents up to the second dash, released.
fn rows_of(broker: &Broker, id: ConsumerId) -> Vec<(u64, String, bool, u64)> {
    let rows = broker.shared().journal.rows(id, 0, usize::MAX).unwrap();
    let each = rows.into_iter().map(|stored| {
        let message = &stored.row.message;
        let text = std::str::from_utf8(&message.payload).unwrap();
        let name = text.rsplit_once('-').unwrap().0.to_owned();
        (
            stored.row.id,
            name,
            stored.released,
            message.weight() as u64,
        )
    });
    each.collect()
}

/// What is there, and whether its figures say the same.
fn found(broker: &Broker, consumers: [ConsumerId; 3]) -> (State, bool) {
    let mut state = State::default();
    let (mut count, mut bytes) = (0, 0);
    let mut right = true;
    for (at, id) in consumers.into_iter().enumerate() {
        let rows = rows_of(broker, id);
        right &= rows.is_sorted_by(|a, b| a.0 < b.0);
        if let Some(name) = NAMES.get(at) {
            let waiting = broker.known_consumer(name).unwrap().waiting();
            right &= waiting == rows.len() as u64;
        }
        count += rows.len() as u64;
        bytes += rows.iter().map(|row| row.3).sum::<u64>();
        state.rows[at] = rows.into_iter().map(|row| (row.1, row.2)).collect();
    }
    let figures = broker.metrics();
    right &= (figures.journal_rows, figures.journal_bytes) == (count, bytes);
    let received = broker.shared().journal.received(consumers[2]).unwrap();
    state.received = received.into_iter().collect();
    (state, right)
}

/// Whether the image holds the state after the last whole step, or after the one under way.
async fn is_right(world: &World, image: Image) -> bool {
    let at = image.at;
    let last = world
        .history
        .partition_point(|(position, _)| *position <= at)
        - 1;
    let broker = Broker::open(config(), image.into_medium(), Arc::new(AnyTaker)).unwrap();
    let (mut state, right) = found(&broker, world.consumers);
    let candidates = &world.history[last..world.history.len().min(last + 2)];
    let fits =
        |known: &&(usize, State)| state.rows == known.1.rows && state.received == known.1.received;
    let Some((_, known)) = candidates.iter().rev().find(fits) else {
        return false;
    };
    // What was taken once is a repeat, and the next number is none.
    for (topic, mark) in &known.marks {
        for (seq, expected) in [(*mark, Verdict::Repeat), (mark + 2, Verdict::Taken)] {
            let name = format!("t/{topic}");
            let message = Message::new(&name, "again-1-").qos(Qos::AtLeastOnce);
            let route = broker.shared_core().route(&name);
            let mut entry = Entry::new(Arc::new(message), route, None);
            entry.stamp = Some(stamp(seq));
            let accept = |answer| Op::Accept {
                entries: vec![entry],
                reply: Reply::Caller(answer),
            };
            let verdict = broker.shared().journal.call(accept).await.unwrap()[0];
            if verdict != expected {
                return false;
            }
        }
        // The session has subscribed nowhere in this life.
        let takers = if *topic == 1 { 2 } else { 1 };
        let rows = state.rows.iter_mut().take(takers);
        rows.for_each(|rows| rows.push(("again-1".to_owned(), false)));
    }
    let after = found(&broker, world.consumers);
    right && after == (state, true)
}

/// Images, and how many of them are wrong.
async fn cut(steps: usize, seed: u64, early: bool) -> (usize, usize) {
    let mut world = World::new(early).await;
    let mut numbers = random(seed);
    for _ in 0..steps {
        world.step(&mut numbers).await;
    }
    let born = world.history[0].0;
    let mut images = Vec::new();
    world.disk.each_image(2, &mut numbers, |image| {
        if image.at >= born {
            images.push(image);
        }
    });
    let count = images.len();
    let mut wrong = 0;
    for image in images {
        wrong += usize::from(!is_right(&world, image).await);
    }
    (count, wrong)
}

#[tokio::test]
async fn what_is_recalled_is_the_state_after_a_whole_number_of_steps() {
    let mut all = 0;
    for seed in [3, 99, 1717, 31_337, 424_242, 7_654_321] {
        let (images, wrong) = cut(50, seed, false).await;
        assert_eq!(wrong, 0, "seed {seed}: of {images}");
        all += images;
    }
    assert!(all > 800, "{all}");
}

#[tokio::test]
async fn control_a_history_that_runs_ahead_of_the_disk_is_caught() {
    let (images, wrong) = cut(30, 5, true).await;
    assert!(wrong > 0, "none of {images}");
}
