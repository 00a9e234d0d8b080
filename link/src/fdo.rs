//! FDO messages over HTTP (FDO 1.1, section 4.3): one run of a protocol, message by message.
//!
//! Called by device-agent and installer (DI, TO1, TO2), by cps (TO0, and the relay). Knows numbers
//! and bytes only: what a message says and which may follow is for `protocol::fdo`. Never chunks a
//! body and never changes the token within a run.

use bytes::Bytes;
use holdfast_protocol::fdo::{ErrorMessage, MAX_BODY, Message, MessageType};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};

use crate::dial::Endpoint;
use crate::https::{self, HeaderMap, Method, Request, Response};

/// A party's FDO service.
#[derive(Debug, Clone)]
pub struct Client {
    https: https::Client,
    prefix: String,
}

/// Why there is no answer to go on with. The run is over.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The exchange itself failed.
    #[error(transparent)]
    Transport(#[from] https::Error),
    /// The other side sent an error message (255).
    #[error(
        "the other side refused message {message} with FDO error {}: {}",
        error.code.number(),
        error.text
    )]
    Refused {
        /// The message that was refused.
        message: MessageType,
        /// What it said; code 500 when it said nothing readable.
        error: ErrorMessage,
    },
    /// The answer is not FDO: not an FDO server, or not its path.
    #[error("the answer to message {message} is not FDO (HTTP {status}): check address and port")]
    NotFdo {
        /// The message that was sent.
        message: MessageType,
        /// The HTTP status.
        status: u16,
    },
}

const CBOR: HeaderValue = HeaderValue::from_static("application/cbor");
const MESSAGE_TYPE: &str = "message-type";

impl Client {
    /// A client for `endpoint`; `prefix` stands before `/fdo/101/msg/` (empty for none). Bodies are
    /// bounded by FDO's 65,535 bytes whatever `limits` allows beyond.
    #[must_use]
    pub fn new(endpoint: Endpoint, prefix: &str, mut limits: https::Limits) -> Self {
        limits.body = limits.body.min(MAX_BODY);
        Self {
            https: https::Client::new(endpoint, limits),
            prefix: prefix.trim_end_matches('/').to_owned(),
        }
    }

    /// Begins a run of one protocol: no token yet.
    #[must_use]
    pub fn start(&self) -> Run {
        Run {
            client: self.clone(),
            token: None,
        }
    }
}

/// One run of DI, TO0, TO1 or TO2.
#[derive(Debug)]
pub struct Run {
    client: Client,
    token: Option<Token>,
}

/// The value of `Authorization` in the first answer, repeated byte for byte. Whoever has it is the
/// run, so it is not printed.
struct Token(HeaderValue);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Run {
    /// Posts a message and reads the answer. The token of the first answer is repeated on every
    /// later message.
    ///
    /// # Errors
    /// See [`Error`]; the run is over then.
    pub async fn exchange(&mut self, message: &Message) -> Result<Message, Error> {
        let kind = message.kind;
        let response = self.post(kind, message.body.clone().into()).await?;
        match stated(&response) {
            Some(answer) if answer != MessageType::Error && response.status.is_success() => {
                self.take_token(&response);
                Ok(Message::new(answer, response.body.into()))
            }
            answer if answer == Some(MessageType::Error) || is_bare_error(&response) => {
                let error = ErrorMessage::parse(&response.body);
                Err(Error::Refused {
                    message: kind,
                    error,
                })
            }
            _ => Err(Error::NotFdo {
                message: kind,
                status: response.status.as_u16(),
            }),
        }
    }

    /// Tells the other side that we give up, best effort; `error` is the CBOR of the ErrorMessage
    /// (`fdo::Error::report`). A failure to deliver it is logged only: the run is over either way.
    pub async fn give_up(self, error: impl Into<Bytes>) {
        if let Err(error) = self.post(MessageType::Error, error.into()).await {
            tracing::debug!(%error, "the other side was not told that the run is over");
        }
    }

    async fn post(&self, message: MessageType, body: Bytes) -> Result<Response, https::Error> {
        let mut headers = HeaderMap::from_iter([(CONTENT_TYPE, CBOR)]);
        if let Some(Token(value)) = &self.token {
            headers.insert(AUTHORIZATION, value.clone());
        }
        self.client
            .https
            .send(Request {
                method: Method::POST,
                path: format!("{}/fdo/101/msg/{message}", self.client.prefix),
                headers,
                body,
            })
            .await
    }

    fn take_token(&mut self, response: &Response) {
        if self.token.is_none() {
            self.token = response.headers.get(AUTHORIZATION).map(|value| {
                let mut value = value.clone();
                value.set_sensitive(true);
                Token(value)
            });
        }
    }
}

fn stated(response: &Response) -> Option<MessageType> {
    let text = response.headers.get(MESSAGE_TYPE)?.to_str().ok()?;
    MessageType::from_number(text.trim().parse().ok()?)
}

/// Some servers send an error's body without saying that it is one.
fn is_bare_error(response: &Response) -> bool {
    !response.headers.contains_key(MESSAGE_TYPE)
        && !response.status.is_success()
        && response.headers.get(CONTENT_TYPE) == Some(&CBOR)
}

#[cfg(test)]
mod tests;
