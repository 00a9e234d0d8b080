//! The gateway's own verbs on the admin socket, beside those that every CPS server has: status, and
//! the bridge's remotes and rules.
//!
//! Served by [`crate::app`] on the Unix socket; asked by [`crate::cli`]. Only the user who runs the
//! gateway can open that socket.

use std::time::{Duration, Instant};

use axum::extract::State as Of;
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_broker::Broker;
use holdfast_cps::Cps;
use holdfast_cps::authority::{RenewalError, WINDOW_WARNING, serial_of};
use holdfast_cps::http::Failure;
use holdfast_cps::http::admin::{Answer, admin_router};
use holdfast_link::https;
use holdfast_link::time::{Clock as _, SystemClock};
use holdfast_link::tls::IdentitySlot;
use holdfast_protocol::roots;
use holdfast_server::admin::listening;
use holdfast_server::reload::Reload;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use std::sync::Arc;

use crate::app::App;
use crate::bridge::{Backlog, DeadLetters, Watched, leftover};
use crate::config::Rule;
use crate::uplink::State;

/// Longest wait for the cloud while an operator waits.
const ASKING: Duration = Duration::from_secs(20);

/// What the verbs work on.
#[derive(Debug, Clone)]
pub struct Served {
    cps: Cps,
    broker: Broker,
    backlog: Backlog,
    dead_letters: DeadLetters,
    remotes: Vec<Watched>,
    rules: Vec<Rule>,
    uplink: watch::Receiver<State>,
    identity: IdentitySlot,
    cloud: https::Client,
    clock: Arc<SystemClock>,
    reload: Reload,
    started: Instant,
    listening: Value,
}

impl Served {
    /// The parts of `app`.
    #[must_use]
    pub fn of(app: &App) -> Self {
        Self {
            cps: app.cps.clone(),
            broker: app.broker.clone(),
            backlog: app.backlog(),
            dead_letters: app.dead_letters.clone(),
            remotes: app.remotes(),
            rules: app.config.bridge.clone(),
            uplink: app.uplink(),
            identity: app.identity.clone(),
            cloud: app.cloud.clone(),
            clock: Arc::clone(&app.clock),
            reload: app.reload(),
            started: Instant::now(),
            listening: listening(&app.listeners().addresses()),
        }
    }
}

/// All verbs of the gateway.
pub fn router(served: Served) -> Router {
    let shared = admin_router(served.cps.clone());
    let clients = holdfast_server::admin::router(served.reload.clone());
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/bridge", get(remotes))
        .route("/v1/bridge/forget", post(forget))
        .route("/v1/authority/renew", post(renew_authority))
        .with_state(served)
        .merge(shared)
        .merge(clients)
}

/// The site's authority gets a fresh key now; the gateway's certificate follows by itself.
async fn renew_authority(Of(served): Of<Served>) -> Answer {
    let authority = served.cps.authority();
    let asked = tokio::time::timeout(ASKING, authority.refresh_intermediate(&served.cloud)).await;
    let away = "the cloud does not answer; it alone can certify the site's authority: try again when the uplink is back, the present one goes on meanwhile";
    match asked {
        Err(_) | Ok(Err(RenewalError::Link(_))) => return Err(Failure::failed(away)),
        Ok(done) => done.map_err(Failure::failed)?,
    }
    let chain = authority.chain(served.cps.config().role.site());
    let chain = chain.map_err(Failure::failed)?;
    Ok(Json(json!({
        "intermediate": chain.first().and_then(|der| serial_of(der)).map(|it| it.to_string()),
    })))
}

async fn status(Of(served): Of<Served>) -> Answer {
    let uplink = served.uplink.borrow().clone();
    let config = served.cps.config();
    let devices = served.cps.devices().list(None).map_err(Failure::failed)?;
    let chain = served
        .cps
        .authority()
        .chain(config.role.site())
        .map_err(Failure::failed)?;
    let (now, figures) = (served.clock.now(), served.broker.metrics());
    let own_ends = served
        .identity
        .get()
        .and_then(|own| not_after(own.chain().first()?));
    let window = served.cps.authority().window().map_err(Failure::failed)?;
    let anchors = served.cps.authority().anchors().map_err(Failure::failed)?;
    let leads = roots::leads_to(&chain, &anchors);
    let site_ends = chain.first().and_then(|der| not_after(der));
    Ok(Json(json!({
        "server": config.server.to_string(),
        "site": config.role.site().map(ToString::to_string),
        "domain": config.domain.to_string(),
        "listening": served.listening,
        "mode": uplink.mode,
        "reason": uplink.reason,
        "since": uplink.since,
        "locked_out": served.cps.sync().locked_out(),
        "backlog": served.backlog.waiting(),
        "dead_letters": served.dead_letters.count(),
        "remotes": served.remotes.iter().map(Watched::now).collect::<Vec<_>>(),
        "rules_gone": leftover::find(&served.broker, &served.rules).await.map_err(Failure::failed)?,
        "devices": devices.iter().filter(|device| device.onboarded).count(),
        "mqtt_connections": figures.connections,
        "journal_rows": figures.journal_rows,
        "certificate_ends": own_ends,
        "site_certificate_ends": site_ends,
        "root": leads.map(|der| roots::fingerprint(der)),
        "roots_believed": anchors.len(),
        "offline_window_left_secs": window,
        "offline_window_warning": window.filter(|left| *left < WINDOW_WARNING).map(|_| {
            "the site must see its cloud within this time: let it go online soon"
        }),
        "revocations": served.cps.roster().revocations(),
        "keys": holdfast_cps::keys::seal::standing(),
        "time": now.secs,
        "time_quality": now.quality.to_string(),
        "uptime_secs": served.started.elapsed().as_secs(),
    })))
}

/// How each remote stands, the cloud first.
async fn remotes(Of(served): Of<Served>) -> Answer {
    let all: Vec<_> = served.remotes.iter().map(Watched::now).collect();
    Ok(Json(json!(all)))
}

#[derive(Deserialize)]
struct Forget {
    rule: String,
}

/// Drops what waits for a rule that is gone from the configuration.
async fn forget(Of(served): Of<Served>, Json(wanted): Json<Forget>) -> Answer {
    let rule = wanted.rule;
    let done = leftover::forget(&served.broker, &served.rules, &rule).await;
    match done.map_err(Failure::failed)? {
        Some(dropped) => Ok(Json(json!({ "rule": rule, "dropped": dropped }))),
        None => Err(Failure::misuse(format!(
            "nothing waits for a removed rule {rule:?}; rules of the configuration are removed there \
             first, and status shows those that are gone"
        ))),
    }
}

/// The end of a certificate's validity, unix seconds.
fn not_after(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}
