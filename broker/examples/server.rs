//! An MQTT server on loopback in thirty lines: `cargo run -p holdfast-broker --example server`.
//!
//! One thread serves all, in the order things arrive. Everybody may do everything here, from this
//! machine: these rights are the example's own, the library has none. `test/nosubscribe` alone may not be
//! subscribed to, to show what a refusal looks like.
//! Arguments: the address (default `127.0.0.1:1883`) and the journal's file (default: a new one).

use std::sync::Arc;

use holdfast_broker::{
    Broker, Config, Connect, Door, Identity, JournalMedium, Peer, Refusal, Rights,
};

struct AllowAll;

impl Rights for AllowAll {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        let subject = connect.user_name.unwrap_or("anonymous").into();
        let client_id = connect.client_id.into();
        // Defence in depth: even a wrong address argument serves nobody from elsewhere.
        let here = peer.address.ip().is_loopback();
        here.then_some(Identity { client_id, subject })
            .ok_or(Refusal::NotAuthorized)
    }
    fn may_publish(&self, _: &Identity, _: &str) -> bool {
        true
    }
    fn may_subscribe(&self, _: &Identity, filter: &str) -> bool {
        filter != "test/nosubscribe"
    }
    fn may_receive(&self, _: &Identity, _: &str) -> bool {
        true
    }
    fn may_see_figures(&self, _: &Identity) -> bool {
        true
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or("127.0.0.1:1883".into());
    let new = tempfile::tempdir()?;
    let journal = arguments
        .next()
        .map_or(new.path().join("journal.redb"), Into::into);
    let config = Config {
        keep_alive_max: 60,
        tell_refused_subscriptions: false,
        ..Config::default()
    };
    let broker = Broker::open(config, JournalMedium::File(journal), Arc::new(AllowAll))?;
    let listener = tokio::net::TcpListener::bind(&address).await;
    let listener = listener.map_err(|error| format!("cannot listen on {address}: {error}"))?;
    println!("listening on {}", listener.local_addr()?);
    let cancel = tokio_util::sync::CancellationToken::new();
    let stop = cancel.clone();
    let served = tokio::spawn(async move { broker.serve(listener, Door::Plain, stop).await });
    tokio::signal::ctrl_c().await?;
    cancel.cancel();
    Ok(served.await??)
}
