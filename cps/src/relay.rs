//! The rendezvous relay on the LAN: TO1 through the remote rendezvous while it answers, through the
//! local one otherwise. Each run is pinned to the backend that answered its first message, under a
//! token of our own; a backend lost in mid-run is answered 255, never switched. A device that comes back
//! again and again is led here, where this server can onboard it.

mod repeats;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use holdfast_link::fdo::{Client, Error as LinkError, Run as RemoteRun};
use holdfast_protocol::fdo::to1::HelloRv;
use holdfast_protocol::fdo::{Error, ErrorCode, Message, MessageType};
use holdfast_protocol::id::Guid;
use tokio::time::{Instant, timeout};

use crate::Core;
use crate::errors::end_run;
use crate::fdo::{Answer, FdoParty, FdoReply, FdoRequest, Sessions, Token};
use crate::rendezvous::{Rendezvous, reply};
use repeats::Repeats;

/// The backend of a run.
#[derive(Debug)]
enum Backend {
    Remote(RemoteRun),
    Local(Token),
}

/// TO1 for devices on the LAN.
#[derive(Debug)]
pub struct Relay {
    core: Core,
    local: Arc<Rendezvous>,
    remote: RwLock<Option<Client>>,
    remote_up: AtomicBool,
    runs: Sessions<Backend>,
    repeats: Mutex<Repeats>,
}

impl Relay {
    pub(crate) fn new(core: Core, local: Arc<Rendezvous>) -> Self {
        let limits = &core.config.limits;
        let runs = Sessions::new(limits.fdo_sessions, limits.fdo_session_life);
        Self {
            core,
            local,
            remote: RwLock::new(None),
            remote_up: AtomicBool::new(true),
            runs,
            repeats: Mutex::default(),
        }
    }

    /// Sets the remote rendezvous server; none until then.
    pub fn set_remote(&self, remote: Option<Client>) {
        *self.remote.write().unwrap_or_else(PoisonError::into_inner) = remote;
    }

    /// Tells what the uplink's mode is: while it is down no run waits for the remote at all.
    pub fn remote_up(&self, up: bool) {
        self.remote_up.store(up, Ordering::Relaxed);
    }

    async fn begin(&self, request: FdoRequest) -> FdoReply {
        let up = self.remote_up.load(Ordering::Relaxed);
        let remote = self
            .remote
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let message = Message::new(MessageType::To1HelloRv, request.body.to_vec());
        let guid = HelloRv::read(&message).ok().map(|hello| hello.guid());
        let lost = guid.is_some_and(|guid| self.is_lost(guid));
        if let Some(client) = remote.filter(|_| up && !lost) {
            let mut run = client.start();
            let wait = self.core.config.limits.relay_wait;
            match timeout(wait, run.exchange(&message)).await {
                Ok(Ok(answer)) => {
                    self.core.metrics.relayed("remote");
                    if let Some(guid) = guid {
                        self.repeats().led(guid, Instant::now());
                    }
                    let token = self.runs.begin(Backend::Remote(run));
                    return reply(answer, Some(token));
                }
                Ok(Err(LinkError::Refused { error, .. }))
                    if error.code != ErrorCode::ResourceNotFound =>
                {
                    self.core.metrics.relayed("remote");
                    let error = Error::Peer(error);
                    let kind = MessageType::To1HelloRv;
                    return self.refused(&error, kind, None);
                }
                Ok(Err(LinkError::Refused { .. })) => {
                    tracing::debug!("the remote rendezvous does not know the device; asking here");
                }
                Ok(Err(error)) => tracing::info!(%error, "remote rendezvous failed; asking here"),
                Err(_) => tracing::info!("remote rendezvous did not answer; asking here"),
            }
        }
        self.begin_locally(request).await
    }

    /// Whether the device was led to the remote owner and did not get there, so that it is better off
    /// here, if it is known here at all.
    fn is_lost(&self, guid: Guid) -> bool {
        let lost = self.local.knows(guid) && self.repeats().is_lost(guid, Instant::now());
        if lost {
            tracing::info!(
                ?guid,
                "a device was led to the remote owner and came back; it is onboarded here"
            );
        }
        lost
    }

    fn repeats(&self) -> std::sync::MutexGuard<'_, Repeats> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn begin_locally(&self, request: FdoRequest) -> FdoReply {
        self.core.metrics.relayed("local");
        let reply = self.local.answer(request).await;
        match reply.token {
            Some(inner) if reply.message != FdoReply::ERROR => {
                let token = self.runs.begin(Backend::Local(inner));
                FdoReply {
                    token: Some(token),
                    ..reply
                }
            }
            _ => reply,
        }
    }

    async fn go_on(&self, request: FdoRequest) -> FdoReply {
        let kind = MessageType::To1ProveToRv;
        let taken = request
            .token
            .as_ref()
            .and_then(|token| self.runs.take(token));
        let Some((run, backend)) = taken else {
            return self.refused(&Error::NoSession, kind, request.token);
        };
        let token = Some(run.token().clone());
        match backend {
            // Both backends end the run with this answer, good or bad.
            Backend::Local(inner) => {
                let request = FdoRequest {
                    token: Some(inner),
                    ..request
                };
                FdoReply {
                    token,
                    ..self.local.answer(request).await
                }
            }
            Backend::Remote(mut remote) => {
                let wait = self.core.config.limits.relay_wait;
                let message = Message::new(kind, request.body.to_vec());
                match timeout(wait, remote.exchange(&message)).await {
                    Ok(Ok(answer)) => reply(answer, token),
                    Ok(Err(LinkError::Refused { error, .. })) => {
                        self.refused(&Error::Peer(error), kind, token)
                    }
                    Ok(Err(_)) | Err(_) => {
                        self.refused(&Error::Own("the rendezvous server was lost"), kind, token)
                    }
                }
            }
        }
    }

    /// A refusal of the remote is passed on as our own: the device must hear an error, whoever
    /// made it.
    fn refused(&self, error: &Error, kind: MessageType, token: Option<Token>) -> FdoReply {
        let reply = end_run(&self.core.metrics, "relay", error, kind, token, "");
        match error {
            Error::Peer(peer) => {
                let body = passed_on(peer.code, kind);
                FdoReply { body, ..reply }
            }
            _ => reply,
        }
    }
}

/// The ErrorMessage that passes a remote server's code on.
fn passed_on(code: ErrorCode, kind: MessageType) -> Vec<u8> {
    holdfast_protocol::wire::cbor::encode(|w| {
        w.array(5)
            .uint(code.number().into())
            .uint(kind.number().into());
        w.text("refused by the rendezvous server").null().null();
    })
}

impl FdoParty for Relay {
    fn messages(&self) -> &'static [u8] {
        &[30, 32]
    }

    fn answer(&self, request: FdoRequest) -> Answer<'_> {
        match request.message {
            30 => Box::pin(self.begin(request)),
            _ => Box::pin(self.go_on(request)),
        }
    }

    fn give_up(&self, token: &Token) {
        self.runs.end(token);
    }
}
