//! An MQTT server on loopback in thirty lines: `cargo run -p holdfast-broker --example server`.
//!
//! Everybody may do everything here: these rights are the example's own, the library has none.
//! Arguments: the address (default `127.0.0.1:1883`) and the journal's file (default: a new one).

use std::sync::Arc;

use holdfast_broker::{
    Broker, Config, Connect, Door, Identity, JournalMedium, Peer, Refusal, Rights,
};
use tokio_util::sync::CancellationToken;

struct AllowAll;

impl Rights for AllowAll {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        let subject = connect.user_name.unwrap_or("anonymous").into();
        let client_id = connect.client_id.into();
        // Defence in depth: even a wrong address argument serves nobody from elsewhere.
        if peer.address.ip().is_loopback() {
            Ok(Identity { client_id, subject })
        } else {
            Err(Refusal::NotAuthorized)
        }
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
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:1883".into());
    let folder = tempfile::tempdir()?;
    let file = arguments
        .next()
        .map_or(folder.path().join("journal.redb"), Into::into);
    let broker = Broker::open(
        Config::default(),
        JournalMedium::File(file),
        Arc::new(AllowAll),
    )?;
    let listener = tokio::net::TcpListener::bind(address).await?;
    println!("listening on {}", listener.local_addr()?);
    let cancel = CancellationToken::new();
    let stop = cancel.clone();
    let served = tokio::spawn(async move { broker.serve(listener, Door::Plain, stop).await });
    tokio::signal::ctrl_c().await?;
    cancel.cancel();
    Ok(served.await??)
}
