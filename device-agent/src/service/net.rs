//! The ways to the register (HTTPS, by the device's certificate) and to the service-providing server
//! (MQTT, by the service's certificate). Servers are believed by their names in certificates of the
//! site's anchors, wherever an address came from.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::https;
use holdfast_link::mqtt::{self, Outcome, Publish};
use holdfast_link::time::Clock;
use holdfast_link::tls::{self, Anchors, IdentitySlot, Trust};
use holdfast_protocol::lifecycle::{Answer, MAX_MESSAGE, Running};
use holdfast_protocol::site_module::{ServerAddress, ServerRole, SiteConfig};
use holdfast_protocol::topic::Topic;
use serde_json::json;
use zeroize::Zeroizing;

use crate::alternates::Servers;
use crate::connection::{SESSION, Unusable};
use crate::vault::Identity;

/// Where requests go.
const PATH: &str = "/api/v1/lifecycle";
/// For the acknowledgement of the first message to a new server.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the room asks of the network. A seam: tests answer here.
pub trait Wire: Send + Sync {
    /// Asks the register; the error is for the log.
    fn ask(&self, request: Vec<u8>) -> impl Future<Output = Result<Answer, String>> + Send;

    /// Connects by a service's certificate and publishes a message; done when it was acknowledged.
    fn try_out(&self, new: &Running) -> impl Future<Output = Result<(), String>> + Send;
}

/// The real network.
#[derive(Debug)]
pub struct Net {
    site: SiteConfig,
    servers: Servers,
    tls: Arc<rustls::ClientConfig>,
    anchors: Anchors,
    clock: Arc<dyn Clock>,
    connect_timeout: Duration,
}

impl Net {
    /// The ways of an identity; nothing is dialled yet.
    ///
    /// # Errors
    /// Certificate, key or anchors cannot be used for TLS.
    pub fn new(
        identity: &Identity,
        servers: Servers,
        clock: Arc<dyn Clock>,
        connect_timeout: Duration,
    ) -> Result<Self, Unusable> {
        let site = identity.site.clone();
        let anchors = Anchors::new(site.anchors.iter().cloned()).map_err(Unusable::new)?;
        let mut chain = vec![identity.certificate.clone()];
        chain.extend(site.chain.iter().cloned());
        let tls = client(&anchors, chain, identity.key.to_pkcs8_der(), &clock);
        let tls = tls.map_err(Unusable::new)?;
        Ok(Self {
            site,
            servers,
            tls,
            anchors,
            clock,
            connect_timeout,
        })
    }

    /// The servers as they are now, the gateway first.
    fn servers(&self) -> Vec<ServerAddress> {
        let mut servers = self.servers.borrow().clone();
        servers.sort_by_key(|server| server.role != ServerRole::Gateway);
        servers
    }

    async fn publish(
        &self,
        server: &ServerAddress,
        tls: &Arc<rustls::ClientConfig>,
        new: &Running,
    ) -> Result<(), String> {
        let endpoint = endpoint(server, server.mqtt.clone(), tls);
        // Its first label is all that the server needs to hear: who it is stands in the certificate.
        let options = mqtt::Options {
            connect_timeout: self.connect_timeout,
            // A renewal speaks under the name of the lasting session: its commands must not go with this trial.
            session_expiry: SESSION,
            clean_start: false,
            ..mqtt::Options::new(endpoint, self.site.device.to_string())
        };
        let (client, _inbox, _) = mqtt::connect(options)
            .await
            .map_err(|error| error.to_string())?;
        let topic = Topic::Telemetry {
            site: self.site.site.clone(),
            service: new.assignment.service.clone(),
            device: self.site.device,
        };
        let begun =
            json!({ "begun": new.assignment.service.as_str(), "serial": new.serial.to_string() });
        let message = Publish::new(topic.to_string(), begun.to_string().into_bytes());
        let sent = tokio::time::timeout(PATIENCE, client.publish_and_wait(message)).await;
        client.disconnect().await;
        match sent {
            Ok(Ok(Outcome::Acknowledged(_))) => Ok(()),
            Ok(Ok(Outcome::Refused(code))) => Err(format!("it refuses the telemetry ({code})")),
            Ok(Ok(Outcome::Lost)) => Err("the connection was lost".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no acknowledgement within {PATIENCE:?}")),
        }
    }
}

impl Wire for Net {
    async fn ask(&self, request: Vec<u8>) -> Result<Answer, String> {
        let mut faults = Vec::new();
        let limits = https::Limits {
            per_address: self.connect_timeout,
            body: MAX_MESSAGE,
            idle: 0,
            ..https::Limits::default()
        };
        for server in self.servers() {
            let name = &server.server;
            let endpoint = endpoint(&server, server.https.clone(), &self.tls);
            let client = https::Client::new(endpoint, limits);
            let sent = client.post(PATH, "application/cbor", request.clone()).await;
            match sent {
                Ok(response) => match Answer::from_cbor(&response.body) {
                    Ok(answer) => return Ok(answer),
                    Err(_) => faults.push(format!("{name}: status {}", response.status)),
                },
                Err(error) => faults.push(format!("{name}: {error}")),
            }
        }
        match faults.is_empty() {
            true => {
                Err("the owner named no server to ask: see its [advertise] settings".to_owned())
            }
            false => Err(faults.join("; ")),
        }
    }

    async fn try_out(&self, new: &Running) -> Result<(), String> {
        let mut chain = vec![new.certificate.clone()];
        chain.extend(new.chain.iter().cloned());
        let tls = client(&self.anchors, chain, new.key.to_pkcs8_der(), &self.clock)?;
        let mut faults = Vec::new();
        // In an outage the site's own servers stand in for the one named, unless the service forbids that.
        let named = new.assignment.server.iter().cloned();
        let own = self.servers().into_iter();
        for server in named.chain(own.filter(|_| !new.assignment.alone)) {
            match self.publish(&server, &tls, new).await {
                Ok(()) => return Ok(()),
                Err(error) => faults.push(format!("{}: {error}", server.server)),
            }
        }
        Err(faults.join("; "))
    }
}

pub(crate) fn client(
    anchors: &Anchors,
    chain: Vec<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    clock: &Arc<dyn Clock>,
) -> Result<Arc<rustls::ClientConfig>, String> {
    let identity = tls::Identity::new(chain, key).map_err(|error| error.to_string())?;
    tls::client_config(
        Trust::Anchors(anchors.clone()),
        Some(IdentitySlot::with(identity)),
        Arc::clone(clock),
    )
    .map_err(|error| error.to_string())
}

pub(crate) fn endpoint(
    server: &ServerAddress,
    addresses: Vec<String>,
    tls: &Arc<rustls::ClientConfig>,
) -> Endpoint {
    Endpoint {
        addresses,
        security: Security::Tls {
            name: server.name.clone(),
            config: Arc::clone(tls),
        },
    }
}
