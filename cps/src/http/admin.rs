//! The administrator's API, on a Unix socket that only the daemon's user may open. Called by the
//! command lines of both daemons through [`super::ask`]; the binaries merge routes of their own
//! into it. JSON in and out; errors are one sentence and what to do.

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_protocol::crypto::{HashAlg, hash};
use holdfast_protocol::id::{ClientName, DeviceId, SiteId};
use holdfast_protocol::topic::Filter;
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::{Failure, own, read};
use crate::Cps;
use crate::authority::AuthorityError;
use crate::telemetry as ledger;
use crate::times;
use crate::vouchers::VoucherRefusal;

/// What a verb gives.
pub type Answer = Result<Json<Value>, Failure>;

/// Messages in one page of the ledger.
const PAGE: usize = 5_000;

/// The administrator's API of one server.
pub fn admin_router(cps: Cps) -> Router {
    let limit = cps.config().limits.api_body;
    Router::new()
        .route("/v1/registry", get(status))
        .route("/v1/sites", get(sites).post(add_site))
        .route("/v1/registry/vouchers", get(vouchers))
        .route("/v1/registry/vouchers/import", post(import))
        .route("/v1/registry/vouchers/assign", post(assign))
        .route("/v1/registry/vouchers/{guid}", get(export))
        .route("/v1/devices", get(devices))
        .route("/v1/clients", get(clients).post(issue))
        .route("/v1/records", post(records))
        .route("/v1/refusals", get(refusals))
        .route("/v1/root", get(root))
        .route("/v1/telemetry", post(telemetry))
        .merge(super::lifecycle::admin())
        .merge(super::lists::admin())
        .merge(super::certificates::admin())
        .merge(super::gateways::admin())
        .merge(super::authority::admin())
        .merge(super::keys::admin())
        .layer(DefaultBodyLimit::max(limit))
        .with_state(cps)
}

pub(super) fn bad(text: impl std::fmt::Display) -> Failure {
    Failure(StatusCode::BAD_REQUEST, text.to_string())
}

pub(super) fn parse<T: std::str::FromStr<Err: std::fmt::Display>>(
    text: &str,
) -> Result<T, Failure> {
    text.parse().map_err(|error: T::Err| bad(error))
}

async fn status(State(cps): State<Cps>) -> Answer {
    let vouchers = cps.vouchers().list().map_err(own)?;
    let devices = cps.devices().list(None).map_err(own)?;
    let time = cps.clock().now();
    Ok(Json(json!({
        "server": cps.config().server.as_str(),
        "domain": cps.config().domain.as_str(),
        "site": cps.config().role.site().map(SiteId::as_str),
        "revocations": cps.roster().revocations(),
        "certificates_unrecorded": cps.roster().unrecorded().len(),
        "serials_on_record": cps.authority().is_witnessed().map_err(own)?,
        "time": time.secs,
        "time_quality": time.quality.to_string(),
        "vouchers": vouchers.len(),
        "vouchers_waiting": cps.vouchers().waiting().map_err(own)?.len(),
        "devices": devices.len(),
        "devices_onboarded": devices.iter().filter(|device| device.onboarded).count(),
        "ledger_messages": cps.ledger().len().map_err(own)?,
        "onboarding_now": cps.registrar().open_runs(),
        "entries_refused": cps.refusals().list().map_err(own)?.len(),
    })))
}

async fn sites(State(cps): State<Cps>) -> Answer {
    let sites = cps.sites().map_err(own)?;
    Ok(Json(
        sites
            .iter()
            .map(|site| json!({ "site": site.as_str() }))
            .collect(),
    ))
}

#[derive(Deserialize)]
struct AddSite {
    site: String,
}

async fn add_site(State(cps): State<Cps>, body: Bytes) -> Answer {
    let site: SiteId = parse(&read::<AddSite>(&body)?.site)?;
    if cps.cloud().is_some() {
        return Err(bad("sites are added at the cloud, not at a gateway"));
    }
    cps.add_site(&site).await.map_err(own)?;
    Ok(Json(json!({ "site": site.as_str() })))
}

#[derive(Deserialize)]
struct Records {
    site: Option<String>,
    device: Option<String>,
    max: Option<usize>,
}

/// What is on record, in its order: the timeline.
async fn records(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Records = read(&body)?;
    let site = asked.site.as_deref().map(parse::<SiteId>).transpose()?;
    let device = asked.device.as_deref().map(parse::<DeviceId>).transpose()?;
    let max = asked.max.unwrap_or(times::MOST);
    let rows = cps.times().records(site.as_ref(), device, max);
    Ok(Json(json!(rows.map_err(own)?)))
}

async fn vouchers(State(cps): State<Cps>) -> Answer {
    let held = cps.vouchers().list().map_err(own)?;
    let waiting = cps.vouchers().waiting().map_err(own)?;
    let held = held.iter().map(|row| {
        json!({
            "guid": DeviceId::from_guid(row.guid).as_str(), "device": row.device.as_str(),
            "site": row.site.as_str(), "live": row.live, "serial": info(&row.voucher),
        })
    });
    let waiting = waiting.iter().map(|row| {
        let guid = DeviceId::from_guid(row.guid);
        json!({
            "guid": guid.as_str(), "device": guid.as_str(), "site": null, "live": false,
            "serial": info(&row.voucher),
        })
    });
    Ok(Json(held.chain(waiting).collect()))
}

/// What the factory wrote about the device.
fn info(voucher: &[u8]) -> Option<String> {
    let voucher = holdfast_protocol::voucher::Voucher::parse(voucher).ok()?;
    Some(voucher.device_info().to_owned())
}

#[derive(Deserialize)]
struct Import {
    /// PEM text, or base64 of the CBOR.
    voucher: String,
    site: Option<String>,
}

async fn import(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Import = read(&body)?;
    let bytes = match asked.voucher.trim_start().starts_with("--") {
        true => asked.voucher.into_bytes(),
        false => STANDARD.decode(asked.voucher.trim()).map_err(|_| {
            bad("the voucher is neither PEM nor base64; give the file as the seller sent it")
        })?,
    };
    let site = asked.site.as_deref().map(parse::<SiteId>).transpose()?;
    let (guid, accepted) = cps.vouchers().import(&bytes, site).await.map_err(refused)?;
    cps.to0().wake();
    let guid = DeviceId::from_guid(guid);
    Ok(Json(
        json!({ "guid": guid.as_str(), "accepted": format!("{accepted:?}").to_lowercase() }),
    ))
}

#[derive(Deserialize)]
struct Assign {
    guid: String,
    site: String,
}

async fn assign(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Assign = read(&body)?;
    let (guid, site): (DeviceId, SiteId) = (parse(&asked.guid)?, parse(&asked.site)?);
    cps.vouchers()
        .assign(guid.guid(), &site)
        .await
        .map_err(refused)?;
    cps.to0().wake();
    Ok(Json(
        json!({ "guid": guid.as_str(), "site": site.as_str() }),
    ))
}

fn refused(refusal: VoucherRefusal) -> Failure {
    match refusal {
        VoucherRefusal::Registry(error) => own(error),
        other => bad(other),
    }
}

async fn export(State(cps): State<Cps>, Path(guid): Path<String>) -> Result<Response, Failure> {
    let guid: DeviceId = parse(&guid)?;
    Ok(cps
        .vouchers()
        .export(guid.guid())
        .map_err(refused)?
        .into_response())
}

async fn devices(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.devices().list(None).map_err(own)?)))
}

async fn clients(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.clients().list().map_err(own)?)))
}

#[derive(Deserialize)]
struct Issue {
    name: String,
    site: Option<String>,
    #[serde(default)]
    publish: Vec<String>,
    #[serde(default)]
    subscribe: Vec<String>,
}

async fn issue(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Issue = read(&body)?;
    let name: ClientName = parse(&asked.name)?;
    let site = asked.site.as_deref().map(parse::<SiteId>).transpose()?;
    let filters = |texts: &[String]| -> Result<Vec<Filter>, Failure> {
        texts.iter().map(|text| parse(text)).collect()
    };
    let (publish, subscribe) = (filters(&asked.publish)?, filters(&asked.subscribe)?);
    let files = cps.clients().issue(name, site, publish, subscribe).await;
    let files = files.map_err(|error| match error {
        AuthorityError::ForeignParty(_) | AuthorityError::Signer(_) => bad(error),
        other => own(other),
    })?;
    Ok(Json(
        json!({ "ca": files.ca, "cert": files.cert, "key": *files.key }),
    ))
}

/// The root that everybody of this installation believes in.
async fn root(State(cps): State<Cps>) -> Answer {
    let root = cps.authority().anchors().map_err(own)?.remove(0);
    let digest = hash(HashAlg::Sha256, &root);
    let hex: String = digest
        .value()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let pem = crate::authority::pem::block("CERTIFICATE", &root);
    Ok(Json(json!({ "pem": pem, "sha256": hex })))
}

async fn refusals(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.refusals().list().map_err(own)?)))
}

#[derive(Deserialize)]
struct PageOf {
    source: String,
    after: Option<(String, u64, u64)>,
}

/// One page of a source's messages, and where the next begins; `null` after the last.
async fn telemetry(State(cps): State<Cps>, body: Bytes) -> Answer {
    let page: PageOf = read(&body)?;
    let query = ledger::Query {
        source: page.source.into(),
        topic: None,
        after: page
            .after
            .map(|(topic, epoch, seq)| (topic.into(), epoch, seq)),
        max: PAGE,
    };
    let ledger = cps.ledger().clone();
    // Reading a long ledger must not hold up other requests.
    let rows = tokio::task::spawn_blocking(move || ledger.query(&query)).await;
    let rows = rows.map_err(own)?.map_err(own)?;
    let next = rows.last().filter(|_| rows.len() == PAGE).map(|row| {
        let message = &row.message;
        (message.topic.to_string(), message.epoch, message.seq)
    });
    let rows: Vec<Value> = rows.iter().map(ledger::json).collect();
    Ok(Json(json!({ "rows": rows, "next": next })))
}
