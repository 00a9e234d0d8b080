//! Makes the gateway known on its LAN by mDNS: answers for the rendezvous name that every device
//! carries from the factory, and announces `_holdfast._tcp`.
//!
//! Run by [`crate::app`]. What it says is a hint where to knock: devices trust nothing of it. A
//! second party that claims the same name raises an alarm and changes nothing.

use std::net::IpAddr;

use holdfast_link::discovery::{self, Announcement, DiscoveryError, Interfaces};
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_server::bind::Listeners;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config;

/// Ports that the announcement tells.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// FDO over HTTP.
    pub fdo: u16,
    /// HTTPS.
    pub https: u16,
    /// MQTT over TLS.
    pub mqtt: u16,
}

impl Ports {
    /// Those of the sockets that others dial.
    #[must_use]
    pub fn of(listeners: &Listeners) -> Self {
        Self {
            fdo: listeners.fdo().port(),
            https: listeners.https().port(),
            mqtt: listeners.mqtt().port(),
        }
    }
}

/// A running responder.
#[derive(Debug)]
pub struct Announcer {
    responder: discovery::Discovery,
    announcement: Announcement,
}

impl Announcer {
    /// Starts to answer; `None` when discovery is switched off.
    ///
    /// # Errors
    /// No socket, or no such interface.
    pub fn start(
        config: &config::Discovery,
        server: &ServerId,
        site: &SiteId,
        addresses: Vec<IpAddr>,
        ports: Ports,
    ) -> Result<Option<Self>, DiscoveryError> {
        if !config.enabled {
            return Ok(None);
        }
        let interfaces = match config.interfaces.as_slice() {
            [] => Interfaces::Lan,
            named => Interfaces::Named(named.to_vec()),
        };
        let responder = discovery::Discovery::start(&interfaces)?;
        let announcement = Announcement {
            instance: server.to_string(),
            host: config.host.clone(),
            addresses,
            port: ports.fdo,
            facts: vec![
                ("site".to_owned(), site.to_string()),
                ("https".to_owned(), ports.https.to_string()),
                ("mqtt".to_owned(), ports.mqtt.to_string()),
            ],
        };
        responder.announce(&announcement)?;
        Ok(Some(Self {
            responder,
            announcement,
        }))
    }

    /// Follows the gateway's addresses and watches for rivals until cancelled, then tells the LAN
    /// goodbye. The responder may end by itself: the LAN is served all the same, by address.
    pub async fn run(mut self, mut lan: watch::Receiver<Vec<IpAddr>>, cancel: CancellationToken) {
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                Ok(()) = lan.changed() => {
                    self.announcement.addresses = lan.borrow_and_update().clone();
                    if let Err(error) = self.responder.announce(&self.announcement) {
                        tracing::warn!(%error, "the LAN was not told the new addresses");
                    }
                }
                Some(rival) = self.responder.rivals() => tracing::error!(
                    %rival, host = self.announcement.host,
                    "another party answers for this gateway's name: devices may go there; find \
                     it, or give the site one gateway only"
                ),
                else => break,
            }
        }
        cancel.cancelled().await;
        if let Err(error) = self.responder.withdraw(&self.announcement.instance).await {
            tracing::debug!(%error, "the LAN was not told goodbye");
        }
    }
}
