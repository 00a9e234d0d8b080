//! Connecting: full mutual-TLS connects, 32 at a time, and the memory of sessions that only sit there.
//!
//! Called by the program. Fresh servers for each figure: memory that was once used does not come back.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::figures::{Row, Target};
use super::server::{Server, Setup, Site, Whose};
use super::socket::Connection;
use super::tls::{Crowd, Papers};
use super::{Bench, Progress};

/// A server that has just answered the last SUBSCRIBE is still tidying up.
const SETTLE: Duration = Duration::from_secs(1);

/// TLS: rate, CPU, memory.
///
/// # Errors
/// A server fails or refuses.
pub fn tls(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let folder = tempfile::tempdir()?;
    let papers = Papers::make(folder.path())?;
    let mut rate = Row::new(
        "tls_connects",
        "mutual-TLS connects/s, P-256, 32 at a time",
        Target::RatioAtLeast(2.5),
    );
    let mut cpu = Row::new(
        "tls_connect_cpu",
        "server CPU per mutual-TLS connect, ms",
        Target::RatioAtMost(0.35),
    );
    let mut memory = Row::new(
        "memory_tls_8000",
        "resident with 8,000 idle mutual-TLS sessions, KiB",
        Target::RatioAtMost(0.65),
    );
    for round in 0..bench.rounds {
        let ours = idle_tls(&bench.site, Whose::Ours, &papers, bench.tls_sessions())?;
        let theirs = idle_tls(&bench.site, Whose::Theirs, &papers, bench.tls_sessions())?;
        progress.say(round, "tls_connects", ours.rate, theirs.rate);
        progress.say(round, "tls_connect_cpu", ours.cpu, theirs.cpu);
        progress.say(round, "memory_tls_8000", ours.resident, theirs.resident);
        rate.ours.push(ours.rate);
        rate.theirs.push(theirs.rate);
        cpu.ours.push(ours.cpu);
        cpu.theirs.push(theirs.cpu);
        memory.ours.push(ours.resident);
        memory.theirs.push(theirs.resident);
    }
    Ok(vec![rate, cpu, memory])
}

struct Idle {
    rate: f64,
    cpu: f64,
    resident: f64,
}

#[expect(clippy::cast_precision_loss, reason = "some thousands")]
fn idle_tls(site: &Site, whose: Whose, papers: &Papers, count: usize) -> anyhow::Result<Idle> {
    let setup = Setup {
        papers: Some(papers),
        ..Setup::default()
    };
    let server = Server::start(site, whose, setup)?;
    let before = server.cpu();
    let crowd = Crowd::connect(server.address, papers, count)?;
    std::thread::sleep(SETTLE);
    let all = crowd.len() as f64;
    Ok(Idle {
        rate: all / crowd.seconds,
        cpu: (server.cpu() - before) * 1e3 / all,
        resident: server.resident(),
    })
}

/// Memory of idle plain sessions.
///
/// # Errors
/// A server fails or refuses.
pub fn plain(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let mut row = Row::new(
        "memory_plain_5000",
        "resident with 5,000 idle plain sessions, KiB",
        Target::RatioAtMost(1.0),
    );
    for round in 0..bench.rounds {
        let resident = |whose| -> anyhow::Result<f64> {
            let server = Server::start(&bench.site, whose, Setup::default())?;
            let _sitting = sit(server.address, 0..bench.plain_sessions())?;
            std::thread::sleep(SETTLE);
            Ok(server.resident())
        };
        let (ours, theirs) = (resident(Whose::Ours)?, resident(Whose::Theirs)?);
        progress.say(round, row.name, ours, theirs);
        row.ours.push(ours);
        row.theirs.push(theirs);
    }
    Ok(vec![row])
}

/// Connects one client after the other, each with one subscription of its own.
fn sit(address: SocketAddr, numbers: std::ops::Range<usize>) -> anyhow::Result<Vec<Connection>> {
    numbers
        .map(|number| {
            let id = format!("idle-{number:05}");
            let (mut connection, _) = Connection::open(address, &id, true)?;
            connection.subscribe(&[format!("idle/{number:05}/#")], 0)?;
            Ok(connection)
        })
        .collect()
}

/// Growth with the number of sessions: what one more costs when there are few and when there are many. Ours alone.
///
/// # Errors
/// Our server fails or refuses.
#[expect(clippy::cast_precision_loss, reason = "some thousands")]
pub fn growth(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let mut cpu = Row::new(
        "growth_connect_cpu",
        "CPU of one more connect, us: near 10,000 sessions against near 100",
        Target::RatioAtMost(1.25),
    );
    let mut memory = Row::new(
        "growth_session_memory",
        "memory of one more session, KiB: near 10,000 sessions against near 100",
        Target::RatioAtMost(1.25),
    );
    let (few, many, step) = bench.session_growth();
    for round in 0..bench.rounds {
        let server = Server::start(&bench.site, Whose::Ours, Setup::default())?;
        let mut all = sit(server.address, 0..few)?;
        let mut cost = |from: usize, to: usize| -> anyhow::Result<(f64, f64)> {
            let before = (server.cpu(), server.resident());
            all.extend(sit(server.address, from..to)?);
            let each = (to - from) as f64;
            Ok((
                (server.cpu() - before.0) * 1e6 / each,
                (server.resident() - before.1) / each,
            ))
        };
        let first = cost(few, few + step)?;
        cost(few + step, many - step)?;
        let last = cost(many - step, many)?;
        progress.say(round, "growth_connect_cpu", last.0, first.0);
        progress.say(round, "growth_session_memory", last.1, first.1);
        cpu.ours.push(last.0);
        cpu.theirs.push(first.0);
        memory.ours.push(last.1);
        memory.theirs.push(first.1);
    }
    Ok(vec![cpu, memory])
}

/// How long a restarted server takes to listen with a full journal.
pub(super) fn restart(
    site: &Site,
    journal: &std::path::Path,
    rows: u64,
) -> anyhow::Result<(Server, f64)> {
    let begun = Instant::now();
    let mut server = Server::ours(site, journal, Setup::default())?;
    // Listening is answering: a client is let in.
    let (probe, _) = Connection::open(server.address, "probe", true)?;
    let millis = begun.elapsed().as_secs_f64() * 1e3;
    probe.leave();
    let held = server.figures()?.rows;
    if held != rows {
        anyhow::bail!("{held} of {rows} messages are there after the restart");
    }
    Ok((server, millis))
}
