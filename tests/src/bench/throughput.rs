//! Throughput, CPU, latency, and the memory that is left afterwards.
//!
//! Called by the program. Rounds: in each, every load runs against ours and against theirs in turn.

use std::time::Duration;

use super::figures::{Row, Target};
use super::load::{self, Load, Outcome, Until};
use super::server::{Server, Setup, Whose};
use super::{Bench, Progress};

/// Messages in one write, as a busy sender's kernel would gather them.
const BURST: usize = 20;
/// Messages a publisher may have unacknowledged.
const WINDOW: u64 = 100;
/// Messages on their way to one subscriber.
const UNDER_WAY: u64 = 1000;
/// How long after the runs their memory is looked at.
const SETTLE: Duration = Duration::from_secs(30);

/// A load with a name of its own.
fn load(name: &str, shape: (usize, usize), qos: u8, until: Until) -> Load {
    Load {
        name: name.to_owned(),
        publishers: shape.0,
        subscribers: shape.1,
        pairs: false,
        qos,
        durable: false,
        burst: BURST,
        window: WINDOW,
        under_way: UNDER_WAY,
        pace: None,
        until,
    }
}

/// Runs one load on one of the two; progress says how it went.
fn measure(server: &Server, load: &Load) -> anyhow::Result<Outcome> {
    load::run(server.address, load, &|| server.cpu())
}

/// The six rates, then what the servers keep of memory.
///
/// # Errors
/// A server fails or loses a message.
pub fn rates(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let shapes = [
        ("qos0_1_1", "QoS 0, 1 to 1, messages/s", (1, 1), 0, 5.0),
        ("qos0_50_1", "QoS 0, 50 to 1, messages/s", (50, 1), 0, 4.0),
        (
            "qos0_1_50",
            "QoS 0, 1 to 50, deliveries/s",
            (1, 50),
            0,
            20.0,
        ),
        ("qos1_1_1", "QoS 1, 1 to 1, messages/s", (1, 1), 1, 1.5),
        ("qos1_50_1", "QoS 1, 50 to 1, messages/s", (50, 1), 1, 2.0),
        ("qos1_1_50", "QoS 1, 1 to 50, deliveries/s", (1, 50), 1, 6.0),
    ];
    let mut rows: Vec<Row> = shapes
        .iter()
        .map(|(name, what, _, _, least)| Row::new(name, what, Target::RatioAtLeast(*least)))
        .collect();
    let mut memory = Row::new(
        "memory_after",
        "resident 30 s after the rates above, KiB",
        Target::RatioAtMost(1.0),
    );
    for round in 0..bench.rounds {
        let ours = Server::start(&bench.site, Whose::Ours, Setup::default())?;
        let theirs = Server::start(&bench.site, Whose::Theirs, Setup::default())?;
        for (row, (name, _, shape, qos, _)) in rows.iter_mut().zip(shapes) {
            let load = load(name, shape, qos, bench.timed());
            let our = measure(&ours, &load)?.rate();
            let their = measure(&theirs, &load)?.rate();
            progress.say(round, name, our, their);
            row.ours.push(our);
            row.theirs.push(their);
        }
        progress.wait("memory_after", SETTLE);
        memory.ours.push(ours.resident());
        memory.theirs.push(theirs.resident());
    }
    rows.push(memory);
    Ok(rows)
}

/// CPU per message, 20 to 20 in pairs: as fast as the windows allow, and at 1,000 a second one packet a write.
///
/// # Errors
/// A server fails or loses a message.
pub fn cpu(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let kinds = [
        ("cpu_qos0", "QoS 0, 20 to 20, CPU us/message", 0, None, 0.25),
        ("cpu_qos1", "QoS 1, 20 to 20, CPU us/message", 1, None, 0.4),
        (
            "cpu_1000_qos0",
            "QoS 0 at 1,000/s, CPU us/message",
            0,
            Some(1000.0),
            1.1,
        ),
        (
            "cpu_1000_qos1",
            "QoS 1 at 1,000/s, CPU us/message",
            1,
            Some(1000.0),
            1.1,
        ),
    ];
    let mut rows: Vec<Row> = kinds
        .iter()
        .map(|(name, what, _, _, most)| Row::new(name, what, Target::RatioAtMost(*most)))
        .collect();
    let ours = Server::start(&bench.site, Whose::Ours, Setup::default())?;
    let theirs = Server::start(&bench.site, Whose::Theirs, Setup::default())?;
    for round in 0..bench.rounds {
        for (row, (name, _, qos, pace, _)) in rows.iter_mut().zip(kinds) {
            let mut load = load(name, (20, 20), qos, bench.timed());
            load.pairs = true;
            load.under_way = WINDOW;
            load.pace = pace;
            if pace.is_some() {
                load.burst = 1;
                load.until = bench.paced();
            }
            for _ in 0..turns(&load) {
                let our = measure(&ours, &load)?.cpu_per_message();
                let their = measure(&theirs, &load)?.cpu_per_message();
                progress.say(round, name, our, their);
                row.ours.push(our);
                row.theirs.push(their);
            }
        }
    }
    Ok(rows)
}

/// Where a server's and the generator's threads come to lie decides half of a paced figure, and is thrown anew with each run:
/// so there are more and shorter ones, in turns.
fn turns(load: &Load) -> u32 {
    if load.pace.is_some() { 4 } else { 1 }
}

/// QoS 1 from publisher to subscriber at 300 messages a second.
///
/// # Errors
/// A server fails or loses a message.
pub fn latency(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let kinds = [
        ("latency_p50", "QoS 1 at 300/s, p50, us", false, 1.0),
        (
            "latency_durable_p50",
            "the same, persistent session, p50, us",
            true,
            3.0,
        ),
    ];
    let mut rows: Vec<Row> = kinds
        .iter()
        .map(|(name, what, _, most)| Row::new(name, what, Target::RatioAtMost(*most)))
        .collect();
    let ours = Server::start(&bench.site, Whose::Ours, Setup::default())?;
    let theirs = Server::start(&bench.site, Whose::Theirs, Setup::default())?;
    for round in 0..bench.rounds {
        for (row, (name, _, durable, _)) in rows.iter_mut().zip(kinds) {
            let mut load = load(name, (1, 1), 1, bench.paced());
            load.pairs = true;
            load.durable = durable;
            load.burst = 1;
            load.pace = Some(300.0);
            for _ in 0..turns(&load) {
                let our = measure(&ours, &load)?.arrival.percentile(0.5) * 1e6;
                let their = measure(&theirs, &load)?.arrival.percentile(0.5) * 1e6;
                progress.say(round, name, our, their);
                row.ours.push(our);
                row.theirs.push(their);
            }
        }
    }
    Ok(rows)
}
