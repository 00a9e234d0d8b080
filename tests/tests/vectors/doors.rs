//! Presents a certificate at each mutual-TLS port of the real binaries and tells what came of it: let in, or turned away
//! with what was logged and counted. Called by `clients`; it judges nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use holdfast_tests::process::wait_until;
use holdfast_tests::world::{Part, World, fetch};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::makers::{Reason, Shown};

/// How long a door may take to answer, and a refusal to be logged.
const SOON: Duration = Duration::from_secs(2);

/// MQTT 5, clean start, the client id left open.
const CONNECT: &[u8] = b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x00";
const UPGRADE: &[u8] =
    b"GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
    Sec-WebSocket-Protocol: mqtt\r\n\r\n";

pub(crate) type Version = &'static SupportedProtocolVersion;
pub(crate) const VERSIONS: [Version; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

/// What is spoken behind TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speech {
    Mqtt,
    Https,
    /// MQTT in a WebSocket.
    Web,
}

/// One port of one daemon.
pub(crate) struct Door<'a> {
    pub(crate) name: &'static str,
    pub(crate) part: &'a Part,
    pub(crate) address: SocketAddr,
    pub(crate) metrics: SocketAddr,
    pub(crate) speech: Speech,
}

/// Opens the ports that are off by default, before a daemon starts: WebSocket by certificate at both.
pub(crate) fn open_the_rest(world: &World) -> [SocketAddr; 2] {
    [
        (&world.cloud, world.cloud_doors),
        (&world.gateway, world.gateway_doors),
    ]
    .map(|(part, at)| {
        // Free a moment ago, on the address of the others.
        let free = std::net::TcpListener::bind((at.mqtt.ip(), 0)).unwrap();
        let address = free.local_addr().unwrap();
        let mut text = std::fs::read_to_string(&part.config).unwrap();
        text.push_str(&format!("[clients]\nwebsocket = \"{address}\"\n"));
        std::fs::write(&part.config, text).unwrap();
        address
    })
}

/// Every mutual-TLS port there is; `web` as [`open_the_rest`] gave it.
pub(crate) fn all(world: &World, web: [SocketAddr; 2]) -> Vec<Door<'_>> {
    let [cloud_web, gateway_web] = web;
    let (gateway, cloud) = (world.gateway_doors, world.cloud_doors);
    let at_gateway = (&world.gateway, gateway.metrics);
    let at_cloud = (&world.cloud, cloud.metrics);
    [
        ("gateway MQTT", at_gateway, gateway.mqtt, Speech::Mqtt),
        ("gateway HTTPS", at_gateway, gateway.https, Speech::Https),
        ("gateway WebSocket", at_gateway, gateway_web, Speech::Web),
        ("cloud MQTT", at_cloud, cloud.mqtt, Speech::Mqtt),
        ("cloud HTTPS", at_cloud, cloud.https, Speech::Https),
        ("cloud WebSocket", at_cloud, cloud_web, Speech::Web),
    ]
    .map(|(name, (part, metrics), address, speech)| Door {
        name,
        part,
        address,
        metrics,
        speech,
    })
    .into()
}

/// Each visitor comes from an address of its own, by which its line in the log is found.
static VISITORS: AtomicU16 = AtomicU16::new(1);

fn next_source() -> Ipv4Addr {
    let [high, low] = VISITORS.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    Ipv4Addr::new(127, 253, high, low)
}

/// What a visit came to.
#[derive(Debug)]
pub(crate) struct Visit {
    /// The application answered it as somebody.
    pub(crate) let_in: bool,
    /// What the visitor saw.
    pub(crate) saw: String,
    pub(crate) source: Ipv4Addr,
}

impl Door<'_> {
    /// Comes with this certificate and asks for something that anybody known may have.
    pub(crate) async fn visit(
        &self,
        shown: Option<&Shown>,
        version: Version,
        root: &CertificateDer<'static>,
    ) -> Visit {
        let source = next_source();
        let told = timeout(SOON, self.speak(shown, version, root, source)).await;
        let (let_in, saw) = match told {
            Err(_) => (false, "nothing".to_owned()),
            Ok(Err(error)) => (false, error.to_string()),
            Ok(Ok(answer)) => self.read(&answer),
        };
        Visit {
            let_in,
            saw,
            source,
        }
    }

    async fn speak(
        &self,
        shown: Option<&Shown>,
        version: Version,
        root: &CertificateDer<'static>,
        source: Ipv4Addr,
    ) -> std::io::Result<Vec<u8>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let stream = socket.connect(self.address).await?;
        let config = Arc::new(client(shown, version, root));
        let name = ServerName::from(self.address.ip());
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        let question = match self.speech {
            Speech::Mqtt => CONNECT.to_vec(),
            Speech::Web => {
                stream.write_all(UPGRADE).await?;
                stream.flush().await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                if !head.starts_with(b"HTTP/1.1 101") {
                    return Ok(head);
                }
                // One whole binary frame under a mask of zeros.
                [&[0x82, 0x80 | 15, 0, 0, 0, 0][..], CONNECT].concat()
            }
            Speech::Https => b"POST /api/v1/lifecycle HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\
                Connection: close\r\n\r\n\x80"
                .to_vec(),
        };
        stream.write_all(&question).await?;
        stream.flush().await?;
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await?;
        answer.truncate(length);
        Ok(answer)
    }

    fn read(&self, answer: &[u8]) -> (bool, String) {
        let let_in = match self.speech {
            Speech::Mqtt => is_welcome(answer),
            // In a frame with a head of two bytes.
            Speech::Web => answer.first() == Some(&0x82) && answer.get(2..).is_some_and(is_welcome),
            // The device is known and its question is none.
            Speech::Https => answer.starts_with(b"HTTP/1.1 400"),
        };
        let saw = match self.speech {
            Speech::Mqtt | Speech::Web => format!("{:02x?}", &answer[..answer.len().min(8)]),
            Speech::Https => String::from_utf8_lossy(answer)
                .lines()
                .next()
                .unwrap_or_default()
                .to_owned(),
        };
        (let_in, saw)
    }

    /// How often this reason was counted here, whatever the area.
    pub(crate) async fn counted(&self, reason: &str) -> f64 {
        let page = fetch(self.metrics, "/metrics").await.unwrap();
        let label = format!("reason=\"{reason}\"");
        let samples = page
            .lines()
            .filter(|line| line.starts_with("holdfast_cps_refused_total"));
        let ours = samples.filter(|line| line.contains(&label));
        ours.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits for the line that tells why this visitor was turned away.
    pub(crate) async fn logged(&self, visit: &Visit, reason: Reason) -> Result<(), String> {
        // The address stands before its port, a space, or in Rust's brackets.
        let forms = [("=", ":"), ("=", " "), ("(", ":")];
        let forms = forms.map(|(left, right)| format!("{left}{}{right}", visit.source));
        let who = |line: &&str| forms.iter().any(|form| line.contains(form));
        let line = || {
            let log = self.part.logged();
            log.lines().filter(who).collect::<Vec<_>>().join("\n")
        };
        let came = wait_until("its line", SOON, || line().contains(reason.said)).await;
        came.map_err(|_| format!("the log says {:?}, not {:?}", line(), reason.said))
    }
}

/// Whether this begins with a CONNACK of reason code 0.
fn is_welcome(answer: &[u8]) -> bool {
    answer.first() == Some(&0x20) && answer.get(3) == Some(&0)
}

pub(crate) fn client(
    shown: Option<&Shown>,
    version: Version,
    root: &CertificateDer<'static>,
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let builder =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
    match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            let own = CertifiedKey::new(shown.chain.clone(), Arc::clone(&shown.key));
            builder.with_client_cert_resolver(Arc::new(Stubborn(Arc::new(own))))
        }
    }
}

/// Shows what it is told to, fitting or not.
#[derive(Debug)]
pub(crate) struct Stubborn(pub(crate) Arc<CertifiedKey>);

impl ResolvesClientCert for Stubborn {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// One request to the administrator's API of a part; the whole answer as text.
pub(crate) async fn administer(part: &Part, line: &str, body: &str) -> String {
    let mut stream = UnixStream::connect(part.state.join("admin.sock"))
        .await
        .unwrap();
    let length = body.len();
    let request = format!(
        "{line} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// A verifier as one would take it from the shelf: webpki under our root, nothing else. What it says to a client that
/// shows this.
pub(crate) async fn from_the_shelf(
    shown: Option<&Shown>,
    root: &CertificateDer<'static>,
    server: &Shown,
) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
        Arc::new(roots),
        Arc::clone(&provider),
    )
    .build()
    .unwrap();
    let own = Arc::new(CertifiedKey::new(
        server.chain.clone(),
        Arc::clone(&server.key),
    ));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(own)));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let at = listener.local_addr().unwrap();
    let serving = async {
        let (stream, _) = listener.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(Arc::new(config))
            .accept(stream)
            .await
            .is_ok()
    };
    let dialling = async {
        let stream = TcpStream::connect(at).await.unwrap();
        let config = Arc::new(client(shown, &rustls::version::TLS13, root));
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let _ = TlsConnector::from(config).connect(name, stream).await;
    };
    tokio::join!(serving, dialling).0
}
