//! The cloud at work: its tasks, in the stages by which they stop.
//!
//! Stage 0 are the doors (what lets peers in), stage 1 the movers (what carries data), stage 2 the
//! keepers (what looks after certificates and time). The stores' writers end when the last handle
//! is dropped, after all of them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_config::life;
use holdfast_config::stages::{Ended, Stages};
use holdfast_cps::fdo::FdoParty;
use holdfast_cps::http::Bounds;
use holdfast_cps::telemetry::intake::take_in;
use holdfast_cps::{Cps, Limits, http};
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::time::SystemClock;
use holdfast_link::tls::IdentitySlot;
use holdfast_link::{fdo, https};
use holdfast_server::doors::Doors;
use holdfast_server::{alternates, bind, keepers};
use tokio_util::sync::CancellationToken;

use super::{App, GRACE};
use crate::config::Config;
use crate::{admin, metrics};

const DOORS: usize = 0;
const MOVERS: usize = 1;
const KEEPERS: usize = 2;

/// How often this server looks whether its own certificate is due.
const RENEWAL_CHECK: Duration = Duration::from_secs(3600);

impl App {
    /// Serves until `stop`, or until a part ends by itself.
    ///
    /// # Errors
    /// The part that ended.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let mut stages = Stages::new(3);
        let cps_limits = self.cps.config().limits.clone();
        self.spawn_keepers(&mut stages);
        let served = admin::Served::of(&self);
        let ready = format!("serving: {}", bind::told(&self.listening()));
        self.spawn_doors(&mut stages, served, &cps_limits)?;
        tracing::info!("{ready}");
        life::tell_ready(&ready);
        let ended = stages.run(stop, GRACE).await;
        life::tell_stopping();
        Ok(ended?)
    }

    fn spawn_keepers(&self, stages: &mut Stages) {
        keepers::spawn(stages, KEEPERS, &self.cps, &self.clock, self.reload());
        let renewal = Renewal {
            cps: self.cps.clone(),
            identity: self.identity.clone(),
            addresses: self.addresses.clone(),
        };
        let renew = renewal.run(stages.token(KEEPERS));
        stages.spawn_quiet(KEEPERS, "certificate renewal", renew);
    }

    /// Spends the listeners: whatever serves peers, and what moves their messages.
    fn spawn_doors(
        self,
        stages: &mut Stages,
        served: admin::Served,
        limits: &Limits,
    ) -> Result<(), RunError> {
        let doors = Doors {
            cps: &self.cps,
            broker: &self.broker,
            identity: &self.identity,
            anchors: &self.anchors,
            clock: Arc::<SystemClock>::clone(&self.clock),
            stage: DOORS,
        };
        let parties = parties(&self);
        let fdo = http::fdo_router(parties, limits.fdo_body, self.cps.metrics().clone());
        let metrics = metrics::router(&self.cps, &self.broker, self.intake.consumer());
        let own_fdo = self.listeners.fdo().port();
        let listeners = self.listeners;
        if self.config.roles.cps {
            let router = http::api_router(self.cps.clone()).merge(fdo.clone());
            doors.https(stages, listeners.https, router)?;
            doors.mqtt(stages, listeners.mqtt)?;
            let origins = &self.config.clients.origins;
            doors.clients(stages, listeners.clients, &self.users, origins)?;
            let ledger = self.cps.ledger().clone();
            let batch = self.config.telemetry.batch;
            let intake = take_in(self.intake, ledger, self.clock, batch, stages.token(MOVERS));
            stages.spawn_quiet(MOVERS, "telemetry intake", intake);
            let tell = alternates::run(self.cps.clone(), self.broker.clone(), stages.token(MOVERS));
            stages.spawn_quiet(MOVERS, "notices of gateways", tell);
            let client = rendezvous_client(&self.config, own_fdo);
            let (to0, stop) = (self.cps.to0().clone(), stages.token(MOVERS));
            stages.spawn_quiet(MOVERS, "voucher registration", async move {
                to0.run(client, stop).await;
            });
        }
        doors.http(stages, "fdo listener", listeners.fdo, fdo);
        let stop = stages.token(DOORS);
        if let Some((listener, _)) = self.manufacturing
            && self.config.roles.manufacturing
        {
            let party: Arc<dyn FdoParty> = self.factory;
            let made = http::fdo_router(vec![party], limits.fdo_body, self.cps.metrics().clone());
            let limits = Limits {
                requests_per_address: self.config.manufacturing.requests_per_address,
                ..limits.clone()
            };
            let bounds = Bounds::new(limits, self.cps.metrics().clone());
            let plain = http::serve_plain(listener, made, bounds, stop.clone());
            stages.spawn_quiet(DOORS, "manufacturing listener", plain);
        }
        doors.http(stages, "metrics listener", listeners.metrics, metrics);
        let (socket, bounds) = (self.state.join("admin.sock"), self.cps.bounds());
        let router = admin::router(served);
        stages.spawn(DOORS, "admin socket", async move {
            http::serve_admin(&socket, router, bounds, stop).await
        });
        Ok(())
    }
}

/// Why the cloud stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A part ended by itself.
    #[error(transparent)]
    Ended(#[from] Ended),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// The FDO roles that the configuration asks for.
fn parties(app: &App) -> Vec<Arc<dyn FdoParty>> {
    let roles = app.config.roles;
    let mut parties: Vec<Arc<dyn FdoParty>> = Vec::new();
    if roles.rendezvous {
        parties.push(Arc::clone(app.cps.rendezvous()) as Arc<dyn FdoParty>);
    }
    if roles.cps {
        parties.push(Arc::clone(app.cps.registrar()) as Arc<dyn FdoParty>);
    }
    parties
}

/// The rendezvous server to register at: the configured ones, or this process's own listener, by
/// HTTP all the same, so that both ways are one way.
fn rendezvous_client(config: &Config, own_port: u16) -> fdo::Client {
    let configured = &config.rendezvous.servers;
    let own = match config.listen.house.fdo.ip() {
        ip if ip.is_unspecified() => format!("127.0.0.1:{own_port}"),
        ip => std::net::SocketAddr::new(ip, own_port).to_string(),
    };
    let addresses = match configured.is_empty() {
        true => vec![own],
        false => configured.iter().map(ToString::to_string).collect(),
    };
    let endpoint = Endpoint {
        addresses,
        security: Security::Plain,
    };
    fdo::Client::new(endpoint, "", https::Limits::default())
}

/// Keeps this server's own certificate fresh: a plain loop that asks the authority, which decides.
struct Renewal {
    cps: Cps,
    identity: IdentitySlot,
    addresses: Vec<std::net::IpAddr>,
}

impl Renewal {
    async fn run(self, stop: CancellationToken) {
        let mut changes = self.cps.authority().changes();
        loop {
            let wait = tokio::time::timeout(RENEWAL_CHECK, changes.changed());
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
            if let Err(error) = self.cps.authority().renew_issuers() {
                tracing::error!(%error, "this server's issuers were not renewed");
            }
            match self.cps.authority().own_identity(&self.addresses).await {
                Ok(identity) => self.identity.set(identity),
                Err(error) => tracing::error!(%error, "this server's certificate was not renewed"),
            }
        }
    }
}
