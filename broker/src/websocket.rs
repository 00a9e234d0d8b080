//! MQTT through WebSocket (MQTT 5 and 3.1.1, section 6): the handshake, and bytes through its frames.
//!
//! Called by `door` after TLS, used by `socket`. MQTT packets and WebSocket frames need not coincide
//! [MQTT-6.0.0-2]; anything but binary frames ends the connection [MQTT-6.0.0-1].

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::{Sink, Stream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::socket::Carrier;

/// The subprotocol of MQTT [MQTT-6.0.0-3], [MQTT-6.0.0-4].
const SUBPROTOCOL: &str = "mqtt";
/// Bytes of one frame from us.
const FRAME: usize = 64 << 10;
/// Bytes of the read buffer, which each connection keeps.
const READ: usize = 4 << 10;
/// Frames that the network does not take: beyond this, writing waits.
const WAITING: usize = 4 * FRAME;

/// Which web pages may open a connection. A browser says where its page is from; programs that are no
/// browsers say nothing and are let in: the origin protects people from foreign pages, it is no proof.
/// Some programs name the address that they dial: that is let in too, as long as it is an IP address
/// (a name could be made to point here by a foreign page).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// No page: programs only.
    None,
    /// Pages of these origins, e.g. `https://console.example`.
    Only(Vec<String>),
    /// Any page: for doors that everybody may use.
    Any,
}

impl Origins {
    fn allow(&self, headers: &HeaderMap) -> bool {
        let Some(origin) = headers.get(header::ORIGIN) else {
            return true;
        };
        if is_own_address(origin, headers.get(header::HOST)) {
            return true;
        }
        match self {
            Self::None => false,
            Self::Only(known) => known.iter().any(|known| known.as_bytes() == origin),
            Self::Any => true,
        }
    }
}

/// Whether an origin is the very IP address that was dialled.
fn is_own_address(origin: &HeaderValue, host: Option<&HeaderValue>) -> bool {
    let address = |value: &HeaderValue| value.to_str().ok()?.parse::<SocketAddr>().ok();
    let Some(dialled) = host.and_then(address) else {
        return false;
    };
    let origin = origin.to_str().ok();
    origin
        .and_then(|origin| origin.split_once("://"))
        .and_then(|(_, authority)| authority.parse::<SocketAddr>().ok())
        .is_some_and(|named| named == dialled)
}

/// A connection's bytes within binary frames.
pub(crate) struct Web {
    frames: WebSocketStream<Carrier>,
    /// Of the last frame, not taken yet.
    rest: Bytes,
}

impl Web {
    /// Does the handshake; `largest` is the size of the largest frame that is taken.
    pub(crate) async fn accept(
        carrier: Carrier,
        origins: &Origins,
        largest: usize,
    ) -> io::Result<Self> {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ)
            .write_buffer_size(0)
            .max_write_buffer_size(WAITING)
            .max_message_size(Some(largest))
            .max_frame_size(Some(largest));
        // The library's type: a whole HTTP response.
        #[allow(clippy::result_large_err)]
        let judge = |request: &Request, response: Response| judge(origins, request, response);
        let accepted =
            tokio_tungstenite::accept_hdr_async_with_config(carrier, judge, Some(config));
        let frames = accepted.await.map_err(io::Error::other)?;
        Ok(Self {
            frames,
            rest: Bytes::new(),
        })
    }

    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.frames).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                // The library answers pings and closes.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_))) | None => return Poll::Ready(Ok(0)),
                Some(Ok(Message::Text(_) | Message::Frame(_))) => {
                    let text = "a WebSocket frame that is not binary";
                    return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, text)));
                }
                Some(Err(error)) => return Poll::Ready(Err(other(error))),
            }
        }
        let length = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..length]);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
        }
        Poll::Ready(Ok(length))
    }

    pub(crate) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut frames = Pin::new(&mut self.frames);
        ready!(frames.as_mut().poll_ready(cx)).map_err(other)?;
        let length = bytes.len().min(FRAME);
        let frame = Message::Binary(Bytes::copy_from_slice(&bytes[..length]));
        frames.start_send(frame).map_err(other)?;
        Poll::Ready(Ok(length))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames).poll_flush(cx).map_err(other)
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.frames).poll_close(cx).map_err(other)
    }
}

/// Lets MQTT of allowed pages in.
#[allow(clippy::result_large_err, reason = "the library's type")]
fn judge(
    origins: &Origins,
    request: &Request,
    mut response: Response,
) -> Result<Response, ErrorResponse> {
    let headers = request.headers();
    let offered = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL);
    let speaks_mqtt = offered
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|name| name.trim() == SUBPROTOCOL);
    if !speaks_mqtt {
        return Err(refusal(StatusCode::BAD_REQUEST, "the subprotocol is mqtt"));
    }
    if !origins.allow(headers) {
        return Err(refusal(
            StatusCode::FORBIDDEN,
            "pages of this origin may not connect here",
        ));
    }
    let name = HeaderValue::from_static(SUBPROTOCOL);
    response
        .headers_mut()
        .insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    Ok(response)
}

fn refusal(status: StatusCode, why: &str) -> ErrorResponse {
    let mut response = ErrorResponse::new(Some(why.to_owned()));
    *response.status_mut() = status;
    response
}

fn other(error: Error) -> io::Error {
    match error {
        Error::Io(error) => error,
        other => io::Error::other(other),
    }
}
