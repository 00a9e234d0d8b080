//! Installers and manufacturers on the admin socket; see [`crate::lists`].

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::SiteId;
use holdfast_protocol::record::ListedAs;
use holdfast_protocol::voucher::Voucher;
use serde::Deserialize;
use serde_json::json;

use super::admin::{Answer, bad, parse};
use super::api::{Failure, own, read};
use crate::Cps;
use crate::handover::fingerprint;
use crate::lists::ListingError;

pub(super) fn admin() -> Router<Cps> {
    Router::new()
        .route("/v1/installers", get(installers).post(list_installer))
        .route("/v1/installers/of", post(installers_of))
        .route("/v1/installers/remove", post(strike_installer))
        .route("/v1/manufacturers", get(manufacturers).post(list_maker))
        .route("/v1/manufacturers/remove", post(strike_maker))
}

async fn installers(State(cps): State<Cps>) -> Answer {
    let rows = cps.lists().installers(None).map_err(unlisted)?;
    Ok(Json(json!(rows)))
}

#[derive(Deserialize)]
struct OfSite {
    site: String,
}

async fn installers_of(State(cps): State<Cps>, body: Bytes) -> Answer {
    let site: SiteId = parse(&read::<OfSite>(&body)?.site)?;
    let rows = cps.lists().installers(Some(&site)).map_err(unlisted)?;
    Ok(Json(json!(rows)))
}

#[derive(Deserialize)]
struct ListKey {
    name: String,
    /// SubjectPublicKeyInfo (DER), or for a manufacturer one of its vouchers (CBOR), in base64.
    key: Option<String>,
    /// A device of that manufacturer.
    device: Option<String>,
    site: Option<String>,
}

async fn list_installer(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: ListKey = read(&body)?;
    let site = asked.site.as_deref().map(parse::<SiteId>).transpose()?;
    let key = public_key(asked.key.as_deref().unwrap_or_default())?;
    let shown = fingerprint(&key);
    let named = (parse(&asked.name)?, key);
    let done = cps.lists().list(ListedAs::Installer, site.as_ref(), named);
    done.await.map_err(unlisted)?;
    Ok(Json(json!({ "name": asked.name, "key": shown })))
}

async fn list_maker(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: ListKey = read(&body)?;
    let key = match (&asked.key, &asked.device) {
        (Some(key), None) => maker(key)?,
        (None, Some(device)) => cps.lists().maker_of(parse(device)?).map_err(unlisted)?,
        _ => {
            return Err(bad(
                "give either the manufacturer's key or a device of its make",
            ));
        }
    };
    let shown = fingerprint(&key);
    let named = (parse(&asked.name)?, key);
    let done = cps.lists().list(ListedAs::Manufacturer, None, named);
    done.await.map_err(unlisted)?;
    Ok(Json(json!({ "name": asked.name, "key": shown })))
}

/// A public key, or the first key in a voucher.
fn maker(text: &str) -> Result<VerifyingKey, Failure> {
    let bytes = STANDARD.decode(text.trim()).map_err(bad)?;
    match Voucher::read(&bytes) {
        Ok(voucher) => Ok(voucher.manufacturer().key().clone()),
        Err(_) => public_key(text),
    }
}

fn public_key(text: &str) -> Result<VerifyingKey, Failure> {
    let spki = STANDARD.decode(text.trim()).map_err(bad)?;
    VerifyingKey::from_spki_der(&spki).map_err(|_| {
        bad("the key is no P-256 or P-384 public key; give a PEM file PUBLIC KEY, for an installer what `holdfast-installer key show` prints")
    })
}

#[derive(Deserialize)]
struct StrikeKey {
    name: String,
    site: Option<String>,
}

async fn strike(cps: &Cps, role: ListedAs, body: &Bytes) -> Answer {
    let asked: StrikeKey = read(body)?;
    let site = asked.site.as_deref().map(parse::<SiteId>).transpose()?;
    let name = parse(&asked.name)?;
    let done = cps.lists().strike(role, site.as_ref(), name).await;
    done.map_err(unlisted)?;
    Ok(Json(json!({ "removed": asked.name })))
}

async fn strike_installer(State(cps): State<Cps>, body: Bytes) -> Answer {
    strike(&cps, ListedAs::Installer, &body).await
}

async fn strike_maker(State(cps): State<Cps>, body: Bytes) -> Answer {
    strike(&cps, ListedAs::Manufacturer, &body).await
}

async fn manufacturers(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.lists().manufacturers().map_err(unlisted)?)))
}

fn unlisted(error: ListingError) -> Failure {
    match error {
        ListingError::Registry(error) => own(error),
        other => bad(other),
    }
}
