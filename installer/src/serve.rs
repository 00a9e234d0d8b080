//! FDO over HTTP at the installer's fixed address: carries messages between devices and the
//! [`Desk`]. It judges nothing but sizes, times and the form of a request.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::fdo::{Error, Message, MessageType};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand_core::Rng as _;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;

use crate::desk::Desk;

/// Longest message, bytes.
const MAX_BODY: usize = 65_535;
/// Connections at once; more wait.
const MOST_CONNECTIONS: usize = 32;
/// For the head of a request.
const HEAD: Duration = Duration::from_secs(10);
/// For a connection as a whole: a TO2 takes a few seconds.
const CONNECTION: Duration = Duration::from_secs(120);
/// Longest token that a device may show.
const MAX_TOKEN: usize = 64;

/// The desk at work.
#[derive(Debug)]
pub(crate) struct Counter {
    /// One message at a time: whoever pairs has one device before him.
    pub(crate) desk: Mutex<Desk>,
    /// Told when a device is paired.
    pub(crate) paired: Notify,
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, counter: Arc<Counter>) -> std::io::Error {
    let mut connections = JoinSet::new();
    loop {
        while connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => return error,
        };
        while connections.try_join_next().is_some() {}
        let counter = Arc::clone(&counter);
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                let counter = Arc::clone(&counter);
                async move { Ok::<_, Infallible>(counter.answer(request).await) }
            });
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD);
            let served = http.serve_connection(TokioIo::new(stream), answer);
            // A connection that breaks is the device's to open again.
            let _ = tokio::time::timeout(CONNECTION, served).await;
        });
    }
}

impl Counter {
    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let number = request.uri().path().strip_prefix("/fdo/101/msg/");
        let number = number.and_then(|text| text.parse().ok());
        let Some(kind) = number.and_then(MessageType::from_number) else {
            return plain(StatusCode::NOT_FOUND);
        };
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED);
        }
        let token = match bearer(request.headers()) {
            Some(token) if !kind.starts_run() => token,
            _ => fresh_token(),
        };
        let Ok(body) = Limited::new(request.into_body(), MAX_BODY).collect().await else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE);
        };
        let message = Message::new(kind, body.to_bytes().to_vec());
        let mut desk = self.desk.lock().await;
        if kind == MessageType::Error {
            desk.end(&token);
            return plain(StatusCode::OK);
        }
        let before = desk.is_paired();
        let answer = desk.answer(&token, &message).await;
        if desk.is_paired() && !before {
            self.paired.notify_one();
        }
        match answer {
            Ok(answer) => respond(StatusCode::OK, answer.kind, answer.body, &token),
            Err(error) => refuse(&error, kind, &token),
        }
    }
}

fn refuse(error: &Error, at: MessageType, token: &str) -> Response<Full<Bytes>> {
    // A device that goes on elsewhere is no news.
    if !matches!(error, Error::NotFound | Error::Peer(_)) {
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), "message {at} refused: {error}");
    }
    let body = error.report(at).unwrap_or_default();
    respond(
        StatusCode::INTERNAL_SERVER_ERROR,
        MessageType::Error,
        body,
        token,
    )
}

fn respond(
    status: StatusCode,
    kind: MessageType,
    body: Vec<u8>,
    token: &str,
) -> Response<Full<Bytes>> {
    let length = HeaderValue::from(body.len());
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/cbor"));
    headers.insert(CONTENT_LENGTH, length);
    headers.insert("message-type", HeaderValue::from(u16::from(kind.number())));
    if let Ok(value) = HeaderValue::from_str(&format!("Bearer {token}")) {
        headers.insert(AUTHORIZATION, value);
    }
    response
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let token = value.strip_prefix("Bearer ")?.trim();
    (token.len() <= MAX_TOKEN).then(|| token.to_owned())
}

fn fresh_token() -> String {
    let mut bytes = [0; 16];
    SystemRandom.fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
