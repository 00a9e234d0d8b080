//! The gateway at work: its tasks, in the stages by which they stop.
//!
//! Stage 0 are the doors (what lets peers in), stage 1 the bridge and what else moves data, stage 2
//! the keepers (what looks after certificates, rights and time). The stores' writers end when the
//! last handle is dropped, after all of them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use holdfast_config::life;
use holdfast_config::stages::Stages;
use holdfast_cps::fdo::FdoParty;
use holdfast_cps::relay::Relay;
use holdfast_cps::rendezvous::OnlyTo0;
use holdfast_cps::telemetry::intake::take_in;
use holdfast_cps::{Cps, Limits, http, sync};
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::time::SystemClock;
use holdfast_link::{fdo, https};
use holdfast_server::doors::Doors;
use holdfast_server::{alternates, bind, keepers};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{App, GRACE, RunError};
use crate::discovery::Ports;
use crate::identity::Upkeep;
use crate::uplink::State;
use crate::{admin, metrics, notices, retired};

const DOORS: usize = 0;
const MOVERS: usize = 1;
const KEEPERS: usize = 2;

impl App {
    /// Serves until `stop`, or until a part ends by itself.
    ///
    /// # Errors
    /// The part that ended.
    pub async fn run(self, stop: CancellationToken) -> Result<(), RunError> {
        let mut stages = Stages::new(3);
        let replaced = retired::wait(self.cps.sync().replaced(), self.state.clone());
        let limits = self.cps.config().limits.clone();
        let ready = format!("serving: {}", bind::told(&self.listeners.addresses()));
        let served = admin::Served::of(&self);
        self.spawn_keepers(&mut stages);
        self.spawn_rest(&mut stages, served, &limits)?;
        tracing::info!("{ready}");
        life::tell_ready(&ready);
        let all = stop.child_token();
        let run = stages.run(all.clone(), GRACE);
        tokio::pin!(run);
        tokio::select! {
            ended = &mut run => {
                life::tell_stopping();
                Ok(ended?)
            }
            replaced = replaced => {
                // The doors first: the LAN is another's now.
                all.cancel();
                run.await?;
                Err(RunError::Replaced(Box::new(replaced)))
            }
        }
    }

    fn spawn_keepers(&self, stages: &mut Stages) {
        let token = stages.token(KEEPERS);
        keepers::spawn(stages, KEEPERS, &self.cps, &self.clock, self.reload());
        let upkeep = Upkeep {
            cps: self.cps.clone(),
            slot: self.identity.clone(),
            config: self.config.clone(),
            ports: Ports::of(&self.listeners),
            cloud: self.cloud.clone(),
            clock: Arc::clone(&self.clock),
            lan: self.lan.clone(),
        };
        stages.spawn_quiet(
            KEEPERS,
            "certificate and addresses",
            upkeep.run(token.clone()),
        );
        let relay = Arc::clone(self.cps.relay());
        let follow = follow_uplink(relay, self.uplink.clone(), token);
        stages.spawn_quiet(KEEPERS, "relay's view of the uplink", follow);
    }

    /// Spends the parts: the doors, the bridge, the watch over the uplink, sync.
    fn spawn_rest(
        self,
        stages: &mut Stages,
        served: admin::Served,
        limits: &Limits,
    ) -> Result<(), RunError> {
        let (doors, movers) = (stages.token(DOORS), stages.token(MOVERS));
        let backlog = self.bridge.backlog();
        let (own_fdo, lan) = (self.listeners.fdo(), self.lan.subscribe());
        let at = Doors {
            cps: &self.cps,
            broker: &self.broker,
            identity: &self.identity,
            anchors: &self.anchors,
            clock: Arc::<SystemClock>::clone(&self.clock),
            stage: DOORS,
        };
        let fdo = http::fdo_router(
            parties(&self.cps),
            limits.fdo_body,
            self.cps.metrics().clone(),
        );
        let metrics = metrics::router(&self);
        let listeners = self.listeners;
        at.mqtt(stages, listeners.mqtt)?;
        let origins = &self.config.clients.origins;
        at.clients(stages, listeners.clients, &self.users, origins)?;
        let router = http::api_router(self.cps.clone()).merge(fdo.clone());
        at.https(stages, listeners.https, router)?;
        at.http(stages, "fdo listener", listeners.fdo, fdo);
        at.http(stages, "metrics listener", listeners.metrics, metrics);
        let (socket, bounds) = (self.state.join("admin.sock"), self.cps.bounds());
        let (router, stop) = (admin::router(served), doors.clone());
        stages.spawn(DOORS, "admin socket", async move {
            http::serve_admin(&socket, router, bounds, stop).await
        });
        if let Some(announcer) = self.announcer {
            stages.spawn_quiet(
                DOORS,
                "discovery",
                announcer.run(self.lan.subscribe(), doors),
            );
        }

        stages.spawn_quiet(MOVERS, "bridge", self.bridge.run(movers.clone()));
        for bridge in self.foreign {
            stages.spawn_quiet(MOVERS, "bridge to a remote", bridge.run(movers.clone()));
        }
        if let Some(intake) = self.intake {
            let (ledger, batch) = (self.cps.ledger().clone(), self.config.telemetry.batch);
            let take_in = take_in(intake, ledger, self.clock, batch, movers.clone());
            stages.spawn_quiet(MOVERS, "telemetry intake", take_in);
        }
        let waiting = move || backlog.waiting();
        stages.spawn_quiet(MOVERS, "uplink", self.watch.run(waiting, movers.clone()));
        let (client, stop) = (sync::Client::new(&self.cps, self.cloud), movers.clone());
        stages.spawn_quiet(MOVERS, "sync", async move { client.run(stop).await });
        let tell = notices::run(self.cps.clone(), self.broker.clone(), movers.clone());
        stages.spawn_quiet(MOVERS, "notices", tell);
        let tell = alternates::run(self.cps.clone(), self.broker.clone(), movers.clone());
        stages.spawn_quiet(MOVERS, "notices of the cloud", tell);
        stages.spawn_quiet(
            MOVERS,
            "local registration",
            register_here(self.cps, own_fdo, lan, movers),
        );
        Ok(())
    }
}

/// The FDO roles of a gateway: TO1 by relay, TO0 for what registers here, TO2 as owner.
fn parties(cps: &Cps) -> Vec<Arc<dyn FdoParty>> {
    vec![
        Arc::clone(cps.relay()) as Arc<dyn FdoParty>,
        Arc::new(OnlyTo0(Arc::clone(cps.rendezvous()))),
        Arc::clone(cps.registrar()) as Arc<dyn FdoParty>,
    ]
}

/// While the uplink is down, no device waits for the remote rendezvous.
async fn follow_uplink(
    relay: Arc<Relay>,
    mut uplink: watch::Receiver<State>,
    stop: CancellationToken,
) {
    relay.remote_up(uplink.borrow_and_update().is_up());
    while let Some(Ok(())) = stop.run_until_cancelled(uplink.changed()).await {
        relay.remote_up(uplink.borrow_and_update().is_up());
    }
    stop.cancelled().await;
}

/// Registers the vouchers that this gateway owns at its own rendezvous, by HTTP like any other, and
/// anew whenever the gateway's addresses have changed.
async fn register_here(
    cps: Cps,
    own: SocketAddr,
    mut lan: watch::Receiver<Vec<IpAddr>>,
    stop: CancellationToken,
) {
    let host = if own.ip().is_unspecified() {
        Ipv4Addr::LOCALHOST.into()
    } else {
        own.ip()
    };
    let endpoint = Endpoint {
        addresses: vec![SocketAddr::new(host, own.port()).to_string()],
        security: Security::Plain,
    };
    let client = fdo::Client::new(endpoint, "", https::Limits::default());
    while !stop.is_cancelled() {
        let round = stop.child_token();
        if lan.borrow_and_update().is_empty() {
            // Nothing to register yet; that is no fault.
            let _ = stop.run_until_cancelled(lan.changed()).await;
            continue;
        }
        tokio::select! {
            () = cps.to0().run(client.clone(), round.clone()) => {}
            Ok(()) = lan.changed() => {}
        }
    }
}
