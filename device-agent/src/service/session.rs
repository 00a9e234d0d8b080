//! The lasting connection by which the device takes the service it works for.
//!
//! Run by `app` beside the site's own. It follows what runs: a change of service ends the one connection in good order
//! and begins the other, and until the new service has worked (`service`) nothing changes here. Readings that no service
//! has taken over wait in an outbox of their own and follow the device to its next service. It decides nothing.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use holdfast_link::discovery::Discovery;
use holdfast_link::time::Clock;
use holdfast_protocol::lifecycle::Running;
use holdfast_protocol::site_module::SiteConfig;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::Runs;
use crate::alternates::Servers;
use crate::commands::Commands;
use crate::config;
use crate::connection::{Connection, Unusable};
use crate::outbox::Outbox;
use crate::status::{Board, Link};
use crate::vault::Identity;

/// What every connection of a service is made with.
#[derive(Debug)]
pub struct Session {
    /// Where the device is at home.
    pub site: SiteConfig,
    /// Its servers, as they change.
    pub servers: Servers,
    /// Readings for services.
    pub outbox: Outbox,
    /// Pauses and bounds.
    pub config: config::Connection,
    /// Where a gateway is looked for whose address changed.
    pub discovery: Option<(Arc<Discovery>, Duration)>,
    /// Judges certificates.
    pub clock: Arc<dyn Clock>,
    /// Where people see how it goes.
    pub board: Board,
    /// Where commands go.
    pub commands: Commands,
    /// Counts sessions begun with the present certificate.
    pub sessions: Arc<AtomicU32>,
}

impl Session {
    /// Stays connected for what runs, until `stop`.
    pub async fn run(mut self, mut runs: Runs, stop: CancellationToken) {
        let mut servers = self.servers.clone();
        while !stop.is_cancelled() {
            let now = runs.borrow_and_update().clone();
            self.site.servers.clone_from(&servers.borrow_and_update());
            let changed = async {
                tokio::select! {
                    Ok(()) = runs.changed() => {}
                    Ok(()) = servers.changed() => {}
                    else => std::future::pending().await,
                }
            };
            let Some(running) = now else {
                self.board
                    .tell(|status| status.service_link = Link::default());
                _ = stop.run_until_cancelled(changed).await;
                continue;
            };
            let service = running.assignment.service.clone();
            match self.connection(&running) {
                Ok(connection) => {
                    info!(%service, serial = %running.serial, "working for the service");
                    let end = stop.child_token();
                    let mut connected = std::pin::pin!(connection.run(end.clone()));
                    tokio::select! {
                        () = &mut connected => {}
                        () = changed => {
                            end.cancel();
                            connected.await;
                        }
                    }
                }
                Err(error) => {
                    warn!(%service, %error, "the service cannot be taken");
                    let detail = error.to_string();
                    let service = Some(service.to_string());
                    self.board.tell(|status| {
                        status.service_link = Link {
                            service,
                            detail,
                            ..Link::default()
                        };
                    });
                    _ = stop.run_until_cancelled(changed).await;
                }
            }
        }
    }

    fn connection(&self, running: &Running) -> Result<Connection, Unusable> {
        let service = running.assignment.service.clone();
        let connection = Connection::new(
            identity_for(&self.site, running),
            self.outbox.clone(),
            self.config.clone(),
            self.discovery.clone(),
            Arc::clone(&self.clock),
            self.board.clone(),
        )?;
        let connection = connection.in_service(service);
        let connection = connection.counted_in(Arc::clone(&self.sessions));
        Ok(connection.with_commands(self.commands.clone()))
    }
}

/// Who the device is in a service: its key and certificate there, and the servers, the one that provides the service
/// first; the site's own stand in while it cannot be reached, unless the service forbids that.
pub(crate) fn identity_for(site: &SiteConfig, running: &Running) -> Identity {
    let mut own = site.servers.clone();
    own.sort_by_key(|server| server.role);
    let named = running.assignment.server.iter().cloned();
    let mut servers: Vec<_> = named.collect();
    if running.assignment.alone {
        own.clear();
    }
    for server in own {
        if servers.iter().all(|known| known.server != server.server) {
            servers.push(server);
        }
    }
    Identity {
        key: running.key.clone(),
        certificate: running.certificate.clone(),
        site: SiteConfig {
            chain: running.chain.clone(),
            servers,
            ..site.clone()
        },
    }
}
