//! FDO over HTTP at the installer's fixed address: carries messages between devices and the
//! [`Desk`] or the [`Relay`]. It judges nothing but sizes, times and the form of a request.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use holdfast_link::random::SystemRandom;
use holdfast_protocol::fdo::{Error, ErrorCode, Message, MessageType};
use holdfast_protocol::id::Guid;
use holdfast_protocol::wire::cbor;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rand_core::Rng as _;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::cli::progress;
use crate::desk::Desk;
use crate::relay::{Relay, Said};

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
/// After a connection that could not be taken, and how many of them in a row mean that none can be.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const MOST_FAILURES: u32 = 50;

/// The desk at work.
#[derive(Debug)]
pub(crate) struct Counter {
    desk: Mutex<Desk>,
    relay: Relay,
    /// Told when the device is paired.
    pub(crate) paired: Notify,
    /// What the relay said last, for whoever waits for it.
    said: tokio::sync::watch::Sender<Option<Said>>,
}

/// Serves until dropped.
pub(crate) async fn serve(listener: TcpListener, counter: Arc<Counter>) -> std::io::Error {
    let mut connections = JoinSet::new();
    let mut failures = 0;
    loop {
        while connections.len() >= MOST_CONNECTIONS {
            connections.join_next().await;
        }
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) if failures == MOST_FAILURES => return error,
            Err(_) => {
                // Aborted by the other side, or too many files open: it passes.
                failures += 1;
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        failures = 0;
        // Answers are small and waited for.
        let _ = stream.set_nodelay(true);
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
    pub(crate) fn new(desk: Desk, relay: Relay) -> Arc<Self> {
        Arc::new(Self {
            desk: Mutex::new(desk),
            relay,
            paired: Notify::new(),
            said: tokio::sync::watch::Sender::new(None),
        })
    }

    /// Waits until the relay has given this device its rendezvous answer; by which server.
    pub(crate) async fn sent_on(&self, device: Guid) -> String {
        let mut said = self.said.subscribe();
        loop {
            if let Some(Said::Answered { guid, by }) = said.borrow_and_update().clone()
                && guid == device
            {
                return by;
            }
            if said.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

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
        if kind == MessageType::Error {
            self.desk().end(&token);
            self.relay.end(&token);
            return plain(StatusCode::OK);
        }
        let at_the_desk = self.at_the_desk(&token, &message);
        let answer = match at_the_desk {
            Some(answer) => answer,
            None => self.relayed(&token, &message).await,
        };
        match answer {
            Ok(answer) => respond(StatusCode::OK, answer.kind, answer.body, &token),
            Err(error) => refuse(&error, kind, &token),
        }
    }

    fn desk(&self) -> std::sync::MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The desk's answer, if the message is the desk's.
    fn at_the_desk(&self, token: &str, message: &Message) -> Option<Result<Message, Error>> {
        let mut desk = self.desk();
        if !desk.claims(token, message) {
            return None;
        }
        let before = desk.is_paired();
        let answer = desk.answer(token, message);
        if desk.is_paired() && !before {
            self.paired.notify_one();
        }
        if let Err(error) = &answer
            && !matches!(error, Error::NotFound)
        {
            progress(&format!("message {} is refused: {error}", message.kind));
        }
        Some(answer)
    }

    async fn relayed(&self, token: &str, message: &Message) -> Result<Message, Error> {
        let (answer, said) = match message.kind {
            MessageType::To1HelloRv => match self.relay.begin(token, message).await {
                Ok(answer) => (Ok(answer), None),
                Err((error, said)) => (Err(error), said),
            },
            _ => match self.relay.go_on(token, message).await {
                Ok((answer, said)) => (Ok(answer), Some(said)),
                Err((error, said)) => (Err(error), said),
            },
        };
        if let Some(said) = said {
            let news = self.said.send_replace(Some(said.clone())) != Some(said.clone());
            // A device asks every few seconds: the same is told once.
            if news {
                progress(&said.to_string());
            }
        }
        answer
    }
}

fn refuse(error: &Error, at: MessageType, token: &str) -> Response<Full<Bytes>> {
    let body = match error {
        // Whoever made it: the device must hear an error, and which.
        Error::Peer(peer) => passed_on(peer.code, at),
        own => own.report(at).unwrap_or_default(),
    };
    respond(
        StatusCode::INTERNAL_SERVER_ERROR,
        MessageType::Error,
        body,
        token,
    )
}

/// The ErrorMessage that passes a rendezvous server's code on.
fn passed_on(code: ErrorCode, at: MessageType) -> Vec<u8> {
    cbor::encode(|w| {
        w.array(5)
            .uint(code.number().into())
            .uint(at.number().into());
        w.text("refused by the rendezvous server").null().null();
    })
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
