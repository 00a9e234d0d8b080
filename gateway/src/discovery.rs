//! Makes the gateway known on its LAN by mDNS: answers for the rendezvous name that every device
//! carries from the factory, and announces `_holdfast._tcp`.
//!
//! Run by [`crate::app`]. What it says is a hint where to knock: devices trust nothing of it. A
//! second party that claims the same name raises an alarm and changes nothing.

use std::net::IpAddr;

use holdfast_link::discovery::{self, Announcement, DiscoveryError, Interfaces};
use holdfast_protocol::id::{ServerId, SiteId};
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

    /// Watches for rivals until cancelled, then tells the LAN goodbye.
    pub async fn run(self, cancel: CancellationToken) {
        let host = &self.announcement.host;
        while let Some(Some(rival)) = cancel.run_until_cancelled(self.responder.rivals()).await {
            tracing::error!(
                %rival, %host,
                "another party answers for this gateway's name: devices may go there; find it, or \
                 give the site one gateway only"
            );
        }
        // The responder may have ended by itself: the LAN is served all the same, by address.
        cancel.cancelled().await;
        if let Err(error) = self.responder.withdraw(&self.announcement.instance).await {
            tracing::debug!(%error, "the LAN was not told goodbye");
        }
    }
}
