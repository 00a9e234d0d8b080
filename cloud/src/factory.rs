//! The device initialiser (90): FDO DI (messages 10 to 13), which makes a device's identity and
//! its first voucher, owned by the voucher server (110).
//!
//! Served among the FDO roles by [`crate::app`]; hands finished vouchers to [`crate::stock`]. DI
//! has no authentication of its own (wire reference, section 10): who can reach the listener can
//! have a device made, and that gives no right at any purchaser's. So it has a listener of its own,
//! off unless configured, a budget for each address, and a bound on what may lie in stock.

mod certificate;
mod directives;

use std::sync::Arc;
use std::time::Duration;

use holdfast_cps::fdo::{Answer, FdoParty, FdoReply, FdoRequest, Sessions, Token};
use holdfast_link::random::SystemRandom;
use holdfast_link::time::Clock;
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::fdo::di::{AppStart, ExpectSetHmac, IssueTerms};
use holdfast_protocol::fdo::{Error, Message, MessageType};
use holdfast_protocol::id::Guid;
use holdfast_protocol::rv::RendezvousInfo;
use rand_core::Rng as _;

pub use certificate::{FactoryAuthority, FactoryError};
pub use directives::rendezvous_info;

use crate::stock::Stock;

/// What the factory writes into devices, and where it puts their vouchers.
#[derive(Debug)]
pub struct Factory {
    authority: FactoryAuthority,
    /// The voucher server's key: the first owner of every voucher made here.
    owner: VerifyingKey,
    stock: Stock,
    rendezvous: RendezvousInfo,
    certificate_life: Duration,
    most_in_stock: u64,
    clock: Arc<dyn Clock>,
    runs: Sessions<(String, ExpectSetHmac)>,
}

/// What a [`Factory`] is made of.
#[derive(Debug)]
pub struct FactoryParts {
    /// Issues device certificates.
    pub authority: FactoryAuthority,
    /// The voucher server's key.
    pub owner: VerifyingKey,
    /// Takes the vouchers.
    pub stock: Stock,
    /// Written into every device.
    pub rendezvous: RendezvousInfo,
    /// Life of device certificates.
    pub certificate_life: Duration,
    /// Devices made here whose vouchers have not left yet, at most.
    pub most_in_stock: u64,
    /// Dates them.
    pub clock: Arc<dyn Clock>,
    /// Runs open at once.
    pub most_runs: usize,
    /// How long one may stay open.
    pub run_life: Duration,
}

impl Factory {
    /// A factory with no run open.
    #[must_use]
    pub fn new(parts: FactoryParts) -> Self {
        Self {
            authority: parts.authority,
            owner: parts.owner,
            stock: parts.stock,
            rendezvous: parts.rendezvous,
            certificate_life: parts.certificate_life,
            most_in_stock: parts.most_in_stock,
            clock: parts.clock,
            runs: Sessions::new(parts.most_runs, parts.run_life),
        }
    }

    async fn step(&self, request: FdoRequest) -> Result<(Token, Message), Error> {
        let kind = MessageType::from_number(request.message).ok_or(Error::NoSession)?;
        let message = Message::new(kind, request.body.to_vec());
        match kind {
            MessageType::DiAppStart => self.begin(&message),
            MessageType::DiSetHmac => self.finish(request.token.as_ref(), &message).await,
            got => Err(Error::Unexpected {
                expected: MessageType::DiAppStart,
                got,
            }),
        }
    }

    fn begin(&self, message: &Message) -> Result<(Token, Message), Error> {
        let start = AppStart::read(message)?;
        let now = self.clock.now().secs;
        let key = start.csr().key().to_spki_der();
        let serial = start.info().serial.clone();
        let chain = self
            .authority
            .certify(&key, &serial, now, self.certificate_life)
            .map_err(|error| {
                tracing::error!(%error, "a device certificate could not be made");
                Error::Own("device certificate")
            })?;
        let mut guid = [0; 16];
        SystemRandom.fill_bytes(&mut guid);
        let terms = IssueTerms {
            guid: Guid(guid),
            rendezvous: &self.rendezvous,
            manufacturer: &self.owner,
            chain,
        };
        let (run, reply) = start.issue(terms)?;
        Ok((self.runs.begin((serial, run)), reply))
    }

    /// The voucher is kept before the device is told that it is done.
    async fn finish(
        &self,
        token: Option<&Token>,
        message: &Message,
    ) -> Result<(Token, Message), Error> {
        let (run, (serial, state)) = token
            .and_then(|token| self.runs.take(token))
            .ok_or(Error::NoSession)?;
        let (voucher, reply) = state.step(message)?;
        let guid = voucher.guid();
        self.stock
            .keep_within(voucher, Some(&serial), self.most_in_stock)
            .await
            .map_err(|error| {
                tracing::error!(%guid, %error, "a new device's voucher could not be kept");
                Error::Own("voucher store")
            })?;
        tracing::info!(%guid, serial, "a device was initialised");
        Ok((run.token().clone(), reply))
    }
}

impl FdoParty for Factory {
    fn messages(&self) -> &'static [u8] {
        &[MessageType::DiAppStart as u8, MessageType::DiSetHmac as u8]
    }

    fn answer(&self, request: FdoRequest) -> Answer<'_> {
        Box::pin(async move {
            let (number, token) = (request.message, request.token.clone());
            match self.step(request).await {
                Ok((token, message)) => FdoReply {
                    message: message.kind.number(),
                    token: Some(token),
                    body: message.body,
                },
                Err(error) => {
                    tracing::warn!(message = number, %error, "factory initialisation refused");
                    let previous = MessageType::from_number(number).unwrap_or(MessageType::Error);
                    let body = error.report(previous).unwrap_or_default();
                    FdoReply {
                        message: FdoReply::ERROR,
                        token,
                        body,
                    }
                }
            }
        })
    }

    fn give_up(&self, token: &Token) {
        self.runs.end(token);
    }
}

#[cfg(test)]
mod tests;
