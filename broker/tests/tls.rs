//! The TLS door: client certificates, foreign and expired ones, the swap at run time, and an idle
//! connection that hinders nobody.

// Helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use common::{Hello, Wire};
use holdfast_broker::{
    Broker, Config, Connect, CutReason, Door, Identity, JournalMedium, Peer, Refusal, Rights,
    TlsSource,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca() -> Ca {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn leaf(ca: &Ca, name: &str, expired: bool) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    if expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
    }
    let certificate = params.signed_by(&key, ca).unwrap();
    let der = certificate.der().clone();
    (der, PrivatePkcs8KeyDer::from(key.serialize_der()).into())
}

fn roots(ca: &Ca) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    Arc::new(roots)
}

fn server_config(ca: &Ca) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots(ca), Arc::clone(&provider))
        .build()
        .unwrap();
    let (certificate, key) = leaf(ca, "broker.test", false);
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}

fn client_config(
    ca: &Ca,
    identity: Option<(CertificateDer<'static>, PrivateKeyDer<'static>)>,
) -> ClientConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(ca));
    match identity {
        Some((certificate, key)) => builder
            .with_client_auth_cert(vec![certificate], key)
            .unwrap(),
        None => builder.with_no_client_auth(),
    }
}

/// A source that a test can change.
#[derive(Debug)]
struct Swap(RwLock<Arc<ServerConfig>>);

impl TlsSource for Swap {
    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap())
    }
}

/// The client id must be the certificate's: the test knows which leaf is whose.
#[derive(Default)]
struct ByCertificate(Mutex<Vec<(Vec<u8>, String)>>);

impl Rights for ByCertificate {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        let leaf = peer.certificates.first().ok_or(Refusal::NotAuthorized)?;
        let known = self.0.lock().unwrap();
        let (_, name) = known
            .iter()
            .find(|(der, _)| der == leaf)
            .ok_or(Refusal::NotAuthorized)?;
        if connect.client_id != name {
            return Err(Refusal::ClientId);
        }
        Ok(Identity {
            client_id: name.as_str().into(),
            subject: name.as_str().into(),
        })
    }
    fn may_publish(&self, who: &Identity, topic: &str) -> bool {
        topic.split('/').next() == Some(&*who.client_id)
    }
    fn may_subscribe(&self, who: &Identity, filter: &str) -> bool {
        filter.split('/').next() == Some(&*who.client_id)
    }
    fn may_receive(&self, who: &Identity, topic: &str) -> bool {
        self.may_publish(who, topic)
    }
}

struct World {
    ca: Ca,
    broker: Broker,
    address: SocketAddr,
    swap: Arc<Swap>,
    rights: Arc<ByCertificate>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let ca = ca();
        let folder = tempfile::tempdir().unwrap();
        let rights = Arc::new(ByCertificate::default());
        let config = Config {
            connect_deadline: Duration::from_secs(2),
            ..Config::default()
        };
        let medium = JournalMedium::File(folder.path().join("journal.redb"));
        let broker = Broker::open(config, medium, Arc::clone(&rights) as _).unwrap();
        let swap = Arc::new(Swap(RwLock::new(server_config(&ca))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (serving, door) = (broker.clone(), Door::Tls(Arc::clone(&swap) as _));
        tokio::spawn(async move {
            let _ = serving
                .serve(listener, door, CancellationToken::new())
                .await;
        });
        Self {
            ca,
            broker,
            address,
            swap,
            rights,
            _folder: folder,
        }
    }

    async fn dial(&self, config: ClientConfig) -> std::io::Result<Wire<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("broker.test").unwrap();
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        let mut wire = Wire::new(stream);
        wire.v5 = true;
        Ok(wire)
    }

    /// A client with a good certificate of that name.
    async fn client(&self, name: &str) -> Wire<TlsStream<TcpStream>> {
        let identity = leaf(&self.ca, name, false);
        self.rights
            .0
            .lock()
            .unwrap()
            .push((identity.0.to_vec(), name.to_owned()));
        self.dial(client_config(&self.ca, Some(identity)))
            .await
            .unwrap()
    }

    /// With TLS 1.3 a client learns of its rejection at its first read.
    async fn refused(&self, config: ClientConfig) {
        if let Ok(mut wire) = self.dial(config).await {
            let _ = wire.stream.write_all(&Hello::v5("device").bytes()).await;
            assert_eq!(wire.packet().await, None);
        }
    }
}

#[tokio::test]
async fn a_good_certificate_reaches_its_own_topics_and_no_others() {
    let world = World::new().await;
    let mut wire = world.client("device").await;
    wire.send(&Hello::v5("device").bytes()).await;
    wire.connack(0).await;
    assert_eq!(wire.subscribe("device/#", 1).await, 1);
    assert_eq!(wire.subscribe("other/#", 1).await, 0x87);
    assert_eq!(wire.subscribe("#", 1).await, 0x87);
    assert_eq!(wire.subscribe("$share/g/other/#", 1).await, 0x87);
    assert_eq!(wire.publish("other/up", 1, "m").await, 0x87);
    assert_eq!(wire.publish("other/up", 1, "m").await, 0x87);
    let mut other = world.client("other").await;
    other.send(&Hello::v5("other").bytes()).await;
    other.connack(0).await;
    other.subscribe("other/#", 1).await;
    other.nothing().await;
}

#[tokio::test]
async fn a_client_id_that_is_not_the_certificates_is_refused_and_the_owner_stays() {
    let world = World::new().await;
    let mut owner = world.client("owner").await;
    owner.send(&Hello::v5("owner").bytes()).await;
    owner.connack(0).await;
    let mut thief = world.client("thief").await;
    thief.send(&Hello::v5("owner").bytes()).await;
    thief.connack(0x85).await;
    assert_eq!(thief.packet().await, None);
    owner.nothing().await;
    assert_eq!(world.broker.metrics().ended[&CutReason::Refused], 1);
}

#[tokio::test]
async fn no_certificate_a_foreign_one_and_an_expired_one_are_refused_and_counted() {
    let world = World::new().await;
    world.refused(client_config(&world.ca, None)).await;
    let foreign = leaf(&ca(), "device", false);
    world.refused(client_config(&world.ca, Some(foreign))).await;
    let expired = leaf(&world.ca, "device", true);
    world.refused(client_config(&world.ca, Some(expired))).await;
    // The control: the same way in works with a good one.
    let mut wire = world.client("device").await;
    wire.send(&Hello::v5("device").bytes()).await;
    wire.connack(0).await;
    assert_eq!(world.broker.metrics().ended[&CutReason::Tls], 3);
}

#[tokio::test]
async fn idle_connections_hinder_nobody_and_end_at_the_deadline() {
    let world = World::new().await;
    let mut idle = TcpStream::connect(world.address).await.unwrap();
    let mut wire = world.client("device").await;
    wire.send(&Hello::v5("device").bytes()).await;
    wire.connack(0).await;
    let mut end = [0];
    let read = tokio::io::AsyncReadExt::read(&mut idle, &mut end);
    let read = tokio::time::timeout(common::PATIENCE, read).await.unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    assert_eq!(world.broker.metrics().ended[&CutReason::ConnectDeadline], 1);
}

#[tokio::test]
async fn plain_mqtt_on_the_tls_door_is_not_read() {
    let world = World::new().await;
    let mut wire = Wire::new(TcpStream::connect(world.address).await.unwrap());
    wire.send(&Hello::v5("device").bytes()).await;
    // Perhaps a TLS alert, never a CONNACK.
    let answer = wire.packet().await;
    assert!(answer.is_none_or(|(first, _)| first != 0x20));
    let deadline = tokio::time::Instant::now() + common::PATIENCE;
    while !world.broker.metrics().ended.contains_key(&CutReason::Tls) {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn the_tls_configuration_is_swapped_while_sessions_live_on() {
    let world = World::new().await;
    let mut wire = world.client("device").await;
    wire.send(&Hello::v5("device").bytes()).await;
    wire.connack(0).await;
    let new_ca = ca();
    *world.swap.0.write().unwrap() = server_config(&new_ca);
    wire.nothing().await;
    // The old authority is worth nothing any more, the new one is.
    let old = leaf(&world.ca, "device", false);
    world.refused(client_config(&new_ca, Some(old))).await;
    let new = leaf(&new_ca, "second", false);
    world
        .rights
        .0
        .lock()
        .unwrap()
        .push((new.0.to_vec(), "second".into()));
    let mut second = world.dial(client_config(&new_ca, Some(new))).await.unwrap();
    second.send(&Hello::v5("second").bytes()).await;
    second.connack(0).await;
    wire.nothing().await;
}
