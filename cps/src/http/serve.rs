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
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
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
    Accept {
        router,
        limits,
        cancel,
    }
    .run(Door::Plain(listener))
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
    let door = Door::Tls(listener, TlsAcceptor::from(config));
    Accept {
        router,
        limits,
        cancel,
    }
    .run(door)
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
    Accept {
        router,
        limits,
        cancel,
    }
    .run(Door::Admin(listener))
    .await;
    // A stale socket is removed at the next start as well.
    let _ = std::fs::remove_file(path);
    Ok(())
}

/// A bound listener and how its connections are secured.
enum Door {
    Plain(TcpListener),
    Tls(TcpListener, TlsAcceptor),
    Admin(UnixListener),
}

/// A connection that nobody has read from yet.
enum Arrived {
    Plain(TcpStream, SocketAddr),
    Tls(TcpStream, SocketAddr, TlsAcceptor),
    Admin(UnixStream),
}

impl Door {
    async fn accept(&self) -> io::Result<Arrived> {
        Ok(match self {
            Self::Plain(listener) => {
                let (stream, address) = listener.accept().await?;
                Arrived::Plain(stream, address)
            }
            Self::Tls(listener, acceptor) => {
                let (stream, address) = listener.accept().await?;
                Arrived::Tls(stream, address, acceptor.clone())
            }
            Self::Admin(listener) => Arrived::Admin(listener.accept().await?.0),
        })
    }
}

#[derive(Clone)]
struct Accept {
    router: Router,
    limits: Limits,
    cancel: CancellationToken,
}

impl Accept {
    /// The accept loop. A connection holds a permit; without one left, accepting waits, and the
    /// kernel's backlog does the queueing.
    async fn run(self, door: Door) {
        let permits = Arc::new(Semaphore::new(self.limits.connections));
        let mut tasks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = self.cancel.cancelled() => break,
                Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
                accepted = async {
                    let permit = Arc::clone(&permits).acquire_owned().await;
                    door.accept().await.map(|arrived| (permit, arrived))
                } => accepted,
            };
            match accepted {
                Ok((permit, arrived)) => {
                    let one = self.clone();
                    tasks.spawn(async move {
                        let _permit = permit;
                        one.serve(arrived).await;
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

    async fn serve(self, arrived: Arrived) {
        let plain = |address| Peer {
            address,
            certificates: Arc::default(),
        };
        match arrived {
            Arrived::Plain(stream, address) => {
                self.connection(stream, plain(Some(address))).await;
            }
            Arrived::Admin(stream) => self.connection(stream, plain(None)).await,
            // The handshake runs in the connection's own task: a slow one holds up nobody.
            Arrived::Tls(stream, address, acceptor) => {
                match timeout(self.limits.handshake, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let peer = tls_peer(&stream, address);
                        self.connection(stream, peer).await;
                    }
                    Ok(Err(error)) => tracing::info!(%address, %error, "TLS handshake refused"),
                    Err(_) => tracing::info!(%address, "TLS handshake took too long"),
                }
            }
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

fn tls_peer(stream: &tokio_rustls::server::TlsStream<TcpStream>, address: SocketAddr) -> Peer {
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = shown.iter().map(|one| one.to_vec()).collect();
    Peer {
        address: Some(address),
        certificates: Arc::new(certificates),
    }
}
