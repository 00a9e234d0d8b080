//! Services over HTTP: the device's one route on the HTTPS API (CBOR both ways, by the device's
//! certificate), and the administrator's routes (JSON). Merged into the routers of this folder.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::lifecycle::{Answer, Refusal};
use serde::Deserialize;
use serde_json::json;

use super::admin::{self, bad, parse};
use super::api::{Failure, own, read};
use super::serve::Peer;
use crate::Cps;
use crate::lifecycle::{Fault, Order, OrderError};

pub(super) fn api() -> Router<Cps> {
    Router::new().route("/api/v1/lifecycle", post(request))
}

pub(super) fn admin() -> Router<Cps> {
    Router::new()
        .route("/v1/services/change", post(change))
        .route("/v1/services/end", post(end))
        .route("/v1/services/{device}", get(services))
}

async fn request(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Failure> {
    let answer = cps.lifecycle().answer(&peer.certificates, &body).await;
    let answer = answer.map_err(|fault| {
        tracing::warn!(address = ?peer.address, %fault, "lifecycle request refused");
        let (status, reason) = match &fault {
            Fault::Peer(refusal) => (StatusCode::UNAUTHORIZED, refusal.reason()),
            Fault::NoDevice(_) => (StatusCode::FORBIDDEN, "no device"),
        };
        cps.metrics().refused("lifecycle", reason);
        Failure(status, fault.to_string())
    })?;
    let status = match &answer {
        Answer::Refused { refusal, .. } => match refusal {
            Refusal::Malformed | Refusal::BadRequest => StatusCode::BAD_REQUEST,
            Refusal::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        },
        _ => StatusCode::OK,
    };
    let kind = [(header::CONTENT_TYPE, "application/cbor")];
    Ok((status, kind, answer.to_cbor()).into_response())
}

#[derive(Deserialize)]
struct Wanted {
    device: String,
    service: String,
    server: Option<String>,
    application: Option<String>,
    #[serde(default)]
    alone: bool,
}

async fn change(State(cps): State<Cps>, body: Bytes) -> admin::Answer {
    let asked: Wanted = read(&body)?;
    let device: DeviceId = parse(&asked.device)?;
    let order = Order {
        device,
        service: parse(&asked.service)?,
        server: asked.server,
        application: asked.application.as_deref().map(parse).transpose()?,
        alone: asked.alone,
    };
    let done = cps.lifecycle().order(order).await;
    done.map_err(|error| match error {
        OrderError::Registry(error) => own(error),
        other => bad(other),
    })?;
    Ok(Json(
        json!({ "device": device.as_str(), "ordered": asked.service }),
    ))
}

#[derive(Deserialize)]
struct Ended {
    device: String,
}

async fn end(State(cps): State<Cps>, body: Bytes) -> admin::Answer {
    let asked: Ended = read(&body)?;
    let device: DeviceId = parse(&asked.device)?;
    let done = cps.lifecycle().end(device).await;
    done.map_err(|error| match error {
        OrderError::Registry(error) => own(error),
        other => bad(other),
    })?;
    Ok(Json(json!({ "device": device.as_str() })))
}

async fn services(State(cps): State<Cps>, Path(device): Path<String>) -> admin::Answer {
    let device: DeviceId = parse(&device)?;
    let view = cps.lifecycle().services(device).map_err(own)?;
    match view {
        Some(view) => Ok(Json(json!(view))),
        None => Err(bad(OrderError::UnknownDevice(device))),
    }
}
