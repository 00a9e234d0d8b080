//! Opens a byte stream to the first of several addresses that answers, with TLS on top when asked.
//!
//! Called by the HTTPS and MQTT clients. The name is verified whatever address was dialled; never
//! trusts DNS or mDNS for more than where to knock.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsConnector;

use crate::tls::{self, PeerFault};

/// One party to reach: where to knock and whom to expect.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Addresses in the order to try them: `host:port`, the host an IP address (IPv6 in brackets) or
    /// a name that the system resolves.
    pub addresses: Vec<String>,
    /// Whether and how the stream is secured.
    pub security: Security,
}

/// How a stream is secured.
#[derive(Debug, Clone)]
pub enum Security {
    /// Bare TCP: for FDO, which secures itself, and for foreign brokers on loopback.
    Plain,
    /// TLS; the peer must prove that it is `name`.
    Tls {
        /// The DNS name to verify, whatever address was dialled. An IP address is taken too, for
        /// first contact with a server whose name is not known yet.
        name: String,
        /// From [`tls::client_config`].
        config: Arc<rustls::ClientConfig>,
    },
}

/// Why no address led anywhere. The error of the last address that failed is told.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The list of addresses was empty.
    #[error("no address to dial: configure at least one")]
    NoAddress,
    /// The name to verify is neither a DNS name nor an IP address.
    #[error("`{0}` is not a name that can be verified")]
    BadName(String),
    /// A host name of the list has no address.
    #[error("cannot resolve {address}: {source}")]
    Resolve {
        /// As given in the list.
        address: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// TCP failed.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// As given in the list.
        address: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// The address did not answer in time, in TCP or in the TLS handshake.
    #[error("{address} did not answer within {after:?}")]
    Timeout {
        /// As given in the list.
        address: String,
        /// The bound that was hit.
        after: Duration,
    },
    /// We refused the certificate of the peer: it is not whom we look for.
    #[error("{address} is not trusted: {fault}")]
    Untrusted {
        /// As given in the list.
        address: String,
        /// The reason.
        fault: PeerFault,
    },
    /// The TLS handshake failed for another reason, a refusal by the peer among them.
    #[error("TLS handshake with {address} failed: {source}")]
    Handshake {
        /// As given in the list.
        address: String,
        /// What rustls or the socket said.
        source: io::Error,
    },
}

/// An open stream.
#[derive(Debug)]
pub enum Stream {
    /// Bare TCP.
    Plain(TcpStream),
    /// TLS over TCP, peer verified.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

/// Dials the addresses in order until one gives a stream; each has `per_address` for name
/// resolution, TCP and TLS together.
///
/// # Errors
/// The failure of the last address tried.
pub async fn dial(
    endpoint: &Endpoint,
    per_address: Duration,
) -> Result<(Stream, SocketAddr), DialError> {
    let mut last = DialError::NoAddress;
    for address in &endpoint.addresses {
        match dial_one(address, &endpoint.security, per_address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                tracing::debug!(%address, %error, "address did not lead to the peer");
                last = error;
            }
        }
    }
    Err(last)
}

async fn dial_one(
    address: &str,
    security: &Security,
    after: Duration,
) -> Result<(Stream, SocketAddr), DialError> {
    let deadline = Instant::now() + after;
    let late = |_| DialError::Timeout {
        address: address.to_owned(),
        after,
    };
    let tcp = timeout_at(deadline, connect(address))
        .await
        .map_err(late)??;
    let peer = tcp.peer_addr().map_err(|source| DialError::Connect {
        address: address.to_owned(),
        source,
    })?;
    // Requests and acknowledgements are small and waited for.
    let _ = tcp.set_nodelay(true);
    let Security::Tls { name, config } = security else {
        return Ok((Stream::Plain(tcp), peer));
    };
    let server =
        ServerName::try_from(name.clone()).map_err(|_| DialError::BadName(name.clone()))?;
    let handshake = TlsConnector::from(Arc::clone(config)).connect(server, tcp);
    let stream = timeout_at(deadline, handshake)
        .await
        .map_err(late)?
        .map_err(|source| handshake_error(address, source))?;
    Ok((Stream::Tls(Box::new(stream)), peer))
}

/// Tries every address a name resolves to.
async fn connect(address: &str) -> Result<TcpStream, DialError> {
    let resolve = |source| DialError::Resolve {
        address: address.to_owned(),
        source,
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for target in tokio::net::lookup_host(address).await.map_err(resolve)? {
        match TcpStream::connect(target).await {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(DialError::Connect {
        address: address.to_owned(),
        source: last,
    })
}

fn handshake_error(address: &str, source: io::Error) -> DialError {
    let address = address.to_owned();
    match tls::peer_fault(&source) {
        Some(fault) => DialError::Untrusted { address, fault },
        None => DialError::Handshake { address, source },
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}
