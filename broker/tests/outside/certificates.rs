//! Client certificates at the door: the vectors of row F1 that a door can see, over TLS 1.2 and 1.3;
//! revocation and change of authority at run time; handshakes that never end.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, RwLock};
use std::time::{Duration, Instant};

use holdfast_broker::{
    Broker, Config, Connect, CutReason, Door, Identity, JournalMedium, Peer, Refusal, Rights,
    TlsSource,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
    CustomExtension, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa, KeyIdMethod, KeyPair,
    NameConstraints, RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme, SupportedProtocolVersion,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::common::{Hello, PATIENCE, Wire};
use crate::kit::until;

type Ca = CertifiedIssuer<'static, KeyPair>;
type Tls = Wire<TlsStream<TcpStream>>;

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn root(name: &str) -> Ca {
    CertifiedIssuer::self_signed(authority(name), key()).unwrap()
}

/// A good client leaf of that name, to be spoilt.
fn client(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![format!("{name}.site.test")]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

/// A chain and the key that goes with its leaf.
#[derive(Clone)]
struct Credentials {
    chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
}

impl Credentials {
    fn new(params: &CertificateParams, issuer: &Ca, above: &[&Ca]) -> Self {
        let key = key();
        let leaf = params.signed_by(&key, issuer).unwrap();
        let mut chain = vec![leaf.der().clone()];
        chain.extend(above.iter().map(|ca| ca.der().clone()));
        Self {
            chain,
            key: key.serialize_der(),
        }
    }

    fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }
}

/// Presents what it is told to, matching or not.
#[derive(Debug)]
struct Stubborn(Arc<CertifiedKey>);

impl ResolvesClientCert for Stubborn {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
    fn has_certs(&self) -> bool {
        true
    }
}

fn roots(ca: &Ca) -> Arc<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).unwrap();
    Arc::new(roots)
}

fn server_config(ca: &Ca, revoked: Option<&[SerialNumber]>) -> Arc<ServerConfig> {
    let provider = Arc::new(ring::default_provider());
    let mut verifier =
        WebPkiClientVerifier::builder_with_provider(roots(ca), Arc::clone(&provider));
    if let Some(revoked) = revoked {
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(revocation).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        verifier = verifier.with_crls([list.signed_by(ca).unwrap().der().clone()]);
    }
    let mut params = CertificateParams::new(vec!["broker.test".into()]).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let own = Credentials::new(&params, ca, &[]);
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(own.chain.clone(), own.key())
        .unwrap();
    Arc::new(config)
}

fn revocation(serial: &SerialNumber) -> RevokedCertParams {
    RevokedCertParams {
        serial_number: serial.clone(),
        revocation_time: date_time_ymd(2021, 1, 1),
        reason_code: None,
        invalidity_date: None,
    }
}

type Version = &'static SupportedProtocolVersion;
const VERSIONS: [Version; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

fn client_config(ca: &Ca, own: Option<&Credentials>, version: Version) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots(ca));
    let Some(own) = own else {
        return builder.with_no_client_auth();
    };
    let signer = ring::sign::any_supported_type(&own.key()).unwrap();
    let certified = CertifiedKey::new(own.chain.clone(), signer);
    builder.with_client_cert_resolver(Arc::new(Stubborn(Arc::new(certified))))
}

#[derive(Debug)]
struct Swap(RwLock<Arc<ServerConfig>>);

impl TlsSource for Swap {
    fn current(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.0.read().unwrap())
    }
}

/// Knows the leaves by their bytes: whose they are, and whether they are still good.
#[derive(Default)]
struct Register(Mutex<HashMap<Vec<u8>, (String, bool)>>);

impl Register {
    fn add(&self, own: &Credentials, name: &str) {
        let entry = (name.to_owned(), true);
        self.0.lock().unwrap().insert(own.chain[0].to_vec(), entry);
    }
    fn revoke(&self, own: &Credentials) {
        self.0
            .lock()
            .unwrap()
            .get_mut(own.chain[0].as_ref())
            .unwrap()
            .1 = false;
    }
}

impl Rights for Register {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        let leaf = peer.certificates.first().ok_or(Refusal::NotAuthorized)?;
        let known = self.0.lock().unwrap();
        let (name, good) = known.get(leaf).ok_or(Refusal::NotAuthorized)?;
        if !good {
            return Err(Refusal::Banned);
        }
        if connect.client_id != name {
            return Err(Refusal::ClientId);
        }
        Ok(Identity {
            client_id: name.as_str().into(),
            subject: name.as_str().into(),
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

struct World {
    ca: Ca,
    broker: Broker,
    address: SocketAddr,
    swap: Arc<Swap>,
    register: Arc<Register>,
    _folder: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let ca = root("root");
        let folder = tempfile::tempdir().unwrap();
        let register = Arc::new(Register::default());
        let mut config = Config {
            connect_deadline: Duration::from_secs(3),
            ..Config::default()
        };
        config.limits.handshakes_per_address = 300;
        let medium = JournalMedium::File(folder.path().join("journal.redb"));
        let broker = Broker::open(config, medium, Arc::clone(&register) as _).unwrap();
        let swap = Arc::new(Swap(RwLock::new(server_config(&ca, None))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (serving, door) = (broker.clone(), Door::Tls(Arc::clone(&swap) as _));
        tokio::spawn(async move {
            let stop = CancellationToken::new();
            serving.serve(listener, door, stop).await.unwrap();
        });
        Self {
            ca,
            broker,
            address,
            swap,
            register,
            _folder: folder,
        }
    }

    /// Registered, so that only the door can be what refuses it.
    fn credentials(&self, params: &CertificateParams, issuer: &Ca, above: &[&Ca]) -> Credentials {
        let own = Credentials::new(params, issuer, above);
        self.register.add(&own, "device");
        own
    }

    async fn dial(&self, config: &Arc<ClientConfig>) -> std::io::Result<Tls> {
        let stream = TcpStream::connect(self.address).await?;
        let name = ServerName::try_from("broker.test").unwrap();
        let stream = TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await?;
        let mut wire = Wire::new(stream);
        wire.v5 = true;
        Ok(wire)
    }

    /// The CONNACK's code; `None` when TLS or the server ended it before.
    async fn code(&self, config: &Arc<ClientConfig>) -> Option<u8> {
        let mut wire = self.dial(config).await.ok()?;
        // With TLS 1.3 a client learns of its rejection at its first read.
        let _ = wire.stream.write_all(&Hello::v5("device").bytes()).await;
        let (first, body) = wire.packet().await?;
        assert_eq!(first, 0x20);
        Some(body[1])
    }
}

#[tokio::test]
async fn f1_bad_certificates_are_stopped_at_the_door_and_good_ones_pass() {
    let world = World::new().await;
    let good = client("device");
    let spoil = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = client("device");
        change(&mut params);
        params
    };
    let middle = |change: &dyn Fn(&mut CertificateParams)| {
        let mut params = authority("intermediate");
        change(&mut params);
        Ca::signed_by(params, key(), &world.ca).unwrap()
    };
    let mut bad: Vec<(&str, Option<Credentials>)> = vec![("1 none", None)];
    let mut add = |what, params: &CertificateParams, issuer: &Ca, above: &[&Ca]| {
        bad.push((what, Some(world.credentials(params, issuer, above))));
    };
    let foreign = root("foreign");
    let alike = root("root");
    add("3 unknown authority", &good, &foreign, &[]);
    add(
        "3 unknown authority, sent along",
        &good,
        &foreign,
        &[&foreign],
    );
    add("4 same name, other key", &good, &alike, &[]);
    let expired = spoil(&|params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
    });
    add("5 expired", &expired, &world.ca, &[]);
    let early = spoil(&|params| params.not_before = date_time_ymd(2080, 1, 1));
    add("6 not yet valid", &early, &world.ca, &[]);
    let serving = spoil(&|params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    add("8 serverAuth only", &serving, &world.ca, &[]);
    let issuing = spoil(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    add("11 leaf is an authority", &issuing, &world.ca, &[]);
    let leaf = Ca::signed_by(client("device"), key(), &world.ca).unwrap();
    add("12 issued by a leaf", &good, &leaf, &[&leaf]);
    let last = middle(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0)));
    let below = Ca::signed_by(authority("below"), key(), &last).unwrap();
    add("13 below path length 0", &good, &below, &[&below, &last]);
    let other_site = middle(&|params| {
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("other.test".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    add(
        "14, 15 outside the name constraint",
        &good,
        &other_site,
        &[&other_site],
    );
    let old = middle(&|params| params.not_after = date_time_ymd(2001, 1, 1));
    add("expired intermediate", &good, &old, &[&old]);
    let between = middle(&|_| ());
    add("intermediate not sent", &good, &between, &[]);
    let odd = spoil(&|params| {
        let mut extension = CustomExtension::from_oid_content(&[1, 2, 3, 4], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions = vec![extension];
    });
    add("20 unknown critical extension", &odd, &world.ca, &[]);
    let own = key();
    let selfsigned = good.self_signed(&own).unwrap();
    let credentials = Credentials {
        chain: vec![selfsigned.der().clone()],
        key: own.serialize_der(),
    };
    world.register.add(&credentials, "device");
    bad.push(("2 self-signed", Some(credentials)));
    let mut flipped = world.credentials(&good, &world.ca, &[]);
    let mut der = flipped.chain[0].to_vec();
    *der.last_mut().unwrap() ^= 1;
    flipped.chain[0] = der.into();
    world.register.add(&flipped, "device");
    bad.push(("22 signature bit flipped", Some(flipped)));
    let mut stolen = world.credentials(&good, &world.ca, &[]);
    stolen.key = key().serialize_der();
    bad.push(("23 wrong private key", Some(stolen)));

    let count = bad.len();
    for version in VERSIONS {
        for (what, own) in &bad {
            let config = Arc::new(client_config(&world.ca, own.as_ref(), version));
            let code = world.code(&config).await;
            assert_eq!(code, None, "{what} {version:?}");
        }
    }
    until("all are counted", || {
        world.broker.metrics().ended.get(&CutReason::Tls) == Some(&(2 * count as u64))
    })
    .await;
    assert_eq!(world.broker.metrics().sessions, 0);
    // The control: the same ways in work with good ones.
    let both = spoil(&|params| {
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ServerAuth);
    });
    let site = middle(&|params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.name_constraints = Some(NameConstraints {
            permitted_subtrees: vec![GeneralSubtree::DnsName("site.test".into())],
            excluded_subtrees: Vec::new(),
        });
    });
    for own in [
        world.credentials(&good, &world.ca, &[]),
        world.credentials(&both, &world.ca, &[]),
        // Renewed: another key of the same name, while the first is still good.
        world.credentials(&good, &world.ca, &[]),
        world.credentials(&good, &site, &[&site]),
    ] {
        for version in VERSIONS {
            let config = Arc::new(client_config(&world.ca, Some(&own), version));
            assert_eq!(world.code(&config).await, Some(0));
        }
    }
}

#[tokio::test]
async fn f1_17_and_18_what_the_rights_do_not_know_is_refused_with_a_code() {
    let world = World::new().await;
    let stranger = Credentials::new(&client("device"), &world.ca, &[]);
    let config = Arc::new(client_config(&world.ca, Some(&stranger), VERSIONS[1]));
    assert_eq!(world.code(&config).await, Some(0x87));
    // Another's name with a certificate of one's own [E11].
    let other = Credentials::new(&client("other"), &world.ca, &[]);
    world.register.add(&other, "other");
    let config = Arc::new(client_config(&world.ca, Some(&other), VERSIONS[1]));
    let own = world.credentials(&client("device"), &world.ca, &[]);
    let good = Arc::new(client_config(&world.ca, Some(&own), VERSIONS[1]));
    let mut owner = world.dial(&good).await.unwrap();
    owner.send(&Hello::v5("device").bytes()).await;
    owner.connack(0).await;
    assert_eq!(world.code(&config).await, Some(0x85));
    owner.nothing().await;
}

#[tokio::test]
async fn f6_a_revoked_client_is_cut_and_stays_out_whatever_it_resumes() {
    for version in VERSIONS {
        let world = World::new().await;
        let own = world.credentials(&client("device"), &world.ca, &[]);
        let kept = Credentials::new(&client("kept"), &world.ca, &[]);
        world.register.add(&kept, "kept");
        // One configuration for all its connections: it holds the TLS session for resumption.
        let config = Arc::new(client_config(&world.ca, Some(&own), version));
        let mut wire = world.dial(&config).await.unwrap();
        wire.send(&Hello::v5("device").bytes()).await;
        wire.connack(0).await;
        wire.nothing().await;
        let good = Arc::new(client_config(&world.ca, Some(&kept), version));
        let mut other = world.dial(&good).await.unwrap();
        other.send(&Hello::v5("kept").bytes()).await;
        other.connack(0).await;
        let begun = Instant::now();
        world.register.revoke(&own);
        let cut = world
            .broker
            .cut_where(CutReason::NotAuthorized, |who| &*who.client_id == "device");
        assert_eq!(cut, 1);
        assert_eq!(wire.closed().await, Some(0x87));
        assert!(begun.elapsed() < Duration::from_secs(5));
        for _ in 0..3 {
            assert_eq!(world.code(&config).await, Some(0x8A));
        }
        other.nothing().await;
    }
}

#[tokio::test]
async fn f1_7_a_list_or_an_authority_swapped_in_keeps_the_revoked_out_and_good_sessions_live() {
    for version in VERSIONS {
        let world = World::new().await;
        let serial = |number: u64| {
            let mut params = client("device");
            params.serial_number = Some(SerialNumber::from(number));
            params
        };
        let revoked = world.credentials(&serial(66), &world.ca, &[]);
        let config = Arc::new(client_config(&world.ca, Some(&revoked), version));
        assert_eq!(world.code(&config).await, Some(0));
        let kept = Credentials::new(&serial(67), &world.ca, &[]);
        world.register.add(&kept, "kept");
        let good = Arc::new(client_config(&world.ca, Some(&kept), version));
        let mut wire = world.dial(&good).await.unwrap();
        wire.send(&Hello::v5("kept").bytes()).await;
        wire.connack(0).await;
        *world.swap.0.write().unwrap() = server_config(&world.ca, Some(&[SerialNumber::from(66)]));
        for _ in 0..3 {
            assert_eq!(world.code(&config).await, None);
        }
        wire.nothing().await;
        // Its next connection is fine as well, on the new configuration.
        let mut again = world.dial(&good).await.unwrap();
        again.send(&Hello::v5("kept").bytes()).await;
        again.connack(0).await;
        assert_eq!(wire.closed().await, Some(0x8E));
        // Another authority in the old one's place: its certificates alone are good from now on.
        let new = root("new");
        *world.swap.0.write().unwrap() = server_config(&new, None);
        again.nothing().await;
        let old = Arc::new(client_config(&new, Some(&kept), version));
        assert_eq!(world.code(&old).await, None);
        let own = world.credentials(&client("device"), &new, &[]);
        let fresh = Arc::new(client_config(&new, Some(&own), version));
        assert_eq!(world.code(&fresh).await, Some(0));
        again.nothing().await;
    }
}

#[tokio::test]
async fn b_handshakes_that_never_end_block_nobody() {
    let world = World::new().await;
    let own = world.credentials(&client("device"), &world.ca, &[]);
    let config = Arc::new(client_config(&world.ca, Some(&own), VERSIONS[1]));
    let mut idle = Vec::new();
    for number in 0..200 {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        // Silent, the head of a record, the head of a ClientHello.
        let piece: &[u8] = [
            &[][..],
            &[0x16, 3],
            &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3],
        ][number % 3];
        stream.write_all(piece).await.unwrap();
        idle.push(stream);
    }
    // TLS done, then silence.
    let mut silent = world.dial(&config).await.unwrap();
    let mut worst = Duration::ZERO;
    for _ in 0..20 {
        let begun = Instant::now();
        assert_eq!(world.code(&config).await, Some(0));
        worst = worst.max(begun.elapsed());
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    for stream in &mut idle {
        let mut rest = Vec::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest));
        assert!(read.await.is_ok());
    }
    assert_eq!(silent.packet().await, None);
    let ended = &world.broker.metrics().ended;
    assert_eq!(
        ended.get(&CutReason::ConnectDeadline),
        Some(&201),
        "{ended:?}"
    );
}

#[tokio::test]
async fn garbage_instead_of_a_handshake_is_closed_at_once() {
    let world = World::new().await;
    for bytes in [
        &Hello::v5("device").bytes()[..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[0x80, 0x2E, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10],
        &[0x16, 3, 1, 0xFF, 0xFF, 1, 0, 0, 0],
        &[0x15, 3, 3, 0, 2, 2, 40],
        &[0x17, 3, 3, 0, 1, 0],
        &[0; 64],
    ] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        let ended = tokio::time::timeout(Duration::from_secs(1), read).await;
        assert!(ended.is_ok(), "{bytes:?}");
        // At most a TLS alert.
        assert!(answer.is_empty() || answer[0] == 0x15, "{answer:?}");
    }
}
