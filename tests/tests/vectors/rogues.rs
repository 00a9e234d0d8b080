//! Servers that are not who they should be, and what they hear. Called by `servers`; a rogue records every byte, before
//! TLS and behind it, and believes any client.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use holdfast_tests::world::SITE;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose as Eku, SanType, date_time_ymd,
};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{DigitallySignedStruct, DistinguishedName as RawName, SignatureScheme};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;

use crate::makers::{Ca, DEVICE, DOMAIN, Shown, device_at, intermediate_of, leaf};

/// How long a rogue listens to one client.
const PATIENCE: Duration = Duration::from_secs(1);

/// One server that must not be believed.
pub(crate) struct Rogue {
    pub(crate) what: &'static str,
    /// None: it speaks no TLS.
    pub(crate) shown: Option<Shown>,
    /// What its client must say.
    pub(crate) said: &'static str,
}

/// The server that is imitated.
pub(crate) struct Victim<'a> {
    pub(crate) root: &'a Ca,
    /// Its true issuer.
    pub(crate) issuer: &'a Ca,
    pub(crate) name: String,
    pub(crate) at: IpAddr,
    /// Another server that its issuer might certify.
    pub(crate) neighbour: String,
}

impl Victim<'_> {
    fn params(&self, name: &str) -> CertificateParams {
        let mut params = leaf(name, Eku::ServerAuth);
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names.push(SanType::IpAddress(self.at));
        params
    }

    /// Under its true name, by its true issuer, with its true chain: the one that is believed.
    pub(crate) fn true_one(&self) -> Shown {
        Shown::by(
            &self.params(&self.name),
            self.issuer,
            &[self.issuer, self.root],
        )
    }

    fn spoilt(&self, spoil: impl Fn(&mut CertificateParams)) -> Shown {
        let mut params = self.params(&self.name);
        spoil(&mut params);
        Shown::by(&params, self.issuer, &[self.issuer, self.root])
    }

    /// Twelve, each wrong in one way.
    pub(crate) fn rogues(&self) -> Vec<Rogue> {
        let rogue = |what, said, shown| Rogue {
            what,
            shown: Some(shown),
            said,
        };
        let good = self.params(&self.name);
        let unknown = Ca::invented(None);
        let alike = Ca::invented(Some(self.issuer));
        let device = leaf(&device_at(DEVICE, SITE), Eku::ClientAuth);
        let device_key = rcgen::KeyPair::generate().unwrap();
        let by_device = Ca::with_leaf(self.issuer.sign(&device, &device_key), device_key);
        let other = self.root.below(intermediate_of("other"));
        let domain = self
            .name
            .split_once('.')
            .map_or(DOMAIN, |(_, rest)| rest)
            .to_owned();
        let mut stolen = self.true_one();
        stolen.key = crate::makers::Junk::key();
        let own = rcgen::KeyPair::generate().unwrap();
        let self_signed = good.self_signed(&own).unwrap().der().clone();
        let not_ours = "authority that is not ours";
        vec![
            rogue(
                "self-signed",
                not_ours,
                Shown::new(self_signed, &[self.root], &own),
            ),
            rogue(
                "of an unknown authority",
                not_ours,
                Shown::by(&good, &unknown, &[&unknown, self.root]),
            ),
            rogue(
                "of the authority's name, other key",
                "not signed by it",
                Shown::by(&good, &alike, &[self.issuer, self.root]),
            ),
            rogue(
                "expired",
                "expired",
                self.spoilt(|params| {
                    params.not_before = date_time_ymd(2019, 1, 1);
                    params.not_after = date_time_ymd(2020, 1, 1);
                }),
            ),
            rogue(
                "another server",
                "is not for",
                self.spoilt(|params| {
                    *params = leaf(&self.neighbour, Eku::ServerAuth);
                }),
            ),
            rogue(
                "a device under the server's name",
                "not made for this use",
                self.spoilt(|params| {
                    params.extended_key_usages = vec![Eku::ClientAuth];
                }),
            ),
            rogue(
                "for no use",
                "no extended key usage",
                self.spoilt(|params| params.extended_key_usages.clear()),
            ),
            rogue(
                "issued by a device",
                "no authority",
                Shown::by(&good, &by_device, &[&by_device, self.issuer, self.root]),
            ),
            rogue(
                "of another site",
                "outside what",
                Shown::by(&good, &other, &[&other, self.root]),
            ),
            rogue(
                "a wildcard",
                "wildcard",
                self.spoilt(|params| {
                    let name = format!("*.{domain}");
                    params.subject_alt_names[0] = SanType::DnsName(name.try_into().unwrap());
                }),
            ),
            rogue("the right certificate, another key", "BadSignature", stolen),
            Rogue {
                what: "without TLS",
                shown: None,
                said: "TLS handshake",
            },
        ]
    }
}

/// What one client left at a rogue's.
#[derive(Debug, Default, Clone)]
pub(crate) struct Catch {
    /// Every byte on the wire.
    pub(crate) raw: Vec<u8>,
    /// What came behind TLS; without TLS, nothing but what is on the wire.
    pub(crate) spoken: Vec<u8>,
    /// The client took the handshake for good.
    pub(crate) believed: bool,
    /// The client showed its certificate.
    pub(crate) showed: bool,
}

/// A rogue at work. Dropping it closes the port.
pub(crate) struct Trap {
    pub(crate) address: SocketAddr,
    catches: Arc<Mutex<Vec<Catch>>>,
    _serving: JoinSet<()>,
}

impl Trap {
    pub(crate) async fn set(at: SocketAddr, shown: Option<&Shown>) -> Self {
        let listener = bind(at).await;
        let address = listener.local_addr().unwrap();
        let catches = Arc::<Mutex<Vec<Catch>>>::default();
        let (config, kept) = (shown.map(accepting), Arc::clone(&catches));
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (config, kept) = (config.clone(), Arc::clone(&kept));
                clients.spawn(async move {
                    let catch = hear(stream, config).await;
                    kept.lock().unwrap().push(catch);
                });
            }
        });
        Self {
            address,
            catches,
            _serving: serving,
        }
    }

    pub(crate) fn catches(&self) -> Vec<Catch> {
        self.catches.lock().unwrap().clone()
    }
}

/// The port may still be somebody's who is on his way out.
async fn bind(at: SocketAddr) -> TcpListener {
    for _ in 0..200 {
        match TcpListener::bind(at).await {
            Ok(listener) => return listener,
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{at} stays in use")
}

async fn hear(stream: TcpStream, config: Option<Arc<rustls::ServerConfig>>) -> Catch {
    let raw = Arc::<Mutex<Vec<u8>>>::default();
    let tee = Tee(stream, Arc::clone(&raw));
    let mut catch = Catch::default();
    match config {
        None => {
            let mut tee = tee;
            let _ = tee
                .write_all(b"\x20\x02\x00\x00HTTP/1.1 200 OK\r\n\r\n")
                .await;
            let _ = timeout(PATIENCE, tee.read_to_end(&mut catch.spoken)).await;
            // It is all on the wire, nothing is behind TLS.
            catch.spoken.clear();
        }
        Some(config) => {
            let accepted = timeout(PATIENCE, TlsAcceptor::from(config).accept(tee)).await;
            if let Ok(Ok(mut stream)) = accepted {
                catch.believed = true;
                catch.showed = stream.get_ref().1.peer_certificates().is_some();
                let _ = timeout(PATIENCE, stream.read_to_end(&mut catch.spoken)).await;
            }
        }
    }
    catch.raw = raw.lock().unwrap().clone();
    catch
}

fn accepting(shown: &Shown) -> Arc<rustls::ServerConfig> {
    let own = Arc::new(CertifiedKey::new(
        shown.chain.clone(),
        Arc::clone(&shown.key),
    ));
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(Arc::new(Curious))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(own)));
    Arc::new(config)
}

/// Would like to see any client's certificate, and believes it.
#[derive(Debug)]
struct Curious;

impl ClientCertVerifier for Curious {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[RawName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Keeps a copy of all that is read.
struct Tee(TcpStream, Arc<Mutex<Vec<u8>>>);

impl AsyncRead for Tee {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let ready = Pin::new(&mut self.0).poll_read(cx, buf);
        self.1
            .lock()
            .unwrap()
            .extend_from_slice(&buf.filled()[before..]);
        ready
    }
}

impl AsyncWrite for Tee {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
