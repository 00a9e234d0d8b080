//! The cloud's own verbs on the admin socket, beside those that every CPS server has: status, and
//! the seller's vouchers (110).
//!
//! Served by [`crate::app`] on the Unix socket; asked by [`crate::cli`]. Only the user who runs the
//! cloud can open that socket.

use std::time::Instant;

use axum::extract::{Path, State};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_broker::{Broker, Consumer};
use holdfast_cps::Cps;
use holdfast_cps::http::Failure;
use holdfast_cps::http::admin::{Answer, admin_router};
use holdfast_cps::sync::Heard;
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{DeviceId, Guid, SiteId};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::voucher::Voucher;
use holdfast_server::admin::listening;
use holdfast_server::reload::Reload;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::app::App;
use crate::stock::{Kept, Stock, StockError};

/// What the verbs work on.
#[derive(Debug, Clone)]
pub struct Served {
    cps: Cps,
    stock: Stock,
    broker: Broker,
    intake: Consumer,
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
            stock: app.stock.clone(),
            broker: app.broker.clone(),
            intake: app.intake.consumer(),
            reload: app.reload(),
            started: Instant::now(),
            listening: listening(&app.listening()),
        }
    }
}

/// All verbs of the cloud.
pub fn router(served: Served) -> Router {
    let shared = admin_router(served.cps.clone());
    let clients = holdfast_server::admin::router(served.reload.clone());
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/services/{device}/gateways", get(order_at))
        .route("/v1/vouchers", get(list))
        .route("/v1/vouchers/import", post(import))
        .route("/v1/vouchers/{guid}", get(show))
        .route("/v1/vouchers/{guid}/export", get(export))
        .route("/v1/vouchers/{guid}/assign", post(assign))
        .route("/v1/vouchers/{guid}/extend", post(extend))
        .with_state(served)
        .merge(shared)
        .merge(clients)
}

async fn status(State(served): State<Served>) -> Answer {
    let cps = &served.cps;
    let config = cps.config();
    let sites = cps.sites().map_err(Failure::failed)?.len();
    let gateways = cps.enrolment().gateways().map_err(Failure::failed)?.len();
    let devices = cps.devices().list(None).map_err(Failure::failed)?;
    let figures = served.broker.metrics();
    Ok(Json(json!({
        "server": config.server.to_string(),
        "domain": config.domain.to_string(),
        "uptime_secs": served.started.elapsed().as_secs(),
        "listening": served.listening,
        "keys": holdfast_cps::keys::seal::standing(),
        "sites": sites,
        "gateways": gateways,
        "devices": devices.iter().filter(|device| device.onboarded).count(),
        "mqtt_connections": figures.connections,
        "journal_rows": figures.journal_rows,
        "telemetry_waiting": served.intake.waiting(),
        "telemetry_messages": cps.ledger().len().map_err(Failure::failed)?,
    })))
}

/// How far the order that holds for a device has come: its site's gateways, when each asked last,
/// and whether it had the order then.
async fn order_at(State(served): State<Served>, Path(device): Path<String>) -> Answer {
    let cps = &served.cps;
    let device: DeviceId = device.parse().map_err(Failure::misuse)?;
    let ordered = cps.lifecycle().ordered(device).map_err(Failure::failed)?;
    let Some((site, order)) = ordered else {
        return Ok(Json(json!({ "site": null, "gateways": [] })));
    };
    let gateways = cps.enrolment().gateways().map_err(Failure::failed)?;
    let gateways = gateways.iter().filter(|row| row.site == site);
    let told = gateways.map(|row| {
        let heard = cps.sync().heard(&row.server);
        let has = |heard: &Heard| heard.cursor.after(&order.origin, order.epoch) >= order.seq;
        json!({
            "gateway": row.server.to_string(),
            "heard": heard.as_ref().map(|heard| heard.at),
            // Its own order it has in any case.
            "has_it": order.origin == row.server || heard.as_ref().is_some_and(has),
        })
    });
    Ok(Json(json!({
        "site": site.to_string(),
        "now": cps.clock().now().secs,
        "gateways": told.collect::<Vec<_>>(),
    })))
}

/// The seller's vouchers, then those that came from elsewhere.
async fn list(State(served): State<Served>) -> Answer {
    let kept = served.stock.list().map_err(Failure::failed)?;
    let held = served.cps.vouchers().list().map_err(Failure::failed)?;
    let waiting = served.cps.vouchers().waiting().map_err(Failure::failed)?;
    let mut shown: Vec<Value> = kept.iter().map(summary).collect();
    let ours = |guid: Guid| kept.iter().any(|kept| kept.voucher.guid() == guid);
    shown.extend(
        held.iter()
            .filter(|row| row.live && !ours(row.guid))
            .map(|row| {
                json!({
                    "guid": row.guid.to_string(), "device": row.device.to_string(),
                    "site": row.site.to_string(), "state": "held", "serial": null,
                })
            }),
    );
    shown.extend(waiting.iter().filter(|row| !ours(row.guid)).map(|row| {
        json!({
            "guid": row.guid.to_string(), "device": row.guid.to_string(),
            "site": null, "state": "waits for a site", "serial": null,
        })
    }));
    Ok(Json(Value::Array(shown)))
}

fn summary(kept: &Kept) -> Value {
    let state = match (&kept.site, kept.given) {
        (Some(_), _) => "assigned",
        (None, true) => "extended",
        (None, false) => "in stock",
    };
    json!({
        "guid": kept.voucher.guid().to_string(),
        "device": kept.voucher.guid().to_string(),
        "serial": kept.serial,
        "info": kept.voucher.device_info(),
        "site": kept.site.as_ref().map(ToString::to_string),
        "state": state,
        "entries": kept.voucher.entries().len(),
    })
}

async fn show(State(served): State<Served>, Path(guid): Path<String>) -> Answer {
    match served.stock.get(guid_of(&guid)?) {
        Ok(kept) => Ok(Json(summary(&kept))),
        Err(StockError::Unknown(_)) => {
            let Json(all) = list(State(served)).await?;
            let found = all
                .as_array()
                .into_iter()
                .flatten()
                .find(|one| one["guid"] == guid);
            let unknown = || Failure::misuse(format!("no voucher {guid} is kept here"));
            Ok(Json(found.cloned().ok_or_else(unknown)?))
        }
        Err(error) => Err(stock_error(error)),
    }
}

async fn export(State(served): State<Served>, Path(guid): Path<String>) -> Answer {
    let guid = guid_of(&guid)?;
    let pem = match served.stock.get(guid) {
        Ok(kept) => kept.voucher.to_pem(),
        Err(StockError::Unknown(_)) => served
            .cps
            .vouchers()
            .export(guid)
            .map_err(Failure::misuse)?,
        Err(error) => return Err(stock_error(error)),
    };
    Ok(Json(json!({ "pem": pem })))
}

#[derive(Deserialize)]
struct Assign {
    site: String,
}

/// Gives a device to a site of this owner: extends its voucher to the owner if it is in stock,
/// hands it to the registry, and has it registered for onboarding.
async fn assign(
    State(served): State<Served>,
    Path(guid): Path<String>,
    Json(wanted): Json<Assign>,
) -> Answer {
    let guid = guid_of(&guid)?;
    let site: SiteId = wanted.site.parse().map_err(Failure::misuse)?;
    if !served.cps.sites().map_err(Failure::failed)?.contains(&site) {
        return Err(Failure::misuse(format!(
            "no site {site}; add it first: sites add {site}"
        )));
    }
    let vouchers = served.cps.vouchers();
    match served.stock.get(guid) {
        Ok(_) => {
            let owner = PublicKey::x509(&served.cps.keys().owner().public());
            // The site is noted first: a second assignment elsewhere must not find it free.
            served
                .stock
                .assign(guid, &site)
                .await
                .map_err(stock_error)?;
            let voucher = served
                .stock
                .extend(guid, &owner)
                .await
                .map_err(stock_error)?;
            vouchers
                .accept(&voucher, Some(site.clone()))
                .await
                .map_err(Failure::misuse)?;
        }
        Err(StockError::Unknown(_)) => {
            vouchers
                .assign(guid, &site)
                .await
                .map_err(Failure::misuse)?;
        }
        Err(error) => return Err(stock_error(error)),
    }
    served.cps.to0().wake();
    Ok(Json(
        json!({ "guid": guid.to_string(), "site": site.to_string() }),
    ))
}

#[derive(Deserialize)]
struct Extend {
    /// SubjectPublicKeyInfo, DER in base64.
    key: String,
}

async fn extend(
    State(served): State<Served>,
    Path(guid): Path<String>,
    Json(wanted): Json<Extend>,
) -> Answer {
    let spki = STANDARD.decode(wanted.key).map_err(Failure::misuse)?;
    let key = VerifyingKey::from_spki_der(&spki).map_err(Failure::misuse)?;
    let extended = served
        .stock
        .extend(guid_of(&guid)?, &PublicKey::x509(&key))
        .await;
    Ok(Json(
        json!({ "pem": extended.map_err(stock_error)?.to_pem() }),
    ))
}

#[derive(Deserialize)]
struct Import {
    /// The voucher file as it is, in base64.
    file: String,
}

/// Takes a voucher that is this seller's to extend, or one extended to this owner.
async fn import(State(served): State<Served>, Json(wanted): Json<Import>) -> Answer {
    let bytes = STANDARD.decode(wanted.file).map_err(Failure::misuse)?;
    let own = served.stock.public_key();
    // What is not the stock's, unreadable files included, is judged, logged and counted in one place.
    let guid = match Voucher::read(&bytes) {
        Ok(voucher) if voucher.owner_key().same_key(own) => {
            let guid = voucher.guid();
            served.stock.keep(voucher, None).await.map_err(|error| {
                tracing::warn!(%guid, %error, "voucher refused");
                served.cps.metrics().refused("voucher", "stock");
                stock_error(error)
            })?;
            guid
        }
        _ => {
            let imported = served.cps.vouchers().import(&bytes, None).await;
            imported.map_err(Failure::misuse)?.0
        }
    };
    Ok(Json(json!({ "guid": guid.to_string() })))
}

fn guid_of(text: &str) -> Result<Guid, Failure> {
    text.parse()
        .map_err(|_| Failure::misuse(format!("{text:?} is no GUID; write 32 hexadecimal digits")))
}

fn stock_error(error: StockError) -> Failure {
    match error {
        StockError::Content(_) | StockError::Store(_) => Failure::failed(error),
        other => Failure::misuse(other),
    }
}
