//! Quick rates of the broker on loopback: `cargo run --release -p holdfast-broker --example rates`.
//!
//! Generator and server share the process and the cores; figures say how two builds differ, not what
//! a server can do. QoS 1, 256-byte payloads, 20 publishers, 100 unacknowledged each. "durable" has an
//! offline persistent session on the topics, so that every acknowledgement waits for a commit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_broker::{
    Broker, Config, Connect, Door, Identity, JournalMedium, Peer, Refusal, Rights,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

struct AllowAll;

impl Rights for AllowAll {
    fn identify(&self, _: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        Ok(Identity {
            client_id: connect.client_id.into(),
            subject: "bench".into(),
        })
    }
    fn may_publish(&self, _: &Identity, _: &str) -> bool {
        true
    }
    fn may_subscribe(&self, _: &Identity, _: &str) -> bool {
        true
    }
    fn may_receive(&self, _: &Identity, _: &str) -> bool {
        true
    }
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

const PUBLISHERS: u32 = 20;
const WINDOW: u32 = 100;
const MESSAGES: u32 = 20_000;
const STEP: u32 = 20;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let folder = tempfile::tempdir()?;
    let mut config = Config::default();
    config.limits.session_rows = 10_000_000;
    config.limits.session_row_bytes = 1 << 40;
    config.limits.journal_bytes = 1 << 40;
    let medium = JournalMedium::File(folder.path().join("journal.redb"));
    let broker = Broker::open(config, medium, Arc::new(AllowAll))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let (serving, cancel) = (broker.clone(), CancellationToken::new());
    let stop = cancel.clone();
    let served = tokio::spawn(async move { serving.serve(listener, Door::Plain, stop).await });
    report(
        "QoS 1, nobody durable",
        run(&address, "live").await?,
        &broker,
    );
    let mut offline = hello(&address, "offline", false).await?;
    subscribe(&mut offline, "kept/#").await?;
    drop(offline);
    report("QoS 1, durable", run(&address, "kept").await?, &broker);
    cancel.cancel();
    Ok(served.await??)
}

fn report(what: &str, took: Duration, broker: &Broker) {
    let all = f64::from(PUBLISHERS * MESSAGES);
    let figures = broker.metrics();
    println!(
        "{what}: {:.0} acknowledged messages/s; {} rows kept, {} commits",
        all / took.as_secs_f64(),
        figures.journal_rows,
        figures.commits
    );
}

async fn run(address: &str, root: &str) -> Result<Duration, Failure> {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..PUBLISHERS {
        tasks.spawn(publish(address.to_owned(), format!("{root}/{number}")));
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(start.elapsed())
}

/// MQTT 3.1.1 by hand: the generator should cost little.
async fn hello(address: &str, id: &str, clean: bool) -> Result<TcpStream, Failure> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let length = u8::try_from(12 + id.len())?;
    let mut packet = vec![0x10, length, 0, 4];
    packet.extend(b"MQTT");
    packet.extend([4, u8::from(clean) << 1, 0, 0, 0, u8::try_from(id.len())?]);
    packet.extend(id.as_bytes());
    stream.write_all(&packet).await?;
    stream.read_exact(&mut [0; 4]).await?;
    Ok(stream)
}

async fn subscribe(stream: &mut TcpStream, filter: &str) -> Result<(), Failure> {
    let mut packet = vec![
        0x82,
        u8::try_from(5 + filter.len())?,
        0,
        1,
        0,
        u8::try_from(filter.len())?,
    ];
    packet.extend(filter.as_bytes());
    packet.push(1);
    stream.write_all(&packet).await?;
    stream.read_exact(&mut [0; 5]).await?;
    Ok(())
}

async fn publish(address: String, topic: String) -> Result<(), Failure> {
    let mut stream = hello(&address, &topic, true).await?;
    let (mut sent, mut acknowledged) = (0u32, 0u32);
    let mut acks = vec![0; 4096];
    let mut partial = 0;
    while acknowledged < MESSAGES {
        while sent < MESSAGES && sent - acknowledged + STEP <= WINDOW {
            let mut bytes = Vec::new();
            for _ in 0..STEP {
                sent += 1;
                let body = 2 + topic.len() + 2 + 256;
                bytes.push(0x32);
                bytes.push(u8::try_from(body % 128)? | 0x80);
                bytes.push(u8::try_from(body / 128)?);
                bytes.extend([0, u8::try_from(topic.len())?]);
                bytes.extend(topic.as_bytes());
                bytes.extend(u16::try_from(sent % 65_000 + 1)?.to_be_bytes());
                bytes.extend([b'x'; 256]);
            }
            stream.write_all(&bytes).await?;
        }
        let read = stream.read(&mut acks).await?;
        if read == 0 {
            return Err("the server closed".into());
        }
        partial += read;
        acknowledged += u32::try_from(partial / 4)?;
        partial %= 4;
    }
    Ok(())
}
