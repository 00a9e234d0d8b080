//! Serving loops: accept, handshake, requests, each under a deadline and a bound. Called by the
//! binaries with bound listeners and a router; ends when the token is cancelled, after at most
//! `GRACE` for requests under way. What one address may ask is `budget`'s to say: over it a request
//! is answered 429, or by FDO's error message. Never parses a request itself.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use holdfast_link::tls;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tower_service::Service as _;

use super::budget::{Bounds, Budget, Over, Place};
use crate::config::Limits;

/// Time that requests under way get at shut-down.
const GRACE: Duration = Duration::from_secs(5);
/// Rest after an accept that failed for want of file descriptors.
const ACCEPT_REST: Duration = Duration::from_millis(100);
/// Most headers of one request.
const HEADERS: usize = 64;
/// Largest request head, bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// What a connection beyond its address's budget hears.
const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

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
    bounds: Bounds,
    cancel: CancellationToken,
) {
    Accept::new(router, bounds, cancel)
        .run(Door::Plain(listener))
        .await;
}

/// Serves HTTPS until cancelled. The configuration decides whether clients show certificates.
pub async fn serve_tls(
    listener: TcpListener,
    config: Arc<rustls::ServerConfig>,
    router: Router,
    bounds: Bounds,
    cancel: CancellationToken,
) {
    let door = Door::Tls(listener, TlsAcceptor::from(config));
    Accept::new(router, bounds, cancel).run(door).await;
}

/// Serves the administrator on a Unix socket that only this user may open.
///
/// # Errors
/// The socket cannot be made at `path`.
pub async fn serve_admin(
    path: &Path,
    router: Router,
    bounds: Bounds,
    cancel: CancellationToken,
) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Accept::new(router, bounds, cancel)
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
                let (stream, address) = prompt(listener.accept().await?);
                Arrived::Plain(stream, address)
            }
            Self::Tls(listener, acceptor) => {
                let (stream, address) = prompt(listener.accept().await?);
                Arrived::Tls(stream, address, acceptor.clone())
            }
            Self::Admin(listener) => Arrived::Admin(listener.accept().await?.0),
        })
    }
}

/// Head and body of an answer leave in two writes: without this each answer waits for a delayed
/// acknowledgement, 40 ms a message. A socket that refuses it still works.
fn prompt((stream, address): (TcpStream, SocketAddr)) -> (TcpStream, SocketAddr) {
    let _ = stream.set_nodelay(true);
    (stream, address)
}

impl Arrived {
    /// None on the admin socket, which has no budget.
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Plain(_, address) | Self::Tls(_, address, _) => Some(address.ip()),
            Self::Admin(_) => None,
        }
    }

    /// Closes it; who speaks HTTP hears why.
    fn turn_away(self) {
        if let Self::Plain(stream, _) = self {
            // Nothing was sent yet: what does not fit into an empty buffer is not worth waiting for.
            let _ = stream.try_write(TOO_MANY);
        }
    }
}

#[derive(Clone)]
struct Accept {
    router: Router,
    limits: Limits,
    budget: Arc<Budget>,
    ends: Option<watch::Receiver<u64>>,
    cancel: CancellationToken,
}

impl Accept {
    fn new(router: Router, bounds: Bounds, cancel: CancellationToken) -> Self {
        Self {
            router,
            limits: bounds.limits.clone(),
            ends: bounds.ends.clone(),
            budget: Budget::new(bounds),
            cancel,
        }
    }

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
                    let Some((place, arrived)) = self.admit(arrived) else {
                        continue;
                    };
                    let mut one = self.clone();
                    // From here on: what ends later ends this connection too.
                    one.ends
                        .iter_mut()
                        .for_each(watch::Receiver::mark_unchanged);
                    tasks.spawn(async move {
                        let _permit = permit;
                        one.serve(arrived, place).await;
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

    /// A place for it, unless its address has too many.
    fn admit(&self, arrived: Arrived) -> Option<(Option<Place>, Arrived)> {
        let Some(address) = arrived.address() else {
            return Some((None, arrived));
        };
        match self.budget.connection(address) {
            Ok(place) => Some((Some(place), arrived)),
            Err(over) => {
                let why = "too many connections; raise limits.connections_per_address if it may";
                self.budget.turned_away(address, over, &why);
                arrived.turn_away();
                None
            }
        }
    }

    async fn serve(self, arrived: Arrived, place: Option<Place>) {
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
                let shaken = self.shake(stream, address, &acceptor, place).await;
                if let Some((stream, _place)) = shaken {
                    let peer = tls_peer(&stream, address);
                    self.connection(stream, peer).await;
                }
            }
        }
    }

    /// The TLS handshake, within its time and the address's budget.
    async fn shake(
        &self,
        stream: TcpStream,
        address: SocketAddr,
        acceptor: &TlsAcceptor,
        mut place: Option<Place>,
    ) -> Option<(TlsStream<TcpStream>, Option<Place>)> {
        let away = |over, why: &dyn std::fmt::Display| {
            self.budget.turned_away(address.ip(), over, why);
            None
        };
        if let Some(Err(over)) = place.as_mut().map(Place::begin_handshake) {
            return away(over, &"too many handshakes are under way");
        }
        match timeout(self.limits.handshake, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => {
                place.iter_mut().for_each(Place::end_handshake);
                Some((stream, place))
            }
            Ok(Err(error)) => {
                self.budget.handshake_refused(tls::refusal(&error));
                away(Over::HandshakeFailed, &tls::explain(&error))
            }
            Err(_) => away(Over::HandshakeSlow, &"TLS handshake took too long"),
        }
    }

    async fn connection<S>(self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, wait, budget) = (self.router, self.limits.request, self.budget);
        let ends = end_of(self.ends);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let over = over_budget(&budget, &peer, request.uri().path());
            request.extensions_mut().insert(peer.clone());
            let mut router = router.clone();
            async move {
                if let Some(refusal) = over {
                    return Ok(refusal);
                }
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
            () = ends => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

/// Returns once standing connections must end.
async fn end_of(ends: Option<watch::Receiver<u64>>) {
    let Some(mut ends) = ends else {
        return std::future::pending().await;
    };
    if ends.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// The refusal of a request that its address has no turn for.
fn over_budget(budget: &Budget, peer: &Peer, path: &str) -> Option<hyper::Response<Body>> {
    let address = peer.address?.ip();
    let over = budget.request(address).err()?;
    let why = "too many requests; raise limits.requests_per_address if it may";
    budget.turned_away(address, over, &why);
    let mut response = match path.starts_with("/fdo/") {
        true => super::fdo::over_budget(path),
        false => {
            let text =
                r#"{"error":"too many requests from this address; wait a second and try again"}"#;
            let mut response = hyper::Response::new(Body::from(text));
            *response.status_mut() = hyper::StatusCode::TOO_MANY_REQUESTS;
            response
        }
    };
    let wait = hyper::header::HeaderValue::from_static("1");
    response
        .headers_mut()
        .insert(hyper::header::RETRY_AFTER, wait);
    Some(response)
}

fn too_slow() -> hyper::Response<Body> {
    let mut response = hyper::Response::new(Body::from("the request took too long\n"));
    *response.status_mut() = hyper::StatusCode::REQUEST_TIMEOUT;
    response
}

fn tls_peer(stream: &TlsStream<TcpStream>, address: SocketAddr) -> Peer {
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let certificates = shown.iter().map(|one| one.to_vec()).collect();
    Peer {
        address: Some(address),
        certificates: Arc::new(certificates),
    }
}
