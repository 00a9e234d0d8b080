//! FDO over HTTP (wire reference, section 1): `POST /fdo/101/msg/NN`. Called by the serving loops.
//! Every answer carries its message type, its length and the run's token; every error is HTTP 500
//! with message type 255, which all known devices understand.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::post;
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};

use crate::errors::FdoFault;
use crate::fdo::{FdoParty, FdoReply, FdoRequest, Token};
use crate::metrics::Metrics;

const CBOR: &str = "application/cbor";

#[derive(Clone, Debug)]
struct Parties {
    by_message: Arc<BTreeMap<u8, Arc<dyn FdoParty>>>,
    all: Arc<Vec<Arc<dyn FdoParty>>>,
    body_limit: usize,
    metrics: Metrics,
}

/// A router for the given roles. Where two roles answer the same message the first one gets it.
pub fn fdo_router(parties: Vec<Arc<dyn FdoParty>>, body_limit: usize, metrics: Metrics) -> Router {
    let mut by_message: BTreeMap<u8, Arc<dyn FdoParty>> = BTreeMap::new();
    for party in &parties {
        for message in party.messages() {
            by_message
                .entry(*message)
                .or_insert_with(|| Arc::clone(party));
        }
    }
    let state = Parties {
        by_message: Arc::new(by_message),
        all: Arc::new(parties),
        body_limit,
        metrics,
    };
    Router::new()
        .route("/fdo/101/msg/{number}", post(message))
        .with_state(state)
}

async fn message(
    State(parties): State<Parties>,
    Path(number): Path<String>,
    request: Request,
) -> Response<Body> {
    let token = bearer(request.headers());
    let previous = number.parse::<u8>().unwrap_or(0);
    let echo = token.clone();
    match answer(&parties, previous, token, request).await {
        Ok(reply) => {
            parties
                .metrics
                .fdo(previous, reply.message != FdoReply::ERROR);
            respond(reply, echo)
        }
        Err(fault) => {
            tracing::warn!(message = previous, %fault, "FDO request refused");
            parties.metrics.refused("fdo http", fault.reason());
            parties.metrics.fdo(previous, false);
            respond(fault.reply(previous), echo)
        }
    }
}

/// The answer to a request for which its address has no turn: a message 255 like all errors.
pub(super) fn over_budget(path: &str) -> Response<Body> {
    let number = path.rsplit('/').next().and_then(|text| text.parse().ok());
    respond(FdoFault::OverBudget.reply(number.unwrap_or(0)), None)
}

async fn answer(
    parties: &Parties,
    number: u8,
    token: Option<Token>,
    request: Request,
) -> Result<FdoReply, FdoFault> {
    check_headers(request.headers())?;
    let body = read_body(request.into_body(), parties.body_limit).await?;
    if number == FdoReply::ERROR {
        return Ok(peer_gave_up(parties, token, &body));
    }
    let party = parties
        .by_message
        .get(&number)
        .ok_or(FdoFault::NoSuchMessage(number))?;
    Ok(party
        .answer(FdoRequest {
            message: number,
            token,
            body,
        })
        .await)
}

fn check_headers(headers: &HeaderMap) -> Result<(), FdoFault> {
    let kind = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case(CBOR) {
        return Err(FdoFault::ContentType(kind.chars().take(64).collect()));
    }
    if headers.get(CONTENT_LENGTH).is_none() {
        return Err(FdoFault::NoLength);
    }
    Ok(())
}

async fn read_body(body: Body, limit: usize) -> Result<Bytes, FdoFault> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(FdoFault::TooLarge(limit)),
        Err(_) => Err(FdoFault::BodyCut),
    }
}

/// A device reports its own failure: the run ends, whatever it was.
fn peer_gave_up(parties: &Parties, token: Option<Token>, body: &[u8]) -> FdoReply {
    let said = holdfast_protocol::fdo::error::ErrorMessage::parse(body);
    tracing::info!(?said, "the peer of an FDO run gave up");
    if let Some(token) = &token {
        parties.all.iter().for_each(|party| party.give_up(token));
    }
    FdoReply {
        message: FdoReply::ERROR,
        token,
        body: Vec::new(),
    }
}

fn bearer(headers: &HeaderMap) -> Option<Token> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let text = value
        .strip_prefix("Bearer ")
        .or_else(|| value.strip_prefix("bearer "))?;
    Token::from_peer(text.trim())
}

/// An error answer outside any run still carries a token: devices exist that want the header in
/// every answer.
fn respond(reply: FdoReply, echo: Option<Token>) -> Response<Body> {
    let failed = reply.message == FdoReply::ERROR && !reply.body.is_empty();
    let token = reply.token.or(echo).unwrap_or_else(Token::random);
    let length = reply.body.len();
    let mut response = Response::new(Body::from(reply.body));
    if failed {
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    }
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(CBOR));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert("Message-Type", HeaderValue::from(u16::from(reply.message)));
    if let Ok(value) = HeaderValue::from_str(&format!("Bearer {}", token.as_str())) {
        headers.insert(AUTHORIZATION, value);
    }
    response
}
