//! The doors: TCP accept, TLS, WebSocket, budgets for what has not proven who it is.
//!
//! Called by [`crate::Broker::serve`]. The handshake runs in the connection's own task with a
//! deadline; nothing of MQTT is read before it is done. It never decides rights.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
use crate::socket::{Carrier, Socket};
use crate::websocket::Web;
use crate::{CutReason, Origins, Passwords, Peer};

/// Pause after a failed accept (no descriptors left): the next one may work.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How connections through a listener are secured.
#[derive(Clone, Debug)]
pub enum Door {
    /// TLS; whether a client certificate is asked for is the configuration's business.
    Tls(Arc<dyn TlsSource>),
    /// As they come: for loopback, or where the operator chose so.
    Plain,
    /// Through WebSocket, within another door.
    WebSocket(Box<Self>, Origins),
    /// For users with passwords, within another door: what is plain shows them to the network.
    Passwords(Box<Self>, Arc<Passwords>),
}

/// What the layers of a door ask for.
struct Layers<'a> {
    tls: Option<&'a Arc<dyn TlsSource>>,
    web: Option<&'a Origins>,
    passwords: Option<&'a Arc<Passwords>>,
}

impl Door {
    fn layers(&self) -> Layers<'_> {
        match self {
            Self::Plain => Layers {
                tls: None,
                web: None,
                passwords: None,
            },
            Self::Tls(source) => Layers {
                tls: Some(source),
                ..Self::Plain.layers()
            },
            Self::WebSocket(within, origins) => Layers {
                web: Some(origins),
                ..within.layers()
            },
            Self::Passwords(within, passwords) => Layers {
                passwords: Some(passwords),
                ..within.layers()
            },
        }
    }
}

/// Gives the TLS configuration for each new connection, so that certificates, anchors and
/// revocations can change while the door is open.
pub trait TlsSource: Send + Sync + 'static + fmt::Debug {
    /// The configuration as of now. Must be cheap.
    fn current(&self) -> Arc<rustls::ServerConfig>;

    /// Hears of each handshake that failed; what the log says of it. Must be cheap.
    fn failed(&self, why: &io::Error) -> String {
        why.to_string()
    }
}

/// A configuration that never changes.
#[derive(Clone, Debug)]
pub struct FixedTls(pub Arc<rustls::ServerConfig>);

impl TlsSource for FixedTls {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.0)
    }
}

type Count = dyn Fn(&io::Error) -> String + Send + Sync;

/// A configuration that never changes, and somebody who counts the handshakes that fail.
#[derive(Clone)]
pub struct CountedTls {
    config: Arc<rustls::ServerConfig>,
    count: Arc<Count>,
}

impl CountedTls {
    /// `count` is called for each failed handshake, and says what the log shows of it.
    pub fn new(
        config: Arc<rustls::ServerConfig>,
        count: impl Fn(&io::Error) -> String + Send + Sync + 'static,
    ) -> Self {
        let count = Arc::new(count);
        Self { config, count }
    }
}

impl fmt::Debug for CountedTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CountedTls").finish_non_exhaustive()
    }
}

impl TlsSource for CountedTls {
    fn current(&self) -> Arc<rustls::ServerConfig> {
        Arc::clone(&self.config)
    }

    fn failed(&self, why: &io::Error) -> String {
        (self.count)(why)
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
    let stop = Stop {
        asked: cancel.child_token(),
        closing: Closing::default(),
    };
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
                    let peer = Peer { address, certificates: Vec::new(), door: Arc::clone(&name), user: None };
                    let arrival = Arrival {
                        shared: Arc::clone(&shared),
                        stream,
                        peer,
                        door: door.clone(),
                        permit,
                        stop: stop.clone(),
                    };
                    tasks.spawn(connection(Box::new(arrival)));
                }
                Err(error) => {
                    warn!(door = %name, %error, "accept failed; raise the limit of open files if this lasts");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    stop.closing.set(&shared);
    let grace = shared.core.config.grace;
    let all = async { while tasks.join_next().await.is_some() {} };
    if timeout(grace, all).await.is_err() {
        warn!(door = %name, left = tasks.len(), "connections did not end within the grace time");
        tasks.shutdown().await;
    }
}

/// Who has just been let in from the street.
struct Arrival {
    shared: Arc<Shared>,
    stream: TcpStream,
    peer: Peer,
    door: Door,
    permit: Permit,
    stop: Stop,
}

/// How a connection hears that its door closes: while it begins it waits for that.
#[derive(Clone)]
pub(crate) struct Stop {
    pub(crate) asked: CancellationToken,
    pub(crate) closing: Closing,
}

/// What a connection looks at when it is woken: an idle one waits for its mailbox and its socket alone.
#[derive(Clone, Default)]
pub(crate) struct Closing(Arc<AtomicBool>);

impl Closing {
    fn set(&self, shared: &Shared) {
        self.0.store(true, Ordering::SeqCst);
        for cell in shared.sessions.all() {
            cell.shown().nudge();
        }
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// One connection to its end. What only its beginning needs is in a box of its own, so that an idle
/// connection holds no more than waiting takes.
async fn connection(arrival: Box<Arrival>) {
    // A statement of its own: when it ends, nothing of the beginning is left.
    let entered = Box::pin(enter(arrival)).await;
    if let Some((session, _place)) = entered {
        session.run().await;
    }
}

/// TLS and CONNECT.
async fn enter(arrival: Box<Arrival>) -> Option<(Box<session::Connection>, Option<Place>)> {
    let Arrival {
        shared,
        stream,
        mut peer,
        door,
        mut permit,
        stop,
    } = *arrival;
    let deadline = Instant::now() + shared.core.config.connect_deadline;
    // Small packets are answered at once; a socket that refuses this still works.
    let _ = stream.set_nodelay(true);
    let secured = tokio::select! {
        () = stop.asked.cancelled() => return None,
        secured = secure(&shared, stream, &door, &mut peer, deadline) => secured,
    };
    let socket = match secured {
        Ok(socket) => socket,
        Err((reason, why)) => {
            shared.core.turn_away(peer.address, reason, why.as_deref());
            return None;
        }
    };
    let (handshake, place) = permit.split();
    let guest = Guest {
        peer,
        passwords: door.layers().passwords.cloned(),
        deadline,
    };
    let session = session::enter(shared, socket, guest, stop, move || drop(handshake)).await?;
    Some((session, place))
}

/// Who stands at the door.
pub(crate) struct Guest {
    pub(crate) peer: Peer,
    /// To be asked about its user, if there are any.
    pub(crate) passwords: Option<Arc<Passwords>>,
    /// CONNECT is done by then.
    pub(crate) deadline: Instant,
}

async fn secure(
    shared: &Shared,
    stream: TcpStream,
    door: &Door,
    peer: &mut Peer,
    deadline: Instant,
) -> Result<Socket, (CutReason, Option<String>)> {
    let layers = door.layers();
    let carrier = match layers.tls {
        None => Carrier::Plain(stream),
        Some(source) => encrypt(source, stream, peer, deadline).await?,
    };
    let Some(origins) = layers.web else {
        return Ok(Socket::Straight(carrier));
    };
    let largest = shared.core.config.limits.packet_bytes;
    match timeout_at(deadline, Web::accept(carrier, origins, largest)).await {
        Ok(Ok(web)) => Ok(Socket::Web(Box::new(web))),
        Ok(Err(error)) => Err((CutReason::WebSocket, Some(error.to_string()))),
        Err(_) => Err((CutReason::ConnectDeadline, None)),
    }
}

async fn encrypt(
    source: &Arc<dyn TlsSource>,
    stream: TcpStream,
    peer: &mut Peer,
    deadline: Instant,
) -> Result<Carrier, (CutReason, Option<String>)> {
    let accept = TlsAcceptor::from(source.current()).accept(stream);
    let stream = match timeout_at(deadline, accept).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err((CutReason::Tls, Some(source.failed(&error)))),
        Err(_) => return Err((CutReason::ConnectDeadline, None)),
    };
    if let Some(chain) = stream.get_ref().1.peer_certificates() {
        peer.certificates = chain.iter().map(|der| der.to_vec()).collect();
    }
    Ok(Carrier::Tls(Box::new(stream)))
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

    /// Connections now, past CONNECT or not.
    pub(crate) fn connections(&self) -> usize {
        self.all.load(Ordering::Relaxed)
    }

    /// Connections of one address that have not finished CONNECT: the most there are now.
    pub(crate) fn most_handshakes(&self) -> usize {
        self.pending().values().copied().max().unwrap_or(0)
    }

    fn pending(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An IPv6 host owns a /64 at least.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let mut octets = address.octets();
            octets[8..].fill(0);
            IpAddr::V6(octets.into())
        }
        v4 => v4,
    }
}
