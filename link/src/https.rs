//! An HTTP/1.1 client for one party: addresses in order, name verified, everything bounded.
//!
//! Called by `sync`, enrolment, probes and the FDO client. Never follows a redirect, never retries
//! a request that may have reached the server, never reads a body beyond its bound.

mod connection;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderValue};
pub use hyper::{HeaderMap, Method, StatusCode, header};
use tokio::time::timeout;

use crate::dial::{self, DialError, Endpoint, Security};
use connection::{Connection, Failed};

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
pub struct Client(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    endpoint: Endpoint,
    limits: Limits,
    idle: Mutex<Vec<Connection>>,
}

impl Client {
    /// A client; nothing is dialled yet.
    #[must_use]
    pub fn new(endpoint: Endpoint, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            endpoint,
            limits,
            idle: Mutex::default(),
        }))
    }

    /// `GET path`.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn get(&self, path: &str) -> Result<Response, Error> {
        self.send(Request {
            method: Method::GET,
            path: path.to_owned(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        })
        .await
    }

    /// `POST path` with a body of the given content type.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn post(
        &self,
        path: &str,
        content_type: &'static str,
        body: impl Into<Bytes>,
    ) -> Result<Response, Error> {
        let kind = HeaderValue::from_static(content_type);
        self.send(Request {
            method: Method::POST,
            path: path.to_owned(),
            headers: HeaderMap::from_iter([(CONTENT_TYPE, kind)]),
            body: body.into(),
        })
        .await
    }

    /// Sends a request and reads the answer, over a kept connection if one is alive.
    ///
    /// # Errors
    /// See [`Error`]. Statuses are no errors.
    pub async fn send(&self, request: Request) -> Result<Response, Error> {
        let deadline = self.0.limits.deadline;
        timeout(deadline, self.0.exchange(request))
            .await
            .map_err(|_| Error::Deadline(deadline))?
    }
}

impl Inner {
    async fn exchange(&self, request: Request) -> Result<Response, Error> {
        let mut request = self.prepare(request)?;
        while let Some(kept) = self.take_idle() {
            match self.over(kept, request).await {
                Ok(response) => return Ok(response),
                // The server closed it meanwhile and nothing was sent: dial afresh.
                Err(Failed::Unsent(unsent)) => request = *unsent,
                Err(Failed::Told(error)) => return Err(error),
            }
        }
        let (stream, peer) = dial::dial(&self.endpoint, self.limits.per_address).await?;
        let fresh = Connection::open(stream, peer).await?;
        match self.over(fresh, request).await {
            Ok(response) => Ok(response),
            Err(Failed::Told(error)) => Err(error),
            Err(Failed::Unsent(_)) => Err(Error::Broken("closed before the request".to_owned())),
        }
    }

    async fn over(
        &self,
        mut connection: Connection,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<Response, Failed> {
        let response = connection.exchange(request, self.limits.body).await?;
        self.keep(connection);
        Ok(response)
    }

    fn prepare(&self, request: Request) -> Result<hyper::Request<Full<Bytes>>, Error> {
        let bad = |error: &dyn std::fmt::Display| Error::BadRequest(error.to_string());
        if !request.path.starts_with('/') {
            return Err(bad(&"the path does not begin with `/`"));
        }
        let host = HeaderValue::try_from(self.host()).map_err(|error| bad(&error))?;
        let length = HeaderValue::from(request.body.len());
        let with_body = !request.body.is_empty() || request.method == Method::POST;
        let mut built = hyper::Request::builder()
            .method(request.method)
            .uri(request.path)
            .body(Full::new(request.body))
            .map_err(|error| bad(&error))?;
        *built.headers_mut() = request.headers;
        built.headers_mut().insert(HOST, host);
        if with_body {
            built.headers_mut().insert(CONTENT_LENGTH, length);
        }
        Ok(built)
    }

    fn host(&self) -> String {
        match (&self.endpoint.security, self.endpoint.addresses.first()) {
            (Security::Tls { name, .. }, _) => name.clone(),
            (Security::Plain, Some(address)) => address.clone(),
            (Security::Plain, None) => String::new(),
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|kept| kept.is_fresh(self.limits.idle_for));
        idle.pop()
    }

    fn keep(&self, connection: Connection) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if connection.is_fresh(self.limits.idle_for) && idle.len() < self.limits.idle {
            idle.push(connection);
        }
    }
}

#[cfg(test)]
mod tests;
