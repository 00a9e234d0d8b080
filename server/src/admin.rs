//! What the admin sockets of both servers have beside what CPS answers: clients read again, and where the
//! server listens.

use std::net::SocketAddr;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use holdfast_cps::http::Failure;
use holdfast_cps::http::admin::Answer;
use serde_json::{Value, json};

use crate::reload::{Reload, ReloadFault};

/// Their routes.
pub fn router(reload: Reload) -> Router {
    Router::new()
        .route("/v1/clients/reload", post(again))
        .with_state(reload)
}

async fn again(State(reload): State<Reload>) -> Answer {
    // A small file and a look at the sessions, but a file all the same.
    let done = tokio::task::spawn_blocking(move || reload.again()).await;
    let done = done
        .map_err(Failure::failed)?
        .map_err(|fault| match fault {
            ReloadFault::Passwords(_) => Failure::failed(fault),
            ReloadFault::NoFile | ReloadFault::Faults(_) => Failure::misuse(fault),
        })?;
    Ok(Json(json!({ "clients": done.clients, "cut": done.cut })))
}

/// Where a server listens, as `status` tells it.
#[must_use]
pub fn listening(addresses: &[(String, SocketAddr)]) -> Value {
    let told = addresses.iter();
    let told = told.map(|(key, address)| (key.clone(), json!(address.to_string())));
    Value::Object(told.collect())
}
