//! The device's key is rotated on order, and the power goes at every step of it.

mod roots;

use std::convert::Infallible;
use std::path::Path;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use holdfast_disk::fault::Recorder;
use holdfast_link::time::{ManualClock, SystemTrust};
use holdfast_link::tls::{ClientAuth, IdentitySlot};
use holdfast_protocol::certificate::{Leaf, Purpose};
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::crypto::{HashAlg, HmacSecret, hash};
use holdfast_protocol::csr::Csr;
use holdfast_protocol::id::{DeviceId, Guid};
use holdfast_protocol::name::Party;
use holdfast_protocol::notice::{Body, Notice, Stamp};
use holdfast_protocol::record::Serial;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use holdfast_protocol::time::TimeQuality;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rand_core::Rng as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::kit::Authority;
use crate::signers::Signers;
use crate::vault::Staged;

const NAME: &str = "gw1.gateways.plant.holdfast.internal";

/// A server that knows which certificates of the device it accepts.
struct Server {
    authority: Authority,
    accepted: Mutex<Vec<Vec<u8>>>,
    /// What was accepted, and how far the device's disk was when it changed.
    past: Mutex<Vec<(usize, Vec<Vec<u8>>)>>,
    disk: Mutex<Option<Recorder>>,
    /// The planted fault: the old one is void as soon as another is given out.
    is_hasty: bool,
    notices: SigningKey,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl Server {
    fn new(is_hasty: bool) -> Arc<Self> {
        Arc::new(Self {
            authority: Authority::new(),
            accepted: Mutex::default(),
            past: Mutex::default(),
            disk: Mutex::default(),
            is_hasty,
            notices: SigningKey::generate(&mut SystemRandom),
        })
    }

    fn accept(&self, certificates: Vec<Vec<u8>>) {
        let at = lock(&self.disk).as_ref().map_or(0, Recorder::position);
        lock(&self.past).push((at, certificates.clone()));
        *lock(&self.accepted) = certificates;
    }

    async fn listen(self: &Arc<Self>) -> (String, JoinSet<()>) {
        let key = SigningKey::generate(&mut SystemRandom);
        let leaf = self.authority.server(&key.public(), NAME.to_owned());
        let own = tls::Identity::new(vec![leaf], key.to_pkcs8_der()).unwrap();
        let anchors = Anchors::new([self.authority.der.clone()]).unwrap();
        let clock = Arc::new(ManualClock::at(1_800_000_000));
        let slot = IdentitySlot::with(own);
        let config = tls::server_config(slot, ClientAuth::Optional(anchors), clock).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (mut tasks, server) = (JoinSet::new(), Arc::clone(self));
        tasks.spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let peer = stream.get_ref().1.peer_certificates();
                    let peer = peer.and_then(|chain| chain.first()).map(|der| der.to_vec());
                    let answer = |request| answer(Arc::clone(&server), peer.clone(), request);
                    let service = hyper::service::service_fn(answer);
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        (address, tasks)
    }
}

/// What the server may have accepted when the device's disk was there.
fn accepted_at(past: &[(usize, Vec<Vec<u8>>)], at: usize) -> Vec<Vec<Vec<u8>>> {
    let until = |most: usize| past.iter().rev().find(|(then, _)| *then <= most);
    let found = [until(at), at.checked_sub(1).and_then(until)];
    found
        .into_iter()
        .flatten()
        .map(|(_, all)| all.clone())
        .collect()
}

async fn answer(
    server: Arc<Server>,
    peer: Option<Vec<u8>>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let known = lock(&server.accepted).clone();
    let peer = peer.filter(|peer| known.contains(peer));
    let (status, text) = match (path.as_str(), peer) {
        (_, None) => (403, json!({ "error": "void" })),
        ("/api/v1/renew", Some(_)) => {
            let asked: Value = serde_json::from_slice(&body).unwrap();
            let csr = STANDARD.decode(asked["csr"].as_str().unwrap()).unwrap();
            let key = Csr::parse(&csr).unwrap().key().clone();
            let fresh = server.authority.client(&key, Some(name()));
            let mut all = if server.is_hasty { Vec::new() } else { known };
            all.push(fresh.clone());
            server.accept(all);
            let spki = server.notices.public().to_spki_der();
            let given = json!({
                "certificate": STANDARD.encode(fresh),
                "chain": [],
                "anchors": [STANDARD.encode(&server.authority.der)],
                "time": "1800000000 authenticated",
                "notice_keys": [STANDARD.encode(spki)],
            });
            (200, given)
        }
        ("/api/v1/renew/done", Some(peer)) => {
            server.accept(vec![peer]);
            (200, json!({}))
        }
        _ => (404, json!({})),
    };
    let response = Response::builder().status(status);
    Ok(response.body(Full::from(text.to_string())).unwrap())
}

fn device() -> DeviceId {
    DeviceId::from_guid(Guid([0xab; 16]))
}

fn name() -> String {
    let site = "plant".parse().unwrap();
    let party = Party::Device {
        device: device(),
        site,
    };
    party.dns(&"holdfast.internal".parse().unwrap())
}

/// A device that was onboarded, in its folder; the server accepts it.
fn onboarded(server: &Server, address: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let key = SigningKey::generate(&mut SystemRandom);
    let certificate = server.authority.client(&key.public(), Some(name()));
    let credential = DeviceCredential {
        guid: Guid([0xab; 16]),
        rendezvous: RendezvousInfo::new(vec![vec![Instruction::Dns("rv.example".into())]]).unwrap(),
        hmac_secret: HmacSecret::generate(&mut SystemRandom),
        owner_key_hash: hash(HashAlg::Sha256, b"owner"),
        device_info: "thermometer".into(),
        key: SigningKey::generate(&mut SystemRandom),
    };
    let identity = Identity {
        key,
        certificate: certificate.clone(),
        site: SiteConfig {
            device: device(),
            site: "plant".parse().unwrap(),
            domain: "holdfast.internal".parse().unwrap(),
            server: "gw1".parse().unwrap(),
            anchors: vec![server.authority.der.clone()],
            chain: Vec::new(),
            notice_keys: vec![SigningKey::generate(&mut SystemRandom).public()],
            servers: vec![ServerAddress {
                server: "gw1".parse().unwrap(),
                role: ServerRole::Gateway,
                name: NAME.to_owned(),
                mqtt: Vec::new(),
                https: vec![address.to_owned()],
            }],
            time: Time::new(1_800_000_000, TimeQuality::Authenticated),
        },
    };
    let vault = Vault::new(folder.path());
    vault.create(credential.clone()).unwrap();
    let staged = Staged {
        credential,
        identity,
    };
    vault.stage(staged).unwrap();
    vault.commit().unwrap();
    server.accept(vec![certificate]);
    folder
}

/// The room of whatever identity the folder holds, dialled at `address`.
fn room(state: &Path, clock: &Path, address: &str) -> Renewal {
    let vault = Vault::new(state);
    let mut identity = vault.load().unwrap().identity.unwrap();
    identity.site.servers[0].https = vec![address.to_owned()];
    Renewal {
        vault,
        state: state.to_path_buf(),
        identity,
        wish: Wish::default(),
        ordered: Ordered::of(state),
        sessions: Arc::default(),
        own_sessions: 0,
        met: Anchors::none(),
        clock: Arc::new(SystemClock::open(clock, SystemTrust::Hint).unwrap()),
        connect_timeout: Duration::from_secs(2),
    }
}

/// Renews on order with the power cut at every step; how many cuts, and how many devices were left
/// without a certificate that the server accepts.
async fn cut_everywhere(is_hasty: bool) -> (usize, usize) {
    let server = Server::new(is_hasty);
    let (address, _tasks) = server.listen().await;
    let folder = onboarded(&server, &address);
    let elsewhere = tempfile::tempdir().unwrap();
    let clock = elsewhere.path().join("clock");
    *lock(&server.disk) = Some(Recorder::watch(&[folder.path()]).unwrap());
    Ordered::of(folder.path()).leave().unwrap();
    let first = room(folder.path(), &clock, &address);
    let old = first.identity.certificate.clone();
    first.once().await.unwrap();
    assert!(!first.ordered.is_open());
    let now = Vault::new(folder.path()).load().unwrap().identity.unwrap();
    assert_eq!(
        *lock(&server.accepted),
        std::slice::from_ref(&now.certificate)
    );
    assert!(now.certificate != old && now.key.public() != first.identity.key.public());
    assert_eq!(now.site.notice_keys, [server.notices.public()]);
    let recorder = lock(&server.disk).take().unwrap();
    let past = lock(&server.past).clone();
    let mut images = Vec::new();
    recorder.each_image(
        7,
        || SystemRandom.next_u64(),
        |at, image| images.push((at, image)),
    );
    let (mut cuts, mut lost) = (0, 0);
    for (at, image) in images {
        for accepted in accepted_at(&past, at) {
            let state = elsewhere.path().join("left");
            image.put(folder.path(), &state).unwrap();
            *lock(&server.accepted) = accepted;
            cuts += 1;
            // What holds, or what is being tried, is accepted: the agent goes on with it.
            if room(&state, &clock, &address).once().await.is_err() {
                lost += 1;
                continue;
            }
            let held = Vault::new(&state).load().unwrap().identity.unwrap();
            assert_eq!(
                *lock(&server.accepted),
                [held.certificate],
                "the old is void"
            );
        }
    }
    (cuts, lost)
}

#[tokio::test]
async fn a_renewal_on_order_cut_anywhere_leaves_an_accepted_certificate() {
    let (cuts, lost) = cut_everywhere(false).await;
    assert_eq!(lost, 0, "of {cuts}");
    assert!(cuts >= 60, "{cuts} cuts");
}

#[tokio::test]
async fn control_an_old_certificate_that_is_void_too_early_is_caught() {
    let (cuts, lost) = cut_everywhere(true).await;
    assert!(0 < lost && lost < cuts, "{lost} of {cuts}");
}

#[test]
fn only_a_signed_order_for_the_present_certificate_counts_and_only_once() {
    let server = Server::new(false);
    let folder = onboarded(&server, "127.0.0.1:1");
    let identity = Vault::new(folder.path()).load().unwrap().identity.unwrap();
    let own = Leaf::inspect(
        &identity.certificate,
        &identity.site.domain,
        Purpose::Client,
    );
    let signer = SigningKey::generate(&mut SystemRandom);
    let site = SiteConfig {
        notice_keys: vec![signer.public()],
        ..identity.site.clone()
    };
    let signers = Signers::open(folder.path(), &site);
    let order = |body| Notice {
        issuer: "gw1".parse().unwrap(),
        site: "plant".parse().unwrap(),
        device: device(),
        stamp: Stamp { epoch: 1, seq: 1 },
        body,
    };
    let ordered = Ordered::of(folder.path());
    let hear = |notice: Vec<u8>| ordered.hear(&notice, &identity, &signers);
    let renew = |serial| order(Body::Renew { serial });
    let (serial, other) = (own.unwrap().serial, Serial::new(&[9]).unwrap());
    hear(renew(serial.clone()).sign(&server.notices)).unwrap_err();
    hear(order(Body::ServiceEnd { rank: 1 }).sign(&signer)).unwrap_err();
    hear(renew(other).sign(&signer)).unwrap();
    assert!(!ordered.is_open(), "another certificate");
    hear(renew(serial).sign(&signer)).unwrap();
    assert!(ordered.is_open());
    ordered.done();
    assert!(!ordered.is_open());
    ordered.leave().unwrap();
    assert!(
        Ordered::of(folder.path()).is_open(),
        "it outlives the agent"
    );
}

#[test]
fn a_session_that_a_renewal_began_is_no_reason_for_the_next() {
    let server = Server::new(false);
    let folder = onboarded(&server, "127.0.0.1:1");
    let elsewhere = tempfile::tempdir().unwrap();
    let mut renewal = room(
        folder.path(),
        &elsewhere.path().join("clock"),
        "127.0.0.1:1",
    );
    assert!(!renewal.is_due(), "by the rule it has long to go");
    renewal.wish.sessions = Some(1);
    assert!(!renewal.is_due(), "no session yet");
    renewal.sessions.store(1, Ordering::Relaxed);
    assert!(renewal.is_due(), "the first since the agent started");
    renewal.own_sessions = 1;
    assert!(!renewal.is_due(), "the renewal's own");
    renewal.sessions.store(2, Ordering::Relaxed);
    assert!(renewal.is_due(), "the next");
}
