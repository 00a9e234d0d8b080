//! A gateway as far as the installer sees one: HTTPS under a root of its own, an owner key, a counter for vouchers. It can
//! refuse, break off at a request, or leave it without an answer.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::Guid;
use holdfast_protocol::voucher::Voucher;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// What it answers to a voucher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Good,
    /// The installer is on no list.
    Unlisted,
    Fork,
    OtherSite,
    /// Its disk.
    Failing,
    /// Something else listens there.
    Silly,
}

/// What happens to the request of that number, counted from the order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    pub(crate) at: u32,
    /// Whether it is acted upon.
    pub(crate) heard: bool,
    /// Whether it is left open instead of closed.
    pub(crate) hang: bool,
}

struct State {
    owner: SigningKey,
    name: String,
    site: String,
    mood: Mutex<Mood>,
    fault: Mutex<Option<Fault>>,
    held: Mutex<BTreeMap<Guid, Vec<u8>>>,
    hung: Notify,
}

pub(crate) struct Gateway {
    state: Arc<State>,
    at: SocketAddr,
    pub(crate) root_file: String,
    _folder: Arc<tempfile::TempDir>,
    serving: Mutex<JoinSet<()>>,
}

type Root = CertifiedIssuer<'static, KeyPair>;

fn root() -> Root {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

impl Gateway {
    pub(crate) async fn start(site: &str) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::under(&root(), "gw1", site, folder).await
    }

    /// Two of one site, under one root.
    pub(crate) async fn pair_of(site: &str) -> (Self, Self) {
        let (root, folder) = (root(), Arc::new(tempfile::tempdir().unwrap()));
        let first = Self::under(&root, "gw1", site, Arc::clone(&folder)).await;
        let second = Self::under(&root, "gw2", site, folder).await;
        (first, second)
    }

    async fn under(root: &Root, id: &str, site: &str, folder: Arc<tempfile::TempDir>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = listener.local_addr().unwrap();
        let name = format!("{id}.gateways.{site}.holdfast.internal");
        let mut params = CertificateParams::new(vec![name.clone()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress(at.ip()));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let leaf = params.signed_by(&key, root).unwrap();
        let chain = vec![
            leaf.der().clone(),
            CertificateDer::from(root.der().to_vec()),
        ];
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let root_file = folder.path().join("root.der");
        std::fs::write(&root_file, root.der()).unwrap();
        let state = Arc::new(State {
            owner: SigningKey::generate(&mut SystemRandom),
            name,
            site: site.to_owned(),
            mood: Mutex::new(Mood::Good),
            fault: Mutex::default(),
            held: Mutex::default(),
            hung: Notify::new(),
        });
        let mut serving = JoinSet::new();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        serving.spawn(serve(listener, acceptor, Arc::clone(&state)));
        Self {
            state,
            at,
            root_file: root_file.display().to_string(),
            _folder: folder,
            serving: Mutex::new(serving),
        }
    }

    pub(crate) fn at(&self) -> String {
        self.at.to_string()
    }

    /// Nobody listens there any more.
    pub(crate) fn stop(&self) {
        self.serving.lock().unwrap().abort_all();
    }

    pub(crate) fn becomes(&self, mood: Mood) {
        *self.state.mood.lock().unwrap() = mood;
    }

    pub(crate) fn breaks(&self, fault: Fault) {
        *self.state.fault.lock().unwrap() = Some(fault);
    }

    pub(crate) fn becomes_whole(&self, none: Option<Fault>) {
        *self.state.fault.lock().unwrap() = none;
    }

    /// A request was left without an answer.
    pub(crate) async fn hung(&self) {
        self.state.hung.notified().await;
    }

    /// Whether it holds a voucher of that device by which it is the owner.
    pub(crate) fn owns(&self, guid: &Guid) -> bool {
        let held = self.state.held.lock().unwrap();
        let voucher = held.get(guid).map(|bytes| Voucher::parse(bytes).unwrap());
        voucher.is_some_and(|voucher| voucher.is_owned_by(&self.state.owner.public()))
    }
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    let mut connections = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, state) = (acceptor.clone(), Arc::clone(&state));
        connections.spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let answer = |request| answer(Arc::clone(&state), request);
            let service = hyper::service::service_fn(answer);
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// An answer, or an end of the connection in its place.
async fn answer(
    state: Arc<State>,
    request: Request<hyper::body::Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let path = request.uri().path().to_owned();
    let body = request
        .into_body()
        .collect()
        .await
        .map_err(std::io::Error::other)?;
    let due = {
        let mut fault = state.fault.lock().unwrap();
        match fault.as_mut() {
            Some(one) if one.at == 0 => fault.take(),
            Some(one) => {
                one.at -= 1;
                None
            }
            None => None,
        }
    };
    let heard = |state: &State| state.hear(&path, &body.to_bytes());
    let Some(fault) = due else {
        return Ok(heard(&state).unwrap());
    };
    if fault.heard {
        let _ = heard(&state).unwrap();
    }
    if fault.hang {
        state.hung.notify_one();
        std::future::pending::<()>().await;
    }
    Err(std::io::Error::other("cut"))
}

impl State {
    fn hear(&self, path: &str, body: &[u8]) -> Result<Response<Full<Bytes>>, Infallible> {
        let mood = *self.mood.lock().unwrap();
        let (status, value) = match (path, mood) {
            (_, Mood::Silly) => (200, json!({ "hello": "printer" })),
            ("/api/v1/owner", _) => (200, self.owner()),
            ("/api/v1/vouchers", Mood::Good) => self.take(body),
            ("/api/v1/vouchers", mood) => refusal(mood),
            _ => (404, Value::Null),
        };
        let text = Bytes::from(value.to_string());
        Ok(Response::builder()
            .status(status)
            .body(Full::new(text))
            .unwrap())
    }

    fn owner(&self) -> Value {
        let key = STANDARD.encode(self.owner.public().to_spki_der());
        json!({ "server": "gw1", "site": self.site, "name": self.name, "owner_key": key })
    }

    fn take(&self, body: &[u8]) -> (u16, Value) {
        let voucher = Voucher::read(body).unwrap();
        voucher
            .verify_owned_by(&self.owner.public(), &Default::default())
            .unwrap();
        let mut held = self.held.lock().unwrap();
        let former = held.insert(voucher.guid(), voucher.as_bytes().to_vec());
        assert!(
            former
                .as_ref()
                .is_none_or(|former| former == voucher.as_bytes())
        );
        (
            200,
            json!({ "guid": voucher.guid().to_string(), "known": former.is_some() }),
        )
    }
}

/// In the words of the real one.
fn refusal(mood: Mood) -> (u16, Value) {
    let (status, why) = match mood {
        Mood::Unlisted => (
            403,
            "the installer with key 00 is not listed here; run `holdfast-gateway installers add`",
        ),
        Mood::Fork => (
            409,
            "the voucher contradicts the one held: it was sold twice; ask the seller which is right",
        ),
        Mood::OtherSite => (409, "the device belongs to site quay already"),
        _ => (500, "this server failed; try again, and see its log"),
    };
    (status, json!({ "error": why }))
}
