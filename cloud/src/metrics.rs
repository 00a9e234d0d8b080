//! The cloud's own figures on the loopback listener, beside those that every server has.

use axum::Router;
use holdfast_broker::{Broker, Consumer};
use holdfast_cps::Cps;
use holdfast_server::metrics;
use prometheus_client::metrics::gauge::Gauge;

/// The router for the loopback listener.
pub fn router(cps: &Cps, broker: &Broker, consumer: Consumer) -> Router {
    let mut registry = metrics::registry(cps, broker);
    let waiting = Gauge::<i64>::default();
    registry.register(
        "holdfast_cloud_telemetry_waiting",
        "Messages in the journal that the ledger does not have yet",
        waiting.clone(),
    );
    metrics::router(registry, cps.clone(), move || {
        waiting.set(i64::try_from(consumer.waiting()).unwrap_or(i64::MAX));
    })
}
