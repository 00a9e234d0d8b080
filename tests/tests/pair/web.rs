//! MQTT through WebSocket at the gateway's doors, by frames of our own: with a password, with a
//! certificate, and whom neither lets in.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::clients::{METER, Site};
use crate::pair::within;

/// What a browser's page would be from.
const OURS: Option<&str> = Some("https://console.example");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_pages_come_in_by_password_or_certificate() {
    let site = Site::open().await;
    let by_password = site.door("websocket_password");
    for origin in [OURS, None] {
        let mut web = Web::open(by_password, &site.identity, false, origin)
            .await
            .expect("open");
        assert_eq!(web.connect(Some(METER)).await, [0x20, 2, 0, 0], "let in");
    }
    let mut web = Web::open(by_password, &site.identity, false, OURS)
        .await
        .expect("open");
    let wrong = web.connect(Some(("meter", "no"))).await;
    assert_eq!(wrong, [0x20, 2, 0, 4], "wrong password");
    assert_eq!(site.refusals("wrong password"), 1);
    let foreign = Some("https://elsewhere.example");
    let page = Web::open(by_password, &site.identity, false, foreign).await;
    assert_eq!(
        page.err(),
        Some("HTTP/1.1 403".to_owned()),
        "a foreign page"
    );
    // A certificate is not asked for there, so it is none.
    let mut web = Web::open(by_password, &site.identity, true, OURS)
        .await
        .expect("open");
    assert_eq!(web.connect(None).await, [0x20, 2, 0, 4], "no password");

    let by_certificate = site.door("websocket");
    let mut web = Web::open(by_certificate, &site.identity, true, OURS)
        .await
        .expect("open");
    assert_eq!(web.connect(None).await, [0x20, 2, 0, 0], "let in");
    let bare = Web::open(by_certificate, &site.identity, false, OURS).await;
    assert!(bare.is_err(), "no certificate");
    site.gateway.stop().await;
}

/// A WebSocket with MQTT in it.
struct Web(TlsStream<TcpStream>);

impl Web {
    /// TLS and the upgrade; else what came of it, as one line.
    async fn open(
        address: SocketAddr,
        identity: &Path,
        with_certificate: bool,
        origin: Option<&str>,
    ) -> Result<Self, String> {
        let connector = TlsConnector::from(Arc::new(config(identity, with_certificate)));
        let stream = TcpStream::connect(address)
            .await
            .map_err(|error| error.to_string())?;
        let name = ServerName::IpAddress(address.ip().into());
        let mut stream = within("TLS", connector.connect(name, stream))
            .await
            .map_err(|error| error.to_string())?;
        let origin = origin.map_or(String::new(), |origin| format!("Origin: {origin}\r\n"));
        let request = format!(
            "GET /mqtt HTTP/1.1\r\nHost: gateway.example\r\nUpgrade: websocket\r\n\
             Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: mqtt\r\n{origin}\r\n"
        );
        let write = stream.write_all(request.as_bytes()).await;
        write.map_err(|error| error.to_string())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = within("the answer", stream.read_u8()).await;
            head.push(byte.map_err(|error| error.to_string())?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        match head.starts_with("HTTP/1.1 101") {
            true => Ok(Self(stream)),
            false => Err(head.chars().take(12).collect()),
        }
    }

    /// Sends CONNECT (3.1.1, clean, no client id) in a masked frame; gives what the first frame holds.
    async fn connect(&mut self, login: Option<(&str, &str)>) -> Vec<u8> {
        let flags = if login.is_some() { 0xC2 } else { 0x02 };
        let mut body = [&[0, 4][..], b"MQTT", &[4, flags, 0, 60, 0, 0]].concat();
        for word in login.iter().flat_map(|(name, password)| [name, password]) {
            let length = u16::try_from(word.len()).expect("short");
            body.extend(length.to_be_bytes());
            body.extend(word.as_bytes());
        }
        let length = u8::try_from(body.len()).expect("short");
        let packet = [&[0x10, length][..], &body].concat();
        let length = u8::try_from(packet.len()).expect("short");
        assert!(length < 126);
        let mask = [7, 1, 200, 42];
        let masked = packet
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key);
        let frame = [&[0x82, 0x80 | length][..], &mask].concat();
        let frame: Vec<u8> = frame.into_iter().chain(masked).collect();
        self.0.write_all(&frame).await.expect("written");
        let mut head = [0; 2];
        within("a frame", self.0.read_exact(&mut head))
            .await
            .expect("a frame");
        assert_eq!(head[0], 0x82, "a whole binary frame");
        let mut content = vec![0; usize::from(head[1])];
        self.0.read_exact(&mut content).await.expect("its content");
        content
    }
}

fn config(identity: &Path, with_certificate: bool) -> rustls::ClientConfig {
    let file = |name: &str| std::fs::read(identity.join(name)).expect("file");
    let certificates = |bytes: &[u8]| -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(bytes)
            .map(|found| found.expect("PEM"))
            .collect()
    };
    let mut roots = rustls::RootCertStore::empty();
    for root in certificates(&file("ca.pem")) {
        roots.add(root).expect("a root");
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    if !with_certificate {
        return builder.with_no_client_auth();
    }
    let key = PrivateKeyDer::from_pem_slice(&file("key.pem")).expect("key");
    let chain = certificates(&file("cert.pem"));
    builder.with_client_auth_cert(chain, key).expect("identity")
}
