//! What the device that is to be paired meets at the installer's fixed address: a rendezvous answer (TO1) that names
//! this very address and, as the owner by the voucher, a TO2 that keeps the credential and hands over the LAN's
//! (flows S40 and S41).
//!
//! Pure; [`crate::serve`] carries the messages, and gives all other devices' to [`crate::relay`]. Once the device
//! is paired its TO1 is the relay's too. It keeps no voucher, takes no device over, and never answers for a device
//! it was not given.

use std::collections::VecDeque;
use std::net::SocketAddr;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::fdo::service_info::{MAX_MTU, Outbox};
use holdfast_protocol::fdo::to2::{
    HelloDevice, OwnerSession, OwnerStep, OwnerTurn, Replacement, Terms,
};
use holdfast_protocol::fdo::{Error, Message, MessageType, to0, to1};
use holdfast_protocol::id::Guid;
use holdfast_protocol::lan_module::{MODULE, Network};
use holdfast_protocol::rv::{To2Address, To2Protocol};
use holdfast_protocol::voucher::{Policy, Voucher};
use holdfast_protocol::wire::cbor::{self, Reader};

use crate::cli::progress;

/// Runs open at once; the oldest gives way. One installer stands before few devices.
const MOST_RUNS: usize = 16;
/// What our own rendezvous answer says of its life.
const ANSWER_SECS: u32 = 3_600;

/// The device to be paired.
#[derive(Debug)]
pub(crate) struct Pairing {
    /// Names our key as the owner.
    pub(crate) voucher: Voucher,
    /// Our key.
    pub(crate) signer: SigningKey,
    /// What the device is given.
    pub(crate) network: Network,
}

#[derive(Debug)]
enum Session {
    Own(to1::ExpectProveToRv),
    Owner(Box<(OwnerSession, Talk)>),
}

#[derive(Debug, Default)]
struct Talk {
    outbox: Outbox,
    begun: bool,
    applied: bool,
}

/// The desk: sessions by token.
#[derive(Debug)]
pub(crate) struct Desk {
    at: SocketAddr,
    pairing: Option<Pairing>,
    sessions: VecDeque<(String, Session)>,
    paired: bool,
}

impl Desk {
    /// A desk that is reached at `at`; without a pairing it knows nobody.
    pub(crate) fn new(at: SocketAddr, pairing: Option<Pairing>) -> Self {
        Self {
            at,
            pairing,
            sessions: VecDeque::new(),
            paired: false,
        }
    }

    /// Whether the device has the LAN's credentials and both sides have ended well.
    pub(crate) fn is_paired(&self) -> bool {
        self.paired
    }

    /// Whether the message is this desk's to answer, and not the relay's.
    pub(crate) fn claims(&self, token: &str, message: &Message) -> bool {
        match message.kind {
            MessageType::To1HelloRv => to1::HelloRv::read(message)
                .is_ok_and(|hello| !self.paired && self.wanted(hello.guid()).is_some()),
            MessageType::To1ProveToRv => self.sessions.iter().any(|(of, _)| of == token),
            _ => true,
        }
    }

    /// Answers one message; `token` is the session's, and the answer's.
    pub(crate) fn answer(&mut self, token: &str, message: &Message) -> Result<Message, Error> {
        if message.kind.starts_run() {
            // Whoever begins anew has given up what was before.
            self.end(token);
        }
        let (next, answer) = match message.kind {
            MessageType::To1HelloRv => self.hello_rv(message)?,
            MessageType::To2HelloDevice => self.hello_device(message)?,
            _ => {
                let session = self.take(token).ok_or(Error::NoSession)?;
                self.go_on(session, message)?
            }
        };
        if let Some(session) = next {
            if self.sessions.len() == MOST_RUNS {
                self.sessions.pop_front();
            }
            self.sessions.push_back((token.to_owned(), session));
        }
        Ok(answer)
    }

    /// The device reported a failure of its own: its run is over.
    pub(crate) fn end(&mut self, token: &str) {
        self.take(token);
    }

    fn take(&mut self, token: &str) -> Option<Session> {
        let at = self.sessions.iter().position(|(of, _)| of == token)?;
        self.sessions.remove(at).map(|(_, session)| session)
    }

    fn wanted(&self, guid: Guid) -> Option<&Pairing> {
        self.pairing.as_ref().filter(|it| it.voucher.guid() == guid)
    }

    fn hello_rv(&self, message: &Message) -> Result<(Option<Session>, Message), Error> {
        let hello = to1::HelloRv::read(message)?;
        let pairing = self.wanted(hello.guid()).filter(|_| !self.paired);
        let pairing = pairing.ok_or(Error::NotFound)?;
        let key = pairing.voucher.device_key().ok_or(Error::NotFound)?.clone();
        let to1d = own_answer(pairing, self.at)?;
        let (session, answer) = hello.answer(key, to1d, &mut SystemRandom);
        progress("the device asks for its rendezvous: it is told this address");
        Ok((Some(Session::Own(session)), answer))
    }

    fn hello_device(&self, message: &Message) -> Result<(Option<Session>, Message), Error> {
        let hello = HelloDevice::read(message)?;
        let pairing = self.wanted(hello.guid()).ok_or(Error::NotFound)?;
        let terms = Terms {
            voucher: pairing.voucher.clone(),
            key: pairing.signer.clone(),
            replacement: Replacement::Reuse,
            max_service_info: MAX_MTU,
        };
        let (session, answer) = hello.answer(terms, &mut SystemRandom)?;
        progress("the device is here: each proves itself by the voucher");
        let talk = Box::new((session, Talk::default()));
        Ok((Some(Session::Owner(talk)), answer))
    }

    fn go_on(
        &mut self,
        session: Session,
        message: &Message,
    ) -> Result<(Option<Session>, Message), Error> {
        match session {
            Session::Own(session) => Ok((None, session.step(message)?)),
            Session::Owner(both) => {
                let (session, mut talk) = *both;
                let (session, answer) = match session.step(message, &mut SystemRandom)? {
                    OwnerStep::Continue(session, answer) => (session, answer),
                    OwnerStep::ServiceInfo(turn) => self.speak(&mut talk, turn)?,
                    OwnerStep::Finished(_, answer) => {
                        self.paired |= talk.applied;
                        return Ok((None, answer));
                    }
                };
                Ok((Some(Session::Owner(Box::new((session, talk)))), answer))
            }
        }
    }

    fn speak(
        &self,
        talk: &mut Talk,
        mut turn: OwnerTurn,
    ) -> Result<(OwnerSession, Message), Error> {
        for item in turn.take_items() {
            if (item.module.as_str(), item.message.as_str()) == (MODULE, "applied") {
                let said = Reader::new(&item.value).and_then(|mut r| r.bool());
                talk.applied = said.unwrap_or(false);
            }
        }
        if !turn.device_has_more() && !talk.begun {
            talk.begun = true;
            if !turn.devmod().speaks(MODULE) {
                return Err(Error::Own("the device takes no LAN credentials this way"));
            }
            let network = self.wanted(turn.guid()).map(|it| it.network.to_value());
            let network = network.ok_or(Error::NotFound)?;
            progress("both are proved: handing over the network's credentials");
            let full = |_| Error::Own("the talk is too long");
            let active = cbor::encode(|w| _ = w.bool(true));
            talk.outbox.push(MODULE, "active", active).map_err(full)?;
            talk.outbox.push(MODULE, "network", network).map_err(full)?;
        }
        let finished = talk.applied;
        Ok(turn.answer(&mut talk.outbox, finished, &mut SystemRandom))
    }
}

/// Our own rendezvous answer, signed as the owner: what a TO0 with ourselves gives.
fn own_answer(pairing: &Pairing, at: SocketAddr) -> Result<Vec<u8>, Error> {
    let address = To2Address {
        ip: Some(at.ip()),
        dns: None,
        port: at.port(),
        protocol: To2Protocol::Http,
    };
    let registration = to0::Registration {
        addresses: vec![address],
        wait_secs: ANSWER_SECS,
    };
    let (owner, hello) = to0::hello();
    let (server, ack) = to0::ExpectOwnerSign::begin(&hello, &mut SystemRandom)?;
    let (_, signed) = owner.step(&ack, &pairing.voucher, &pairing.signer, &registration)?;
    let offer = server.step(&signed, &Policy::default())?;
    Ok(offer.to1d.as_bytes().to_vec())
}

#[cfg(test)]
pub(crate) mod tests;
