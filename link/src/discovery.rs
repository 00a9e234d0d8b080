//! Finding and being found on the LAN by mDNS (RFC 6762) and DNS-SD (RFC 6763).
//!
//! Called by the gateway (announces itself) and by agents and the installer (look for it). What is
//! found is a hint where to knock, never a reason to trust.

use std::net::IpAddr;
use std::time::Duration;

/// The host name under which a gateway plays rendezvous on its LAN.
pub const RENDEZVOUS_HOST: &str = "holdfast-rv.local";
/// The service type under which gateways announce themselves.
pub const SERVICE_TYPE: &str = "_holdfast._tcp.local.";

/// On which interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Interfaces {
    /// All but loopback.
    #[default]
    Lan,
    /// Only these, by name (`eth0`, `lo`).
    Named(Vec<String>),
}

/// Why discovery does not run.
#[derive(Debug, thiserror::Error)]
#[error("mDNS does not run: {0}; check [discovery] interfaces, or switch discovery off")]
pub struct DiscoveryError(String);

/// What a gateway tells about itself.
#[derive(Debug, Clone)]
pub struct Announcement {
    /// The instance: the gateway's server id.
    pub instance: String,
    /// The host name to answer for, ending in `.local`.
    pub host: String,
    /// The addresses of the host.
    pub addresses: Vec<IpAddr>,
    /// The port of the service.
    pub port: u16,
    /// Further facts: `site`, `mqtt`, `https`.
    pub facts: Vec<(String, String)>,
}

/// A gateway seen on the LAN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// The instance name.
    pub instance: String,
    /// Its host name.
    pub host: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its port.
    pub port: u16,
    /// Further facts.
    pub facts: Vec<(String, String)>,
}

/// The mDNS responder and querier of this process.
#[derive(Debug)]
pub struct Discovery {}

impl Discovery {
    /// Starts on the given interfaces.
    ///
    /// # Errors
    /// No socket or no such interface.
    pub fn start(_interfaces: &Interfaces) -> Result<Self, DiscoveryError> {
        todo!()
    }

    /// Asks who is `host`; gives every address told, after the first answer and a short while for
    /// others, or an empty list after `patience`. More than one party may answer: see
    /// [`Discovery::rivals`].
    ///
    /// # Errors
    /// The responder is gone.
    pub async fn resolve(
        &self,
        _host: &str,
        _patience: Duration,
    ) -> Result<Vec<IpAddr>, DiscoveryError> {
        todo!()
    }

    /// Announces a service and answers for its host, until withdrawn or dropped. Announcing the
    /// same instance again replaces what was told.
    ///
    /// # Errors
    /// A name is not one, or the responder is gone.
    pub fn announce(&self, _announcement: &Announcement) -> Result<(), DiscoveryError> {
        todo!()
    }

    /// Withdraws an announcement; the LAN is told.
    ///
    /// # Errors
    /// The responder is gone.
    pub async fn withdraw(&self, _instance: &str) -> Result<(), DiscoveryError> {
        todo!()
    }

    /// Gateways announced on the LAN, as seen within `patience`.
    ///
    /// # Errors
    /// The responder is gone.
    pub async fn browse(&self, _patience: Duration) -> Result<Vec<Sighting>, DiscoveryError> {
        todo!()
    }

    /// The next other party that claims our host name or instance: worth an alarm.
    pub async fn rivals(&self) -> Option<String> {
        todo!()
    }
}
