//! An MQTT server on loopback in thirty lines: `cargo run -p holdfast-broker --example server`.
//! Arguments: the address (default `127.0.0.1:1883`) and the journal's file (default: a new one).

use std::{error::Error, io::stderr, sync::Arc};

use holdfast_broker::{Broker, Config, Door, JournalMedium};
use tokio_util::sync::CancellationToken;

mod rights;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt().with_writer(stderr).init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:1883".into());
    let folder = tempfile::tempdir()?;
    let new = folder.path().join("journal.redb");
    let journal = JournalMedium::File(arguments.next().map_or(new, Into::into));
    let config = Config {
        keep_alive_max: 60,
        tell_refused_subscriptions: false,
        ..Config::default()
    };
    let broker = Broker::open(config, journal, Arc::new(rights::AllowAll))?;
    let listener = tokio::net::TcpListener::bind(&address).await;
    let listener = listener.map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("listening on {}", listener.local_addr()?);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    tokio::spawn(async move { tokio::signal::ctrl_c().await.map(|()| stop.cancel()) });
    Ok(broker.serve(listener, Door::Plain, cancel).await?)
}
