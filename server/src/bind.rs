//! Sockets, bound all at once before anything runs, so that a port that is taken is an error of the start.

use std::io;
use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::config::{Clients, Listen};

/// A bound socket and its address.
pub type Bound = (TcpListener, SocketAddr);

/// A socket that cannot be had.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: {cause}; change {key} in the configuration, or stop what holds that port"
)]
pub struct BindError {
    /// Configuration key.
    pub key: &'static str,
    /// The address wanted.
    pub address: SocketAddr,
    /// What the system said.
    pub cause: io::Error,
}

/// Binds what `key` of the configuration says.
///
/// # Errors
/// The system does not give the socket.
pub async fn one(key: &'static str, address: SocketAddr) -> Result<Bound, BindError> {
    let fault = |cause| BindError {
        key,
        address,
        cause,
    };
    let listener = TcpListener::bind(address).await.map_err(fault)?;
    let bound = listener.local_addr().map_err(fault)?;
    Ok((listener, bound))
}

/// The same where there may be nothing to bind.
///
/// # Errors
/// As above.
pub async fn some(
    key: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<Bound>, BindError> {
    match address {
        Some(address) => one(key, address).await.map(Some),
        None => Ok(None),
    }
}

/// The sockets that both servers have.
#[derive(Debug)]
pub struct Listeners {
    /// MQTT over TLS.
    pub mqtt: Bound,
    /// HTTPS.
    pub https: Bound,
    /// FDO over HTTP.
    pub fdo: Bound,
    /// Health and metrics.
    pub metrics: Bound,
    /// For ordinary MQTT clients.
    pub clients: ClientListeners,
}

impl Listeners {
    /// Binds all that is configured.
    ///
    /// # Errors
    /// As above.
    pub async fn bind(listen: &Listen, clients: &Clients) -> Result<Self, BindError> {
        Ok(Self {
            mqtt: one("listen.mqtt", listen.mqtt).await?,
            https: one("listen.https", listen.https).await?,
            fdo: one("listen.fdo", listen.fdo).await?,
            metrics: one("listen.metrics", listen.metrics).await?,
            clients: ClientListeners::bind(clients).await?,
        })
    }

    /// The address of the MQTT listener.
    #[must_use]
    pub fn mqtt(&self) -> SocketAddr {
        self.mqtt.1
    }

    /// The address of the HTTPS listener.
    #[must_use]
    pub fn https(&self) -> SocketAddr {
        self.https.1
    }

    /// The address of the FDO listener.
    #[must_use]
    pub fn fdo(&self) -> SocketAddr {
        self.fdo.1
    }

    /// The address of the metrics listener.
    #[must_use]
    pub fn metrics(&self) -> SocketAddr {
        self.metrics.1
    }

    /// All addresses, by the keys of the configuration; those of `[listen]` without their section.
    #[must_use]
    pub fn addresses(&self) -> Vec<(String, SocketAddr)> {
        let house = [
            ("mqtt", self.mqtt()),
            ("https", self.https()),
            ("fdo", self.fdo()),
            ("metrics", self.metrics()),
        ];
        let house = house.into_iter().map(|(key, at)| (key.to_owned(), at));
        let clients = self.clients.addresses().into_iter();
        let clients = clients.map(|(key, at)| (format!("clients.{key}"), at));
        house.chain(clients).collect()
    }
}

/// Addresses as an operator reads them, in one line.
#[must_use]
pub fn told(addresses: &[(String, SocketAddr)]) -> String {
    let all = addresses.iter();
    let all = all.map(|(key, address)| format!("{key} {address}"));
    all.collect::<Vec<_>>().join(", ")
}

/// The listeners for ordinary clients; each may be missing.
#[derive(Debug, Default)]
pub struct ClientListeners {
    /// TLS, then a password.
    pub tls: Option<Bound>,
    /// A password as it comes.
    pub plain: Option<Bound>,
    /// WebSocket over TLS, by certificate.
    pub websocket: Option<Bound>,
    /// WebSocket over TLS, by password.
    pub websocket_password: Option<Bound>,
}

impl ClientListeners {
    /// Binds those that are configured.
    ///
    /// # Errors
    /// As above.
    pub async fn bind(wanted: &Clients) -> Result<Self, BindError> {
        Ok(Self {
            tls: some("clients.tls", wanted.tls).await?,
            plain: some("clients.plain", wanted.plain).await?,
            websocket: some("clients.websocket", wanted.websocket).await?,
            websocket_password: some("clients.websocket_password", wanted.websocket_password)
                .await?,
        })
    }

    /// Their addresses, by the configuration's keys.
    #[must_use]
    pub fn addresses(&self) -> Vec<(&'static str, SocketAddr)> {
        [
            ("tls", &self.tls),
            ("plain", &self.plain),
            ("websocket", &self.websocket),
            ("websocket_password", &self.websocket_password),
        ]
        .into_iter()
        .filter_map(|(key, bound)| Some((key, bound.as_ref()?.1)))
        .collect()
    }
}
