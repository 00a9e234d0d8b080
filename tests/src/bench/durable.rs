//! Durable QoS 1: 20 publishers, 100 messages unacknowledged each, every acknowledgement after its commit.
//!
//! Ours with a bridge rule that takes all and acknowledges, so that rows are deleted as they come: the run is over when
//! all is acknowledged and no row is left. Mosquitto keeps the messages in memory for a session that is away, which is
//! less work. Beside ours and theirs a subscriber reads slowly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::figures::{Row, Target};
use super::load::{self, Load, Outcome, Until};
use super::packet::{self, Stride};
use super::server::{Server, Setup, Whose};
use super::socket::Connection;
use super::{Bench, Progress, disk};

const PUBLISHERS: usize = 20;
const WINDOW: u64 = 100;
const BURST: usize = 20;
/// Messages a second that the slow subscriber takes.
const SLOW: u32 = 1000;
/// How often it takes some.
const SLOW_BEAT: Duration = Duration::from_millis(20);
/// What a record holds beside topic and payload in the yardstick.
const RECORD_HEAD: usize = 16;
/// Pause between two looks at what is left in the journal.
const LOOK: Duration = Duration::from_millis(2);

fn load(name: &str, messages: u64) -> Load {
    Load {
        name: name.to_owned(),
        publishers: PUBLISHERS,
        subscribers: 0,
        pairs: false,
        qos: 1,
        durable: false,
        burst: BURST,
        window: WINDOW,
        under_way: 0,
        pace: None,
        until: Until::Messages(messages),
    }
}

/// All rows of durable publishing.
///
/// # Errors
/// A server fails or loses a message.
pub fn rows(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let mut memory = Row::new(
        "durable_memory",
        "durable QoS 1 with deletes, against memory only, messages/s",
        Target::RatioAtLeast(4.0),
    );
    let mut offline = Row::new(
        "durable_offline",
        "durable QoS 1, a session away, against memory only, messages/s",
        Target::RatioAtLeast(4.0),
    );
    let mut append = Row::new(
        "durable_append",
        "the first, against preallocated append + fdatasync, records/s",
        Target::RatioAtLeast(0.25),
    );
    let mut saved = Row::new(
        "durable_autosave",
        "the first, against autosave on every change (1 publisher), messages/s",
        Target::RatioAtLeast(500.0),
    );
    let mut p99 = Row::new(
        "durable_ack_p99",
        "acknowledgement p99 with a slow subscriber beside, ms",
        Target::AtMost(50.0),
    );
    for round in 0..bench.rounds {
        let bridged = with_deletes(bench)?;
        let their = away(bench, Whose::Theirs, bench.durable_theirs())?;
        progress.say(round, "durable_memory", bridged.rate, their.rate());
        let ours_away = away(bench, Whose::Ours, bench.durable_ours())?.rate();
        progress.say(round, "durable_offline", ours_away, their.rate());
        let size = RECORD_HEAD + "durable/000/data".len() + packet::PAYLOAD;
        let yard = disk::append(&bench.site.folder, bridged.messages, size, bridged.batch)?;
        let how = format!(
            "{} messages a commit, {:.2} us of CPU a message (theirs {:.2})",
            bridged.batch,
            bridged.cpu,
            their.cpu_per_message()
        );
        progress.note("durable_memory", &how);
        progress.say(round, "durable_append", bridged.rate, yard);
        let slow = autosave(bench)?.rate();
        progress.say(round, "durable_autosave", bridged.rate, slow);
        let ours_p99 = beside_a_slow_one(bench, Whose::Ours)?;
        let their_p99 = beside_a_slow_one(bench, Whose::Theirs)?;
        progress.say(round, "durable_ack_p99", ours_p99, their_p99);
        memory.ours.push(bridged.rate);
        memory.theirs.push(their.rate());
        offline.ours.push(ours_away);
        offline.theirs.push(their.rate());
        append.ours.push(bridged.rate);
        append.theirs.push(yard);
        saved.ours.push(bridged.rate);
        saved.theirs.push(slow);
        p99.ours.push(ours_p99);
        p99.theirs.push(their_p99);
    }
    Ok(vec![memory, offline, append, saved, p99])
}

struct Bridged {
    rate: f64,
    messages: usize,
    /// Messages a commit, deletes left out.
    batch: usize,
    /// CPU of the server, microseconds a message.
    cpu: f64,
}

fn with_deletes(bench: &Bench) -> anyhow::Result<Bridged> {
    let setup = Setup {
        bridge: Some("durable/#"),
        ..Setup::default()
    };
    let mut server = Server::start(&bench.site, Whose::Ours, setup)?;
    let before = server.figures()?.commits;
    let cpu = server.cpu();
    let load = load("durable", bench.durable_ours());
    let begun = Instant::now();
    let outcome = load::run(server.address, &load, &|| 0.0)?;
    let mut left = server.figures()?;
    while left.rows > 0 {
        std::thread::sleep(LOOK);
        left = server.figures()?;
    }
    let seconds = begun.elapsed().as_secs_f64();
    let commits = usize::try_from(left.commits - before)?.max(1);
    let messages = usize::try_from(outcome.messages)?;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let rate = messages as f64 / seconds;
    Ok(Bridged {
        rate,
        cpu: (server.cpu() - cpu) * 1e6 / (rate * seconds),
        messages,
        batch: messages.div_ceil(commits),
    })
}

/// With a session that subscribed and went.
fn away(bench: &Bench, whose: Whose, messages: u64) -> anyhow::Result<Outcome> {
    let server = Server::start(&bench.site, whose, Setup::default())?;
    absent(server.address)?;
    load::run(server.address, &load("durable", messages), &|| server.cpu())
}

/// The one setting of mosquitto that loses nothing when it is killed.
fn autosave(bench: &Bench) -> anyhow::Result<Outcome> {
    let setup = Setup {
        autosave: true,
        ..Setup::default()
    };
    let server = Server::start(&bench.site, Whose::Theirs, setup)?;
    absent(server.address)?;
    // One publisher, one message a write: with more, mosquitto acknowledges many messages before it saves, and a kill
    // between the two loses them.
    let mut load = load("durable", bench.durable_saved());
    (load.publishers, load.burst) = (1, 1);
    load::run(server.address, &load, &|| server.cpu())
}

fn absent(address: SocketAddr) -> anyhow::Result<()> {
    let (mut session, _) = Connection::open(address, "away", false)?;
    session.subscribe(&["durable/#".to_owned()], 1)?;
    session.leave();
    Ok(())
}

/// The publishers' p99 in milliseconds while somebody reads slowly.
fn beside_a_slow_one(bench: &Bench, whose: Whose) -> anyhow::Result<f64> {
    let setup = match whose {
        Whose::Ours => Setup {
            bridge: Some("durable/#"),
            ..Setup::default()
        },
        Whose::Theirs => Setup::default(),
    };
    let server = Server::start(&bench.site, whose, setup)?;
    if whose == Whose::Theirs {
        absent(server.address)?;
    }
    let slow = Slow::begin(server.address)?;
    let messages = match whose {
        Whose::Ours => bench.durable_ours(),
        Whose::Theirs => bench.durable_theirs(),
    };
    let outcome = load::run(server.address, &load("durable", messages), &|| 0.0)?;
    slow.end()?;
    Ok(outcome.acknowledged.percentile(0.99) * 1e3)
}

/// A subscriber that takes a bounded number of messages a second.
struct Slow {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Slow {
    fn begin(address: SocketAddr) -> anyhow::Result<Self> {
        let (mut connection, _) = Connection::open(address, "slow", true)?;
        connection.subscribe(&["durable/#".to_owned()], 1)?;
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = std::thread::spawn(move || read_slowly(connection, &seen));
        Ok(Self { stop, thread })
    }

    fn end(self) -> anyhow::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => anyhow::bail!("the slow subscriber failed"),
        }
    }
}

fn read_slowly(mut connection: Connection, stop: &AtomicBool) -> anyhow::Result<()> {
    connection.no_waiting()?;
    let topic = "durable/000/data".len();
    let each = packet::publish_bytes(topic, 1);
    let at_once = usize::try_from(SLOW / 50)?;
    let mut buffer = vec![0; each * at_once];
    let mut stride = Stride::new(each, packet::TYPE_PUBLISH);
    let mut acks = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        std::thread::sleep(SLOW_BEAT);
        let length = connection.read(&mut buffer)?;
        acks.clear();
        stride
            .feed(&buffer[..length], |publish| {
                packet::acknowledge(publish, topic, &mut acks);
            })
            .map_err(|stray| anyhow::anyhow!("{stray:?}"))?;
        connection.send(&acks)?;
    }
    connection.leave();
    Ok(())
}
