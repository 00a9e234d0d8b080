//! Roots and intermediates over HTTP: whom to believe, for everybody; how the rotation stands and its
//! orders, for the administrator. Merged into the routers of this folder.

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use holdfast_protocol::certificate::validity;
use holdfast_protocol::id::SiteId;
use holdfast_protocol::name::Party;
use holdfast_protocol::roots;
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{Answer, bad, parse};
use super::api::{Failure, own, read};
use super::serve::Peer;
use super::wire::RootsGiven;
use crate::Cps;
use crate::authority::RotationError;
use crate::enrol::Bytes as Base64;

pub(super) fn api() -> Router<Cps> {
    Router::new().route(crate::authority::ROOTS_PATH, get(told))
}

pub(super) fn admin() -> Router<Cps> {
    Router::new()
        .route("/v1/authority", get(show))
        .route("/v1/authority/rotate", post(rotate))
        .route("/v1/authority/retire", post(retire))
}

/// Whom to believe. It is no secret; a gateway that asks shows how it stands.
async fn told(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
) -> Result<Json<RootsGiven>, Failure> {
    let authority = cps.authority();
    let known = cps.roster().identify(&peer.certificates);
    let rotate = match known.map(|known| known.party) {
        Ok(Party::Gateway { server, .. }) if cps.cloud().is_none() => {
            let noted = authority.note_gateway(&server, &peer.certificates);
            noted.map_err(own)?
        }
        _ => false,
    };
    let [crosses, anchors] = authority.told().map_err(own)?;
    let list = |ders: Vec<Vec<u8>>| ders.into_iter().map(Base64).collect();
    Ok(Json(RootsGiven {
        roots: list(anchors),
        crosses: list(crosses),
        rotate,
    }))
}

async fn show(State(cps): State<Cps>) -> Answer {
    let authority = cps.authority();
    let anchors = authority.anchors().map_err(own)?;
    let root = |(at, der): (usize, &Vec<u8>)| -> Result<Value, Failure> {
        let (from, to) = validity(der).unwrap_or_default();
        Ok(json!({
            "sha256": roots::fingerprint(der),
            "state": if at == 0 { "present" } else { "until retired" },
            "not_before": from,
            "not_after": to,
        }))
    };
    let roots: Vec<Value> = anchors
        .iter()
        .enumerate()
        .map(root)
        .collect::<Result<_, _>>()?;
    let mut leaning = Vec::new();
    if cps.cloud().is_none() {
        for older in anchors.iter().skip(1) {
            leaning.extend(authority.leaning_on(older).map_err(own)?);
        }
    }
    let gateways = match cps.cloud() {
        None => authority.standings().map_err(own)?,
        Some(_) => Vec::new(),
    };
    let gateways = gateways.into_iter().map(|(gateway, standing)| {
        json!({
            "gateway": gateway.as_str(),
            "root": standing.as_ref().map(|standing| &standing.root),
            "intermediate": standing.as_ref().map(|standing| &standing.intermediate),
            "since": standing.as_ref().map(|standing| standing.intermediate_since),
        })
    });
    let chain = authority.chain(cps.config().role.site()).map_err(own)?;
    let leads = roots::leads_to(&chain, &anchors).map(|der| roots::fingerprint(der));
    let since = chain
        .first()
        .and_then(|der| validity(der))
        .map(|(from, _)| from);
    Ok(Json(json!({
        "roots": roots,
        "intermediate": { "root": leads, "since": since },
        "gateways": gateways.collect::<Vec<_>>(),
        "leaning": leaning,
    })))
}

#[derive(Deserialize)]
struct Rotate {
    /// `root`, `own` (the cloud's own intermediates), or `site`.
    what: String,
    site: Option<String>,
}

async fn rotate(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Rotate = read(&body)?;
    let authority = cps.authority();
    match asked.what.as_str() {
        "root" => {
            let root = authority.rotate_root().map_err(refused)?;
            Ok(Json(json!({ "root": root })))
        }
        "own" => {
            authority.rotate_issuers().map_err(refused)?;
            Ok(Json(json!({ "rotated": "own" })))
        }
        "site" => {
            let site: SiteId = parse(asked.site.as_deref().unwrap_or_default())?;
            if cps.cloud().is_some() {
                return Err(refused(RotationError::NotHere));
            }
            let gateways = authority.order_rotation(&site).map_err(own)?;
            if gateways.is_empty() {
                return Err(bad(format!("no gateway of site {site} has enrolled")));
            }
            let names: Vec<_> = gateways.iter().map(ToString::to_string).collect();
            Ok(Json(json!({ "ordered": names })))
        }
        other => Err(bad(format!("{other:?} is nothing that can be rotated"))),
    }
}

#[derive(Deserialize)]
struct Retire {
    root: String,
    #[serde(default)]
    force: bool,
}

async fn retire(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Retire = read(&body)?;
    let locked = cps.authority().retire_root(&asked.root, asked.force);
    Ok(Json(
        json!({ "retired": asked.root, "locked_out": locked.map_err(refused)? }),
    ))
}

fn refused(error: RotationError) -> Failure {
    match error {
        RotationError::Authority(error) => own(error),
        other => bad(other),
    }
}
