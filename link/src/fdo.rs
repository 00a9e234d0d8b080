//! FDO messages over HTTP (FDO 1.1, section 4.3): one run of a protocol, message by message.
//!
//! Called by device-agent and installer (DI, TO1, TO2), by cps (TO0, and the relay). Knows numbers
//! and bytes only: what a message says and which may follow is for `protocol::fdo`. Never chunks a
//! body and never changes the token within a run.

use bytes::Bytes;

use crate::dial::Endpoint;
use crate::https;

/// A party's FDO service.
#[derive(Debug, Clone)]
pub struct Client {}

/// What the other side answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The message number of the answer; never 255, which is [`Error::Refused`].
    pub message: u8,
    /// The CBOR of the message.
    pub body: Bytes,
}

/// Why there is no answer to go on with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The exchange itself failed.
    #[error(transparent)]
    Transport(#[from] https::Error),
    /// The other side sent an error message (255); `body` is its CBOR, to be read leniently.
    #[error(
        "the other side refused message {message} (HTTP {status}){}",
        summary(body)
    )]
    Refused {
        /// The message that was refused.
        message: u8,
        /// The HTTP status.
        status: u16,
        /// The ErrorMessage, or empty when it sent none.
        body: Bytes,
    },
    /// The answer has no usable `Message-Type`: not an FDO server, or not the right path.
    #[error("the answer to message {message} is not FDO (HTTP {status}): check address and port")]
    NotFdo {
        /// The message that was sent.
        message: u8,
        /// The HTTP status.
        status: u16,
    },
}

fn summary(_body: &Bytes) -> String {
    String::new()
}

impl Client {
    /// A client for `endpoint`; `prefix` stands before `/fdo/101/msg/` (empty for none).
    #[must_use]
    pub fn new(_endpoint: Endpoint, _prefix: &str, _limits: https::Limits) -> Self {
        todo!()
    }

    /// Begins a run of one protocol: no token yet.
    #[must_use]
    pub fn start(&self) -> Run {
        todo!()
    }
}

/// One run of DI, TO0, TO1 or TO2.
#[derive(Debug)]
pub struct Run {}

impl Run {
    /// Posts a message and reads the answer. The token of the first answer is repeated on every
    /// later message.
    ///
    /// # Errors
    /// See [`Error`]; the run is over then.
    pub async fn exchange(
        &mut self,
        _message: impl Into<u8>,
        _body: impl Into<Bytes>,
    ) -> Result<Answer, Error> {
        todo!()
    }

    /// Tells the other side that we give up (message 255), best effort; `error` is the CBOR of the
    /// ErrorMessage.
    pub async fn give_up(self, _error: impl Into<Bytes>) {
        todo!()
    }
}
