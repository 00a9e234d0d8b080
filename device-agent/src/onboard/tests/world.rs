//! Manufacturer, rendezvous and owner behind one HTTP port, made of the protocol's server sides, with
//! faults on order.

mod lan;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use holdfast_protocol::csr::Csr;
use holdfast_protocol::fdo::service_info::Outbox;
use holdfast_protocol::fdo::to2::{self, HelloDevice, OwnerSession, OwnerStep, OwnerTurn, Terms};
use holdfast_protocol::fdo::{Error, Message, MessageType, di, to0, to1};
use holdfast_protocol::id::{DeviceId, Domain, Guid};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::lan_module;
use holdfast_protocol::name::Party;
use holdfast_protocol::rv::{Instruction, RendezvousInfo, RvProtocol, To2Address, To2Protocol};
use holdfast_protocol::site_module::{
    CSR_MODULE, MODULE, SiteConfig, Statement, csr_der, csr_text,
};
use holdfast_protocol::time::{Time, TimeQuality};
use holdfast_protocol::voucher::{Policy, Voucher};
use holdfast_protocol::wire::cbor::{self, Reader};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rand_core::Rng;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::kit::Authority;

/// How the owner behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Right,
    /// Holds another key than the voucher's.
    Stranger,
    /// Speaks no module of ours.
    WithoutSite,
    /// Certifies a key of its own.
    ForeignCertificate,
    /// Certifies another device's name.
    OtherName,
    /// Names an anchor that did not issue the certificate.
    OtherAnchor,
    /// Sends fdo.csr:error.
    NoCertificate,
    /// Keeps the credential and hands over the LAN's.
    Installer,
}

/// A fault at the n-th message after the order was given.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub(super) after: u32,
    /// Whether the message is acted upon before the link breaks.
    pub(super) heard: bool,
    /// Whether it never answers instead of breaking.
    pub(super) hang: bool,
}

#[derive(Debug)]
pub(super) struct World {
    inner: Arc<Inner>,
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    parties: Mutex<Parties>,
    fault: Mutex<Option<Cut>>,
    /// So many greetings of TO2 are still answered by a liar on the path.
    lies: Mutex<u32>,
    cut: watch::Sender<bool>,
    hanging: Notify,
}

#[derive(Debug)]
struct Parties {
    address: SocketAddr,
    manufacturer: SigningKey,
    owner: SigningKey,
    behaviour: Owner,
    root: Authority,
    /// By GUID: those the manufacturer made, and those the owner holds.
    made: BTreeMap<Guid, Voucher>,
    owned: BTreeMap<Guid, (Voucher, Guid)>,
    replaced: BTreeSet<Guid>,
    rendezvous: BTreeMap<Guid, (VerifyingKey, Vec<u8>)>,
    sessions: BTreeMap<String, Session>,
    certified: Vec<VerifyingKey>,
    statements: u32,
}

#[derive(Debug)]
enum Session {
    Factory(di::ExpectSetHmac),
    Rendezvous(to1::ExpectProveToRv),
    Owner(Box<(OwnerSession, Talk)>),
}

#[derive(Debug, Default)]
struct Talk {
    born: Option<Guid>,
    begun: bool,
    nonce: [u8; 16],
    stated: Option<Statement>,
    request: Option<Vec<u8>>,
    answered: bool,
    stored: bool,
    outbox: Outbox,
}

impl World {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let parties = Parties {
            address,
            manufacturer: SigningKey::generate(&mut SystemRandom),
            owner: SigningKey::generate(&mut SystemRandom),
            behaviour: Owner::Right,
            root: Authority::new(),
            made: BTreeMap::new(),
            owned: BTreeMap::new(),
            replaced: BTreeSet::new(),
            rendezvous: BTreeMap::new(),
            sessions: BTreeMap::new(),
            certified: Vec::new(),
            statements: 0,
        };
        let inner = Arc::new(Inner {
            address,
            parties: Mutex::new(parties),
            fault: Mutex::new(None),
            lies: Mutex::new(0),
            cut: watch::Sender::new(false),
            hanging: Notify::new(),
        });
        let mut server = JoinSet::new();
        server.spawn(serve(listener, Arc::clone(&inner)));
        Self {
            inner,
            _server: server,
        }
    }

    pub(super) fn address(&self) -> String {
        self.inner.address.to_string()
    }

    fn parties(&self) -> std::sync::MutexGuard<'_, Parties> {
        self.inner.parties.lock().unwrap()
    }

    /// The manufacturer extends the voucher to the owner, who registers it.
    pub(super) fn assign(&self, guid: Guid) {
        let mut parties = self.parties();
        let next = PublicKey::x509(&parties.owner.public());
        let voucher = parties.made[&guid]
            .extend(&next, &parties.manufacturer)
            .unwrap();
        parties.own(voucher, guid);
    }

    pub(super) fn become_(&self, behaviour: Owner) {
        self.parties().behaviour = behaviour;
    }

    pub(super) fn cut(&self, cut: Cut) {
        *self.inner.fault.lock().unwrap() = Some(cut);
    }

    /// Somebody on the path answers the next `count` greetings of TO2 by code 6: nothing known of it.
    pub(super) fn lie(&self, count: u32) {
        *self.inner.lies.lock().unwrap() = count;
    }

    pub(super) fn lies_left(&self) -> u32 {
        *self.inner.lies.lock().unwrap()
    }

    pub(super) fn was_cut(&self) -> bool {
        *self.inner.cut.borrow()
    }

    /// A message was left without an answer.
    pub(super) async fn hung(&self) {
        self.inner.hanging.notified().await;
    }

    pub(super) fn forget_replaced(&self) {
        let mut parties = self.parties();
        for guid in std::mem::take(&mut parties.replaced) {
            parties.owned.remove(&guid);
        }
    }

    pub(super) fn knows(&self, guid: Guid) -> bool {
        self.parties().owned.contains_key(&guid)
    }

    pub(super) fn certified(&self, key: &VerifyingKey) -> bool {
        self.parties().certified.contains(key)
    }

    pub(super) fn statements(&self) -> u32 {
        self.parties().statements
    }
}

async fn serve(listener: TcpListener, inner: Arc<Inner>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let inner = Arc::clone(&inner);
        connections.spawn(async move {
            let answer = |request| answer(Arc::clone(&inner), request);
            let service = hyper::service::service_fn(answer);
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(
    inner: Arc<Inner>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let number: u8 = request
        .uri()
        .path()
        .rsplit('/')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let kind = MessageType::from_number(number).unwrap();
    let token = request
        .headers()
        .get("authorization")
        .map(|t| t.to_str().unwrap().to_owned());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let message = Message::new(kind, body.to_vec());
    let due = match &mut *inner.fault.lock().unwrap() {
        Some(cut) if cut.after == 0 => Some(*cut),
        Some(cut) => {
            cut.after -= 1;
            None
        }
        None => None,
    };
    if let Some(cut) = due {
        *inner.fault.lock().unwrap() = None;
        inner.cut.send_replace(true);
        if cut.heard {
            let _ = inner.parties.lock().unwrap().hear(&message, token);
        }
        if cut.hang {
            inner.hanging.notify_one();
            std::future::pending::<()>().await;
        }
        // Not FDO: as a proxy in between would answer.
        return Ok(Response::builder()
            .status(502)
            .body(Full::default())
            .unwrap());
    }
    let heard = match inner.lies(kind) {
        true => Err(Error::NotFound),
        false => inner.parties.lock().unwrap().hear(&message, token),
    };
    let (token, reply) = match heard {
        Ok(heard) => heard,
        Err(error) => {
            let report = error.report(kind).unwrap_or_default();
            (String::new(), Message::new(MessageType::Error, report))
        }
    };
    let response = Response::builder()
        .header("message-type", reply.kind.number().to_string())
        .header("authorization", token)
        .header("content-type", "application/cbor");
    Ok(response.body(Full::new(reply.body.into())).unwrap())
}

impl Inner {
    fn lies(&self, kind: MessageType) -> bool {
        let mut left = self.lies.lock().unwrap();
        let lies = kind == MessageType::To2HelloDevice && *left > 0;
        *left -= u32::from(lies);
        lies
    }
}

impl Parties {
    fn own(&mut self, voucher: Voucher, born: Guid) {
        let guid = voucher.guid();
        let to1d = self.register(&voucher);
        let device_key = voucher.device_key().unwrap().clone();
        self.rendezvous.insert(guid, (device_key, to1d));
        self.owned.insert(guid, (voucher, born));
    }

    /// TO0, both sides in one place.
    fn register(&self, voucher: &Voucher) -> Vec<u8> {
        let registration = to0::Registration {
            addresses: vec![To2Address {
                ip: Some(self.address.ip()),
                dns: None,
                port: self.address.port(),
                protocol: To2Protocol::Http,
            }],
            wait_secs: 3600,
        };
        let (owner, hello) = to0::hello();
        let (server, ack) = to0::ExpectOwnerSign::begin(&hello, &mut SystemRandom).unwrap();
        let (_, sign) = owner
            .step(&ack, voucher, &self.owner, &registration)
            .unwrap();
        let offer = server.step(&sign, &Policy::default()).unwrap();
        offer.to1d.as_bytes().to_vec()
    }

    fn hear(
        &mut self,
        message: &Message,
        token: Option<String>,
    ) -> Result<(String, Message), Error> {
        let token = token.filter(|token| !token.is_empty());
        if message.kind == MessageType::Error {
            token.and_then(|token| self.sessions.remove(&token));
            return Ok((String::new(), Message::new(MessageType::DiDone, vec![0x80])));
        }
        let session = token.as_ref().and_then(|token| self.sessions.remove(token));
        let token = token.unwrap_or_else(|| format!("{:016x}", SystemRandom.next_u64()));
        let (next, reply) = match session {
            None => self.begin(message)?,
            Some(Session::Factory(state)) => {
                let (voucher, reply) = state.step(message)?;
                self.made.insert(voucher.guid(), voucher);
                (None, reply)
            }
            Some(Session::Rendezvous(state)) => (None, state.step(message)?),
            Some(Session::Owner(owner)) => self.go_on(*owner, message)?,
        };
        if let Some(next) = next {
            self.sessions.insert(token.clone(), next);
        }
        Ok((token, reply))
    }

    fn begin(&mut self, message: &Message) -> Result<(Option<Session>, Message), Error> {
        match message.kind {
            MessageType::DiAppStart => {
                let start = di::AppStart::read(message)?;
                let rendezvous = rendezvous(self.address);
                let chain = vec![
                    self.root.client(start.csr().key(), None),
                    self.root.der.clone(),
                ];
                let terms = di::IssueTerms {
                    guid: new_guid(),
                    rendezvous: &rendezvous,
                    manufacturer: &self.manufacturer.public(),
                    chain,
                };
                let (state, reply) = start.issue(terms)?;
                Ok((Some(Session::Factory(state)), reply))
            }
            MessageType::To1HelloRv => {
                let hello = to1::HelloRv::read(message)?;
                let found = self.rendezvous.get(&hello.guid()).cloned();
                let (key, to1d) = found.ok_or(Error::NotFound)?;
                let (state, reply) = hello.answer(key, to1d, &mut SystemRandom);
                Ok((Some(Session::Rendezvous(state)), reply))
            }
            MessageType::To2HelloDevice => self.begin_transfer(message),
            got => Err(Error::Unexpected {
                expected: MessageType::To2HelloDevice,
                got,
            }),
        }
    }

    fn begin_transfer(&mut self, message: &Message) -> Result<(Option<Session>, Message), Error> {
        let hello = HelloDevice::read(message)?;
        let (voucher, born) = self
            .owned
            .get(&hello.guid())
            .cloned()
            .ok_or(Error::NotFound)?;
        let (voucher, key) = match self.behaviour {
            Owner::Stranger => {
                // The manufacturer's voucher, extended by the stranger to itself.
                let key = SigningKey::generate(&mut SystemRandom);
                let thief = PublicKey::x509(&key.public());
                (voucher.extend(&thief, &self.owner)?, key)
            }
            _ => (voucher, self.owner.clone()),
        };
        let replacement = match self.behaviour {
            Owner::Installer => to2::Replacement::Reuse,
            _ => to2::Replacement::Replace {
                guid: new_guid(),
                rendezvous: rendezvous(self.address),
                owner: PublicKey::x509(&self.owner.public()),
            },
        };
        let terms = Terms {
            voucher,
            key,
            replacement,
            max_service_info: 1300,
        };
        let (session, reply) = hello.answer(terms, &mut SystemRandom)?;
        let talk = Talk {
            born: Some(born),
            ..Talk::default()
        };
        Ok((Some(Session::Owner(Box::new((session, talk)))), reply))
    }

    fn go_on(
        &mut self,
        (session, mut talk): (OwnerSession, Talk),
        message: &Message,
    ) -> Result<(Option<Session>, Message), Error> {
        match session.step(message, &mut SystemRandom)? {
            OwnerStep::Continue(session, reply) => {
                Ok((Some(Session::Owner(Box::new((session, talk)))), reply))
            }
            OwnerStep::ServiceInfo(turn) => {
                let (session, reply) = self.talk(&mut talk, turn)?;
                Ok((Some(Session::Owner(Box::new((session, talk)))), reply))
            }
            OwnerStep::Finished(outcome, reply) => {
                if let to2::Outcome::Replaced(voucher) = outcome {
                    // As an owner does: extends the fresh voucher to itself to be able to use it.
                    let next = PublicKey::x509(&self.owner.public());
                    let voucher = voucher.extend(&next, &self.owner).unwrap();
                    let born = talk.born.unwrap();
                    self.replaced.extend(
                        self.owned
                            .iter()
                            .filter(|(_, (_, b))| *b == born)
                            .map(|(guid, _)| *guid),
                    );
                    self.own(voucher, born);
                }
                Ok((None, reply))
            }
        }
    }

    fn talk(
        &mut self,
        talk: &mut Talk,
        mut turn: OwnerTurn,
    ) -> Result<(OwnerSession, Message), Error> {
        for item in turn.take_items() {
            let mut r = Reader::new(&item.value).unwrap();
            match (item.module.as_str(), item.message.as_str()) {
                (MODULE, "statement") => {
                    let key = turn.voucher().device_key().unwrap();
                    let statement = Statement::verify(&item.value, key).unwrap();
                    assert_eq!(statement.guid, turn.guid());
                    assert_eq!(
                        (statement.server.as_str(), statement.nonce),
                        ("cloud", talk.nonce)
                    );
                    talk.stated = Some(statement);
                    self.statements += 1;
                }
                (CSR_MODULE, "simpleenroll-req") => {
                    talk.request = Some(csr_der(r.text(10_000).unwrap().as_bytes()).unwrap());
                }
                (MODULE, "done") | (lan_module::MODULE, "applied") => talk.stored = true,
                (_, "active") => assert!(r.bool().unwrap()),
                other => panic!("{other:?}"),
            }
        }
        if !turn.device_has_more() {
            self.speak(talk, turn.devmod().speaks(MODULE));
        }
        let finished = talk.stored || self.behaviour == Owner::WithoutSite;
        Ok(turn.answer(&mut talk.outbox, finished, &mut SystemRandom))
    }

    fn speak(&mut self, talk: &mut Talk, speaks: bool) {
        if self.behaviour == Owner::WithoutSite {
            return;
        }
        assert!(speaks);
        if self.behaviour == Owner::Installer {
            return lan::speak(&mut talk.begun, &mut talk.outbox);
        }
        let mut push = |module: &str, message: &str, value: Vec<u8>| {
            talk.outbox.push(module, message, value).unwrap();
        };
        if !talk.begun {
            talk.begun = true;
            SystemRandom.fill_bytes(&mut talk.nonce);
            push(MODULE, "active", cbor::encode(|w| _ = w.bool(true)));
            push(MODULE, "server", cbor::encode(|w| _ = w.text("cloud")));
            push(MODULE, "nonce", cbor::encode(|w| _ = w.bytes(&talk.nonce)));
            push(CSR_MODULE, "active", cbor::encode(|w| _ = w.bool(true)));
        }
        let (Some(request), Some(stated), false) = (&talk.request, &talk.stated, talk.answered)
        else {
            return;
        };
        talk.answered = true;
        if self.behaviour == Owner::NoCertificate {
            return push(CSR_MODULE, "error", cbor::encode(|w| _ = w.uint(2)));
        }
        let key = Csr::parse(request).unwrap().key().clone();
        assert_eq!(stated.cps_key, key);
        let site = self.site(talk.born.unwrap());
        let device = match self.behaviour {
            Owner::OtherName => DeviceId::from_guid(Guid([7; 16])),
            _ => site.device,
        };
        let name = Party::Device {
            device,
            site: site.site.clone(),
        }
        .dns(&site.domain);
        let certified = match self.behaviour {
            Owner::ForeignCertificate => SigningKey::generate(&mut SystemRandom).public(),
            _ => key,
        };
        let leaf = csr_text(&self.root.client(&certified, Some(name)));
        push(
            CSR_MODULE,
            "simpleenroll-res",
            cbor::encode(|w| _ = w.text(&leaf)),
        );
        let config = site.to_cbor();
        push(MODULE, "config", cbor::encode(|w| _ = w.bytes(&config)));
        self.certified.push(certified);
    }

    fn site(&self, born: Guid) -> SiteConfig {
        let anchor = match self.behaviour {
            Owner::OtherAnchor => Authority::new().der,
            _ => self.root.der.clone(),
        };
        SiteConfig {
            device: DeviceId::from_guid(born),
            site: "plant".parse().unwrap(),
            domain: "holdfast.internal".parse::<Domain>().unwrap(),
            server: "cloud".parse().unwrap(),
            anchors: vec![anchor],
            chain: Vec::new(),
            notice_keys: vec![self.owner.public()],
            servers: Vec::new(),
            time: Time::new(1_800_000_000, TimeQuality::Authenticated),
        }
    }
}

fn rendezvous(address: SocketAddr) -> RendezvousInfo {
    // The first place is one where nobody answers, as on a LAN without a gateway.
    let nobody = vec![
        Instruction::Dns("holdfast-rv.local".into()),
        Instruction::DevOnly,
    ];
    let here = vec![
        Instruction::Protocol(RvProtocol::Http),
        Instruction::Ip(address.ip()),
        Instruction::DevPort(address.port()),
    ];
    RendezvousInfo::new(vec![nobody, here]).unwrap()
}

fn new_guid() -> Guid {
    let mut guid = [0; 16];
    SystemRandom.fill_bytes(&mut guid);
    Guid(guid)
}
