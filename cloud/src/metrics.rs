//! Health and metrics on the loopback listener: `/health` and `/metrics` (text exposition).
//!
//! Asked by the operator's monitoring; built once by [`crate::app`]. It shows no identity and no
//! content of a message.

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use holdfast_broker::{Broker, Consumer};
use holdfast_cps::Cps;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Media type of the text exposition that `prometheus_client` writes.
const EXPOSITION: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone)]
struct Seen {
    registry: Arc<Mutex<Registry>>,
    cps: Cps,
    waiting: Gauge,
    consumer: Consumer,
}

/// The router for the loopback listener.
pub fn router(cps: &Cps, broker: &Broker, consumer: Consumer) -> Router {
    let mut registry = Registry::default();
    cps.metrics().register(&mut registry);
    broker.register_metrics(&mut registry);
    let waiting = Gauge::default();
    registry.register(
        "holdfast_cloud_telemetry_waiting",
        "Messages in the journal that the ledger does not have yet",
        waiting.clone(),
    );
    let seen = Seen {
        registry: Arc::new(Mutex::new(registry)),
        cps: cps.clone(),
        waiting,
        consumer,
    };
    Router::new()
        .route("/metrics", get(metrics))
        .route("/health", get(health))
        .with_state(seen)
}

async fn metrics(State(seen): State<Seen>) -> impl IntoResponse {
    seen.waiting
        .set(i64::try_from(seen.consumer.waiting()).unwrap_or(i64::MAX));
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
