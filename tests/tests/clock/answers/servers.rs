//! A cloud and a gateway in this process behind listeners at which a request may be lost, come late, or lose its answer,
//! by script or by dice. Called by the tests of lost answers alone.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::body::Body;
use holdfast_cps::authority::{Whose, parse_serial};
use holdfast_cps::enrol::{Enrolling, enrol};
use holdfast_cps::http::{Peer, api_router};
use holdfast_cps::{Cps, CpsConfig, Keys, Role, Stores, sync, telemetry};
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::https;
use holdfast_link::time::{Clock, ManualClock};
use holdfast_link::tls::{self, Anchors, ClientAuth, IdentitySlot, Trust};
use holdfast_protocol::certificate::{Leaf, Purpose};
use holdfast_protocol::id::SiteId;
use holdfast_store::{Medium, Options, Store};
use http_body_util::BodyExt as _;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tower_service::Service as _;

pub(super) const SITE: &str = "north";
const DOMAIN: &str = "holdfast.internal";
const NOW: u64 = 1_800_000_000;
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const DAY: Duration = Duration::from_secs(86_400);
/// Over a device's rounds no more time passes than the grace.
const LIFE: Duration = DAY.saturating_mul(3);
const GRACE: Duration = DAY.saturating_mul(30);

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Passes,
    NeverComes,
    AnswerLost,
    /// Who asked has long gone when it comes.
    ComesLate,
    /// The server is in trouble.
    IsRefused,
}

/// A fault planted at the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Defect {
    None,
    /// The old certificate is void with the renewal.
    VoidsAtOnce,
    /// A confirmation voids all others, be they older or newer.
    VoidsAllOthers,
}

struct Held {
    path: String,
    body: Vec<u8>,
    peer: Peer,
}

/// What is decided for the requests to one server.
#[derive(Default)]
struct Desk {
    script: VecDeque<Fate>,
    /// For what the script does not say.
    then: Option<Fate>,
    held: Vec<Held>,
    renewals: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

/// A server, and what stands before it.
pub(super) struct Server {
    pub(super) cps: Cps,
    pub(super) address: String,
    _folder: TempDir,
    defect: Defect,
    desk: Arc<Mutex<Desk>>,
    dice: Arc<Mutex<Dice>>,
    tasks: Mutex<JoinSet<()>>,
}

struct Dice(u64);

impl Dice {
    fn cast(&mut self, sides: u64) -> u64 {
        // xorshift64*: the same seed is the same adventure.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

impl Server {
    async fn open(config: CpsConfig, folder: TempDir, shared: &Shared) -> Arc<Self> {
        let file = |name: &str| Medium::File(folder.path().join(name));
        let (registry, ledger) = (file("registry.redb"), file("ledger.redb"));
        let stores = Stores {
            registry: Store::open(registry, Options::default(), holdfast_cps::prepare).unwrap(),
            ledger: Store::open(ledger, Options::default(), telemetry::prepare).unwrap(),
        };
        let keys = Keys::open(&folder.path().join("keys")).unwrap();
        let clock = Arc::clone(&shared.clock) as Arc<dyn Clock>;
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let cps = Cps::open(config, stores, keys, clock).await.unwrap();
        let server = Arc::new(Self {
            cps,
            address: listener.local_addr().unwrap().to_string(),
            _folder: folder,
            defect: shared.defect,
            desk: Arc::default(),
            dice: Arc::clone(&shared.dice),
            tasks: Mutex::default(),
        });
        server.listen(listener).await;
        server
    }

    async fn listen(self: &Arc<Self>, listener: TcpListener) {
        let own = self.cps.authority().own_identity(&[LOCAL]).await.unwrap();
        let clients = ClientAuth::Late(self.cps.authority().trust(), GRACE);
        let clock = Arc::clone(self.cps.clock());
        let config = tls::server_config(IdentitySlot::with(own), clients, clock).unwrap();
        let server = Arc::clone(self);
        lock(&self.tasks).spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            let mut connections = JoinSet::new();
            loop {
                let (stream, address) = listener.accept().await.unwrap();
                let (acceptor, server) = (acceptor.clone(), Arc::clone(&server));
                connections.spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else {
                        return;
                    };
                    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
                    let certificates = shown.iter().map(|one| one.to_vec()).collect();
                    let peer = Peer {
                        address: Some(address),
                        certificates: Arc::new(certificates),
                    };
                    let answer = |request| Arc::clone(&server).meet(peer.clone(), request);
                    let service = hyper::service::service_fn(answer);
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
    }

    /// What comes in at the listener. An error ends the connection without an answer.
    async fn meet(
        self: Arc<Self>,
        peer: Peer,
        request: Request<hyper::body::Incoming>,
    ) -> Result<Response<Body>, io::Error> {
        let path = request.uri().path().to_owned();
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?;
        let body = body.to_bytes().to_vec();
        if !path.starts_with("/api/v1/renew") {
            let mut request = Request::from_parts(head, Body::from(body));
            request.extensions_mut().insert(peer);
            let mut router = api_router(self.cps.clone());
            return Ok(router.call(request).await.unwrap_or_else(never));
        }
        let held = Held { path, body, peer };
        let gone = || io::Error::other("gone");
        match self.fate() {
            Fate::Passes => Ok(self.carry_out(held).await),
            Fate::NeverComes => Err(gone()),
            Fate::AnswerLost => {
                self.carry_out(held).await;
                Err(gone())
            }
            Fate::ComesLate => {
                lock(&self.desk).held.push(held);
                Err(gone())
            }
            Fate::IsRefused => {
                let refused = Response::builder().status(StatusCode::UNAUTHORIZED);
                let body = Body::from(r#"{"error":"the list of revoked certificates is damaged"}"#);
                Ok(refused.body(body).unwrap())
            }
        }
    }

    fn fate(&self) -> Fate {
        let mut desk = lock(&self.desk);
        if let Some(fate) = desk.script.pop_front() {
            return fate;
        }
        match desk.then {
            Some(fate) => fate,
            None => match lock(&self.dice).cast(8) {
                0..=3 => Fate::Passes,
                4 => Fate::NeverComes,
                5 => Fate::AnswerLost,
                6 => Fate::ComesLate,
                _ => Fate::IsRefused,
            },
        }
    }

    async fn carry_out(&self, held: Held) -> Response<Body> {
        let Held { path, body, peer } = held;
        let shown = peer.certificates.first().cloned();
        let mut request = Request::post(&path).body(Body::from(body)).unwrap();
        let kind = hyper::header::HeaderValue::from_static("application/json");
        request
            .headers_mut()
            .insert(hyper::header::CONTENT_TYPE, kind);
        request.extensions_mut().insert(peer);
        let mut router = api_router(self.cps.clone());
        let answer = router.call(request).await.unwrap_or_else(never);
        if path == "/api/v1/renew" {
            lock(&self.desk).renewals += 1;
        }
        if let Some(shown) = shown.filter(|_| answer.status().is_success()) {
            self.spoil(&path, &shown).await;
        }
        answer
    }

    /// The planted fault.
    async fn spoil(&self, path: &str, shown: &[u8]) {
        let leaf = Leaf::inspect(shown, &self.cps.config().domain, Purpose::Client).unwrap();
        let authority = self.cps.authority();
        match (self.defect, path) {
            (Defect::VoidsAtOnce, "/api/v1/renew") => {
                _ = authority.revoke_all(&Whose::Serial(leaf.serial)).await;
            }
            (Defect::VoidsAllOthers, "/api/v1/renew/done") => {
                for row in authority.list(None).unwrap() {
                    if row.subject == leaf.dns && row.serial != leaf.serial.to_string() {
                        let serial = parse_serial(&row.serial).unwrap();
                        _ = authority.revoke(serial).await;
                    }
                }
            }
            _ => {}
        }
    }

    /// The next requests have these fates.
    pub(super) fn script(&self, fates: impl IntoIterator<Item = Fate>) {
        lock(&self.desk).script.extend(fates);
    }

    /// All requests have this fate, but for those of the script.
    pub(super) fn all_comes(&self, fate: Fate) {
        lock(&self.desk).then = Some(fate);
    }

    /// What was on its way comes, the last one first.
    pub(super) async fn late_ones_come(&self) {
        let held = std::mem::take(&mut lock(&self.desk).held);
        for one in held.into_iter().rev() {
            self.carry_out(one).await;
        }
    }

    pub(super) fn name(&self) -> String {
        self.cps
            .authority()
            .own_party()
            .dns(&self.cps.config().domain)
    }

    /// Whether who shows this certificate is let in.
    pub(super) fn accepts(&self, certificate: &[u8]) -> Result<(), String> {
        let known = self.cps.roster().identify(&[certificate.to_vec()]);
        let who = &self.cps.config().server;
        known.map(drop).map_err(|why| format!("{who}: {why}"))
    }
}

fn never<T>(never: Infallible) -> T {
    match never {}
}

struct Shared {
    clock: Arc<ManualClock>,
    dice: Arc<Mutex<Dice>>,
    defect: Defect,
}

/// A cloud and the gateway of a site.
pub(super) struct Pair {
    pub(super) cloud: Arc<Server>,
    pub(super) gateway: Arc<Server>,
    shared: Shared,
}

impl Pair {
    pub(super) async fn new(defect: Defect, seed: u64) -> Self {
        let shared = Shared {
            clock: Arc::new(ManualClock::at(NOW)),
            dice: Arc::new(Mutex::new(Dice(seed))),
            defect,
        };
        let site: SiteId = SITE.parse().unwrap();
        let folder = || tempfile::tempdir().unwrap();
        let cloud = Server::open(config("cloud", Role::Cloud), folder(), &shared).await;
        cloud.cps.add_site(&site).await.unwrap();
        let home = folder();
        admit(&cloud, &site, home.path(), &shared).await;
        let gateway = Server::open(config("gw1", Role::Gateway { site }), home, &shared).await;
        Self {
            cloud,
            gateway,
            shared,
        }
    }

    /// The servers tell each other all that is new.
    pub(super) async fn sync(&self) {
        let gateway = &self.gateway.cps;
        let own = gateway.authority().own_identity(&[LOCAL]).await.unwrap();
        let anchors = Anchors::new(gateway.authority().anchors().unwrap()).unwrap();
        let slot = Some(IdentitySlot::with(own));
        let clock = Arc::clone(gateway.clock());
        let config = tls::client_config(Trust::Anchors(anchors), slot, clock).unwrap();
        let endpoint = Endpoint {
            addresses: vec![self.cloud.address.clone()],
            security: Security::Tls {
                name: self.cloud.name(),
                config,
            },
        };
        let client = https::Client::new(endpoint, https::Limits::default());
        sync::Client::new(gateway, client).once().await.unwrap();
    }

    pub(super) fn all_comes(&self, fate: Fate) {
        self.gateway.all_comes(fate);
        self.cloud.all_comes(fate);
    }

    /// From here on dice say what becomes of requests.
    pub(super) fn dice_are_cast(&self) {
        for server in [&self.gateway, &self.cloud] {
            lock(&server.desk).then = None;
        }
    }

    /// Another device's turn.
    pub(super) fn begin(&self) {
        for server in [&self.gateway, &self.cloud] {
            *lock(&server.desk) = Desk::default();
        }
    }

    pub(super) fn die(&self, sides: u64) -> u64 {
        lock(&self.shared.dice).cast(sides)
    }

    /// The most renewals that one of the servers gave in this turn.
    pub(super) fn renewals(&self) -> usize {
        let of = |server: &Server| lock(&server.desk).renewals;
        of(&self.gateway).max(of(&self.cloud))
    }

    /// Nothing, an hour, a day and a half, or more than a life.
    pub(super) fn time_goes_on(&self) {
        let by = match self.die(6) {
            0..=2 => Duration::ZERO,
            3 => DAY / 24,
            4 => LIFE / 2,
            _ => LIFE + DAY / 24,
        };
        self.shared.clock.advance(by);
    }
}

fn config(name: &str, role: Role) -> CpsConfig {
    let (server, domain) = (name.parse().unwrap(), DOMAIN.parse().unwrap());
    let mut config = CpsConfig::new(server, domain, role);
    config.lives.leaf = LIFE;
    config.lives.grace = GRACE;
    config
}

async fn admit(cloud: &Server, site: &SiteId, folder: &Path, shared: &Shared) {
    let gateway = "gw1".parse().unwrap();
    let enrolment = cloud.cps.enrolment();
    let token = enrolment.token(site, &gateway, DAY).await.unwrap();
    let enrolling = Enrolling {
        gateway: None,
        cloud: vec![cloud.address.clone()],
        addresses: vec![LOCAL],
        mqtt: vec!["127.0.0.1:1".into()],
        https: vec!["127.0.0.1:2".into()],
    };
    let clock = Arc::clone(&shared.clock) as Arc<dyn Clock>;
    let token = token.parse().unwrap();
    enrol(&folder.join("keys"), &token, enrolling, clock)
        .await
        .unwrap();
}
