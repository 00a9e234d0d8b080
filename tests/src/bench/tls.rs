//! Mutual TLS for the connect rows: papers for both sides, and clients that come 32 at a time.
//!
//! Called by `connects`. Full handshakes only: no resumption on either side.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair,
};
use rustls::client::Resumption;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::packet;

/// Clients that connect at one time.
pub const PARALLEL: usize = 32;
/// How long one connect may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// The server's name in its certificate.
const NAME: &str = "bench.test";

/// Keys and certificates (P-256), as files for the servers and as a configuration for the clients.
#[derive(Debug)]
pub struct Papers {
    files: [PathBuf; 3],
    client: Arc<ClientConfig>,
}

impl Papers {
    /// Makes them, in that folder.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn make(folder: &Path) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a leaf whose subject and issuer are alike for self-signed.
        params.distinguished_name = named("bench ca");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let files = ["ca.pem", "server.pem", "server.key"].map(|name| folder.join(name));
        let leaf = |name: &str, usage| -> anyhow::Result<_> {
            let key = KeyPair::generate()?;
            let mut params = CertificateParams::new(vec![name.to_owned()])?;
            params.distinguished_name = named(name);
            params.extended_key_usages = vec![usage];
            Ok((params.signed_by(&key, &ca)?, key))
        };
        let (server, server_key) = leaf(NAME, ExtendedKeyUsagePurpose::ServerAuth)?;
        let (client, client_key) = leaf("client.test", ExtendedKeyUsagePurpose::ClientAuth)?;
        fs::write(&files[0], ca.pem())?;
        fs::write(&files[1], server.pem())?;
        fs::write(&files[2], server_key.serialize_pem())?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone())?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(client_key.serialize_der());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![client.der().clone()], key.into())?;
        config.resumption = Resumption::disabled();
        Ok(Self {
            files,
            client: Arc::new(config),
        })
    }

    /// Anchors, chain and key of the server.
    #[must_use]
    pub fn server_files(&self) -> [&PathBuf; 3] {
        self.files.each_ref()
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Connected clients, idle.
#[derive(Debug)]
pub struct Crowd {
    /// Seconds from the first connect to the last SUBACK.
    pub seconds: f64,
    clients: Vec<TlsStream<TcpStream>>,
    runtime: Runtime,
}

impl Crowd {
    /// Connects so many clients, each with one subscription.
    ///
    /// # Errors
    /// One of them is refused.
    pub fn connect(address: SocketAddr, papers: &Papers, count: usize) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let connector = TlsConnector::from(Arc::clone(&papers.client));
        let begun = Instant::now();
        let clients = runtime.block_on(crowd(address, connector, count))?;
        Ok(Self {
            seconds: begun.elapsed().as_secs_f64(),
            clients,
            runtime,
        })
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.clients.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _inside = self.runtime.enter();
        self.clients.clear();
    }
}

async fn crowd(
    address: SocketAddr,
    connector: TlsConnector,
    count: usize,
) -> anyhow::Result<Vec<TlsStream<TcpStream>>> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..PARALLEL {
        let (next, connector) = (Arc::clone(&next), connector.clone());
        tasks.spawn(async move {
            let mut clients = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(clients);
                }
                let one = tokio::time::timeout(PATIENCE, client(address, &connector, number));
                clients.push(one.await.context("a connect takes too long")??);
            }
        });
    }
    let mut all = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        let clients: anyhow::Result<Vec<_>> = done?;
        all.extend(clients?);
    }
    Ok(all)
}

async fn client(
    address: SocketAddr,
    connector: &TlsConnector,
    number: usize,
) -> anyhow::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    let mut stream = connector
        .connect(ServerName::try_from(NAME)?, socket)
        .await
        .context("handshake")?;
    let id = format!("idle-{number:05}");
    stream.write_all(&packet::connect(&id, true)).await?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await?;
    if answer[0] != 0x20 || answer[3] != 0 {
        bail!("CONNECT refused: {answer:?}");
    }
    let filter = format!("idle/{number:05}/#");
    stream.write_all(&packet::subscribe(&[filter], 0)).await?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).await?;
    if answer[0] != 0x90 || answer[4] != 0 {
        bail!("SUBSCRIBE refused: {answer:?}");
    }
    Ok(stream)
}
