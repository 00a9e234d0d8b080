//! Certificates and handshakes for the tests of this room and of the MQTT client.

use super::*;
use crate::dial::{Endpoint, Security, dial};
use rcgen::{CertifiedIssuer, DnType};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// A moment of 2026. Where a foreign server judges by its own clock, certificates hold ten years.
pub(super) const NOW: u64 = 1_790_000_000;
pub(super) const DAY: i64 = 86_400;
pub(super) const SERVER: &str = "gw-7.gateways.harbour.holdfast.internal";

pub(super) type Issuer = CertifiedIssuer<'static, KeyPair>;

pub(super) fn at(offset: i64) -> time_value::Stamp {
    time_value::stamp(NOW as i64 + offset)
}

/// rcgen speaks the `time` crate; only whole days are needed here.
mod time_value {
    pub(super) type Stamp = (i32, u8, u8);

    pub(super) fn stamp(secs: i64) -> Stamp {
        // Through the printed form of our own Time, which its crate tests.
        let shown = holdfast_protocol::time::Time::new(
            u64::try_from(secs).unwrap(),
            holdfast_protocol::time::TimeQuality::Authenticated,
        )
        .to_string();
        let mut parts = shown[..10].split('-');
        (
            parts.next().unwrap().parse().unwrap(),
            parts.next().unwrap().parse().unwrap(),
            parts.next().unwrap().parse().unwrap(),
        )
    }
}

pub(super) fn validity(params: &mut CertificateParams, from: i64, to: i64) {
    let ((y, m, d), (y2, m2, d2)) = (at(from), at(to));
    params.not_before = rcgen::date_time_ymd(y, m, d);
    params.not_after = rcgen::date_time_ymd(y2, m2, d2);
}

pub(super) fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, -10 * DAY, 3650 * DAY);
    params
}

pub(super) fn root(name: &str) -> Issuer {
    CertifiedIssuer::self_signed(authority(name), KeyPair::generate().unwrap()).unwrap()
}

pub(super) fn below(parent: &Issuer, params: CertificateParams) -> Issuer {
    CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), parent).unwrap()
}

/// A good leaf, for the tests to spoil.
pub(super) fn leaf(eku: Eku) -> CertificateParams {
    let mut params = CertificateParams::new(vec![SERVER.to_owned()]).unwrap();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![eku];
    validity(&mut params, -10 * DAY, 100 * DAY);
    params
}

pub(super) fn anchors(root: &Issuer) -> Anchors {
    Anchors::new([root.der().to_vec()]).unwrap()
}

pub(super) fn identity(params: &CertificateParams, issuer: &Issuer, above: &[&Issuer]) -> Identity {
    let key = KeyPair::generate().unwrap();
    let certificate = params.signed_by(&key, issuer).unwrap();
    let mut chain = vec![certificate.der().to_vec()];
    chain.extend(above.iter().map(|issuer| issuer.der().to_vec()));
    Identity::new(chain, Zeroizing::new(key.serialize_der())).unwrap()
}

pub(super) fn clock() -> Arc<dyn Clock> {
    Arc::new(ManualClock::at(NOW))
}

/// One handshake on loopback. Each side's verdict; a byte goes both ways, since in TLS 1.3 a client
/// is done before the server has judged it.
pub(super) async fn shake(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
) -> (Result<(), DialError>, Result<(), std::io::Error>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let serving = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(tcp).await?;
        stream.write_all(b"x").await?;
        stream.flush().await?;
        stream.read_u8().await.map(drop)
    };
    let dialling = async {
        let endpoint = Endpoint {
            addresses: vec![address],
            security: Security::Tls {
                name: SERVER.to_owned(),
                config: client,
            },
        };
        let (mut stream, _) = dial(&endpoint, Duration::from_secs(5)).await?;
        // A server that refuses us shows it here; that is its verdict, not ours.
        if stream.read_u8().await.is_ok() {
            let _ = stream.write_all(b"x").await;
            let _ = stream.flush().await;
        }
        Ok(())
    };
    tokio::join!(dialling, serving)
}

/// The client's verdict over a server with that identity, dialled by its IP address.
pub(super) async fn judge_server(
    shown: Identity,
    believed: Anchors,
    clock: Arc<dyn Clock>,
) -> Option<PeerFault> {
    let server = server_config(IdentitySlot::with(shown), ClientAuth::None, clock.clone()).unwrap();
    let client = client_config(Trust::Anchors(believed), None, clock).unwrap();
    match shake(server, client).await {
        (Ok(()), Ok(())) => None,
        (Err(DialError::Untrusted { fault, .. }), Err(_)) => Some(fault),
        other => panic!("neither trusted nor refused by the client: {other:?}"),
    }
}

/// The server's verdict over a client with that identity.
pub(super) async fn judge_client(
    shown: Identity,
    believed: Anchors,
    clock: Arc<dyn Clock>,
) -> Option<PeerFault> {
    let home = root("home");
    let gateway = identity(&leaf(Eku::ServerAuth), &home, &[]);
    let clients = ClientAuth::Required(believed);
    let server = server_config(IdentitySlot::with(gateway), clients, clock.clone()).unwrap();
    let trust = Trust::Anchors(anchors(&home));
    let client = client_config(trust, Some(IdentitySlot::with(shown)), clock).unwrap();
    match shake(server, client).await {
        (Ok(()), Ok(())) => None,
        // With TLS 1.3 the client is done before it is refused.
        (_, Err(error)) => Some(peer_fault(&error).unwrap_or_else(|| panic!("no reason: {error}"))),
        other => panic!("neither trusted nor refused by the server: {other:?}"),
    }
}

/// What a test of another room needs to speak TLS with a foreign server.
pub(crate) struct DeviceAndServer {
    pub(crate) server_pem: String,
    pub(crate) server_key_pem: String,
    pub(crate) root_pem: String,
    pub(crate) server_name: String,
    pub(crate) trust: Trust,
    pub(crate) device: Identity,
    pub(crate) clock: Arc<dyn Clock>,
}

pub(crate) fn device_and_server() -> DeviceAndServer {
    let root = root("cloud");
    let site = below(&root, authority("site"));
    let key = KeyPair::generate().unwrap();
    let long = |eku| {
        let mut params = leaf(eku);
        validity(&mut params, -10 * DAY, 3650 * DAY);
        params
    };
    let certificate = long(Eku::ServerAuth).signed_by(&key, &site).unwrap();
    DeviceAndServer {
        server_pem: format!("{}{}", certificate.pem(), site.pem()),
        server_key_pem: key.serialize_pem(),
        root_pem: root.pem(),
        server_name: SERVER.to_owned(),
        trust: Trust::Anchors(anchors(&root)),
        device: identity(&long(Eku::ClientAuth), &site, &[&site]),
        clock: Arc::new(crate::time::SystemClock::without_floor(
            crate::time::SystemTrust::Vouched,
        )),
    }
}

pub(super) async fn handshake_kind(
    server: Arc<rustls::ServerConfig>,
    client: Arc<rustls::ClientConfig>,
) -> rustls::HandshakeKind {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = async {
        let (tcp, _) = listener.accept().await.unwrap();
        let mut stream = tokio_rustls::TlsAcceptor::from(server)
            .accept(tcp)
            .await
            .unwrap();
        stream.write_all(b"x").await.unwrap();
        stream.flush().await.unwrap();
        stream.get_ref().1.handshake_kind().unwrap()
    };
    let dialling = async {
        let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let name = rustls::pki_types::ServerName::try_from(SERVER).unwrap();
        let connector = tokio_rustls::TlsConnector::from(client);
        let mut stream = connector.connect(name, tcp).await.unwrap();
        // Tickets come behind the handshake.
        stream.read_u8().await.unwrap();
    };
    tokio::join!(serving, dialling).0
}
