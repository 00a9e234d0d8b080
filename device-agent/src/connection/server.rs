//! The servers that the device may use: how each is dialled and believed.
//!
//! Used by `connection`. A server is believed by its name in a certificate of our anchors, wherever its
//! address came from: the site's configuration first, mDNS when that leads nowhere.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::dial::{self, Endpoint, Security};
use holdfast_link::discovery::{Discovery, RENDEZVOUS_HOST, Sighting, claimants};
use holdfast_link::mqtt::{self, Client, ConnectError, Inbox};
use holdfast_link::time::Clock;
use holdfast_link::tls::{self, Anchors, IdentitySlot, Trust};
use holdfast_protocol::id::ServerId;
use holdfast_protocol::site_module::{ServerAddress, ServerRole};
use tracing::debug;

use crate::config;
use crate::status::Board;
use crate::vault::Identity;

/// How long a server keeps the session, with its commands, while we are away.
pub(crate) const SESSION: Duration = Duration::from_secs(24 * 3600);

/// Why the identity cannot be used for TLS.
#[derive(Debug, thiserror::Error)]
#[error(
    "the identity in the vault cannot be used ({0}): move the state folder away and initialise the device anew"
)]
pub struct Unusable(String);

impl Unusable {
    pub(crate) fn new(why: impl std::fmt::Display) -> Self {
        Self(why.to_string())
    }
}

#[derive(Debug)]
pub(super) struct Servers {
    servers: Vec<ServerAddress>,
    client_id: String,
    tls: Arc<rustls::ClientConfig>,
    anchors: Anchors,
    discovery: Option<(Arc<Discovery>, Duration)>,
    config: config::Connection,
    board: Board,
}

impl Servers {
    pub(super) fn new(
        identity: &Identity,
        discovery: Option<(Arc<Discovery>, Duration)>,
        clock: Arc<dyn Clock>,
        config: &config::Connection,
        board: Board,
    ) -> Result<Self, Unusable> {
        let site = &identity.site;
        let mut chain = vec![identity.certificate.clone()];
        chain.extend(site.chain.iter().cloned());
        let own = tls::Identity::new(chain, identity.key.to_pkcs8_der())
            .map_err(|error| Unusable(error.to_string()))?;
        let anchors = Anchors::new(site.anchors.iter().cloned())
            .map_err(|error| Unusable(error.to_string()))?;
        let tls = tls::client_config(
            Trust::Anchors(anchors.clone()),
            Some(IdentitySlot::with(own)),
            clock,
        )
        .map_err(|error| Unusable(error.to_string()))?;
        Ok(Self {
            servers: preferred_first(&site.servers),
            client_id: site.device.to_string(),
            tls,
            anchors,
            discovery,
            config: config.clone(),
            board,
        })
    }

    /// What the device knows of its servers has changed; the gateway still comes first.
    pub(super) fn become_(&mut self, servers: Vec<ServerAddress>) {
        self.servers = preferred_first(&servers);
    }

    /// Keeps the owner's order: for a service the server that it names comes before the gateway that stands in.
    pub(super) fn prefer_as_told(&mut self, identity: &Identity) {
        self.servers.clone_from(&identity.site.servers);
    }

    /// By which servers are believed; it remembers what the last one showed.
    pub(super) fn anchors(&self) -> Anchors {
        self.anchors.clone()
    }

    pub(super) fn ids(&self) -> Vec<ServerId> {
        self.servers
            .iter()
            .map(|server| server.server.clone())
            .collect()
    }

    pub(super) fn role(&self, server: &ServerId) -> Option<&'static str> {
        self.find(server).map(|server| match server.role {
            ServerRole::Gateway => "gateway",
            ServerRole::Cloud => "cloud",
        })
    }

    /// Connects: by the configured addresses, then by those that mDNS tells.
    pub(super) async fn dial(
        &self,
        server: &ServerId,
    ) -> Result<(Client, Inbox, mqtt::Granted), ConnectError> {
        let Some(server) = self.find(server) else {
            return Err(ConnectError::Dial(dial::DialError::NoAddress));
        };
        let error = match mqtt::connect(self.options(server, server.mqtt.clone())).await {
            Ok(connected) => return Ok(connected),
            Err(ConnectError::Dial(error)) => error,
            Err(other) => return Err(other),
        };
        let found = self.look_around(server).await;
        if found.is_empty() {
            return Err(ConnectError::Dial(error));
        }
        mqtt::connect(self.options(server, found)).await
    }

    /// Whether the server would answer: TCP and TLS, no more.
    pub(super) async fn is_reachable(&self, server: &ServerId) -> bool {
        let Some(server) = self.find(server) else {
            return false;
        };
        let endpoint = self.endpoint(server, server.mqtt.clone());
        dial::dial(&endpoint, self.config.connect_timeout)
            .await
            .is_ok()
    }

    fn find(&self, server: &ServerId) -> Option<&ServerAddress> {
        self.servers.iter().find(|known| known.server == *server)
    }

    fn endpoint(&self, server: &ServerAddress, addresses: Vec<String>) -> Endpoint {
        let (name, config) = (server.name.clone(), Arc::clone(&self.tls));
        Endpoint {
            addresses,
            security: Security::Tls { name, config },
        }
    }

    fn options(&self, server: &ServerAddress, addresses: Vec<String>) -> mqtt::Options {
        let endpoint = self.endpoint(server, addresses);
        mqtt::Options {
            session_expiry: SESSION,
            keep_alive: self.config.keep_alive,
            ping_interval: self.config.ping_interval,
            ping_timeout: self.config.ping_timeout,
            connect_timeout: self.config.connect_timeout,
            window: self.config.window,
            ..mqtt::Options::new(endpoint, self.client_id.clone())
        }
    }

    /// A gateway's address may have changed since TO2.
    async fn look_around(&self, server: &ServerAddress) -> Vec<String> {
        let (Some((discovery, patience)), ServerRole::Gateway) = (&self.discovery, server.role)
        else {
            return Vec::new();
        };
        match discovery.browse(*patience).await {
            Ok(sightings) => {
                let claimants = claimants(RENDEZVOUS_HOST, &sightings, &[]);
                self.board.rivals(RENDEZVOUS_HOST, &claimants);
                sightings
                    .iter()
                    .filter(|sighting| sighting.instance == server.server.as_str())
                    .flat_map(addresses)
                    .filter(|address| !server.mqtt.contains(address))
                    .collect()
            }
            Err(error) => {
                debug!(%error, "mDNS does not help");
                Vec::new()
            }
        }
    }
}

/// The gateway first, whatever the order in which the owner told them.
fn preferred_first(servers: &[ServerAddress]) -> Vec<ServerAddress> {
    let mut servers = servers.to_vec();
    servers.sort_by_key(|server| server.role);
    servers
}

fn addresses(sighting: &Sighting) -> Vec<String> {
    let fact = sighting.facts.iter().find(|(name, _)| name == "mqtt");
    let Some(port) = fact.and_then(|(_, port)| port.parse().ok()) else {
        return Vec::new();
    };
    sighting
        .addresses
        .iter()
        .map(|ip| SocketAddr::new(*ip, port).to_string())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_comes_first_and_its_port_from_its_facts() {
        let server = |name: &str, role| ServerAddress {
            server: name.parse().unwrap(),
            role,
            name: String::new(),
            mqtt: Vec::new(),
            https: Vec::new(),
        };
        let told = [
            server("cloud", ServerRole::Cloud),
            server("gw1", ServerRole::Gateway),
        ];
        assert_eq!(preferred_first(&told)[0].server.as_str(), "gw1");
        let mut sighting = Sighting {
            instance: "gw1".into(),
            host: "holdfast-rv.local".into(),
            addresses: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
            port: 8042,
            facts: vec![("mqtt".into(), "8883".into())],
        };
        assert_eq!(addresses(&sighting), ["10.0.0.2:8883", "[fd00::2]:8883"]);
        sighting.facts.clear();
        assert!(addresses(&sighting).is_empty());
    }
}
