//! The world of these tests: servers in folders of their own, listeners on port 0, and a device.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::random::SystemRandom;
use holdfast_link::time::ManualClock;
use holdfast_link::tls::{Anchors, ClientAuth, IdentitySlot, Trust, client_config, server_config};
use holdfast_link::{fdo, https};
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::fdo::di;
use holdfast_protocol::fdo::service_info::{DevMod, Item, Outbox};
use holdfast_protocol::fdo::to1::To1d;
use holdfast_protocol::fdo::to2::{DeviceStep, DeviceTurn, Options as To2Options, start};
use holdfast_protocol::id::{DeviceId, Guid, ServerId, SiteId};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::record::ListedAs;
use holdfast_protocol::rv::{Instruction, RendezvousInfo, RvProtocol};
use holdfast_protocol::site_module::{SiteConfig, Statement, csr_der};
use holdfast_protocol::voucher::Voucher;
use holdfast_protocol::wire::cbor::{self, Reader};
use holdfast_store::{Medium, Options, Store};
use rand_core::Rng as _;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::enrol::{Enrolling, Token, enrol};
use crate::http::{api_router, fdo_router, serve_plain, serve_tls};
use crate::rendezvous::OnlyTo0;
use crate::{Cps, telemetry};
use crate::{CpsConfig, FdoAddress, Keys, Role, Stores};

/// Now, in these tests.
pub(crate) const NOW: u64 = 1_800_000_000;
pub(crate) const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

pub(crate) fn site(name: &str) -> SiteId {
    name.parse().unwrap()
}

pub(crate) fn server(name: &str) -> ServerId {
    name.parse().unwrap()
}

/// A server with its folder, clock and listeners; all ends when it is dropped.
pub(crate) struct Served {
    pub(crate) cps: Cps,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) folder: TempDir,
    pub(crate) fdo: SocketAddr,
    pub(crate) api: SocketAddr,
    /// What its listener shows.
    pub(crate) identity: IdentitySlot,
    stop: DropGuard,
    tasks: tokio::task::JoinSet<()>,
}

impl Served {
    /// Stops it; its folder, with nothing open in it.
    pub(crate) async fn stop(self) -> TempDir {
        let Self {
            folder,
            stop,
            mut tasks,
            cps,
            ..
        } = self;
        drop((stop, cps));
        while tasks.join_next().await.is_some() {}
        folder
    }
}

pub(crate) fn stores(folder: &std::path::Path) -> Stores {
    let open = |name: &str, ledger| {
        let medium = Medium::File(folder.join(name));
        match ledger {
            true => Store::open(medium, Options::default(), telemetry::prepare),
            false => Store::open(medium, Options::default(), crate::prepare),
        }
    };
    Stores {
        registry: open("registry.redb", false).unwrap(),
        ledger: open("ledger.redb", true).unwrap(),
    }
}

pub(crate) async fn cloud() -> Served {
    cloud_with(|_| {}).await
}

pub(crate) async fn cloud_with(change: impl FnOnce(&mut CpsConfig)) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let mut config = CpsConfig::new(
        server("cloud"),
        "holdfast.internal".parse().unwrap(),
        Role::Cloud,
    );
    change(&mut config);
    serve(config, folder).await
}

/// Opens a server in its folder and serves it; the FDO address it advertises is its own.
pub(crate) async fn serve(config: CpsConfig, folder: TempDir) -> Served {
    let keys = folder.path().join("keys");
    let stores = stores(folder.path());
    serve_from(config, folder, stores, &keys).await
}

/// A cloud with its registry on the given medium and its keys in a folder that outlives it.
pub(crate) async fn serve_on(
    medium: Medium,
    keys: &TempDir,
    folder: TempDir,
) -> Result<Served, holdfast_store::StoreError> {
    let domain = "holdfast.internal".parse().unwrap();
    let config = CpsConfig::new(server("cloud"), domain, Role::Cloud);
    serve_at(config, medium, keys.path(), folder).await
}

/// Any server with its registry on the given medium.
pub(crate) async fn serve_at(
    config: CpsConfig,
    medium: Medium,
    keys: &std::path::Path,
    folder: TempDir,
) -> Result<Served, holdfast_store::StoreError> {
    let registry = Store::open(medium, Options::default(), crate::prepare)?;
    let ledger = Medium::File(folder.path().join("ledger.redb"));
    let ledger = Store::open(ledger, Options::default(), telemetry::prepare)?;
    Ok(serve_from(config, folder, Stores { registry, ledger }, keys).await)
}

async fn serve_from(
    mut config: CpsConfig,
    folder: TempDir,
    stores: Stores,
    keys: &std::path::Path,
) -> Served {
    let clock = Arc::new(ManualClock::at(NOW));
    let (fdo, api) = (listener().await, listener().await);
    let (fdo_at, api_at) = (fdo.local_addr().unwrap(), api.local_addr().unwrap());
    config.advertise.fdo = vec![FdoAddress {
        ip: Some(fdo_at.ip()),
        dns: None,
        port: fdo_at.port(),
        tls: false,
    }];
    config.advertise.https = vec![api_at.to_string()];
    config.advertise.mqtt = vec![format!("127.0.0.1:{}", api_at.port())];
    let keys = Keys::open(keys).unwrap();
    let opened = Cps::open(config, stores, keys, Arc::clone(&clock) as _).await;
    let cps = opened.unwrap();
    let cancel = CancellationToken::new();
    let identity = IdentitySlot::with(cps.authority().own_identity(&[LOCAL]).await.unwrap());
    let tls = server_config(
        identity.clone(),
        ClientAuth::Optional(cps.authority().trust()),
        Arc::clone(&clock) as _,
    )
    .unwrap();
    let limits = cps.config().limits.clone();
    let parties: Vec<Arc<dyn crate::fdo::FdoParty>> = match cps.cloud() {
        None => vec![cps.rendezvous().clone(), cps.registrar().clone()],
        Some(_) => vec![
            Arc::new(OnlyTo0(cps.rendezvous().clone())),
            cps.relay().clone(),
            cps.registrar().clone(),
        ],
    };
    let router = fdo_router(parties, limits.fdo_body, cps.metrics().clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_plain(fdo, router, cps.bounds(), cancel.clone()));
    tasks.spawn(serve_tls(
        api,
        tls,
        api_router(cps.clone()),
        cps.bounds(),
        cancel.clone(),
    ));
    Served {
        cps,
        clock,
        folder,
        fdo: fdo_at,
        api: api_at,
        identity,
        stop: cancel.drop_guard(),
        tasks,
    }
}

async fn listener() -> TcpListener {
    TcpListener::bind((LOCAL, 0)).await.unwrap()
}

/// Enrols a gateway with the cloud and serves it.
pub(crate) async fn gateway(cloud: &Served, at: &str, name: &str) -> Served {
    let (site, gateway) = (site(at), server(name));
    cloud.cps.add_site(&site).await.unwrap();
    let life = Duration::from_secs(3600);
    let token = cloud
        .cps
        .enrolment()
        .token(&site, &gateway, life)
        .await
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    enrol_in(cloud, &folder, &token).await.unwrap();
    let config = CpsConfig::new(
        gateway,
        "holdfast.internal".parse().unwrap(),
        Role::Gateway { site },
    );
    serve(config, folder).await
}

pub(crate) async fn enrol_in(
    cloud: &Served,
    folder: &TempDir,
    token: &str,
) -> Result<crate::enrol::Cloud, crate::enrol::EnrolError> {
    let token: Token = token.parse().unwrap();
    let enrolling = Enrolling {
        gateway: None,
        cloud: vec![cloud.api.to_string()],
        addresses: vec![LOCAL],
        mqtt: vec!["127.0.0.1:1".into()],
        https: vec!["127.0.0.1:2".into()],
    };
    let clock = Arc::new(ManualClock::at(NOW));
    enrol(&folder.path().join("keys"), &token, enrolling, clock).await
}

/// The gateway's HTTPS client of the cloud, by its own certificate.
pub(crate) async fn https_client(gateway: &Served, cloud: SocketAddr) -> https::Client {
    let name = gateway.cps.cloud().unwrap().name();
    https_client_of(gateway, cloud, name).await
}

/// A server's HTTPS client of the server of that name, by its own certificate.
pub(crate) async fn https_client_of(
    gateway: &Served,
    at: SocketAddr,
    name: String,
) -> https::Client {
    let identity = gateway
        .cps
        .authority()
        .own_identity(&[LOCAL])
        .await
        .unwrap();
    let anchors = Anchors::new(gateway.cps.authority().anchors().unwrap()).unwrap();
    let config = client_config(
        Trust::Anchors(anchors),
        Some(IdentitySlot::with(identity)),
        Arc::clone(&gateway.clock) as _,
    );
    let security = Security::Tls {
        name,
        config: config.unwrap(),
    };
    let endpoint = Endpoint {
        addresses: vec![at.to_string()],
        security,
    };
    https::Client::new(endpoint, https::Limits::default())
}

pub(crate) fn fdo_client(at: SocketAddr) -> fdo::Client {
    let endpoint = Endpoint {
        addresses: vec![at.to_string()],
        security: Security::Plain,
    };
    fdo::Client::new(endpoint, "", https::Limits::default())
}

/// A factory: makes devices and vouchers.
pub(crate) struct Factory {
    pub(crate) key: SigningKey,
    ca: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
}

impl Factory {
    pub(crate) fn new() -> Self {
        Self::with_key(SigningKey::generate(&mut SystemRandom))
    }

    pub(crate) fn with_key(key: SigningKey) -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        let ca_key = rcgen::KeyPair::generate().unwrap();
        let ca = rcgen::CertifiedIssuer::self_signed(params, ca_key).unwrap();
        Self { key, ca }
    }

    /// A new device and its voucher, owned by the factory.
    pub(crate) fn device(&self, serial: &str) -> (Device, Voucher) {
        let key = SigningKey::generate(&mut SystemRandom);
        let (device, message) = di::start(serial, "thermometer", key.clone()).unwrap();
        let app = di::AppStart::read(&message).unwrap();
        let spki = rcgen::SubjectPublicKeyInfo::from_der(&key.public().to_spki_der()).unwrap();
        let leaf = rcgen::CertificateParams::default()
            .signed_by(&spki, &self.ca)
            .unwrap();
        let rendezvous = RendezvousInfo::new(vec![vec![
            Instruction::Dns("holdfast-rv.local".into()),
            Instruction::DevPort(8042),
            Instruction::Protocol(RvProtocol::Http),
        ]]);
        let terms = di::IssueTerms {
            guid: guid(),
            rendezvous: &rendezvous.unwrap(),
            manufacturer: &self.key.public(),
            chain: vec![leaf.der().to_vec()],
        };
        let (factory, message) = app.issue(terms).unwrap();
        let (device, message) = device.step(&message, &mut SystemRandom).unwrap();
        let (voucher, message) = factory.step(&message).unwrap();
        (Device::new(device.step(&message).unwrap()), voucher)
    }

    /// A new device whose voucher comes back to this factory.
    pub(crate) fn device_for_itself(&self, serial: &str) -> (Device, Voucher) {
        let (device, voucher) = self.device(serial);
        let between = SigningKey::generate(&mut SystemRandom);
        let away = PublicKey::x509(&between.public());
        let voucher = voucher.extend(&away, &self.key).unwrap();
        let back = PublicKey::x509(&self.key.public());
        (device, voucher.extend(&back, &between).unwrap())
    }

    /// A new device whose voucher is extended to a server.
    pub(crate) fn device_for(&self, cps: &Cps, serial: &str) -> (Device, Voucher) {
        let (device, voucher) = self.device(serial);
        let next = PublicKey::x509(&cps.keys().owner().public());
        (device, voucher.extend(&next, &self.key).unwrap())
    }
}

pub(crate) fn guid() -> Guid {
    let mut guid = Guid([0; 16]);
    SystemRandom.fill_bytes(&mut guid.0);
    guid
}

/// The cloud's operator lists the factory.
pub(crate) async fn believe(cloud: &Served, factory: &Factory) {
    let named = ("acme".parse().unwrap(), factory.key.public());
    let done = cloud.cps.lists().list(ListedAs::Manufacturer, None, named);
    done.await.unwrap();
}

/// What the device of these tests does otherwise than a good one would.
#[derive(Clone, Default)]
pub(crate) struct Manners {
    /// Modules it speaks; `None` both.
    pub(crate) modules: Option<Vec<String>>,
    /// The request it sends instead of its own.
    pub(crate) csr: Option<Vec<u8>>,
    /// The server it states.
    pub(crate) states_server: Option<String>,
    /// It states another key than its request has.
    pub(crate) states_other_key: bool,
    /// It signs its statement with another key.
    pub(crate) forges: bool,
    /// It stops after so many messages got their answer.
    pub(crate) stops_after: Option<usize>,
}

/// A device.
pub(crate) struct Device {
    pub(crate) credential: DeviceCredential,
    /// Written before message 70 leaves, as the agent does.
    pub(crate) pending: Option<DeviceCredential>,
    pub(crate) cps_key: SigningKey,
    pub(crate) certificate: Option<Vec<u8>>,
    pub(crate) config: Option<SiteConfig>,
    pub(crate) done: bool,
}

/// How a run of the device ended; read through `Debug` in assertions.
#[derive(Debug)]
#[allow(dead_code)]
pub(crate) enum Ended {
    Well,
    Stopped,
    Link(fdo::Error),
    Protocol(holdfast_protocol::fdo::Error),
}

impl Device {
    fn new(credential: DeviceCredential) -> Self {
        Self {
            credential,
            pending: None,
            cps_key: SigningKey::generate(&mut SystemRandom),
            certificate: None,
            config: None,
            done: false,
        }
    }

    /// The same device after a restart, with nothing but its credential.
    pub(crate) fn again(&self) -> Self {
        Self::new(self.credential.clone())
    }

    pub(crate) fn id(&self) -> DeviceId {
        DeviceId::from_guid(self.credential.guid)
    }

    pub(crate) async fn to1(&self, at: SocketAddr) -> Result<To1d, fdo::Error> {
        let mut run = fdo_client(at).start();
        let (state, hello) = holdfast_protocol::fdo::to1::hello(&self.credential);
        let (state, proof) = state.step(&run.exchange(&hello).await?).unwrap();
        Ok(state.step(&run.exchange(&proof).await?).unwrap())
    }

    pub(crate) async fn to2(&mut self, at: SocketAddr, manners: &Manners) -> Ended {
        self.to2_with(at, manners, To2Options::default()).await
    }

    pub(crate) async fn to2_with(
        &mut self,
        at: SocketAddr,
        manners: &Manners,
        options: To2Options,
    ) -> Ended {
        let mut run = fdo_client(at).start();
        let mut talk = DeviceTalk {
            manners: manners.clone(),
            ..DeviceTalk::default()
        };
        let (mut session, mut message) = start(&self.credential, options, &mut SystemRandom);
        let mut answered = 0;
        loop {
            if manners.stops_after == Some(answered) {
                return Ended::Stopped;
            }
            let answer = match run.exchange(&message).await {
                Ok(answer) => answer,
                Err(error) => return Ended::Link(error),
            };
            answered += 1;
            // A device that dies here has got the answer and does nothing with it.
            if manners.stops_after == Some(answered) {
                return Ended::Stopped;
            }
            (session, message) = match session.step(&answer, &mut SystemRandom) {
                Ok(DeviceStep::Continue(session, message)) => (session, message),
                Ok(DeviceStep::ServiceInfo(turn)) => talk.speak(self, turn),
                Ok(DeviceStep::Finished) => {
                    if let Some(new) = self.pending.take() {
                        self.credential = new;
                    }
                    return Ended::Well;
                }
                Err(error) => return Ended::Protocol(error),
            };
        }
    }
}

/// The device's side of ServiceInfo.
#[derive(Default)]
struct DeviceTalk {
    manners: Manners,
    outbox: Outbox,
    begun: bool,
    server: Option<String>,
    nonce: Option<[u8; 16]>,
    stated: bool,
}

impl DeviceTalk {
    fn speak(
        &mut self,
        device: &mut Device,
        mut turn: DeviceTurn,
    ) -> (
        holdfast_protocol::fdo::to2::DeviceSession,
        holdfast_protocol::fdo::Message,
    ) {
        if !self.begun {
            self.begun = true;
            let both = vec!["fdo.csr".to_owned(), "holdfast.site".to_owned()];
            let modules = self.manners.modules.clone().unwrap_or(both);
            let text = || "x".to_owned();
            let devmod = DevMod {
                os: text(),
                arch: text(),
                version: text(),
                device: text(),
                serial: None,
                sep: "/".into(),
                bin: text(),
                modules,
            };
            devmod.push_to(&mut self.outbox).unwrap();
        }
        for item in turn.take_items() {
            self.hear(device, &item);
        }
        self.state(device);
        if turn.owner_is_done() {
            device.pending = turn.replacement().cloned();
        }
        turn.next(&mut self.outbox, &mut SystemRandom)
    }

    fn hear(&mut self, device: &mut Device, item: &Item) {
        let mut r = Reader::new(&item.value).unwrap();
        match (item.module.as_str(), item.message.as_str()) {
            ("holdfast.site", "server") => self.server = Some(r.text(80).unwrap().to_owned()),
            ("holdfast.site", "nonce") => self.nonce = Some(r.bytes_exact().unwrap()),
            ("fdo.csr", "active") if self.nonce.is_none() => self.ask(device),
            ("fdo.csr", "simpleenroll-res") => {
                let text = r.text(65_536).unwrap().as_bytes().to_vec();
                device.certificate = Some(csr_der(&text).unwrap());
            }
            ("holdfast.site", "config") => {
                let config = SiteConfig::from_cbor(r.bytes(65_536).unwrap()).unwrap();
                device.config = Some(config);
                device.done = true;
                let done = cbor::encode(|w| _ = w.bool(true));
                self.outbox.push("holdfast.site", "done", done).unwrap();
            }
            _ => {}
        }
    }

    fn state(&mut self, device: &Device) {
        let (Some(server), Some(nonce), false) = (&self.server, self.nonce, self.stated) else {
            return;
        };
        self.stated = true;
        let server = self.manners.states_server.as_ref().unwrap_or(server);
        let other = SigningKey::generate(&mut SystemRandom);
        let key = if self.manners.states_other_key {
            &other
        } else {
            &device.cps_key
        };
        let statement = Statement {
            guid: device.credential.guid,
            cps_key: key.public(),
            server: server.parse().unwrap(),
            nonce,
        };
        let signer = if self.manners.forges {
            &other
        } else {
            &device.credential.key
        };
        let signed = statement.sign(signer);
        let active = cbor::encode(|w| _ = w.bool(true));
        self.outbox.push("holdfast.site", "active", active).unwrap();
        self.outbox
            .push(
                "holdfast.site",
                "statement",
                cbor::encode(|w| _ = w.bytes(&signed)),
            )
            .unwrap();
        self.ask(device);
    }

    fn ask(&mut self, device: &Device) {
        let own = || holdfast_protocol::csr::request("any", &device.cps_key);
        let csr = self.manners.csr.clone().unwrap_or_else(own);
        let text = holdfast_protocol::site_module::csr_text(&csr);
        self.outbox
            .push(
                "fdo.csr",
                "simpleenroll-req",
                cbor::encode(|w| _ = w.text(&text)),
            )
            .unwrap();
    }
}
