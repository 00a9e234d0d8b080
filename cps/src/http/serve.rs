//! Serving loops: accept, handshake, requests, each under a deadline and a bound. Called by the
//! binaries with bound listeners and a router; ends when the token is cancelled, after at most
//! `GRACE` for requests under way. Never parses a request itself.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use crate::config::Limits;

/// Time that requests under way get at shut-down.
const GRACE: Duration = Duration::from_secs(5);
/// Rest after an accept that failed for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Most headers of one request.
const HEADERS: usize = 64;
/// Largest request head, bytes.
const HEAD_BYTES: usize = 16 * 1024;

/// Who is at the other end; in every request's extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address; none on the admin socket.
    pub address: Option<SocketAddr>,
    /// Its certificate chain as presented and verified in the handshake, leaf first, DER; empty
    /// without a client certificate.
    pub certificates: Arc<Vec<Vec<u8>>>,
}

/// Serves plain HTTP until cancelled.
pub async fn serve_plain(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    cancel: CancellationToken,
) {
    let accept = Accept::new(router, limits, cancel);
    let loop_ = accept.clone();
    accept
        .run(async || {
            let (stream, address) = listener.accept().await?;
            let peer = Peer {
                address: Some(address),
                certificates: Arc::default(),
            };
            let one = loop_.clone();
            Ok(async move { one.connection(stream, peer).await })
        })
        .await;
}

/// Serves HTTPS until cancelled. The configuration decides whether clients show certificates.
pub async fn serve_tls(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    router: Router,
    limits: Limits,
    cancel: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(config);
    let accept = Accept::new(router, limits, cancel);
    let loop_ = accept.clone();
    accept
        .run(async || {
            let (stream, address) = listener.accept().await?;
            let (acceptor, one) = (acceptor.clone(), loop_.clone());
            Ok(async move {
                // The handshake runs in the connection's own task: a slow one holds up nobody.
                let shaken = timeout(one.limits.handshake, acceptor.accept(stream)).await;
                match shaken {
                    Ok(Ok(stream)) => {
                        let peer = tls_peer(&stream, address);
                        one.connection(stream, peer).await;
                    }
                    Ok(Err(error)) => tracing::info!(%address, %error, "TLS handshake refused"),
                    Err(_) => tracing::info!(%address, "TLS handshake took too long"),
                }
            })
        })
        .await;
}

/// Serves the administrator on a Unix socket that only this user may open.
///
/// # Errors
/// The socket cannot be made at `path`.
pub async fn serve_admin(
    path: &Path,
    router: Router,
    limits: Limits,
    cancel: CancellationToken,
) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let accept = Accept::new(router, limits, cancel);
    let loop_ = accept.clone();
    accept
        .run(async || {
            let (stream, _) = listener.accept().await?;
            let peer = Peer {
                address: None,
                certificates: Arc::default(),
            };
            let one = loop_.clone();
            Ok(async move { one.connection(stream, peer).await })
        })
        .await;
    // A stale socket is removed at the next start as well.
    let _ = std::fs::remove_file(path);
    Ok(())
}

#[derive(Clone)]
struct Accept {
    router: Router,
    limits: Limits,
    cancel: CancellationToken,
}

impl Accept {
    fn new(router: Router, limits: Limits, cancel: CancellationToken) -> Self {
        Self {
            router,
            limits,
            cancel,
        }
    }

    /// The accept loop. A connection holds a permit; without one left, accepting waits, and the
    /// kernel's backlog does the queueing.
    async fn run<F>(self, mut next: impl AsyncFnMut() -> io::Result<F>)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = self.cancel.cancelled() => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                accepted = async {
                    let permit = Arc::clone(&permits).acquire_owned().await;
                    next().await.map(|connection| (permit, connection))
                } => accepted,
            };
            match accepted {
                Ok((permit, connection)) => {
                    tasks.spawn(async move {
                        let _permit = permit;
                        connection.await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_REST).await;
                }
            }
        }
        if timeout(GRACE, async { while tasks.join_next().await.is_some() {} })
            .await
            .is_err()
        {
            tracing::warn!(open = tasks.len(), "connections cut at shut-down");
        }
    }

    async fn connection<S>(self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, wait) = (self.router, self.limits.request);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let mut router = router.clone();
            async move {
                let answer = router.call(request.map(Body::new));
                Ok::<_, std::convert::Infallible>(
                    timeout(wait, answer)
                        .await
                        .unwrap_or_else(|_| Ok(too_slow()))
                        .unwrap_or_else(|never: std::convert::Infallible| match never {}),
                )
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.headers)
            .max_headers(HEADERS)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

fn too_slow() -> hyper::Response<Body> {
    let mut response = hyper::Response::new(Body::from("the request took too long\n"));
    *response.status_mut() = hyper::StatusCode::REQUEST_TIMEOUT;
    response
}

fn tls_peer(
    stream: &tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    address: SocketAddr,
) -> Peer {
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = shown.iter().map(|one| one.to_vec()).collect();
    Peer {
        address: Some(address),
        certificates: Arc::new(certificates),
    }
}
