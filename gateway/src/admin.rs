//! The gateway's own verbs on the admin socket, beside those that every CPS server has: status.
//!
//! Served by [`crate::app`] on the Unix socket; asked by [`crate::cli`]. Only the user who runs the
//! gateway can open that socket.

use std::time::Instant;

use axum::extract::State as Of;
use axum::routing::get;
use axum::{Json, Router};
use holdfast_broker::Broker;
use holdfast_cps::Cps;
use holdfast_cps::http::Failure;
use holdfast_cps::http::admin::{Answer, admin_router};
use holdfast_link::time::{Clock as _, SystemClock};
use holdfast_link::tls::IdentitySlot;
use serde_json::json;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use std::sync::Arc;

use crate::app::App;
use crate::bridge::{Backlog, DeadLetters};
use crate::uplink::State;

/// What the verbs work on.
#[derive(Debug, Clone)]
pub struct Served {
    cps: Cps,
    broker: Broker,
    backlog: Backlog,
    dead_letters: DeadLetters,
    uplink: watch::Receiver<State>,
    identity: IdentitySlot,
    clock: Arc<SystemClock>,
    started: Instant,
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
            uplink: app.uplink(),
            identity: app.identity.clone(),
            clock: Arc::clone(&app.clock),
            started: Instant::now(),
        }
    }
}

/// All verbs of the gateway.
pub fn router(served: Served) -> Router {
    let shared = admin_router(served.cps.clone());
    Router::new()
        .route("/v1/status", get(status))
        .with_state(served)
        .merge(shared)
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
    let site_ends = chain.first().and_then(|der| not_after(der));
    Ok(Json(json!({
        "server": config.server.to_string(),
        "site": config.role.site().map(ToString::to_string),
        "domain": config.domain.to_string(),
        "mode": uplink.mode,
        "reason": uplink.reason,
        "since": uplink.since,
        "locked_out": served.cps.sync().locked_out(),
        "backlog": served.backlog.waiting(),
        "dead_letters": served.dead_letters.count(),
        "devices": devices.iter().filter(|device| device.onboarded).count(),
        "mqtt_connections": figures.connections,
        "journal_rows": figures.journal_rows,
        "certificate_ends": own_ends,
        "site_certificate_ends": site_ends,
        "offline_window_left_secs": site_ends.map(|ends| ends.saturating_sub(now.secs)),
        "time": now.secs,
        "time_quality": now.quality.to_string(),
        "uptime_secs": served.started.elapsed().as_secs(),
    })))
}

/// The end of a certificate's validity, unix seconds.
fn not_after(der: &[u8]) -> Option<u64> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    u64::try_from(certificate.validity().not_after.timestamp()).ok()
}
