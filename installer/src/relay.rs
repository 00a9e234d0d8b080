//! The rendezvous relay at the installer's fixed address (flows S42 to S44): passes a device's TO1 on to the first
//! rendezvous server that knows it.
//!
//! Asked by [`crate::serve`]. One server is pinned for a whole run, under a token of our own: a server lost in
//! mid-run is answered as an error (255), never replaced by another, since the second half of a run means nothing
//! to it. A server that knows nothing of the device (code 6), or is out of reach, is passed over for the next one;
//! any other refusal is the answer. It judges no answer: the device believes the owner's signature alone.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use holdfast_config::HostPort;
use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::fdo::{Client, Error as LinkError, Run};
use holdfast_link::https::Limits;
use holdfast_protocol::fdo::{Error, ErrorCode, Message, to1};
use holdfast_protocol::id::Guid;

/// Longest wait for one rendezvous server before the next is asked. A gateway may itself wait 3 s for the Internet before it
/// answers from its own, and a device waits 15 s in all.
const WAIT: Duration = Duration::from_secs(5);
/// A server that was out of reach is asked last for so long: devices do not wait for it again and again.
const REST: Duration = Duration::from_secs(30);
/// A server that has not answered for so long when the device gives up counts as out of reach.
const SLOW: Duration = Duration::from_secs(1);
/// Runs open at once; the oldest gives way. A run is two messages, a second apart.
const MOST_RUNS: usize = 64;
/// Servers that a relay may be given.
pub(crate) const MOST_SERVERS: usize = 8;

/// A rendezvous server, as the person with the installer named it.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    client: Client,
    lost: Mutex<Option<Instant>>,
}

impl Server {
    /// The server at this address, FDO over HTTP.
    pub(crate) fn at(address: &HostPort) -> Self {
        Self::named(address.to_string())
    }

    pub(crate) fn named(name: String) -> Self {
        let endpoint = Endpoint {
            addresses: vec![name.clone()],
            security: Security::Plain,
        };
        let limits = Limits {
            per_address: WAIT,
            deadline: WAIT,
            ..Limits::default()
        };
        let client = Client::new(endpoint, "", limits);
        Self {
            name,
            client,
            lost: Mutex::default(),
        }
    }

    fn was_lost(&self) -> bool {
        let lost = self.lost.lock().unwrap_or_else(PoisonError::into_inner);
        lost.is_some_and(|at| at.elapsed() < REST)
    }

    fn is_lost(&self, lost: bool) {
        let now = lost.then(Instant::now);
        *self.lost.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// A question to a server. A device that hangs up before there is an answer has shown that it is slow, too.
struct Asking<'a> {
    server: &'a Server,
    begun: Instant,
    settled: bool,
}

impl<'a> Asking<'a> {
    fn of(server: &'a Server) -> Self {
        Self {
            server,
            begun: Instant::now(),
            settled: false,
        }
    }

    fn answered(mut self, well: bool) {
        self.settled = true;
        self.server.is_lost(!well);
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.settled && self.begun.elapsed() >= SLOW {
            self.server.is_lost(true);
        }
    }
}

#[derive(Debug)]
struct Pinned {
    token: String,
    guid: Guid,
    name: String,
    run: Run,
}

/// What became of a request, for the person who watches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    /// The device has its rendezvous answer.
    Answered {
        /// Which device.
        guid: Guid,
        /// By whom.
        by: String,
    },
    /// It has none, and why.
    Failed {
        /// Which device.
        guid: Guid,
        /// One line.
        why: String,
    },
}

impl std::fmt::Display for Said {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Answered { guid, by } => {
                write!(out, "device {guid}: {by} told it where its site is")
            }
            Self::Failed { guid, why } => write!(out, "device {guid} was told nothing: {why}"),
        }
    }
}

/// The relay.
#[derive(Debug)]
pub(crate) struct Relay {
    servers: Vec<Server>,
    runs: Mutex<VecDeque<Pinned>>,
}

impl Relay {
    /// A relay to these servers, best first; with none of them nobody is known.
    pub(crate) fn to(servers: Vec<Server>) -> Self {
        Self {
            servers,
            runs: Mutex::default(),
        }
    }

    /// Message 30: asks one server after the other, and pins the one that answers.
    pub(crate) async fn begin(
        &self,
        token: &str,
        message: &Message,
    ) -> Result<Message, (Error, Option<Said>)> {
        let hello = to1::HelloRv::read(message).map_err(|error| (error, None))?;
        let guid = hello.guid();
        let (mut unknown, mut lost) = (Vec::new(), Vec::new());
        let (last, first): (Vec<_>, Vec<_>) = self.servers.iter().partition(|it| it.was_lost());
        for server in first.into_iter().chain(last) {
            let (name, mut run) = (&server.name, server.client.start());
            let asking = Asking::of(server);
            let answer = run.exchange(message).await;
            asking.answered(!matches!(
                answer,
                Err(LinkError::Transport(_) | LinkError::NotFdo { .. })
            ));
            match answer {
                Ok(answer) => {
                    let (token, name) = (token.to_owned(), name.clone());
                    self.pin(Pinned {
                        token,
                        guid,
                        name,
                        run,
                    });
                    return Ok(answer);
                }
                Err(LinkError::Refused { error, .. })
                    if error.code == ErrorCode::ResourceNotFound =>
                {
                    unknown.push(name.as_str());
                }
                Err(LinkError::Refused { error, .. }) => {
                    let why = format!("{name} refuses it (code {})", error.code.number());
                    return Err((Error::Peer(error), Some(Said::Failed { guid, why })));
                }
                Err(_) => lost.push(name.as_str()),
            }
        }
        let (error, why) = nobody(&unknown, &lost);
        Err((error, Some(Said::Failed { guid, why })))
    }

    /// Message 32: to the server of the run, whatever has become of it.
    pub(crate) async fn go_on(
        &self,
        token: &str,
        message: &Message,
    ) -> Result<(Message, Said), (Error, Option<Said>)> {
        let pinned = self.take(token).ok_or((Error::NoSession, None))?;
        let Pinned {
            guid,
            name,
            mut run,
            ..
        } = pinned;
        match run.exchange(message).await {
            Ok(answer) => Ok((answer, Said::Answered { guid, by: name })),
            Err(LinkError::Refused { error, .. }) => {
                let why = format!("{name} refuses its proof (code {})", error.code.number());
                Err((Error::Peer(error), Some(Said::Failed { guid, why })))
            }
            Err(fault) => {
                let why = format!(
                    "{name} was lost in the middle of it ({fault}); it asks again by itself"
                );
                let error = Error::Own("the rendezvous server was lost");
                Err((error, Some(Said::Failed { guid, why })))
            }
        }
    }

    /// The device gave up its run.
    pub(crate) fn end(&self, token: &str) {
        self.take(token);
    }

    fn pin(&self, pinned: Pinned) {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() == MOST_RUNS {
            runs.pop_front();
        }
        runs.push_back(pinned);
    }

    fn take(&self, token: &str) -> Option<Pinned> {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        let at = runs.iter().position(|pinned| pinned.token == token)?;
        runs.remove(at)
    }
}

/// No server answered: a word for the device, and one for the person.
fn nobody(unknown: &[&str], lost: &[&str]) -> (Error, String) {
    let out_of_reach = match lost {
        [] => String::new(),
        lost => format!("{} out of reach", lost.join(", ")),
    };
    match (unknown, lost) {
        // With no server at all this address is for one device only.
        ([], []) => (
            Error::NotFound,
            "it is not the device of this voucher".to_owned(),
        ),
        ([], _) => {
            let why = format!("{out_of_reach}; check the addresses and the network");
            (Error::Own("no rendezvous server was reached"), why)
        }
        (known_to_none, _) => {
            let rest = match out_of_reach.as_str() {
                "" => String::new(),
                rest => format!(" ({rest})"),
            };
            let why = format!(
                "{} knows nothing of it{rest}; hand in its voucher: `holdfast-installer extend`",
                known_to_none.join(", ")
            );
            (Error::NotFound, why)
        }
    }
}

#[cfg(test)]
mod tests;
