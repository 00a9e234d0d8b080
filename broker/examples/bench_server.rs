//! The server that `make bench` measures: the library with a journal on a real disk and quotas that no run meets.
//!
//! `bench_server JOURNAL [--bridge FILTER] [--tls CA CERT KEY]`: listens on a free port of 127.0.0.1, prints it, and
//! answers each line on its standard input with its figures. Ends with its standard input. A bridge rule takes every
//! message of its filter as a gateway's does: reads in order, acknowledges, so that the rows are deleted.

use std::sync::Arc;

use holdfast_broker::{
    Broker, Config, Connect, Consumer, ConsumerOptions, Door, Figures, Filter, FixedTls, Identity,
    JournalMedium, Peer, Refusal, Rights, RowId,
};
use rustls::RootCertStore;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Rows that the bridge rule reads at most at once.
const ROWS: usize = 1000;
/// Readings that may wait to be acknowledged.
const UNACKNOWLEDGED: usize = 16;

type Failure = Box<dyn std::error::Error + Send + Sync>;

struct AllowAll {
    everybody: Arc<str>,
}

impl Rights for AllowAll {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        if !peer.address.ip().is_loopback() {
            return Err(Refusal::NotAuthorized);
        }
        Ok(Identity {
            client_id: connect.client_id.into(),
            subject: Arc::clone(&self.everybody),
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

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let journal = arguments.next().ok_or("say where the journal lies")?;
    let (mut bridge, mut door) = (None, Door::Plain);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("a value is missing");
        match argument.as_str() {
            "--bridge" => bridge = Some(value()?),
            "--tls" => door = tls(&value()?, &value()?, &value()?)?,
            other => return Err(format!("what is {other}?").into()),
        }
    }
    let medium = JournalMedium::File(journal.into());
    let rights = AllowAll {
        everybody: "bench".into(),
    };
    let broker = Broker::open(roomy(), medium, Arc::new(rights))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("listening on {}", listener.local_addr()?);
    let cancel = CancellationToken::new();
    let (serving, stop) = (broker.clone(), cancel.clone());
    let served = tokio::spawn(async move { serving.serve(listener, door, stop).await });
    let taking = match bridge {
        Some(filter) => {
            let filter = Filter::new(&filter).map_err(|error| error.to_string())?;
            let consumer = broker.consumer("bridge", vec![filter], boundless());
            Some(tokio::spawn(take_all(consumer.await?)))
        }
        None => None,
    };
    let asked = std::thread::spawn(move || {
        for _ in std::io::stdin().lines() {
            tell(&broker.metrics());
        }
        cancel.cancel();
    });
    served.await??;
    asked
        .join()
        .map_err(|_| "the thread of the figures failed")?;
    if let Some(taking) = taking {
        taking.abort();
    }
    Ok(())
}

fn tell(figures: &Figures) {
    println!(
        "commits={} rows={} dropped={} sessions={}",
        figures.commits,
        figures.journal_rows,
        figures.dropped.values().sum::<u64>(),
        figures.sessions
    );
}

/// As mosquitto with `max_queued_messages 0`: nobody wins by dropping.
fn roomy() -> Config {
    let mut config = Config::default();
    config.limits.connections = 20_000;
    config.limits.session_rows = u64::MAX / 2;
    config.limits.session_row_bytes = u64::MAX / 2;
    config.limits.journal_bytes = u64::MAX / 2;
    config
}

fn boundless() -> ConsumerOptions {
    ConsumerOptions {
        max_rows: u64::MAX / 2,
        max_bytes: u64::MAX / 2,
        ..ConsumerOptions::default()
    }
}

/// Reads on while what was read is acknowledged: who waits for each commit falls behind two of them.
async fn take_all(consumer: Consumer) {
    let (taken, gone) = mpsc::channel(UNACKNOWLEDGED);
    let acknowledging = acknowledge_all(consumer.clone(), gone);
    tokio::join!(read_all(consumer, taken), acknowledging);
}

async fn read_all(consumer: Consumer, taken: mpsc::Sender<Vec<RowId>>) {
    let mut after = RowId::START;
    loop {
        consumer.ready(after).await;
        let Ok(rows) = consumer.read(after, ROWS).await else {
            continue;
        };
        let ids: Vec<RowId> = rows.iter().map(|row| row.id).collect();
        let Some(last) = ids.last() else { continue };
        after = *last;
        if taken.send(ids).await.is_err() {
            return;
        }
    }
}

async fn acknowledge_all(consumer: Consumer, mut gone: mpsc::Receiver<Vec<RowId>>) {
    let mut waiting = Vec::new();
    while gone.recv_many(&mut waiting, UNACKNOWLEDGED).await > 0 {
        let ids = std::mem::take(&mut waiting).concat();
        if let Err(error) = consumer.acknowledge(&ids).await {
            eprintln!("bridge: {error}");
        }
    }
}

/// Mutual TLS as a gateway has it: client certificates asked for, no session tickets.
fn tls(anchors: &str, chain: &str, key: &str) -> Result<Door, Failure> {
    let mut roots = RootCertStore::empty();
    for anchor in CertificateDer::pem_file_iter(anchors)? {
        roots.add(anchor?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()?;
    let chain = CertificateDer::pem_file_iter(chain)?.collect::<Result<Vec<_>, _>>()?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Door::Tls(Arc::new(FixedTls(Arc::new(config)))))
}
