//! Health and metrics on the loopback listener: `/health` and `/metrics` (text exposition).
//!
//! Asked by the operator's monitoring; built once by each server's `app`, which registers figures of
//! its own. It shows no identity and no content of a message.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use holdfast_broker::Broker;
use holdfast_cps::Cps;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

/// Media type of the text exposition that `prometheus_client` writes.
const EXPOSITION: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is shown.
#[derive(Clone)]
struct Seen {
    registry: Arc<Mutex<Registry>>,
    cps: Cps,
    look: Arc<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seen")
    }
}

/// A registry with the figures that both servers have.
#[must_use]
pub fn registry(cps: &Cps, broker: &Broker) -> Registry {
    let mut registry = Registry::default();
    cps.metrics().register(&mut registry);
    broker.register_metrics(&mut registry);
    registry
}

/// The router for the loopback listener; `look` brings a server's own gauges up to date before they
/// are shown.
pub fn router(registry: Registry, cps: Cps, look: impl Fn() + Send + Sync + 'static) -> Router {
    let seen = Seen {
        registry: Arc::new(Mutex::new(registry)),
        cps,
        look: Arc::new(look),
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(seen)
}

async fn metrics(State(seen): State<Seen>) -> impl IntoResponse {
    (seen.look)();
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

async fn health(State(seen): State<Seen>) -> impl IntoResponse {
    match seen.cps.sites() {
        Ok(_) => (StatusCode::OK, "ok\n".to_owned()),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")),
    }
}
