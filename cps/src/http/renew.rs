//! Renewal over the HTTPS API: the one endpoint that serves a certificate which has expired, within the
//! stated grace, and its confirmation. The site's intermediate goes through here as well. JSON with
//! base64 for bytes; merged into the router of this folder.

use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use axum::{Extension, Json, Router};
use holdfast_protocol::certificate::{Leaf, Purpose};

use super::api::{Failure, gateway, own, read};
use super::serve::Peer;
use super::wire::{RenewAsk, RenewGiven, RenewIssuerGiven, Renewed};
use crate::Cps;
use crate::enrol::Bytes as Base64;
use crate::renewal::Refusal;

pub(super) fn api() -> Router<Cps> {
    Router::new()
        .route("/api/v1/renew", post(renew))
        .route("/api/v1/renew/done", post(done))
        .route("/api/v1/renew/issuer", post(issuer))
}

async fn renew(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<RenewGiven>, Failure> {
    let asked: RenewAsk = read(&body)?;
    let issued = cps.renewal().renew(&peer.certificates, &asked.csr).await;
    let issued = issued.map_err(|refusal| refused(&peer, refusal))?;
    let list = |ders: Vec<Vec<u8>>| ders.into_iter().map(Base64).collect();
    let leaf = Leaf::inspect(&issued.leaf, &cps.config().domain, Purpose::Client).map_err(own)?;
    let notice_keys = match leaf.party.site() {
        Some(site) => cps.devices().notice_keys(site).map_err(own)?,
        None => Vec::new(),
    };
    let notice_keys = notice_keys.iter().map(|key| Base64(key.to_spki_der()));
    Ok(Json(RenewGiven {
        certificate: Base64(issued.leaf),
        chain: list(issued.chain),
        anchors: list(cps.authority().anchors().map_err(own)?),
        time: cps.clock().certain().to_words(),
        notice_keys: notice_keys.collect(),
    }))
}

async fn done(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
) -> Result<Json<Renewed>, Failure> {
    let known = cps.renewal().confirm(&peer.certificates).await;
    let known = known.map_err(|refusal| refused(&peer, refusal))?;
    Ok(Json(Renewed {
        subject: known.subject,
        serial: known.serial.to_string(),
    }))
}

async fn issuer(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<RenewIssuerGiven>, Failure> {
    let (server, site) = gateway(&cps, &peer)?;
    let asked: RenewAsk = read(&body)?;
    let chain =
        cps.authority()
            .renew_intermediate(&site, (&server, &peer.certificates), &asked.csr);
    let chain = chain.await.map_err(|error| refused(&peer, error.into()))?;
    Ok(Json(RenewIssuerGiven {
        chain: chain.into_iter().map(Base64).collect(),
    }))
}

fn refused(peer: &Peer, refusal: Refusal) -> Failure {
    use crate::authority::AuthorityError as A;
    tracing::warn!(address = ?peer.address, %refusal, "renewal refused");
    let status = match &refusal {
        Refusal::Peer(_) => StatusCode::UNAUTHORIZED,
        Refusal::Server(_) | Refusal::Authority(A::Revoked(_) | A::ForeignParty(_)) => {
            StatusCode::FORBIDDEN
        }
        Refusal::TooOften(_) => StatusCode::TOO_MANY_REQUESTS,
        Refusal::Authority(A::Csr(_)) => StatusCode::BAD_REQUEST,
        Refusal::Authority(_) | Refusal::Registry(_) => return own(refusal),
    };
    Failure(status, refusal.to_string())
}
