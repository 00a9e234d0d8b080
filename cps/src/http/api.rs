//! The HTTPS API between gateway and cloud: enrolment, sync, health. Called by the serving loops;
//! who the peer is comes from its certificate alone. It turns requests into calls of the rooms and
//! their errors into one sentence of JSON.

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use holdfast_protocol::id::{DeviceId, InvalidId, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Cursor, EntryId};
use serde::de::DeserializeOwned;

use super::serve::Peer;
use super::wire::{Denied, HandedIn, Owner, Pull, Pulled, Push, Pushed, Return};
use crate::Cps;
use crate::enrol::Bytes as Base64;
use crate::enrol::{Asked, Refusal};
use crate::handover::HandoverRefusal;
use crate::roster::Refusal as NotAdmitted;
use crate::sync::{Batch, Given, Wanted};
use crate::tables::PeerRow;
use crate::turns::{Turn, Unserved};
use crate::vouchers::{Accepted, VoucherRefusal};

/// The API of one server.
pub fn api_router(cps: Cps) -> Router {
    let limit = cps.config().limits.api_body;
    Router::new()
        .route("/api/v1/enrol", post(enrol))
        .route("/api/v1/sync/pull", post(pull))
        .route("/api/v1/sync/push", post(push))
        .route("/api/v1/sync/return", post(give_back))
        .route("/api/v1/health", get(health))
        .route("/api/v1/owner", get(owner))
        .route("/api/v1/vouchers", post(hand_in))
        .merge(super::lifecycle::api())
        .merge(super::renew::api())
        .merge(super::authority::api())
        .layer(DefaultBodyLimit::max(limit))
        .with_state(cps)
}

/// An answer that is no success: a status and one sentence.
#[derive(Debug)]
pub struct Failure(pub(super) StatusCode, pub(super) String);

impl Failure {
    /// The request cannot be right.
    #[must_use]
    pub fn misuse(why: impl ToString) -> Self {
        Self(StatusCode::BAD_REQUEST, why.to_string())
    }

    /// This server could not do it. For the administrator, who may read why.
    #[must_use]
    pub fn failed(why: impl ToString) -> Self {
        Self(StatusCode::INTERNAL_SERVER_ERROR, why.to_string())
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response()
    }
}

/// A fault of our own: the details are for our log.
pub(super) fn own(error: impl std::fmt::Display) -> Failure {
    tracing::error!(%error, "a request failed here");
    let text = "this server failed; try again, and see its log".to_owned();
    Failure(StatusCode::INTERNAL_SERVER_ERROR, text)
}

/// Reads a JSON body.
pub(super) fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Failure> {
    serde_json::from_slice(body).map_err(|error| {
        let text =
            format!("the request is not understood: {error}; both sides must be of one version");
        Failure(StatusCode::BAD_REQUEST, text)
    })
}

async fn enrol(State(cps): State<Cps>, body: Bytes) -> Result<Response, Failure> {
    let asked: Asked = read(&body).inspect_err(|_| cps.metrics().refused("enrolment", "body"))?;
    let given = cps
        .enrolment()
        .enrol(&asked)
        .await
        .map_err(|refusal| match refusal {
            Refusal::Authority(error) => own(error),
            Refusal::Registry(error) => own(error),
            Refusal::NoSite(_) | Refusal::NotHere => {
                Failure(StatusCode::NOT_FOUND, refusal.to_string())
            }
            Refusal::Csr(_) => Failure(StatusCode::BAD_REQUEST, refusal.to_string()),
            _ => Failure(StatusCode::FORBIDDEN, refusal.to_string()),
        })?;
    Ok(Json(given).into_response())
}

async fn pull(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Response, Failure> {
    let (server, site) = match gateway(&cps, &peer) {
        Ok(known) => known,
        Err(failure) => {
            note_locked_out(&cps, &peer).await;
            return told_replaced(&cps, &peer, failure);
        }
    };
    let asked: Pull = read(&body)?;
    let cursor = Cursor::from_cbor(&asked.cursor)
        .map_err(|fault| Failure(StatusCode::BAD_REQUEST, format!("bad cursor: {fault}")))?;
    let reach = cursor_of(&cps, &server, &cursor);
    turn(&cps, (&server, &site), (asked.turn, Some(reach))).await?;
    hear(&cps, &server, &site, asked.about).await?;
    let wanted = asked.wanted.into_iter().map(TryInto::try_into);
    let wanted: Vec<EntryId> = wanted
        .collect::<Result<_, InvalidId>>()
        .map_err(|bad| Failure(StatusCode::BAD_REQUEST, format!("bad number: {bad}")))?;
    let sync = cps.sync();
    let unknown = match &asked.mark {
        Some(mark) => sync.has_forgotten(&site, mark).map_err(own)?,
        None => false,
    };
    let batch = match unknown {
        // Its cursor counts entries that we do not know: what lies beyond would be wrong.
        true => Ok(Batch::default()),
        false => sync.pull_with(&site, &cursor, &wanted, asked.max),
    };
    let batch = batch.map_err(own)?;
    if !unknown {
        sync.note_heard(&server, &cursor);
    }
    Ok(Json(Pulled {
        entries: batch.entries.into_iter().map(Base64).collect(),
        more: batch.more,
        missing: batch.missing.into_iter().map(Into::into).collect(),
        about: sync.about_us(),
        forgotten: unknown || sync.is_comparing(&site).map_err(own)?,
    })
    .into_response())
}

/// What this server wrote before it was set back to a copy.
async fn give_back(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Wanted>, Failure> {
    let (server, site) = gateway(&cps, &peer)?;
    let told: Return = read(&body)?;
    turn(&cps, (&server, &site), (told.turn, None)).await?;
    let given = Given {
        marks: told.marks,
        entries: told.entries.into_iter().map(|one| one.0).collect(),
        comparing: told.comparing,
    };
    let wanted = cps.sync().take_back(&site, &server, given).await;
    Ok(Json(wanted.map_err(own)?))
}

async fn push(
    State(cps): State<Cps>,
    Extension(peer): Extension<Peer>,
    body: Bytes,
) -> Result<Json<Pushed>, Failure> {
    let (server, site) = match gateway(&cps, &peer) {
        Ok(known) => known,
        Err(failure) => {
            note_locked_out(&cps, &peer).await;
            return Err(failure);
        }
    };
    let told: Push = read(&body)?;
    turn(&cps, (&server, &site), (told.turn, None)).await?;
    hear(&cps, &server, &site, told.about).await?;
    let entries: Vec<Vec<u8>> = told.entries.into_iter().map(|one| one.0).collect();
    let report = cps.sync().deliver(&site, &server, &entries).await;
    let over = |why| Failure(StatusCode::TOO_MANY_REQUESTS, why);
    let report = report.map_err(own)?.map_err(over)?;
    let cursor = cps.sync().cursor(&site).map_err(own)?.to_cbor();
    let wanted = cps.sync().wanted(&site).map_err(own)?;
    Ok(Json(Pushed {
        cursor,
        report,
        wanted: wanted.into_iter().map(Into::into).collect(),
    }))
}

/// How far a gateway's own log reaches, by its cursor.
fn cursor_of(cps: &Cps, server: &ServerId, cursor: &Cursor) -> u64 {
    let epoch = cps.roster().gateway(server).map_or(0, |row| row.epoch);
    cursor.after(server, epoch)
}

/// Whether the gateway is the machine that it was.
async fn turn(
    cps: &Cps,
    of: (&ServerId, &SiteId),
    shown: (Option<Turn>, Option<u64>),
) -> Result<(), Failure> {
    let taken = cps.sync().take_turn(of, shown).await;
    taken.map_err(|unserved| match unserved {
        Unserved::Late => Failure(StatusCode::CONFLICT, unserved.to_string()),
        Unserved::Locked(why) => Failure(StatusCode::FORBIDDEN, why),
        Unserved::Store(error) => own(error),
    })
}

async fn health(State(cps): State<Cps>) -> Json<serde_json::Value> {
    let time = cps.clock().certain();
    Json(serde_json::json!({
        "server": cps.config().server.as_str(),
        "time": time.secs,
        "time_quality": time.quality.to_string(),
    }))
}

/// Who owns devices here: to whom an installer extends its vouchers. TLS proves who says it.
async fn owner(State(cps): State<Cps>) -> Json<Owner> {
    let config = cps.config();
    Json(Owner {
        server: config.server.to_string(),
        site: config.role.site().map(ToString::to_string),
        name: cps.authority().own_party().dns(&config.domain),
        owner_key: cps.keys().owner().public(),
    })
}

/// A voucher from whoever brings it: its chain says whether it is good.
async fn hand_in(State(cps): State<Cps>, body: Bytes) -> Result<Json<HandedIn>, Failure> {
    let (guid, accepted) = cps
        .handover()
        .take(&body)
        .await
        .map_err(|refusal| match refusal {
            HandoverRefusal::Voucher(VoucherRefusal::Registry(error)) => own(error),
            HandoverRefusal::NotListed(_) => Failure(StatusCode::FORBIDDEN, refusal.to_string()),
            HandoverRefusal::Voucher(
                VoucherRefusal::Fork(_)
                | VoucherRefusal::Ancestor(_)
                | VoucherRefusal::OtherSite(..),
            ) => Failure(StatusCode::CONFLICT, refusal.to_string()),
            HandoverRefusal::Voucher(_) => Failure(StatusCode::BAD_REQUEST, refusal.to_string()),
        })?;
    if cps.cloud().is_some() {
        // So that the device finds us at once; the gateway's own round comes later anyway.
        if let Err(error) = cps.to0().register_here().await {
            tracing::warn!(%error, "a voucher handed in is not registered here yet");
        }
    }
    cps.to0().wake();
    Ok(Json(HandedIn {
        guid: DeviceId::from_guid(guid).to_string(),
        known: accepted == Accepted::Known,
    }))
}

/// The reason under which a machine stands whose enrolment is over; as of an entry of such a one.
const LOCKED_OUT: &str = "locked out";

/// The gateway at the other end, by its certificate.
pub(super) fn gateway(cps: &Cps, peer: &Peer) -> Result<(ServerId, SiteId), Failure> {
    let refuse = |status, reason, text: String| {
        let from = peer.address.map(|address| address.ip().to_string());
        if let Some(unsaid) = cps.refusals().says(from.unwrap_or_default(), reason) {
            tracing::warn!(address = ?peer.address, text, unsaid, "API request refused");
        }
        cps.metrics().refused("api", reason);
        Failure(status, text)
    };
    let known = cps
        .roster()
        .identify(&peer.certificates)
        .map_err(|refusal| {
            let status = match refusal.gateway_out() {
                Some(_) => StatusCode::FORBIDDEN,
                None => StatusCode::UNAUTHORIZED,
            };
            refuse(status, refusal.reason(), refusal.to_string())
        })?;
    match known.party {
        Party::Gateway { server, site } => Ok((server, site)),
        other => {
            let text = format!("{other} may not sync; only gateways do");
            Err(refuse(StatusCode::FORBIDDEN, "not a gateway", text))
        }
    }
}

/// What a machine delivers that is locked out is not even read; that it came is shown.
async fn note_locked_out(cps: &Cps, peer: &Peer) {
    let Err(refusal) = cps.roster().identify(&peer.certificates) else {
        return;
    };
    let Some(name) = refusal.gateway_out() else {
        return;
    };
    let party = Party::parse(name, &cps.config().domain);
    let Ok(Party::Gateway { server, site }) = party else {
        return;
    };
    let why = (LOCKED_OUT, refusal.to_string());
    if let Err(error) = cps.refusals().turned_away((&server, &site), why).await {
        tracing::error!(%error, "a refusal was not put on record");
    }
}

/// A gateway whose machine was replaced, or that was revoked, is told so by a signed statement, beside the refusal.
fn told_replaced(cps: &Cps, peer: &Peer, failure: Failure) -> Result<Response, Failure> {
    let name = match cps.roster().identify(&peer.certificates) {
        Err(NotAdmitted::Replaced(name) | NotAdmitted::GatewayRevoked(name)) => name,
        _ => return Err(failure),
    };
    let party = Party::parse(&name, &cps.config().domain);
    let Ok(Party::Gateway { server, site }) = party else {
        return Err(failure);
    };
    let Some(statement) = cps.enrolment().replacement(&site, &server).map_err(own)? else {
        return Err(failure);
    };
    let Failure(status, error) = failure;
    let replaced = Some(Base64(statement));
    Ok((status, Json(Denied { error, replaced })).into_response())
}

/// Keeps where the gateway is reached; it may speak for itself alone.
async fn hear(cps: &Cps, server: &ServerId, site: &SiteId, about: PeerRow) -> Result<(), Failure> {
    if about.server == *server && about.site == *site {
        cps.sync().heard_of(about).await.map_err(own)?;
    }
    Ok(())
}
