//! The sockets of the cloud: bound all at once, before anything runs, and how they are reached.

use std::net::SocketAddr;

use holdfast_config::HostPort;
use holdfast_link::discovery::{Interfaces, local_addresses};
use holdfast_server::bind::{BindError, Bound, ClientListeners, one, some};
use holdfast_server::config::Clients;

use super::BuildError;
use crate::config::Listen;

/// The bound sockets.
#[derive(Debug)]
pub struct Listeners {
    /// MQTT over TLS.
    pub mqtt: Bound,
    /// HTTPS.
    pub https: Bound,
    /// FDO over HTTP.
    pub fdo: Bound,
    /// Factory initialisation, if it is offered.
    pub manufacturing: Option<Bound>,
    /// Health and metrics.
    pub metrics: Bound,
    /// For ordinary MQTT clients.
    pub clients: ClientListeners,
}

pub(super) async fn all(listen: &Listen, clients: &Clients) -> Result<Listeners, BindError> {
    Ok(Listeners {
        manufacturing: some("listen.manufacturing", listen.manufacturing).await?,
        mqtt: one("listen.mqtt", listen.mqtt).await?,
        https: one("listen.https", listen.https).await?,
        fdo: one("listen.fdo", listen.fdo).await?,
        metrics: one("listen.metrics", listen.metrics).await?,
        clients: ClientListeners::bind(clients).await?,
    })
}

/// How others reach `listening`: as told, or by the address itself, or by all of this machine's.
pub(super) fn reached(
    told: &[HostPort],
    listening: SocketAddr,
) -> Result<Vec<HostPort>, BuildError> {
    if !told.is_empty() {
        return Ok(told.to_vec());
    }
    let addresses = match listening.ip() {
        ip if !ip.is_unspecified() => vec![ip],
        _ => local_addresses(&Interfaces::Lan).map_err(BuildError::Interfaces)?,
    };
    let port = listening.port();
    Ok(addresses
        .into_iter()
        .map(|ip| HostPort {
            host: ip.to_string(),
            port,
        })
        .collect())
}
