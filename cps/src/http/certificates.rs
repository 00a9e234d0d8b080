//! Certificates over the administrator's API: the list, revocations, and the numbered list of them.
//! Merged into the router of this folder; JSON both ways.

use axum::body::Bytes;
use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use holdfast_protocol::id::{ClientName, DeviceId, ServerId, SiteId};
use serde::Deserialize;
use serde_json::json;

use super::admin::{Answer, bad, parse};
use super::api::{own, read};
use crate::Cps;
use crate::authority::{AuthorityError, Whose, parse_serial};

pub(super) fn admin() -> Router<Cps> {
    Router::new()
        .route("/v1/certificates", get(certificates))
        .route("/v1/certificates/revoke", post(revoke))
        .route("/v1/certificates/unrecorded", get(unrecorded))
        .route("/v1/revocations", get(revocations))
        .route("/v1/revocations/restore", post(restore))
}

async fn certificates(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.times().certificates().map_err(own)?)))
}

/// Those that were admitted here before sync brought their record.
async fn unrecorded(State(cps): State<Cps>) -> Answer {
    Ok(Json(json!(cps.roster().unrecorded())))
}

/// One of the four says what is to be revoked.
#[derive(Deserialize)]
struct Revoke {
    serial: Option<String>,
    device: Option<String>,
    client: Option<String>,
    gateway: Option<String>,
    /// Of the client; the gateway's own where it has one.
    site: Option<String>,
}

impl Revoke {
    fn whose(self, own: Option<&SiteId>) -> Result<Whose, super::Failure> {
        let site = self.site.as_deref().map(parse::<SiteId>).transpose()?;
        match (self.serial, self.device, self.client, self.gateway) {
            (Some(text), None, None, None) => {
                parse_serial(&text).map(Whose::Serial).ok_or_else(|| {
                    bad("a serial number is an even count of hex digits, as listings show it")
                })
            }
            (None, Some(device), None, None) => Ok(Whose::Device(parse::<DeviceId>(&device)?)),
            (None, None, Some(client), None) => {
                let site = site.or_else(|| own.cloned());
                Ok(Whose::Client(parse::<ClientName>(&client)?, site))
            }
            (None, None, None, Some(gateway)) => Ok(Whose::Gateway(parse::<ServerId>(&gateway)?)),
            _ => Err(bad("give one of serial, device, client and gateway")),
        }
    }
}

async fn revoke(State(cps): State<Cps>, body: Bytes) -> Answer {
    let whose = read::<Revoke>(&body)?.whose(cps.config().role.site())?;
    let revoked = cps.authority().revoke_all(&whose).await;
    let revoked = revoked.map_err(|error| match error {
        AuthorityError::UnknownSerial(_) | AuthorityError::NothingOf(_) => bad(error),
        other => own(other),
    })?;
    let serials: Vec<String> = revoked.iter().map(ToString::to_string).collect();
    Ok(Json(json!({ "revoked": serials })))
}

async fn revocations(State(cps): State<Cps>) -> Answer {
    let mut rows = cps.times().certificates().map_err(own)?;
    rows.retain(|row| row.certificate.revoked);
    let view = cps.roster().revocations();
    Ok(Json(json!({ "list": view, "certificates": rows })))
}

async fn restore(State(cps): State<Cps>) -> Answer {
    cps.authority().restore_revocations().map_err(own)?;
    Ok(Json(json!({ "list": cps.roster().revocations() })))
}
