//! The load: publishers, subscribers, windows, counts. One thread over non-blocking sockets.
//!
//! Closed loop: a publisher sends only while what is under way is within a window, so that neither broker can win by
//! dropping and every message sent must arrive. With a pace, messages go out by the clock instead.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::packet::{self, Burst, Stride};
use super::socket::{Connection, Poller};
use super::statistics::Durations;

/// Bytes read at once.
const READ: usize = 256 << 10;
/// A run without any arrival for so long has lost messages.
const STALLED: Duration = Duration::from_secs(20);
/// The longest wait for readiness.
const TICK: Duration = Duration::from_millis(20);

/// What to do.
#[derive(Debug, Clone)]
pub struct Load {
    /// Begins all topics and client ids of the run; all of one length in a comparison.
    pub name: String,
    /// How many publish.
    pub publishers: usize,
    /// How many subscribe.
    pub subscribers: usize,
    /// Publisher n to subscriber n alone, rather than all to all.
    pub pairs: bool,
    /// Of publishes and subscriptions.
    pub qos: u8,
    /// Whether subscribers' sessions are to outlive their connections.
    pub durable: bool,
    /// Messages in one write.
    pub burst: usize,
    /// Messages a publisher may have unacknowledged (QoS 1).
    pub window: u64,
    /// Messages that may be on their way to the slowest subscriber.
    pub under_way: u64,
    /// Messages a second, all publishers together; `None` = as fast as the windows allow.
    pub pace: Option<f64>,
    /// When to stop sending.
    pub until: Until,
}

/// When a run ends.
#[derive(Debug, Clone, Copy)]
pub enum Until {
    /// After so long, measured after a first part of that length that does not count.
    Time(Duration, Duration),
    /// After so many messages.
    Messages(u64),
}

/// What came of it.
#[derive(Debug)]
pub struct Outcome {
    /// Seconds that were measured.
    pub seconds: f64,
    /// Messages delivered in them; without subscribers, acknowledged.
    pub messages: u64,
    /// CPU seconds that the server used in them.
    pub cpu: f64,
    /// From the write of a message to its arrival at a subscriber (paced runs in pairs).
    pub arrival: Durations,
    /// From the write of a message to its acknowledgement (QoS 1).
    pub acknowledged: Durations,
}

impl Outcome {
    /// Messages a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        count(self.messages) / self.seconds
    }

    /// Server CPU in microseconds per message.
    #[must_use]
    pub fn cpu_per_message(&self) -> f64 {
        self.cpu * 1e6 / count(self.messages)
    }
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
fn count(messages: u64) -> f64 {
    messages as f64
}

/// Runs a load against a server; `cpu` tells the server's CPU seconds so far.
///
/// # Errors
/// The server refuses, closes, loses a message, or sends what it should not.
pub fn run(address: SocketAddr, load: &Load, cpu: &dyn Fn() -> f64) -> anyhow::Result<Outcome> {
    Run::set_up(address, load, cpu)?.go()
}

struct Publisher {
    connection: Connection,
    watched: bool,
    burst: Burst,
    acks: Stride,
    next_ack: u16,
    sent: u64,
    acknowledged: u64,
    /// When what was sent, and how many of it have no acknowledgement yet.
    waiting: VecDeque<(Instant, u64)>,
}

struct Subscriber {
    connection: Connection,
    watched: bool,
    arrivals: Stride,
    received: u64,
    /// When what is on its way to it was sent (paced runs in pairs).
    on_its_way: VecDeque<Instant>,
}

struct Run<'a> {
    load: &'a Load,
    cpu: &'a dyn Fn() -> f64,
    topic: usize,
    publishers: Vec<Publisher>,
    subscribers: Vec<Subscriber>,
    poller: Poller,
    buffer: Vec<u8>,
    acks: Vec<u8>,
    turn: usize,
    sent: u64,
    measuring: bool,
    arrival: Durations,
    acknowledged: Durations,
}

impl<'a> Run<'a> {
    fn set_up(
        address: SocketAddr,
        load: &'a Load,
        cpu: &'a dyn Fn() -> f64,
    ) -> anyhow::Result<Self> {
        let poller = Poller::new()?;
        let topic_of = |n: usize| format!("{}/{n:03}/data", load.name);
        let topic = topic_of(0).len();
        let mut subscribers = Vec::new();
        for n in 0..load.subscribers {
            let id = format!("{}-sub-{n:03}", load.name);
            let (mut connection, _) = Connection::open(address, &id, !load.durable)?;
            let filter = if load.pairs {
                topic_of(n)
            } else {
                format!("{}/#", load.name)
            };
            connection.subscribe(&[filter], load.qos)?;
            poller.add(&connection, load.publishers + n)?;
            subscribers.push(Subscriber {
                connection,
                watched: false,
                arrivals: Stride::new(packet::publish_bytes(topic, load.qos), packet::TYPE_PUBLISH),
                received: 0,
                on_its_way: VecDeque::new(),
            });
        }
        let mut publishers = Vec::new();
        for n in 0..load.publishers {
            let id = format!("{}-pub-{n:03}", load.name);
            let (connection, _) = Connection::open(address, &id, true)?;
            poller.add(&connection, n)?;
            publishers.push(Publisher {
                connection,
                watched: false,
                burst: Burst::new(&vec![topic_of(n); load.burst], load.qos),
                acks: Stride::new(packet::PUBACK, packet::TYPE_PUBACK),
                next_ack: 1,
                sent: 0,
                acknowledged: 0,
                waiting: VecDeque::new(),
            });
        }
        Ok(Self {
            load,
            cpu,
            topic,
            publishers,
            subscribers,
            poller,
            buffer: vec![0; READ],
            acks: Vec::new(),
            turn: 0,
            sent: 0,
            measuring: false,
            arrival: Durations::default(),
            acknowledged: Durations::default(),
        })
    }

    fn go(mut self) -> anyhow::Result<Outcome> {
        let began = Instant::now();
        let (warm, end) = match self.load.until {
            Until::Time(warm, measured) => (began + warm, Some(began + warm + measured)),
            Until::Messages(_) => (began, None),
        };
        let mut from = None;
        let mut result = None;
        let mut ready = Vec::new();
        let (mut seen, mut last) = (0, Instant::now());
        loop {
            let now = Instant::now();
            if from.is_none() && now >= warm {
                self.measuring = true;
                from = Some((now, self.done(), (self.cpu)()));
            }
            if let Some((start, before, cpu)) = from
                && result.is_none()
                && self.is_over(end, now)
            {
                self.measuring = false;
                let seconds = (now - start).as_secs_f64();
                result = Some((seconds, self.done() - before, (self.cpu)() - cpu));
            }
            if let Some((seconds, messages, cpu)) = result
                && self.nothing_under_way()
            {
                return self.finish(seconds, messages, cpu);
            }
            let patience = if result.is_none() {
                self.produce(began)?
            } else {
                TICK
            };
            self.poller.wait(patience, &mut ready)?;
            for number in &ready {
                self.serve(*number)?;
            }
            if self.done() > seen || self.load.pace.is_some() && result.is_none() {
                (seen, last) = (self.done(), Instant::now());
            } else if last.elapsed() > STALLED {
                bail!("nothing arrives any more: {}", self.missing());
            }
        }
    }

    fn is_over(&self, end: Option<Instant>, now: Instant) -> bool {
        match (end, self.load.until) {
            (Some(end), _) => now >= end,
            (None, Until::Messages(all)) => self.sent >= all && self.nothing_under_way(),
            (None, Until::Time(..)) => true,
        }
    }

    fn finish(self, seconds: f64, messages: u64, cpu: f64) -> anyhow::Result<Outcome> {
        if self.done() != self.due() {
            bail!("more arrived than was sent: {}", self.missing());
        }
        let publishers = self.publishers.into_iter().map(|one| one.connection);
        let subscribers = self.subscribers.into_iter().map(|one| one.connection);
        publishers.chain(subscribers).for_each(Connection::leave);
        Ok(Outcome {
            seconds,
            messages,
            cpu,
            arrival: self.arrival,
            acknowledged: self.acknowledged,
        })
    }

    /// Copies delivered so far, or acknowledgements when nobody subscribes.
    fn done(&self) -> u64 {
        if self.subscribers.is_empty() {
            self.publishers.iter().map(|one| one.acknowledged).sum()
        } else {
            self.subscribers.iter().map(|one| one.received).sum()
        }
    }

    /// What [`Run::done`] must come to.
    fn due(&self) -> u64 {
        if self.load.pairs || self.subscribers.is_empty() {
            self.sent
        } else {
            self.sent * self.subscribers.len() as u64
        }
    }

    fn nothing_under_way(&self) -> bool {
        let answered = |one: &Publisher| self.load.qos == 0 || one.acknowledged == one.sent;
        self.done() >= self.due() && self.publishers.iter().all(answered)
    }

    fn missing(&self) -> String {
        let acknowledged: u64 = self.publishers.iter().map(|one| one.acknowledged).sum();
        format!(
            "{} sent, {acknowledged} acknowledged, {} of {} copies here",
            self.sent,
            self.done(),
            self.due()
        )
    }

    /// Sends what may be sent; gives how long may be waited for readiness.
    fn produce(&mut self, began: Instant) -> anyhow::Result<Duration> {
        if let Some(pace) = self.load.pace {
            return self.produce_by_clock(began, pace);
        }
        let all = match self.load.until {
            Until::Messages(all) => all,
            Until::Time(..) => u64::MAX,
        };
        let burst = self.load.burst as u64;
        let slowest = self.subscribers.iter().map(|one| one.received).min();
        for step in 0..self.publishers.len() {
            let index = (self.turn + step) % self.publishers.len();
            while self.sent + burst <= all && self.may_send(index, slowest) {
                self.send(index)?;
            }
        }
        self.turn = self.turn.wrapping_add(1) % self.publishers.len();
        Ok(TICK)
    }

    fn may_send(&self, index: usize, slowest: Option<u64>) -> bool {
        let burst = self.load.burst as u64;
        let publisher = &self.publishers[index];
        let answered = self.load.qos == 0
            || publisher.sent - publisher.acknowledged + burst <= self.load.window;
        let room = match slowest {
            None => true,
            Some(_) if self.load.pairs => {
                publisher.sent - self.subscribers[index].received + burst <= self.load.under_way
            }
            Some(slowest) => self.sent - slowest + burst <= self.load.under_way,
        };
        answered && room && !publisher.connection.is_behind()
    }

    fn produce_by_clock(&mut self, began: Instant, pace: f64) -> anyhow::Result<Duration> {
        loop {
            let due = Duration::from_secs_f64(count(self.sent) / pace);
            let wait = due.saturating_sub(began.elapsed());
            if !wait.is_zero() {
                return Ok(wait.min(TICK));
            }
            let index = self.turn;
            self.turn = (self.turn + 1) % self.publishers.len();
            self.send(index)?;
        }
    }

    fn send(&mut self, index: usize) -> anyhow::Result<()> {
        let burst = self.load.burst as u64;
        let now = Instant::now();
        if self.load.pace.is_some() && self.load.pairs {
            self.subscribers[index].on_its_way.push_back(now);
        }
        let publisher = &mut self.publishers[index];
        publisher.connection.send(publisher.burst.renew())?;
        publisher.sent += burst;
        self.sent += burst;
        if self.load.qos > 0 {
            publisher.waiting.push_back((now, burst));
        }
        self.watch(index)
    }

    /// Asks for writability exactly while something waits for it.
    fn watch(&mut self, number: usize) -> anyhow::Result<()> {
        let (connection, watched) = match number.checked_sub(self.publishers.len()) {
            None => {
                let one = &mut self.publishers[number];
                (&one.connection, &mut one.watched)
            }
            Some(index) => {
                let one = &mut self.subscribers[index];
                (&one.connection, &mut one.watched)
            }
        };
        if connection.is_behind() != *watched {
            *watched = connection.is_behind();
            self.poller.watch(connection, number, *watched)?;
        }
        Ok(())
    }

    fn serve(&mut self, number: usize) -> anyhow::Result<()> {
        match number.checked_sub(self.publishers.len()) {
            None => self.take_acks(number)?,
            Some(index) => self.take_arrivals(index)?,
        }
        self.watch(number)
    }

    fn take_acks(&mut self, index: usize) -> anyhow::Result<()> {
        let publisher = &mut self.publishers[index];
        publisher.connection.flush()?;
        let length = publisher.connection.read(&mut self.buffer)?;
        let mut in_order = true;
        let next = &mut publisher.next_ack;
        let found = publisher.acks.feed(&self.buffer[..length], |ack| {
            in_order &= ack[2..] == next.to_be_bytes();
            *next = next.checked_add(1).unwrap_or(1);
        });
        let mut found = found.map_err(stray)? as u64;
        if !in_order {
            bail!("acknowledgements came out of order");
        }
        publisher.acknowledged += found;
        let now = Instant::now();
        while found > 0 {
            let (sent, left) = publisher
                .waiting
                .front_mut()
                .context("an acknowledgement of nothing")?;
            let taken = found.min(*left);
            if self.measuring {
                self.acknowledged.add(now - *sent, taken);
            }
            found -= taken;
            *left -= taken;
            if *left == 0 {
                publisher.waiting.pop_front();
            }
        }
        Ok(())
    }

    fn take_arrivals(&mut self, index: usize) -> anyhow::Result<()> {
        let subscriber = &mut self.subscribers[index];
        subscriber.connection.flush()?;
        let length = subscriber.connection.read(&mut self.buffer)?;
        self.acks.clear();
        let (topic, acks, answers) = (self.topic, &mut self.acks, self.load.qos > 0);
        let found = subscriber.arrivals.feed(&self.buffer[..length], |publish| {
            if answers {
                packet::acknowledge(publish, topic, acks);
            }
        });
        let found = found.map_err(stray)?;
        subscriber.received += found as u64;
        let now = Instant::now();
        for sent in subscriber
            .on_its_way
            .drain(..found.min(subscriber.on_its_way.len()))
        {
            if self.measuring {
                self.arrival.add(now - sent, 1);
            }
        }
        if self.acks.is_empty() {
            return Ok(());
        }
        subscriber.connection.send(&self.acks)
    }
}

fn stray(packet::Stray(first): packet::Stray) -> anyhow::Error {
    anyhow::anyhow!("a packet of type {first:#04x} came where none should be")
}
