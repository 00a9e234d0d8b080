//! The sockets of the gateway: bound all at once, before anything runs.

use holdfast_server::bind::{BindError, Bound, ClientListeners, one};
use holdfast_server::config::Clients;

use crate::config::Listen;
use crate::discovery::Ports;

/// The bound sockets.
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
    /// The ports that others dial.
    pub(super) fn ports(&self) -> Ports {
        let Self {
            mqtt, https, fdo, ..
        } = self;
        Ports {
            fdo: fdo.1.port(),
            https: https.1.port(),
            mqtt: mqtt.1.port(),
        }
    }
}

pub(super) async fn all(listen: &Listen, clients: &Clients) -> Result<Listeners, BindError> {
    Ok(Listeners {
        mqtt: one("listen.mqtt", listen.mqtt).await?,
        https: one("listen.https", listen.https).await?,
        fdo: one("listen.fdo", listen.fdo).await?,
        metrics: one("listen.metrics", listen.metrics).await?,
        clients: ClientListeners::bind(clients).await?,
    })
}
