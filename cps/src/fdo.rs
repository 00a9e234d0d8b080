//! The seam between FDO over HTTP and the roles that answer it, and the table of open runs. Called
//! by `http::fdo`; implemented by `rendezvous`, `relay`, `registrar` here and by the factory's DI
//! in the cloud. It never looks into a message.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use holdfast_link::random::SystemRandom;
use rand_core::Rng as _;
use tokio::time::Instant;

/// A run's key: 128 random bits as text, the value of `Authorization: Bearer`. Never changes
/// within a run (some devices keep only the first one they got).
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Token(Box<str>);

impl Token {
    /// A fresh one.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        SystemRandom.fill_bytes(&mut bytes);
        Self(URL_SAFE_NO_PAD.encode(bytes).into())
    }

    /// Takes what a peer sent after `Bearer`; any text shorter than [`Token::MAX`].
    #[must_use]
    pub fn from_peer(text: &str) -> Option<Self> {
        (!text.is_empty() && text.len() <= Self::MAX).then(|| Self(text.into()))
    }

    /// Longest token looked up.
    pub const MAX: usize = 128;

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("Token(..)")
    }
}

/// One FDO message as it came.
#[derive(Debug)]
pub struct FdoRequest {
    /// Its number.
    pub message: u8,
    /// The run it claims to belong to.
    pub token: Option<Token>,
    /// The body, at most the configured bound.
    pub body: Bytes,
}

/// The answer to one message.
#[derive(Debug)]
pub struct FdoReply {
    /// Its number; 255 for an error.
    pub message: u8,
    /// The run's token, in every answer of the run.
    pub token: Option<Token>,
    /// The body.
    pub body: Vec<u8>,
}

impl FdoReply {
    /// The number of an error message.
    pub const ERROR: u8 = 255;
}

/// A boxed future of a reply, so that roles can stand behind one trait object.
pub type Answer<'a> = Pin<Box<dyn Future<Output = FdoReply> + Send + 'a>>;

/// One FDO server role.
pub trait FdoParty: Send + Sync + fmt::Debug {
    /// The message numbers that this role answers.
    fn messages(&self) -> &'static [u8];

    /// Answers one message. Never fails: errors are replies of number 255, and end the run.
    fn answer(&self, request: FdoRequest) -> Answer<'_>;

    /// The peer gave up (it posted 255 under this token).
    fn give_up(&self, token: &Token);
}

/// Open runs of one protocol: bounded, with expiry, each taken out while a message of it is
/// worked on, so that two messages of one run can never be worked on at once.
#[derive(Debug)]
pub struct Sessions<T> {
    open: Mutex<HashMap<Token, Open<T>>>,
    most: usize,
    life: Duration,
}

#[derive(Debug)]
struct Open<T> {
    state: T,
    since: Instant,
}

/// A run in work: hand it back to [`Sessions::keep`] with its next state, or drop it to end it.
#[derive(Debug)]
pub struct Run {
    token: Token,
    since: Instant,
}

impl Run {
    /// The run's token.
    #[must_use]
    pub fn token(&self) -> &Token {
        &self.token
    }
}

impl<T> Sessions<T> {
    /// An empty table for `most` runs of at most `life` each.
    #[must_use]
    pub fn new(most: usize, life: Duration) -> Self {
        Self {
            open: Mutex::new(HashMap::new()),
            most,
            life,
        }
    }

    /// Opens a run. A full table drops its oldest run: who floods us must not shut others out for
    /// longer than they take to begin again.
    pub fn begin(&self, state: T) -> Token {
        let mut open = self.lock();
        self.drop_expired(&mut open);
        while open.len() >= self.most {
            let oldest = open
                .iter()
                .min_by_key(|(_, run)| run.since)
                .map(|(t, _)| t.clone());
            let Some(oldest) = oldest else { break };
            open.remove(&oldest);
        }
        let token = Token::random();
        open.insert(
            token.clone(),
            Open {
                state,
                since: Instant::now(),
            },
        );
        token
    }

    /// Takes a run out to work on it; `None` for an unknown, ended or expired token.
    pub fn take(&self, token: &Token) -> Option<(Run, T)> {
        let Open { state, since } = self.lock().remove(token)?;
        if since.elapsed() > self.life {
            return None;
        }
        Some((
            Run {
                token: token.clone(),
                since,
            },
            state,
        ))
    }

    /// Puts a run back with its next state.
    pub fn keep(&self, run: Run, state: T) {
        self.lock().insert(
            run.token,
            Open {
                state,
                since: run.since,
            },
        );
    }

    /// Ends every run for which `ends` says so.
    pub fn end_where(&self, mut ends: impl FnMut(&T) -> bool) {
        self.lock().retain(|_, run| !ends(&run.state));
    }

    /// Ends one run.
    pub fn end(&self, token: &Token) {
        self.lock().remove(token);
    }

    /// Open runs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether no run is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn drop_expired(&self, open: &mut HashMap<Token, Open<T>>) {
        open.retain(|_, run| run.since.elapsed() <= self.life);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Token, Open<T>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_run_is_taken_once_expires_and_gives_way_when_full() {
        let table = Sessions::new(2, Duration::from_secs(60));
        let first = table.begin(1);
        let (run, state) = table.take(&first).unwrap();
        assert!(
            table.take(&first).is_none(),
            "in work: no second message may enter"
        );
        table.keep(run, state + 1);
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = table.begin(10);
        let third = table.begin(20);
        assert!(table.take(&first).is_none(), "the oldest gave way");
        assert_eq!(table.take(&second).map(|(_, s)| s), Some(10));
        tokio::time::advance(Duration::from_secs(61)).await;
        assert!(table.take(&third).is_none(), "expired");
        assert!(table.take(&Token::random()).is_none());
    }
}
