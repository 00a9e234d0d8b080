//! Revocation with real programs (rows F6 and A10 of the list of tests): offline, live sessions, the way back, the
//! other side, and a list whose file is damaged.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_tests::proxy::Mode;
use holdfast_tests::world::{Part, Plan, SITE, Server, World};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;

const PATIENCE: Duration = Duration::from_secs(30);
/// A live session of a revoked certificate is cut within this.
const CUT: Duration = Duration::from_secs(5);
/// The other side knows within this, once the uplink is back.
const TOLD: Duration = Duration::from_secs(60);

async fn until(what: &str, within: Duration, mut is_so: impl AsyncFnMut() -> bool) {
    let end = Instant::now() + within;
    while !is_so().await {
        assert!(Instant::now() < end, "{what}: not within {within:?}");
        sleep(Duration::from_millis(50)).await;
    }
}

async fn role(part: &Part) -> Value {
    part.status()
        .await
        .map_or(Value::Null, |told| told["role"].clone())
}

async fn acknowledged(part: &Part) -> u64 {
    let told = part.status().await.ok();
    told.and_then(|told| told["acknowledged"].as_u64())
        .unwrap_or(0)
}

async fn works(part: &Part) {
    let before = acknowledged(part).await;
    until(part.name(), PATIENCE, async || {
        acknowledged(part).await > before
    })
    .await;
}

async fn list(part: &Part) -> Value {
    let said = part
        .ask(&["certificates", "revocations", "--json"])
        .await
        .unwrap();
    serde_json::from_str::<Value>(&said).unwrap()["list"].clone()
}

#[tokio::test]
async fn a_device_is_revoked_in_an_outage_and_stays_out() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let a = world.manufacture("A-0001").await.unwrap();
    world.start_agent().await.unwrap();
    let mut other = world.another_device("device-b").unwrap();
    let b = world.make(&other, "B-0001").await.unwrap();
    let assign = ["vouchers", "assign", &b, "--site", SITE];
    world.cloud.ask(&assign).await.unwrap();
    other.start(None).await.unwrap();
    for part in [&world.agent, &other] {
        until("served by the gateway", PATIENCE, async || {
            role(part).await == "gateway"
        })
        .await;
        works(part).await;
    }
    // The registry of the gateway knows both devices' certificates.
    let is_known = async |id: &str| {
        let said = world.gateway.ask(&["certificates", "list", "--json"]).await;
        said.unwrap().contains(&format!("{id}.devices"))
    };
    until("the gateway knows A", PATIENCE, async || is_known(&a).await).await;
    let number = list(&world.gateway).await["number"].as_u64().unwrap();

    world.uplink.set(Mode::Silent).unwrap();
    let revoke = ["certificates", "revoke", "--device", &a];
    let began = Instant::now();
    let said = world.gateway.ask(&revoke).await.unwrap();
    assert!(said.starts_with("revoked: "), "{said}");
    until("A is cut", CUT, async || role(&world.agent).await.is_null()).await;
    assert!(began.elapsed() < CUT, "{:?}", began.elapsed());
    let again = world.gateway.ask(&revoke).await.unwrap();
    assert!(again.contains("nothing changed"), "{again}");
    assert_eq!(list(&world.gateway).await["number"], number + 1);
    // It stays out, for long enough to have tried again many times; the other one goes on.
    let before = acknowledged(&world.agent).await;
    works(&other).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(acknowledged(&world.agent).await, before);
    let logged = world.gateway.logged();
    assert!(
        logged.contains("is revoked; admit the party anew"),
        "{logged}"
    );
    // A restart brings nobody back.
    world.gateway.stop().await.unwrap();
    world.start_gateway().await.unwrap();
    works(&other).await;
    assert_eq!(acknowledged(&world.agent).await, before);

    world.uplink.set(Mode::Open).unwrap();
    until("the cloud knows", TOLD, async || {
        let said = world.cloud.ask(&["certificates", "list", "--json"]).await;
        let rows: Vec<Value> = serde_json::from_str(&said.unwrap()).unwrap();
        let is_a = |row: &&Value| {
            row["subject"]
                .as_str()
                .unwrap()
                .starts_with(&format!("{a}."))
        };
        rows.iter().filter(is_a).all(|row| row["revoked"] == true)
    })
    .await;
    assert!(
        list(&world.gateway).await["heard_secs_ago"]
            .as_u64()
            .unwrap()
            < 60
    );
    assert_eq!(acknowledged(&world.agent).await, before, "nor by the cloud");
    works(&other).await;
    the_root_is_replaced(&mut world, &other).await;
    other.stop().await.unwrap();
    world.stop().await.unwrap();
}

async fn authority(part: &Part) -> Value {
    let said = part.ask(&["authority", "show", "--json"]).await.unwrap();
    serde_json::from_str(&said).unwrap()
}

/// With the site at work: another root, which all follow but an ordinary client; the old one is retired by
/// force when the log says that nobody else leans on it, and the client's session ends; a new device comes
/// in under the new one.
async fn the_root_is_replaced(world: &mut World, device: &Part) {
    let name = "gw1.gateways.harbour.holdfast.internal";
    let identity = admitted(world, "meter").await;
    let meter = Resumer::new(&identity, name, world.gateway_doors.mqtt);
    let old = authority(&world.cloud).await["roots"][0]["sha256"].clone();
    world
        .cloud
        .ask(&["authority", "rotate", "root"])
        .await
        .unwrap();
    let new = authority(&world.cloud).await["roots"][0]["sha256"].clone();
    assert_ne!(new, old);
    let retire = ["authority", "retire", old.as_str().unwrap()];
    let refused = world.cloud.ask(&retire).await.unwrap_err().to_string();
    assert!(refused.contains("gateway gw1"), "{refused}");
    // The gateway follows by itself; nobody's session is cut for it.
    let sessions = acknowledged(device).await;
    until("the gateway follows", PATIENCE, async || {
        authority(&world.gateway).await["intermediate"]["root"] == new
    })
    .await;
    assert!(acknowledged(device).await > sessions);
    works(device).await;
    // The device sees it when it connects next, and renews.
    world.gateway.stop().await.unwrap();
    world.start_gateway().await.unwrap();
    let mut session = meter.stand().await.unwrap();
    until("nobody but the client leans on it", TOLD, async || {
        let refused = world.cloud.ask(&retire).await.unwrap_err().to_string();
        refused.contains("1 still lean on that root") && refused.contains("client meter")
    })
    .await;
    let leaning = authority(&world.cloud).await["leaning"].clone();
    let why = leaning[0]["why"].as_str().unwrap();
    assert!(why.contains("'clients issue' for meter"), "{why}");
    let by_force = [&retire[..], &["--force"]].concat();
    world.cloud.ask(&by_force).await.unwrap();
    until("the gateway drops it", PATIENCE, async || {
        authority(&world.gateway).await["roots"]
            .as_array()
            .unwrap()
            .len()
            == 1
    })
    .await;
    let ended = timeout(CUT, async {
        // Until the end, whatever is said before.
        while session.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
    });
    ended.await.expect("the session on the old root is cut");
    assert!(meter.connect().await.is_none_or(|(code, _)| code >= 0x80));
    works(device).await;
    keys_are_replaced(world, device).await;
    let mut third = world.another_device("device-c").unwrap();
    let c = world.make(&third, "C-0001").await.unwrap();
    let assign = ["vouchers", "assign", &c, "--site", SITE];
    world.cloud.ask(&assign).await.unwrap();
    third.start(None).await.unwrap();
    works(&third).await;
    third.stop().await.unwrap();
}

/// Owner key and signing key of the gateway, and the device's own on order of the gateway and of its own
/// command line: the site goes on all the while.
async fn keys_are_replaced(world: &World, device: &Part) {
    let keys = async |part: &Part| -> Value {
        let said = part.ask(&["keys", "show", "--json"]).await.unwrap();
        serde_json::from_str(&said).unwrap()
    };
    let before = keys(&world.gateway).await;
    for what in ["owner", "signing"] {
        let said = world.gateway.ask(&["keys", "rotate", what]).await.unwrap();
        assert!(!said.is_empty());
    }
    let after = keys(&world.gateway).await;
    assert_ne!(before, after);
    let id = device.status().await.unwrap()["device"].clone();
    let id = id.as_str().unwrap().to_owned();
    let good = async || -> Vec<String> {
        let said = world.gateway.ask(&["certificates", "list", "--json"]).await;
        let rows: Vec<Value> = serde_json::from_str(&said.unwrap()).unwrap();
        let is_its = |row: &&Value| {
            let subject = row["subject"].as_str().unwrap();
            subject.starts_with(&format!("{id}.devices")) && row["revoked"] == false
        };
        let serial = |row: &Value| row["serial"].as_str().unwrap().to_owned();
        rows.iter().filter(is_its).map(serial).collect()
    };
    for by_gateway in [true, false] {
        let old = good().await;
        let order = ["certificates", "renew", "--device", &id];
        match by_gateway {
            // The order is signed by the key that is new to the device.
            true => world.gateway.ask(&order).await.unwrap(),
            false => device.ask(&["renew"]).await.unwrap(),
        };
        until("the device has another certificate", PATIENCE, async || {
            let now = good().await;
            now.len() == 1 && !old.contains(&now[0])
        })
        .await;
        works(device).await;
    }
}

/// A client that would resume its TLS session if it could.
struct Resumer {
    tls: Arc<rustls::ClientConfig>,
    name: ServerName<'static>,
    at: std::net::SocketAddr,
}

impl Resumer {
    fn new(identity: &Path, name: &str, at: std::net::SocketAddr) -> Self {
        let read = |file: &str| std::fs::read(identity.join(file)).unwrap();
        let certificates = |text: &[u8]| -> Vec<CertificateDer<'static>> {
            CertificateDer::pem_slice_iter(text)
                .map(|one| one.unwrap())
                .collect()
        };
        let mut roots = rustls::RootCertStore::empty();
        for root in certificates(&read("ca.pem")) {
            roots.add(root).unwrap();
        }
        let key = PrivateKeyDer::from_pem_slice(&read("key.pem")).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(certificates(&read("cert.pem")), key)
            .unwrap();
        Self {
            tls: Arc::new(config),
            name: name.to_owned().try_into().unwrap(),
            at,
        }
    }

    /// Connects with MQTT; the CONNACK's code, if one came, and how the handshake went.
    async fn connect(&self) -> Option<(u8, rustls::HandshakeKind)> {
        let (mut stream, code) = self.dial().await?;
        let kind = stream.get_ref().1.handshake_kind()?;
        // Long enough for tickets to arrive, were there any.
        let _ = timeout(Duration::from_millis(200), stream.read(&mut [0; 64])).await;
        Some((code, kind))
    }

    /// A session that stays.
    async fn stand(&self) -> Option<TlsStream<TcpStream>> {
        let (stream, code) = self.dial().await?;
        (code == 0).then_some(stream)
    }

    async fn dial(&self) -> Option<(TlsStream<TcpStream>, u8)> {
        let stream = TcpStream::connect(self.at).await.ok()?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls));
        let mut stream = connector.connect(self.name.clone(), stream).await.ok()?;
        // MQTT 5, clean start, keep-alive 240 s, no id.
        let connect = [
            0x10, 13, 0, 4, b'M', b'Q', b'T', b'T', 5, 2, 0, 240, 0, 0, 0,
        ];
        stream.write_all(&connect).await.ok()?;
        let mut answer = [0; 4];
        let read = timeout(PATIENCE, stream.read_exact(&mut answer))
            .await
            .ok()?;
        read.ok()?;
        Some((stream, answer[3]))
    }
}

#[tokio::test]
async fn resumption_brings_nobody_round_and_a_lost_list_admits_nobody() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let name = "gw1.gateways.harbour.holdfast.internal";
    let good = admitted(&world, "good").await;
    let bad = admitted(&world, "bad").await;
    let at = world.gateway_doors.mqtt;
    let (good, bad) = (Resumer::new(&good, name, at), Resumer::new(&bad, name, at));
    for client in [&good, &bad, &good, &bad] {
        let (code, kind) = client.connect().await.unwrap();
        assert_eq!((code, kind), (0, rustls::HandshakeKind::Full));
    }
    let revoke = ["certificates", "revoke", "--client", "bad"];
    world.gateway.ask(&revoke).await.unwrap();
    let refused = bad.connect().await;
    assert!(refused.is_none_or(|(code, _)| code == 0x8A), "{refused:?}");
    assert_eq!(good.connect().await.unwrap().0, 0);

    // One bad copy costs nothing, two cost everybody's admission, until the list is made anew.
    let spoil = |world: &World, copies: &[&str]| {
        for copy in copies {
            let file = world.gateway.state.join(format!("keys/revocations.{copy}"));
            let mut bytes = std::fs::read(&file).unwrap();
            bytes[20] ^= 0x10;
            std::fs::write(file, bytes).unwrap();
        }
    };
    world.gateway.stop().await.unwrap();
    spoil(&world, &["b"]);
    world.start_gateway().await.unwrap();
    assert_eq!(good.connect().await.unwrap().0, 0);
    assert!(bad.connect().await.is_none_or(|(code, _)| code == 0x8A));
    world.gateway.stop().await.unwrap();
    spoil(&world, &["a", "b"]);
    world.start_gateway().await.unwrap();
    for client in [&good, &bad] {
        let refused = client.connect().await;
        assert!(refused.is_none_or(|(code, _)| code >= 0x80), "{refused:?}");
    }
    assert_eq!(list(&world.gateway).await["lost"], true);
    let restore = ["certificates", "restore-revocations"];
    world.gateway.ask(&restore).await.unwrap();
    assert_eq!(good.connect().await.unwrap().0, 0);
    assert!(bad.connect().await.is_none_or(|(code, _)| code == 0x8A));
    world.stop().await.unwrap();
}

async fn admitted(world: &World, name: &str) -> std::path::PathBuf {
    world
        .admit(Server::Gateway, name, &[], &["x/#"])
        .await
        .unwrap()
}
