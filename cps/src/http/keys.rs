//! Rotation of keys, and renewal on order, over the administrator's API. Merged into the router of
//! this folder; JSON both ways.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::succession::KeyRole;
use serde::Deserialize;
use serde_json::json;

use super::admin::{Answer, bad, parse};
use super::api::{Failure, own, read};
use crate::Cps;
use crate::rotation::RotationError;
use crate::tidings::RenewError;

pub(super) fn admin() -> Router<Cps> {
    Router::new()
        .route("/v1/keys", get(show))
        .route("/v1/keys/rotate", post(rotate))
        .route("/v1/keys/retire", post(retire))
        .route("/v1/certificates/renew", post(renew))
}

async fn show(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.rotation().show().map_err(own)?)))
}

#[derive(Deserialize)]
struct Rotate {
    role: String,
}

async fn rotate(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Rotate = read(&body)?;
    let role = KeyRole::from_word(&asked.role);
    let role = role.ok_or_else(|| bad("give one of owner and signing"))?;
    let rotated = cps.rotation().rotate(role).await.map_err(refused)?;
    cps.to0().wake();
    Ok(Json(json!(rotated)))
}

#[derive(Deserialize)]
struct Retire {
    fingerprint: String,
    #[serde(default)]
    force: bool,
}

async fn retire(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Retire = read(&body)?;
    let retired = cps.rotation().retire(&asked.fingerprint, asked.force).await;
    let left = retired.map_err(refused)?;
    let left: Vec<&str> = left.iter().map(DeviceId::as_str).collect();
    Ok(Json(json!({ "retired": asked.fingerprint, "left": left })))
}

#[derive(Deserialize)]
struct Renew {
    device: String,
}

async fn renew(State(cps): State<Cps>, body: Bytes) -> Answer {
    let device: DeviceId = parse(&read::<Renew>(&body)?.device)?;
    let serial = cps.tidings().order_renewal(device).await;
    let serial = serial.map_err(|error| match error {
        RenewError::NoCertificate(_) => bad(error),
        RenewError::Registry(_) => own(error),
    })?;
    Ok(Json(
        json!({ "device": device.as_str(), "serial": serial.to_string() }),
    ))
}

fn refused(error: RotationError) -> Failure {
    match &error {
        RotationError::InUse { .. } => Failure(StatusCode::CONFLICT, error.to_string()),
        RotationError::Unknown(_) | RotationError::Present(_) => bad(error),
        _ => own(error),
    }
}
