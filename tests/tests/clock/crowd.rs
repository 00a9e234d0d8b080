//! A hundred clients in one process, each with a certificate of the site's authority and a connection of its own, in a
//! ring: each sends to its neighbour all the time. They see every cut and every loss.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use holdfast_cps::http::ask;
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::mqtt::{Client, Ended, Inbox, Options, Outcome, Publish, Qos, connect};
use holdfast_link::time::ManualClock;
use holdfast_link::tls::{Anchors, Identity, IdentitySlot, Trust, client_config};
use holdfast_tests::world::{GATEWAY, SITE, World};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use zeroize::Zeroizing;

/// How many there are.
pub(crate) const CLIENTS: usize = 100;
/// Connecting at one time: all come from one address, which has a budget of handshakes.
const AT_ONCE: usize = 16;
/// How often each sends.
const BEAT: Duration = Duration::from_millis(250);
/// Shorter than a test: a broker that measured silence by the wall clock would cut them.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// For a message to come round.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who they are; survives a restart of the gateway.
pub(crate) struct Crowd(Vec<Options>);

/// Those that are connected.
pub(crate) struct Connected {
    members: Vec<Member>,
}

struct Member {
    client: Client,
    received: Arc<AtomicU64>,
    sends: JoinHandle<String>,
    _listens: JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.sends.abort();
    }
}

impl Crowd {
    pub(crate) async fn admitted(world: &World) -> Self {
        let mut all = Vec::with_capacity(CLIENTS);
        for n in 0..CLIENTS {
            let (own, next) = (topic(n), topic(n + 1));
            // As the command line does it, without a process for each.
            let name = format!("crowd-{n}");
            let wanted = json!({ "name": name, "publish": [next], "subscribe": [own] });
            let socket = world.gateway.state.join("admin.sock");
            let files = ask::post(&socket, "/v1/clients", &wanted).await.unwrap();
            let pem = |what: &str| files[what].as_str().unwrap().as_bytes().to_vec();
            all.push(options_of(world, &name, &pem));
        }
        Self(all)
    }

    /// Connects all of them, and waits until each has heard its neighbour.
    pub(crate) async fn connect(&self) -> Connected {
        let mut members = Vec::with_capacity(CLIENTS);
        let all: Vec<_> = self.0.iter().cloned().enumerate().collect();
        for some in all.chunks(AT_ONCE) {
            let joining = some.iter().cloned().map(|(n, options)| join(n, options));
            let joining: tokio::task::JoinSet<Member> = joining.collect();
            members.extend(joining.join_all().await);
        }
        let connected = Connected { members };
        connected.all_hear().await;
        connected
    }
}

impl Connected {
    /// Waits until each has heard from its neighbour since now.
    pub(crate) async fn all_hear(&self) {
        let count = |one: &Member| one.received.load(Ordering::Relaxed);
        let before: Vec<u64> = self.members.iter().map(count).collect();
        let end = Instant::now() + PATIENCE;
        let heard = || {
            self.members
                .iter()
                .zip(&before)
                .filter(|(one, n)| count(one) > **n)
        };
        while heard().count() < CLIENTS {
            assert!(
                Instant::now() < end,
                "{} of {CLIENTS} hear anything; cut: {:?}",
                heard().count(),
                self.cut()
            );
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// How the connections ended that did.
    pub(crate) fn cut(&self) -> Vec<Ended> {
        let ended = |one: &Member| one.client.has_ended();
        self.members.iter().filter_map(ended).collect()
    }

    /// Says goodbye for all of them.
    pub(crate) async fn gone(self) {
        for one in &self.members {
            one.client.disconnect().await;
        }
    }
}

fn topic(n: usize) -> String {
    format!("x/crowd/{}", n % CLIENTS)
}

async fn join(n: usize, options: Options) -> Member {
    let (client, inbox, _) = connect(options).await.unwrap();
    client
        .subscribe(&[(&topic(n), Qos::AtLeastOnce)])
        .await
        .unwrap();
    let received = Arc::<AtomicU64>::default();
    let listens = tokio::spawn(listen(inbox, Arc::clone(&received)));
    let sends = tokio::spawn(send(client.clone(), topic(n + 1)));
    Member {
        client,
        received,
        sends,
        _listens: listens,
    }
}

async fn listen(mut inbox: Inbox, received: Arc<AtomicU64>) {
    while let Some(message) = inbox.next().await {
        inbox.acknowledge(&message).await;
        received.fetch_add(1, Ordering::Relaxed);
    }
}

/// Sends until something is wrong; gives what.
async fn send(client: Client, topic: String) -> String {
    loop {
        let message = Publish {
            expiry: Some(Duration::from_secs(3600)),
            ..Publish::new(topic.clone(), "beat")
        };
        match client.publish_and_wait(message).await {
            Ok(Outcome::Acknowledged(code)) if code.is_success() => {}
            other => return format!("{other:?}"),
        }
        sleep(BEAT).await;
    }
}

/// How to connect to the gateway's broker by the certificate in that folder.
pub(crate) fn options(world: &World, name: &str, identity: &Path) -> Options {
    let pem = |what: &str| std::fs::read(identity.join(format!("{what}.pem"))).unwrap();
    options_of(world, name, &pem)
}

/// The same by what `pem` gives for `ca`, `cert` and `key`. The clients' own clock is right.
fn options_of(world: &World, name: &str, pem: &dyn Fn(&str) -> Vec<u8>) -> Options {
    let certificates = |what: &str| -> Vec<Vec<u8>> {
        let text = pem(what);
        let all = CertificateDer::pem_slice_iter(&text);
        all.map(|one| one.unwrap().to_vec()).collect()
    };
    let key = PrivateKeyDer::from_pem_slice(&pem("key")).unwrap();
    let key = Zeroizing::new(key.secret_der().to_vec());
    let identity = Identity::new(certificates("cert"), key).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let clock = Arc::new(ManualClock::at(now.unwrap().as_secs()));
    let trust = Trust::Anchors(Anchors::new(certificates("ca")).unwrap());
    let config = client_config(trust, Some(IdentitySlot::with(identity)), clock).unwrap();
    let endpoint = Endpoint {
        addresses: vec![world.gateway_doors.mqtt.to_string()],
        security: Security::Tls {
            name: format!("{GATEWAY}.gateways.{SITE}.holdfast.internal"),
            config,
        },
    };
    Options {
        clean_start: true,
        keep_alive: KEEP_ALIVE,
        // A hundred handshakes at once on a machine that does something else as well.
        connect_timeout: PATIENCE * 3,
        ping_timeout: PATIENCE,
        ..Options::new(endpoint, name)
    }
}
