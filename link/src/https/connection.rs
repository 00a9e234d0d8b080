//! One HTTP/1.1 connection: hyper's two halves and the bounded reading of an answer.
//!
//! Called by [`super::Client`] alone. The task that moves its bytes dies with it.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{Error, Response};
use crate::dial::Stream;

#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    task: AbortOnDropHandle<()>,
    peer: SocketAddr,
    used: Instant,
}

/// Why an exchange over this connection failed.
pub(super) enum Failed {
    /// Nothing went out: the request may be sent again.
    Unsent(Box<hyper::Request<Full<Bytes>>>),
    /// To be told to the caller.
    Told(Error),
}

impl Connection {
    pub(super) async fn open(stream: Stream, peer: SocketAddr) -> Result<Self, Error> {
        let (sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "HTTP connection ended");
            }
        });
        Ok(Self {
            sender,
            task: AbortOnDropHandle::new(task),
            peer,
            used: Instant::now(),
        })
    }

    /// Whether it may carry another request.
    pub(super) fn is_fresh(&self, idle_for: Duration) -> bool {
        self.sender.is_ready() && !self.task.is_finished() && self.used.elapsed() < idle_for
    }

    pub(super) async fn exchange(
        &mut self,
        request: hyper::Request<Full<Bytes>>,
        bound: usize,
    ) -> Result<Response, Failed> {
        if let Err(error) = self.sender.ready().await {
            tracing::debug!(%error, "a kept connection was closed");
            return Err(Failed::Unsent(Box::new(request)));
        }
        let answer = self.sender.try_send_request(request).await;
        let answer = answer.map_err(|mut error| match error.take_message() {
            Some(request) => Failed::Unsent(Box::new(request)),
            None => Failed::Told(broken(error.error())),
        })?;
        let (parts, body) = answer.into_parts();
        let body = read(body, bound).await.map_err(Failed::Told)?;
        // Ready again only when hyper is through with the answer; without it no reuse.
        let _ = self.sender.ready().await;
        self.used = Instant::now();
        Ok(Response {
            status: parts.status,
            headers: parts.headers,
            body,
            peer: self.peer,
        })
    }
}

async fn read(mut body: Incoming, bound: usize) -> Result<Bytes, Error> {
    // A length declared too long is refused before a byte of it is read.
    if body.size_hint().lower() > bound as u64 {
        return Err(Error::TooLarge(bound));
    }
    let mut whole = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(&error))?;
        if let Ok(data) = frame.into_data() {
            if whole.len() + data.len() > bound {
                return Err(Error::TooLarge(bound));
            }
            whole.extend_from_slice(&data);
        }
    }
    Ok(whole.freeze())
}

/// hyper's own text is terse; the cause below it says what happened.
fn broken(error: &hyper::Error) -> Error {
    let cause = std::error::Error::source(error);
    Error::Broken(match cause {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}
