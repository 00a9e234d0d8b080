//! Who was told what, in the order of the disk's events, and what follows from it for a crash at a given moment.
//!
//! Written by the clients: an intention before it leaves, an answer after it came. So whatever a crashed disk may hold
//! was intended by then, and whatever was answered by then must be there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

/// Retained slots in use.
pub(crate) const SLOTS: u32 = 4;

/// One entry. Numbers are those of messages; `id` is a packet id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// The lasting sessions and the rule are there: from here on content is due.
    Ready,
    /// QoS 1, about to be sent, and acknowledged.
    Sent1(u32),
    Acked1(u32),
    /// QoS 2, about to be sent under this id; PUBREC came; PUBCOMP came.
    Sent2(u16, u32),
    Rec2(u16),
    Comp2(u16),
    /// The taker has a QoS 1 message.
    Took1(u32),
    /// The taker has a QoS 2 message, and has been told that it may use it.
    Got2(u16, u32),
    Used2(u16),
    /// A retained message's version (0 modulo 5 clears the slot), about to be sent, and acknowledged.
    Kept(u32, u32),
    KeptAcked(u32, u32),
    /// A lasting session was made; it is about to be ended.
    Made(u32),
    Leaving(u32),
    /// The rule is about to take a message away: 1 or 2, and its number.
    Gone(u8, u32),
}

/// The ledger, with the clock that tells the disk's position.
pub(crate) struct Ledger {
    clock: Box<dyn Fn() -> usize + Send + Sync>,
    entries: Mutex<Vec<(usize, Event)>>,
}

impl Ledger {
    pub(crate) fn new(clock: impl Fn() -> usize + Send + Sync + 'static) -> Self {
        Self {
            clock: Box::new(clock),
            entries: Mutex::default(),
        }
    }

    pub(crate) fn note(&self, event: Event) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(((self.clock)(), event));
    }

    /// What is known and due after a crash at that position.
    pub(crate) fn at(&self, position: usize) -> State {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = State::default();
        for (_, event) in entries.iter().filter(|(at, _)| *at <= position) {
            state.take(*event);
        }
        state
    }

    pub(crate) fn now(&self) -> State {
        self.at(usize::MAX)
    }
}

/// The clients' own state at a moment.
#[derive(Debug, Default, Clone)]
pub(crate) struct State {
    pub(crate) ready: bool,
    pub(crate) acked1: BTreeSet<u32>,
    /// Everything of QoS 2 that was ever sent.
    pub(crate) sent2: BTreeSet<u32>,
    /// Sent, no PUBREC yet: is to be sent again under the same id.
    pub(crate) published2: BTreeMap<u16, u32>,
    /// PUBREC came, no PUBCOMP yet: PUBREL is to be sent again.
    pub(crate) released2: BTreeMap<u16, u32>,
    pub(crate) done2: BTreeSet<u32>,
    pub(crate) took1: BTreeSet<u32>,
    /// QoS 2 messages at the taker that wait for their PUBREL.
    pub(crate) open2: BTreeMap<u16, u32>,
    /// Each use of a QoS 2 message by the taker.
    pub(crate) used2: Vec<u32>,
    /// By slot: the newest version sent, the newest acknowledged.
    pub(crate) kept: BTreeMap<u32, (u32, u32)>,
    pub(crate) made: BTreeSet<u32>,
    pub(crate) gone: BTreeSet<(u8, u32)>,
}

impl State {
    fn take(&mut self, event: Event) {
        match event {
            Event::Ready => self.ready = true,
            Event::Sent1(_) => {}
            Event::Acked1(number) => {
                self.acked1.insert(number);
            }
            Event::Sent2(id, number) => {
                self.sent2.insert(number);
                self.published2.insert(id, number);
            }
            Event::Rec2(id) => {
                if let Some(number) = self.published2.remove(&id) {
                    self.released2.insert(id, number);
                }
            }
            Event::Comp2(id) => self.done2.extend(self.released2.remove(&id)),
            Event::Took1(number) => {
                self.took1.insert(number);
            }
            Event::Got2(id, number) => {
                self.open2.insert(id, number);
            }
            Event::Used2(id) => self.used2.extend(self.open2.remove(&id)),
            Event::Kept(slot, version) => self.kept.entry(slot).or_default().0 = version,
            Event::KeptAcked(slot, version) => self.kept.entry(slot).or_default().1 = version,
            Event::Made(number) => {
                self.made.insert(number);
            }
            Event::Leaving(number) => {
                self.made.remove(&number);
            }
            Event::Gone(qos, number) => {
                self.gone.insert((qos, number));
            }
        }
    }
}

/// Small and repeatable.
#[derive(Debug, Clone)]
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }
}

#[test]
fn a_state_is_what_was_known_by_then() {
    let position = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let clock = position.clone();
    let ledger = Ledger::new(move || clock.load(std::sync::atomic::Ordering::SeqCst));
    let events = [
        Event::Sent2(1, 7),
        Event::Rec2(1),
        Event::Got2(9, 7),
        Event::Comp2(1),
        Event::Used2(9),
        Event::Sent2(1, 8),
    ];
    for event in events {
        position.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        ledger.note(event);
    }
    assert_eq!(ledger.at(1).published2, BTreeMap::from([(1, 7)]));
    assert_eq!(ledger.at(2).released2, BTreeMap::from([(1, 7)]));
    assert_eq!(ledger.at(3).open2, BTreeMap::from([(9, 7)]));
    let last = ledger.now();
    assert_eq!((last.done2.len(), &last.used2[..]), (1, &[7][..]));
    assert_eq!(last.published2, BTreeMap::from([(1, 8)]));
}
