//! Health and metrics on the loopback listener: `/health` and `/metrics` (text exposition).
//!
//! Asked by the operator's monitoring; built once by [`crate::app`]. It shows no identity and no
//! content of a message.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State as Of;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use holdfast_cps::Cps;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio::sync::watch;

use crate::app::App;
use crate::bridge::{Backlog, DeadLetters, Watched};
use crate::uplink::State;

/// Media type of the text exposition that `prometheus_client` writes.
const EXPOSITION: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is shown.
#[derive(Debug, Clone)]
pub struct Seen {
    registry: Arc<Mutex<Registry>>,
    cps: Cps,
    backlog: Backlog,
    dead_letters: DeadLetters,
    remotes: Vec<Watched>,
    uplink: watch::Receiver<State>,
    gauges: Gauges,
}

/// Looked up when asked for.
#[derive(Debug, Clone, Default)]
struct Gauges {
    backlog: Gauge,
    revocations: Gauge,
    revocations_age: Gauge,
    window: Gauge,
    dead_letters: Gauge,
    uplink: Gauge,
    remotes: Remotes,
}

/// One line for each remote.
type PerRemote = Family<Vec<(&'static str, String)>, Gauge>;

#[derive(Debug, Clone, Default)]
struct Remotes {
    up: PerRemote,
    backlog: PerRemote,
    denied: PerRemote,
    dead_letters: PerRemote,
}

impl Remotes {
    fn register(&self, registry: &mut Registry) {
        for (name, help, family) in [
            (
                "remote_up",
                "1 while the bridge is connected to this remote",
                &self.up,
            ),
            (
                "remote_backlog",
                "Messages that wait for this remote",
                &self.backlog,
            ),
            (
                "remote_denied_topics",
                "Topics that this remote denies now",
                &self.denied,
            ),
            (
                "remote_dead_letters",
                "Messages put aside since the start that this remote will never take",
                &self.dead_letters,
            ),
        ] {
            registry.register(name, help, family.clone());
        }
    }

    fn set(&self, remotes: &[Watched]) {
        for remote in remotes {
            let label = vec![("remote", remote.name().to_owned())];
            let now = remote.now();
            self.up.get_or_create(&label).set(i64::from(now.connected));
            for (family, count) in [
                (&self.backlog, now.waiting),
                (&self.denied, now.denied_topics),
                (&self.dead_letters, now.dead_letters),
            ] {
                family.get_or_create(&label).set(whole(count));
            }
        }
    }
}

fn whole(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Seen {
    /// The parts of `app`.
    #[must_use]
    pub fn of(app: &App) -> Self {
        let mut registry = Registry::default();
        app.cps.metrics().register(&mut registry);
        app.broker.register_metrics(&mut registry);
        let gauges = Gauges::default();
        let ours = registry.sub_registry_with_prefix("holdfast_gateway");
        ours.register(
            "backlog",
            "Messages that wait for the cloud",
            gauges.backlog.clone(),
        );
        ours.register(
            "revocations_number",
            "Number of the list of revoked certificates",
            gauges.revocations.clone(),
        );
        ours.register(
            "revocations_age_seconds",
            "Since the cloud was asked for news of that list; -1: not since the start",
            gauges.revocations_age.clone(),
        );
        ours.register(
            "offline_window_seconds",
            "For so long the site may stay offline; below 90 days it should see its cloud soon",
            gauges.window.clone(),
        );
        let dead = gauges.dead_letters.clone();
        ours.register(
            "dead_letters",
            "Messages put aside that a remote will never take",
            dead,
        );
        let uplink = gauges.uplink.clone();
        ours.register("uplink_up", "1 unless the uplink's mode is outage", uplink);
        gauges.remotes.register(ours);
        Self {
            registry: Arc::new(Mutex::new(registry)),
            cps: app.cps.clone(),
            backlog: app.backlog(),
            dead_letters: app.dead_letters.clone(),
            remotes: app.remotes(),
            uplink: app.uplink(),
            gauges,
        }
    }
}

/// The router for the loopback listener.
pub fn router(seen: Seen) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(seen)
}

async fn metrics(Of(seen): Of<Seen>) -> impl IntoResponse {
    seen.gauges.backlog.set(whole(seen.backlog.waiting()));
    let list = seen.cps.roster().revocations();
    seen.gauges.revocations.set(whole(list.number));
    let age = list.heard_secs_ago.map_or(-1, whole);
    seen.gauges.revocations_age.set(age);
    let window = seen.cps.authority().window().ok().flatten();
    seen.gauges.window.set(window.map_or(-1, whole));
    let dead = whole(seen.dead_letters.count());
    seen.gauges.dead_letters.set(dead);
    seen.gauges.remotes.set(&seen.remotes);
    seen.gauges
        .uplink
        .set(i64::from(seen.uplink.borrow().is_up()));
    let mut text = String::new();
    let registry = seen.registry.lock().unwrap_or_else(PoisonError::into_inner);
    match encode(&mut text, &registry) {
        Ok(()) => (StatusCode::OK, [(CONTENT_TYPE, EXPOSITION)], text),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(CONTENT_TYPE, EXPOSITION)],
            String::new(),
        ),
    }
}

async fn health(Of(seen): Of<Seen>) -> impl IntoResponse {
    match seen.cps.sites() {
        Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
