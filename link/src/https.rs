//! An HTTP/1.1 client for one party: addresses in order, name verified, everything bounded.
//!
//! Called by `sync`, enrolment, probes and the FDO client. Never follows a redirect, never retries
//! a request that may have reached the server, never reads a body beyond its bound.

use std::net::SocketAddr;
use std::time::Duration;

pub use hyper::header;
pub use hyper::{HeaderMap, Method, StatusCode};

use bytes::Bytes;

use crate::dial::{DialError, Endpoint};

/// The bounds of a client.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// For each address: name resolution, TCP and TLS together.
    pub per_address: Duration,
    /// For a whole request, dialling included.
    pub deadline: Duration,
    /// The longest body read, in bytes.
    pub body: usize,
    /// Connections kept open for reuse.
    pub idle: usize,
    /// How long one is kept without use.
    pub idle_for: Duration,
}

impl Default for Limits {
    /// 3 s an address, 15 s a request, 1 MiB, two idle connections for 10 s.
    fn default() -> Self {
        Self {
            per_address: Duration::from_secs(3),
            deadline: Duration::from_secs(15),
            body: 1 << 20,
            idle: 2,
            idle_for: Duration::from_secs(10),
        }
    }
}

/// A request.
#[derive(Debug, Clone)]
pub struct Request {
    /// GET, POST...
    pub method: Method,
    /// Path and query, beginning with `/`.
    pub path: String,
    /// Headers beyond `Host` and `Content-Length`, which are set here.
    pub headers: HeaderMap,
    /// Sent whole, never chunked.
    pub body: Bytes,
}

/// An answer, read to its end.
#[derive(Debug, Clone)]
pub struct Response {
    /// Any status: judging it is the caller's.
    pub status: StatusCode,
    /// As received.
    pub headers: HeaderMap,
    /// At most [`Limits::body`] bytes.
    pub body: Bytes,
    /// The address that answered.
    pub peer: SocketAddr,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No address led to the peer.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The path or a header cannot be sent. Misuse by the caller.
    #[error("the request cannot be sent: {0}")]
    BadRequest(String),
    /// No whole answer within the deadline. The request may have reached the server.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The answer is longer than the bound.
    #[error("the answer is longer than {0} bytes")]
    TooLarge(usize),
    /// The connection broke or what came is not HTTP. The request may have reached the server.
    #[error("the connection failed: {0}")]
    Broken(String),
}

/// A client for one party. Cheap to clone; clones share the kept connections.
#[derive(Debug, Clone)]
pub struct Client {}

impl Client {
    /// A client; nothing is dialled yet.
    #[must_use]
    pub fn new(_endpoint: Endpoint, _limits: Limits) -> Self {
        todo!()
    }

    /// Sends a request and reads the answer, over a kept connection if one is alive.
    ///
    /// # Errors
    /// See [`Error`]. Statuses are no errors.
    pub async fn send(&self, _request: Request) -> Result<Response, Error> {
        todo!()
    }

    /// `GET path`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get(&self, _path: &str) -> Result<Response, Error> {
        todo!()
    }

    /// `POST path` with a body of the given content type.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn post(
        &self,
        _path: &str,
        _content_type: &'static str,
        _body: Bytes,
    ) -> Result<Response, Error> {
        todo!()
    }
}
