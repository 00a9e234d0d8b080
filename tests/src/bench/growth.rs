//! Growth: what many subscriptions, many queued messages and many returning clients cost. Ours alone.
//!
//! Called by the program.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::connects::restart;
use super::figures::{Row, Target};
use super::load::{self, Load, Until};
use super::packet::{self, Burst, Stride};
use super::server::{Server, Setup, Whose};
use super::socket::{Connection, Poller};
use super::{Bench, Progress};
use crate::folder::Folder;

/// Connections that share the subscriptions.
const SHARERS: usize = 50;
/// Messages in one write; each on another topic.
const BURST: usize = 20;
/// Messages on their way.
const UNDER_WAY: u64 = 1000;
/// Where the number of the subscription, and that of a new topic, stand in the topic `grow/00000/up/00000000`.
const NUMBER_AT: usize = 5;
const NEW_AT: usize = 14;
const TOPIC: &str = "grow/00000/up/00000000";
/// A run in which nothing arrives for so long has lost a message.
const STALLED: Duration = Duration::from_secs(20);
/// Messages that wait for each returning client.
const WAITING: u64 = 10;
/// Returning clients behind one address: the door bounds what one address may have unfinished.
const BEHIND_ONE_ADDRESS: usize = 50;

/// Publishing among 10,000 subscriptions and among 100.
///
/// # Errors
/// Our server fails or loses a message.
pub fn subscriptions(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let mut known = Row::new(
        "growth_known_topics",
        "messages/s on known topics, 10,000 subscriptions against 100",
        Target::RatioAtLeast(0.8),
    );
    let mut fresh = Row::new(
        "growth_new_topics",
        "messages/s on topics never seen before, 10,000 subscriptions against 100",
        Target::RatioAtLeast(0.8),
    );
    let (few, many) = bench.subscription_growth();
    for round in 0..bench.rounds {
        for (row, is_new) in [(&mut known, false), (&mut fresh, true)] {
            let with = |filters| -> anyhow::Result<f64> {
                let server = Server::start(&bench.site, Whose::Ours, Setup::default())?;
                spread_out(server.address, filters, is_new, bench)
            };
            let (more, less) = (with(many)?, with(few)?);
            progress.say(round, row.name, more, less);
            row.ours.push(more);
            row.theirs.push(less);
        }
    }
    Ok(vec![known, fresh])
}

/// Messages a second over the topics of all filters in turn; each message has one receiver.
fn spread_out(
    address: SocketAddr,
    filters: usize,
    is_new: bool,
    bench: &Bench,
) -> anyhow::Result<f64> {
    let mut poller = Poller::new()?;
    let mut sharers = Vec::new();
    let each = filters.div_ceil(SHARERS);
    for sharer in 0..SHARERS {
        let (mut connection, _) = Connection::open(address, &format!("sharer-{sharer}"), true)?;
        let own: Vec<String> = (sharer * each..((sharer + 1) * each).min(filters))
            .map(|number| format!("grow/{number:05}/up/+"))
            .collect();
        connection.subscribe(&own, 0)?;
        poller.add(&connection, sharer)?;
        let stride = Stride::new(packet::publish_bytes(TOPIC.len(), 0), packet::TYPE_PUBLISH);
        sharers.push((connection, stride));
    }
    let (mut publisher, _) = Connection::open(address, "giver", true)?;
    poller.add(&publisher, SHARERS)?;
    let mut burst = Burst::new(&vec![TOPIC.to_owned(); BURST], 0);
    let (warm, measured) = match bench.timed() {
        Until::Time(warm, measured) => (warm, measured),
        Until::Messages(_) => bail!("measured by time"),
    };
    let began = Instant::now();
    let (mut sent, mut received, mut from) = (0u64, 0u64, None);
    let (mut ready, mut buffer) = (Vec::new(), vec![0; 256 << 10]);
    let mut last = Instant::now();
    loop {
        if from.is_none() && began.elapsed() >= warm {
            from = Some((Instant::now(), received));
        }
        if let Some((start, before)) = from
            && start.elapsed() >= measured
        {
            #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
            let messages = (received - before) as f64;
            return Ok(messages / start.elapsed().as_secs_f64());
        }
        while sent - received + BURST as u64 <= UNDER_WAY && !publisher.is_behind() {
            for index in 0..BURST {
                let number = sent + index as u64;
                let filter = format!("{:05}", number % filters as u64);
                burst.rename(index, NUMBER_AT, filter.as_bytes());
                if is_new {
                    burst.rename(index, NEW_AT, format!("{number:08}").as_bytes());
                }
            }
            publisher.send(burst.renew())?;
            sent += BURST as u64;
        }
        publisher.flush()?;
        poller.wait(Duration::from_millis(1), &mut ready)?;
        for number in &ready {
            let Some((connection, stride)) = sharers.get_mut(*number) else {
                continue;
            };
            let length = connection.read(&mut buffer)?;
            let found = stride.feed(&buffer[..length], |_| ());
            received += found.map_err(|stray| anyhow::anyhow!("{stray:?}"))? as u64;
            last = Instant::now();
        }
        if last.elapsed() > STALLED {
            bail!("{} of {sent} messages are lost", sent - received);
        }
    }
}

/// Kill -9 with a full queue, and the time until it listens again.
///
/// # Errors
/// Our server fails or loses a message.
pub fn restarts(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let mut row = Row::new(
        "restart_1000000",
        "kill -9 with 1,000,000 queued messages to listening again, ms",
        Target::AtMost(300.0),
    );
    let folder = Folder::new_in(&bench.site.folder, "bench-")?;
    let journal = folder.path().join("journal.redb");
    let mut server = Server::ours(&bench.site, &journal, Setup::default())?;
    let (mut session, _) = Connection::open(server.address, "away", false)?;
    session.subscribe(&["queue/#".to_owned()], 1)?;
    session.leave();
    let load = Load {
        name: "queue".to_owned(),
        publishers: 20,
        subscribers: 0,
        pairs: false,
        qos: 1,
        durable: false,
        burst: BURST,
        window: 100,
        under_way: 0,
        pace: None,
        until: Until::Messages(bench.queued()),
    };
    progress.note("restart_1000000", "filling the journal");
    load::run(server.address, &load, &|| 0.0)?;
    for round in 0..bench.rounds {
        server.kill()?;
        let (again, millis) = restart(&bench.site, &journal, bench.queued())?;
        server = again;
        progress.say(round, "restart_1000000", millis, f64::NAN);
        row.ours.push(millis);
    }
    Ok(vec![row])
}

/// All persistent sessions come back at once, each with messages waiting.
///
/// # Errors
/// Our server fails or loses a message.
pub fn reconnects(bench: &Bench, progress: &Progress) -> anyhow::Result<Vec<Row>> {
    let mut row = Row::new(
        "reconnect_2000",
        "2,000 persistent sessions with 10 messages each come back at once, s",
        Target::AtMost(60.0),
    );
    let runtime = tokio::runtime::Runtime::new()?;
    for round in 0..bench.rounds {
        let server = Server::start(&bench.site, Whose::Ours, Setup::default())?;
        let sessions = bench.returning();
        for number in 0..sessions {
            let id = format!("back-{number:05}");
            let (mut connection, _) = Connection::open(server.address, &id, false)?;
            connection.subscribe(&[topic_of(number)], 1)?;
            connection.leave();
        }
        runtime.block_on(fill(server.address, sessions))?;
        let begun = Instant::now();
        runtime.block_on(come_back(server.address, sessions))?;
        let seconds = begun.elapsed().as_secs_f64();
        progress.say(round, row.name, seconds, f64::NAN);
        row.ours.push(seconds);
    }
    Ok(vec![row])
}

fn topic_of(number: usize) -> String {
    format!("back/{number:05}/down")
}

async fn fill(address: SocketAddr, sessions: usize) -> anyhow::Result<()> {
    let mut stream = greeted(TcpStream::connect(address).await?, "giver", true).await?;
    for number in 0..sessions {
        let mut burst = Burst::new(&vec![topic_of(number); usize::try_from(WAITING)?], 1);
        stream.write_all(burst.renew()).await?;
        let mut acks = vec![0; packet::PUBACK * usize::try_from(WAITING)?];
        stream.read_exact(&mut acks).await?;
    }
    Ok(())
}

async fn greeted(mut stream: TcpStream, id: &str, clean: bool) -> anyhow::Result<TcpStream> {
    stream.write_all(&packet::connect(id, clean)).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.context("no CONNACK")?;
    if answer[0] != 0x20 || answer[3] != 0 || (answer[2] == 1) == clean {
        bail!("CONNECT refused or the session is gone: {answer:?}");
    }
    Ok(stream)
}

async fn come_back(address: SocketAddr, sessions: usize) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    for number in 0..sessions {
        tasks.spawn(served(address, number));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(())
}

/// One client, from its connect to its last waiting message.
async fn served(address: SocketAddr, number: usize) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    let home = u8::try_from(number / BEHIND_ONE_ADDRESS % 250)? + 1;
    socket.bind(SocketAddr::new(
        IpAddr::V4(Ipv4Addr::new(127, 0, 1, home)),
        0,
    ))?;
    let stream = socket.connect(address).await?;
    let mut stream = greeted(stream, &format!("back-{number:05}"), false).await?;
    let topic = topic_of(number).len();
    let mut publish = vec![0; packet::publish_bytes(topic, 1)];
    for _ in 0..WAITING {
        stream.read_exact(&mut publish).await?;
        let mut ack = Vec::new();
        packet::acknowledge(&publish, topic, &mut ack);
        stream.write_all(&ack).await?;
    }
    Ok(())
}
