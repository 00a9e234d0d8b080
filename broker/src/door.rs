//! The doors: TCP accept, TLS, budgets for what has not proven who it is.
//!
//! Called by [`crate::Broker::serve`]. The handshake runs in the connection's own task with a
//! deadline; nothing of MQTT is read before it is done. It never decides rights.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::broker::Shared;
use crate::session;
use crate::socket::Socket;
use crate::{CutReason, Peer};

/// Pause after a failed accept (no descriptors left): the next one may work.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections through a listener are secured.
#[derive(Clone, Debug)]
pub enum Door {
    /// TLS; whether a client certificate is asked for is the configuration's business.
    Tls(Arc<dyn TlsSource>),
    /// As they come: for loopback, or where the operator chose so.
    Plain,
}

/// Gives the TLS configuration for each new connection, so that certificates, anchors and
/// revocations can change while the door is open.
pub trait TlsSource: Send + Sync + 'static + fmt::Debug {
    /// The configuration as of now. Must be cheap.
    fn current(&self) -> Arc<rustls::ServerConfig>;
}

/// A configuration that never changes.
#[derive(Clone, Debug)]
pub struct FixedTls(pub Arc<rustls::ServerConfig>);

impl TlsSource for FixedTls {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.0)
    }
}

/// Accepts until cancelled, then waits for the connections within the grace time.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    name: Arc<str>,
    listener: TcpListener,
    door: Door,
    cancel: CancellationToken,
) {
    let mut tasks = JoinSet::new();
    let stop = cancel.child_token();
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, address)) => {
                    let Some(permit) = shared.budget.enter(address.ip(), &shared) else {
                        shared.core.turn_away(address, CutReason::Quota, None);
                        continue;
                    };
                    let peer = Peer { address, certificates: Vec::new(), door: Arc::clone(&name) };
                    let shared = Arc::clone(&shared);
                    tasks.spawn(connection(shared, stream, peer, door.clone(), permit, stop.clone()));
                }
                Err(error) => {
                    warn!(door = %name, %error, "accept failed; raise the limit of open files if this lasts");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    let grace = shared.core.config.grace;
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(grace, all).await.is_err() {
        warn!(door = %name, left = tasks.len(), "connections did not end within the grace time");
        tasks.shutdown().await;
    }
}

async fn connection(
    shared: Arc<Shared>,
    stream: TcpStream,
    mut peer: Peer,
    door: Door,
    permit: Permit,
    stop: CancellationToken,
) {
    let deadline = Instant::now() + shared.core.config.connect_deadline;
    // Small packets are answered at once; a socket that refuses this still works.
    let _ = stream.set_nodelay(true);
    let secured = tokio::select! {
        () = stop.cancelled() => return,
        secured = secure(stream, &door, &mut peer, deadline) => secured,
    };
    let socket = match secured {
        Ok(socket) => socket,
        Err((reason, why)) => {
            return shared.core.turn_away(peer.address, reason, why.as_ref());
        }
    };
    let mut permit = permit;
    let (handshake, _connection) = permit.split();
    session::serve(shared, socket, peer, deadline, stop, move || {
        drop(handshake)
    })
    .await;
}

async fn secure(
    stream: TcpStream,
    door: &Door,
    peer: &mut Peer,
    deadline: Instant,
) -> Result<Socket, (CutReason, Option<io::Error>)> {
    let source = match door {
        Door::Plain => return Ok(Socket::Plain(stream)),
        Door::Tls(source) => source,
    };
    let accept = TlsAcceptor::from(source.current()).accept(stream);
    let stream = match timeout_at(deadline, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err((CutReason::Tls, Some(error))),
        Err(_) => return Err((CutReason::ConnectDeadline, None)),
    };
    if let Some(chain) = stream.get_ref().1.peer_certificates() {
        peer.certificates = chain.iter().map(|der| der.to_vec()).collect();
    }
    Ok(Socket::Tls(Box::new(stream)))
}

/// Connections at one time, and those of each address that have not finished CONNECT.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    all: AtomicUsize,
    pending: Mutex<HashMap<IpAddr, usize>>,
}

/// A place among all connections and one among the address's handshakes.
pub(crate) struct Permit {
    handshake: Option<Handshake>,
    connection: Option<Place>,
}

impl Permit {
    fn split(&mut self) -> (Option<Handshake>, Option<Place>) {
        (self.handshake.take(), self.connection.take())
    }
}

pub(crate) struct Place(Arc<Budget>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.all.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) struct Handshake(Arc<Budget>, IpAddr);

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut pending = self.0.pending();
        if let Some(count) = pending.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                pending.remove(&self.1);
            }
        }
    }
}

impl Budget {
    fn enter(self: &Arc<Self>, address: IpAddr, shared: &Shared) -> Option<Permit> {
        let limits = &shared.core.config.limits;
        if self.all.fetch_add(1, Ordering::Relaxed) >= limits.connections {
            self.all.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let connection = Place(Arc::clone(self));
        let network = network(address);
        let mut pending = self.pending();
        let count = pending.entry(network).or_insert(0);
        if *count >= limits.handshakes_per_address {
            return None;
        }
        *count += 1;
        drop(pending);
        Some(Permit {
            handshake: Some(Handshake(Arc::clone(self), network)),
            connection: Some(connection),
        })
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An IPv6 host owns a /64 at least.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
        v4 => v4,
    }
}
