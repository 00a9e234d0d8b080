//! The cloud at work: its tasks, in the stages by which they stop.
//!
//! Stage 0 are the doors (what lets peers in), stage 1 the movers (what carries data), stage 2 the
//! keepers (what looks after certificates and time). The stores' writers end when the last handle
//! is dropped, after all of them.

use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Broker, CountedTls, CutReason, Door};
use holdfast_config::life;
use holdfast_config::stages::{Ended, Stages};
use holdfast_cps::fdo::FdoParty;
use holdfast_cps::http::Bounds;
use holdfast_cps::telemetry::intake::take_in;
use holdfast_cps::{Cps, Limits, http};
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::time::{Clock, SystemClock};
use holdfast_link::tls::{self, ClientAuth, IdentitySlot};
use holdfast_link::{fdo, https};
use holdfast_server::{alternates, rights};
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
        let ready = format!(
            "serving: mqtt {}, https {}, fdo {}",
            self.mqtt(),
            self.https(),
            self.fdo()
        );
        self.spawn_doors(&mut stages, served, &cps_limits)?;
        tracing::info!("{ready}");
        life::tell_ready(&ready);
        let ended = stages.run(stop, GRACE).await;
        life::tell_stopping();
        Ok(ended?)
    }

    fn spawn_keepers(&self, stages: &mut Stages) {
        let token = stages.token(KEEPERS);
        let clock = Arc::clone(&self.clock);
        let stop = token.clone();
        stages.spawn_quiet(KEEPERS, "time floor", async move {
            clock.keep_floor_until(stop.cancelled()).await;
        });
        let renewal = Renewal {
            cps: self.cps.clone(),
            identity: self.identity.clone(),
            addresses: self.addresses.clone(),
        };
        stages.spawn_quiet(KEEPERS, "certificate renewal", renewal.run(token.clone()));
        let watch = watch_rights(self.cps.clone(), self.broker.clone(), token.clone());
        stages.spawn_quiet(KEEPERS, "rights", watch);
        let times = self.cps.times().clone().keep(token.clone());
        stages.spawn_quiet(KEEPERS, "times of records", times);
        let cps = self.cps.clone();
        stages.spawn_quiet(KEEPERS, "watchdog", async move {
            let alive = || async {
                cps.answers().await;
                true
            };
            life::feed_watchdog(token.clone(), alive).await;
            token.cancelled().await;
        });
    }

    /// Spends the listeners: whatever serves peers, and what moves their messages.
    fn spawn_doors(
        self,
        stages: &mut Stages,
        served: admin::Served,
        limits: &Limits,
    ) -> Result<(), RunError> {
        let doors = stages.token(DOORS);
        let clock: Arc<dyn Clock> = Arc::<SystemClock>::clone(&self.clock);
        let parties = parties(&self);
        let fdo = http::fdo_router(parties, limits.fdo_body, self.cps.metrics().clone());
        let metrics = metrics::router(&self.cps, &self.broker, self.intake.consumer());
        if self.config.roles.cps {
            let optional = ClientAuth::Late(self.anchors.clone(), self.cps.config().lives.grace);
            let api = tls::server_config(self.identity.clone(), optional, Arc::clone(&clock))?;
            let router = http::api_router(self.cps.clone()).merge(fdo.clone());
            let https = http::serve_tls(
                self.listeners.https.0,
                api,
                router,
                self.cps.bounds(),
                doors.clone(),
            );
            stages.spawn_quiet(DOORS, "https listener", https);
            let required = ClientAuth::Required(self.anchors.clone());
            let mqtt = tls::server_config(self.identity.clone(), required, clock)?;
            let refused = self.cps.metrics().clone();
            let mqtt = CountedTls::new(mqtt, move |why| {
                refused.refused("mqtt handshake", tls::refusal(why));
                tls::explain(why)
            });
            let (broker, stop) = (self.broker.clone(), doors.clone());
            let listener = self.listeners.mqtt.0;
            stages.spawn(DOORS, "mqtt listener", async move {
                broker
                    .serve(listener, Door::Tls(Arc::new(mqtt)), stop)
                    .await
            });
            let ledger = self.cps.ledger().clone();
            let batch = self.config.telemetry.batch;
            let intake = take_in(self.intake, ledger, self.clock, batch, stages.token(MOVERS));
            stages.spawn_quiet(MOVERS, "telemetry intake", intake);
            let tell = alternates::run(self.cps.clone(), self.broker.clone(), stages.token(MOVERS));
            stages.spawn_quiet(MOVERS, "notices of gateways", tell);
            let client = rendezvous_client(&self.config, self.listeners.fdo.1.port());
            let (to0, stop) = (self.cps.to0().clone(), stages.token(MOVERS));
            stages.spawn_quiet(MOVERS, "voucher registration", async move {
                to0.run(client, stop).await;
            });
        }
        let plain = http::serve_plain(self.listeners.fdo.0, fdo, self.cps.bounds(), doors.clone());
        stages.spawn_quiet(DOORS, "fdo listener", plain);
        if let Some((listener, _)) = self.listeners.manufacturing
            && self.config.roles.manufacturing
        {
            let party: Arc<dyn FdoParty> = self.factory;
            let made = http::fdo_router(vec![party], limits.fdo_body, self.cps.metrics().clone());
            let limits = Limits {
                requests_per_address: self.config.manufacturing.requests_per_address,
                ..limits.clone()
            };
            let bounds = Bounds::new(limits, self.cps.metrics().clone());
            let plain = http::serve_plain(listener, made, bounds, doors.clone());
            stages.spawn_quiet(DOORS, "manufacturing listener", plain);
        }
        let plain = http::serve_plain(
            self.listeners.metrics.0,
            metrics,
            self.cps.bounds(),
            doors.clone(),
        );
        stages.spawn_quiet(DOORS, "metrics listener", plain);
        let (socket, bounds) = (self.state.join("admin.sock"), self.cps.bounds());
        let router = admin::router(served);
        stages.spawn(DOORS, "admin socket", async move {
            http::serve_admin(&socket, router, bounds, doors).await
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
    let own = match config.listen.fdo.ip() {
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

/// Cuts sessions whose certificate was revoked, as soon as the roster says so.
async fn watch_rights(cps: Cps, broker: Broker, stop: CancellationToken) {
    let mut changes = cps.roster().changes();
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        broker.rights_changed();
        let cut = broker.cut_where(CutReason::NotAuthorized, |who| {
            rights::is_revoked(cps.roster(), who)
        });
        if cut > 0 {
            tracing::info!(cut, "sessions of revoked certificates were cut");
        }
    }
    stop.cancelled().await;
}

/// Keeps this server's own certificate fresh: a plain loop that asks the authority, which decides.
struct Renewal {
    cps: Cps,
    identity: IdentitySlot,
    addresses: Vec<std::net::IpAddr>,
}

impl Renewal {
    async fn run(self, stop: CancellationToken) {
        loop {
            let wait = tokio::time::sleep(RENEWAL_CHECK);
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
            match self.cps.authority().own_identity(&self.addresses).await {
                Ok(identity) => self.identity.set(identity),
                Err(error) => tracing::error!(%error, "this server's certificate was not renewed"),
            }
        }
    }
}
