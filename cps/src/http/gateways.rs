//! Gateways and their tokens over the administrator's API: list, token, replace, unlock, revoke.
//! Merged into the router of this folder; JSON both ways.

use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_protocol::id::{ServerId, SiteId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::admin::{Answer, bad, parse};
use super::api::{Failure, own, read};
use crate::Cps;
use crate::enrol::{Refusal, Terms};
use crate::tables::{GatewayRow, LockCause};

pub(super) fn admin() -> Router<Cps> {
    Router::new()
        .route("/v1/gateways", get(gateways))
        .route("/v1/gateways/token", post(token))
        .route("/v1/gateways/tokens", get(tokens))
        .route("/v1/gateways/tokens/void", post(void))
        .route("/v1/gateways/replace", post(replace))
        .route("/v1/gateways/unlock", post(unlock))
        .route("/v1/gateways/revoke", post(revoke))
}

async fn gateways(State(cps): State<Cps>) -> Answer {
    let rows = cps.enrolment().gateways().map_err(own)?;
    let shown = |row: &GatewayRow| {
        let lock = cps.roster().lock_of(&row.server);
        let (state, why) = match lock {
            None => ("in", String::new()),
            Some(LockCause::Replace) => ("to be replaced", String::new()),
            Some(LockCause::Revoke) => ("revoked", String::new()),
            Some(LockCause::Copy(why)) => ("locked: a copy was seen", why),
        };
        Ok(json!({
            "gateway": row.server.as_str(),
            "site": row.site.as_str(),
            "epoch": row.epoch,
            "enrolled": cps.times().enrolled(row).map_err(own)?,
            "state": state,
            "why": why,
            "heard": cps.sync().heard(&row.server).map(|heard| heard.at),
        }))
    };
    let rows: Result<Value, Failure> = rows.iter().map(shown).collect();
    Ok(Json(rows?))
}

#[derive(Deserialize)]
struct MakeToken {
    site: String,
    gateway: String,
    life_secs: u64,
    #[serde(default = "once")]
    uses: u32,
}

fn once() -> u32 {
    1
}

async fn token(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: MakeToken = read(&body)?;
    let (site, gateway): (SiteId, ServerId) = (parse(&asked.site)?, parse(&asked.gateway)?);
    let terms = Terms {
        life: Duration::from_secs(asked.life_secs),
        uses: asked.uses,
    };
    let token = cps.enrolment().token_on(&site, &gateway, terms).await;
    Ok(Json(json!({ "token": *token.map_err(not_enrolled)? })))
}

async fn tokens(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.enrolment().tokens().map_err(not_enrolled)?)))
}

#[derive(Deserialize)]
struct Void {
    token: String,
}

async fn void(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Void = read(&body)?;
    let done = cps.enrolment().void(&asked.token).await;
    done.map_err(not_enrolled)?;
    Ok(Json(json!({ "void": asked.token })))
}

async fn replace(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: MakeToken = read(&body)?;
    let (site, gateway): (SiteId, ServerId) = (parse(&asked.site)?, parse(&asked.gateway)?);
    let life = Duration::from_secs(asked.life_secs);
    let token = cps.enrolment().replace(&site, &gateway, life).await;
    Ok(Json(json!({ "token": *token.map_err(not_enrolled)? })))
}

#[derive(Deserialize)]
struct Named {
    site: String,
    gateway: String,
}

impl Named {
    fn parse(&self) -> Result<(SiteId, ServerId), Failure> {
        Ok((parse(&self.site)?, parse(&self.gateway)?))
    }
}

async fn unlock(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Named = read(&body)?;
    let (site, gateway) = asked.parse()?;
    let done = cps.enrolment().unlock(&site, &gateway).await;
    done.map_err(not_enrolled)?;
    Ok(Json(json!({ "unlocked": asked.gateway })))
}

async fn revoke(State(cps): State<Cps>, body: Bytes) -> Answer {
    let asked: Named = read(&body)?;
    let (site, gateway) = asked.parse()?;
    let done = cps.enrolment().revoke(&site, &gateway).await;
    let count = done.map_err(not_enrolled)?;
    Ok(Json::<Value>(
        json!({ "revoked": asked.gateway, "certificates": count }),
    ))
}

fn not_enrolled(refusal: Refusal) -> Failure {
    match refusal {
        Refusal::Authority(error) => own(error),
        Refusal::Registry(error) => own(error),
        other => bad(other),
    }
}
