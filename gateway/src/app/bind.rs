//! The sockets of the gateway: bound all at once, before anything runs.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use super::BuildError;
use crate::config::Listen;
use crate::discovery::Ports;

/// A bound socket and its address.
type Bound = (TcpListener, SocketAddr);

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

pub(super) async fn all(listen: &Listen) -> Result<Listeners, BuildError> {
    Ok(Listeners {
        mqtt: one("listen.mqtt", listen.mqtt).await?,
        https: one("listen.https", listen.https).await?,
        fdo: one("listen.fdo", listen.fdo).await?,
        metrics: one("listen.metrics", listen.metrics).await?,
    })
}

async fn one(key: &'static str, address: SocketAddr) -> Result<Bound, BuildError> {
    let fault = |cause| BuildError::Bind {
        key,
        address,
        cause,
    };
    let listener = TcpListener::bind(address).await.map_err(fault)?;
    let bound = listener.local_addr().map_err(fault)?;
    Ok((listener, bound))
}
