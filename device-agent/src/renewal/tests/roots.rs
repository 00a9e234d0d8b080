//! The agent follows another root, with the power cut at each sync of its files: whatever is left on the
//! disk, it holds an identity that its server accepts, and it believes its server.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use holdfast_disk::fault::{Image, Recorder};
use holdfast_link::time::SystemTrust;
use holdfast_link::tls::{ClientAuth, IdentitySlot, Purpose, server_config, verify_chain};
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::csr::Csr;
use holdfast_protocol::name::Party;
use rand_core::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Eku, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SubjectPublicKeyInfo,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::super::*;

const SERVER: &str = "gw1.gateways.harbour.holdfast.internal";
/// Torn images for each sync.
const TORN: usize = 9;

struct Root {
    der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

fn root_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn root() -> Root {
    let key = KeyPair::generate().unwrap();
    let der = root_params().self_signed(&key).unwrap().der().to_vec();
    let issuer = Issuer::new(root_params(), key);
    Root { der, issuer }
}

fn leaf(root: &Root, spki: &[u8], dns: &str, usage: Eku) -> Vec<u8> {
    let mut params = CertificateParams::new(vec![dns.to_owned()]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    let key = SubjectPublicKeyInfo::from_der(spki).unwrap();
    params.signed_by(&key, &root.issuer).unwrap().der().to_vec()
}

/// The site's gateway, after the root has changed.
struct Site {
    old: Root,
    new: Root,
    cross: Vec<u8>,
    chain: Vec<Vec<u8>>,
    device: String,
    /// Certificates that were given and used or not, and those that are void.
    given: Mutex<BTreeSet<Vec<u8>>>,
    void: Mutex<BTreeSet<Vec<u8>>>,
    confirmed: Arc<AtomicUsize>,
}

impl Site {
    fn answer(&self, peer: &[u8], path: &str, body: &[u8]) -> (u16, Value) {
        if path == "/api/v1/health" {
            return (200, json!({}));
        }
        if self.void.lock().unwrap().contains(peer) {
            return (401, json!({ "error": "revoked" }));
        }
        if path == "/api/v1/renew/done" {
            let mut others = self.given.lock().unwrap().clone();
            others.remove(peer);
            self.void.lock().unwrap().extend(others);
            self.confirmed.fetch_add(1, Ordering::SeqCst);
            return (200, json!({}));
        }
        let asked: Value = serde_json::from_slice(body).unwrap();
        let csr = STANDARD.decode(asked["csr"].as_str().unwrap()).unwrap();
        let spki = Csr::parse(&csr).unwrap().key().to_spki_der();
        let new = leaf(&self.new, &spki, &self.device, Eku::ClientAuth);
        self.given.lock().unwrap().insert(new.clone());
        let text = |der: &Vec<u8>| STANDARD.encode(der);
        let answer = json!({
            "certificate": text(&new),
            "chain": [text(&self.cross)],
            "anchors": [text(&self.new.der), text(&self.old.der)],
            "time": "1 none",
        });
        (200, answer)
    }

    async fn serve(self: Arc<Self>, listener: TcpListener, key: SigningKey) {
        let own = tls::Identity::new(self.chain.clone(), key.to_pkcs8_der()).unwrap();
        let believed = Anchors::new([self.new.der.clone(), self.old.der.clone()]).unwrap();
        let clock = Arc::new(SystemClock::without_floor(SystemTrust::Hint));
        let clients = ClientAuth::Optional(believed);
        let config = server_config(IdentitySlot::with(own), clients, clock).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let Ok(mut stream) = acceptor.accept(stream).await else {
                continue;
            };
            let shown = stream
                .get_ref()
                .1
                .peer_certificates()
                .map(|all| all[0].to_vec());
            let mut text = Vec::new();
            let (head, body) = loop {
                let mut piece = [0; 4096];
                let count = stream.read(&mut piece).await.unwrap_or(0);
                text.extend(&piece[..count]);
                let Some(end) = text.windows(4).position(|at| at == b"\r\n\r\n") else {
                    assert!(count > 0, "a request without end");
                    continue;
                };
                let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
                let length = head.split("content-length: ").nth(1);
                let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
                if text.len() >= end + 4 + length.unwrap_or(0) {
                    break (head, text[end + 4..].to_vec());
                }
            };
            let path = head.split(' ').nth(1).unwrap();
            let (status, answer) = self.answer(&shown.unwrap_or_default(), path, &body);
            let answer = answer.to_string();
            let length = answer.len();
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{answer}"
            );
            stream.write_all(text.as_bytes()).await.unwrap();
            let _ = stream.shutdown().await;
        }
    }

    /// Whether what is left on a disk gets its owner in, both ways.
    fn lets_in(&self, image: &Image, state: &std::path::Path, void: &BTreeSet<Vec<u8>>) -> bool {
        let folder = tempfile::tempdir().unwrap();
        image.put(state, folder.path()).unwrap();
        let kept = Vault::new(folder.path()).load().unwrap().identity;
        let tried = std::fs::read(folder.path().join(FILE)).ok();
        let tried = tried.and_then(|bytes| vault::read_identity(&bytes));
        let now = SystemClock::without_floor(SystemTrust::Hint).certain();
        let shown: Vec<_> = self.chain[1..]
            .iter()
            .map(|der| der.as_slice().into())
            .collect();
        let name = SERVER.try_into().unwrap();
        let is_good = |identity: Identity| {
            let held = Anchors::new(identity.site.anchors.iter().cloned()).unwrap();
            let server = self.chain[0].as_slice().into();
            let ours = Anchors::new([self.new.der.clone(), self.old.der.clone()]).unwrap();
            let above: Vec<_> = identity
                .site
                .chain
                .iter()
                .map(|der| der.as_slice().into())
                .collect();
            let own = identity.certificate.as_slice().into();
            !void.contains(&identity.certificate)
                && verify_chain(&server, &shown, &held, Purpose::Server, Some(&name), now).is_ok()
                && verify_chain(&own, &above, &ours, Purpose::Client, None, now).is_ok()
        };
        kept.into_iter().chain(tried).any(is_good)
    }
}

struct Stage {
    site: Arc<Site>,
    renewal: Renewal,
    folder: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

async fn stage() -> Stage {
    let (old, new) = (root(), root());
    let spki = SubjectPublicKeyInfo::from_der(&rcgen::PublicKeyData::subject_public_key_info(
        new.issuer.key(),
    ));
    let cross = root_params()
        .signed_by(&spki.unwrap(), &old.issuer)
        .unwrap();
    let cross = cross.der().to_vec();
    let key = SigningKey::generate(&mut SystemRandom);
    let own = leaf(&new, &key.public().to_spki_der(), SERVER, Eku::ServerAuth);
    let chain = vec![own, cross.clone(), new.der.clone(), old.der.clone()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap().to_string();
    let mut guid = [0; 16];
    SystemRandom.fill_bytes(&mut guid);
    let device = holdfast_protocol::id::DeviceId::from_guid(holdfast_protocol::id::Guid(guid));
    let party = Party::Device {
        device,
        site: "harbour".parse().unwrap(),
    };
    let domain: holdfast_protocol::id::Domain = "holdfast.internal".parse().unwrap();
    let device_key = SigningKey::generate(&mut SystemRandom);
    let dns = party.dns(&domain);
    let certificate = leaf(
        &old,
        &device_key.public().to_spki_der(),
        &dns,
        Eku::ClientAuth,
    );
    let site_config = SiteConfig {
        device,
        site: "harbour".parse().unwrap(),
        domain,
        server: "gw1".parse().unwrap(),
        anchors: vec![old.der.clone()],
        chain: Vec::new(),
        notice_keys: Vec::new(),
        servers: vec![ServerAddress {
            server: "gw1".parse().unwrap(),
            role: ServerRole::Gateway,
            name: SERVER.to_owned(),
            mqtt: Vec::new(),
            https: vec![at],
        }],
        time: Time::new(1, holdfast_protocol::time::TimeQuality::None),
    };
    let site = Arc::new(Site {
        given: Mutex::new(BTreeSet::from([certificate.clone()])),
        void: Mutex::default(),
        confirmed: Arc::default(),
        device: dns,
        cross,
        chain,
        old,
        new,
    });
    let identity = Identity {
        key: device_key,
        certificate,
        site: site_config,
    };
    let folder = tempfile::tempdir().unwrap();
    let vault = Vault::new(folder.path());
    vault.create(credential()).unwrap();
    vault.renew(identity.clone()).unwrap();
    let renewal = Renewal {
        vault,
        state: folder.path().to_owned(),
        wish: Wish::default(),
        ordered: Ordered::of(folder.path()),
        sessions: Arc::default(),
        own_sessions: 0,
        met: Anchors::new(identity.site.anchors.iter().cloned()).unwrap(),
        identity,
        clock: Arc::new(SystemClock::without_floor(SystemTrust::Hint)),
        connect_timeout: Duration::from_secs(5),
    };
    let mut tasks = JoinSet::new();
    tasks.spawn(Arc::clone(&site).serve(listener, key));
    Stage {
        site,
        renewal,
        folder,
        _tasks: tasks,
    }
}

fn credential() -> DeviceCredential {
    crate::vault::tests::credential(1)
}

impl Stage {
    fn watch(&self) -> Recorder {
        let confirmed = Arc::clone(&self.site.confirmed);
        let others = Box::new(move || vec![confirmed.load(Ordering::SeqCst)]);
        Recorder::watch_beside(&[self.folder.path()], others).unwrap()
    }

    /// Images that leave the device with nothing that is accepted, of so many.
    fn judge(&self, disk: &Recorder) -> (usize, usize) {
        // What was void before and after the new certificate was used; at the cut between, either.
        let (before, after) = (BTreeSet::new(), self.site.void.lock().unwrap().clone());
        let used = disk.before(0, 1);
        let (mut images, mut lost) = (0, 0);
        let mut look = |at: usize, image: &Image| {
            images += 1;
            let path = self.folder.path();
            let early = at > used || self.site.lets_in(image, path, &before);
            let late = at < used || self.site.lets_in(image, path, &after);
            lost += usize::from(!early || !late);
        };
        disk.each_image(
            TORN,
            || SystemRandom.next_u64(),
            |at, image| look(at, &image),
        );
        look(used, &disk.image(used, || SystemRandom.next_u64()));
        (images, lost)
    }
}

#[tokio::test]
async fn another_root_is_followed_and_no_cut_leaves_the_device_without_an_identity() {
    let stage = stage().await;
    assert!(!stage.renewal.is_due());
    // A session of months is not waited for.
    stage.renewal.look_at_roots().await;
    assert!(
        stage.renewal.is_due(),
        "the server shows a root that ours has signed"
    );
    let disk = stage.watch();
    stage.renewal.look_after().await;
    let now = stage.renewal.vault.load().unwrap().identity.unwrap();
    let both = [stage.site.new.der.clone(), stage.site.old.der.clone()];
    assert_eq!(now.site.anchors, both);
    let (images, lost) = stage.judge(&disk);
    assert!(images >= 30, "{images}");
    assert_eq!(lost, 0, "of {images}");
    // Nothing more is due: it holds what is shown.
    let settled = Renewal {
        identity: now,
        ..stage.renewal
    };
    assert!(!settled.is_due());
}

#[tokio::test]
async fn control_a_certificate_used_before_it_is_kept_is_found() {
    let stage = stage().await;
    assert!(matches!(
        stage.renewal.renew(&stage.renewal.identity).await,
        Outcome::Kept
    ));
    let new = stage.renewal.left_over().unwrap();
    stage.renewal.forget();
    let disk = stage.watch();
    assert!(matches!(stage.renewal.try_out(new).await, Outcome::Renewed));
    let (images, lost) = stage.judge(&disk);
    assert!(lost > 0, "of {images}");
}

#[tokio::test]
async fn a_root_that_nobody_tells_any_more_is_dropped_and_a_strangers_is_not_taken() {
    let stage = stage().await;
    let (old, new) = (stage.site.old.der.clone(), stage.site.new.der.clone());
    let after = |held: &[&Vec<u8>], told: &[&Vec<u8>], chain: &[Vec<u8>]| {
        let mut identity = stage.renewal.identity.clone();
        identity.site.anchors = held.iter().map(|der| (*der).clone()).collect();
        let renewal = Renewal {
            identity,
            vault: stage.renewal.vault.clone(),
            state: stage.renewal.state.clone(),
            wish: Wish::default(),
            ordered: Ordered::of(&stage.renewal.state),
            sessions: Arc::default(),
            own_sessions: 0,
            met: Anchors::none(),
            clock: Arc::clone(&stage.renewal.clock),
            connect_timeout: Duration::from_secs(5),
        };
        let told: Vec<Vec<u8>> = told.iter().map(|der| (*der).clone()).collect();
        renewal.roots_after(&told, chain)
    };
    let cross = std::slice::from_ref(&stage.site.cross);
    assert_eq!(
        after(&[&old], &[&new, &old], cross),
        [new.clone(), old.clone()]
    );
    assert_eq!(
        after(&[&new, &old], &[&new], &[]),
        std::slice::from_ref(&new)
    );
    let stranger = root().der;
    assert_eq!(
        after(&[&old], &[&stranger, &old], cross),
        std::slice::from_ref(&old)
    );
    assert_eq!(
        after(&[&old], &[&stranger], cross),
        std::slice::from_ref(&old)
    );
    assert_eq!(after(&[&old], &[], &[]), [old]);
}
