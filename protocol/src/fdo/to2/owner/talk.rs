//! The owner's part of the talk in the tunnel, and the end of the session (68 to 71).

use rand_core::CryptoRng;

use super::{Outcome, OwnerSession, OwnerStep, Run, State};
use crate::fdo::Error;
use crate::fdo::message::{Message, MessageType, Nonce, read_body};
use crate::fdo::service_info::{DevMod, DevModInbox, Inbox, Item, Outbox, nothing};
use crate::fdo::to2::{Tunnel, nonce_body};
use crate::id::Guid;
use crate::voucher::Voucher;
use crate::wire::cbor::{self, CborError};

/// The exchange of ServiceInfo and the end.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) tunnel: Tunnel,
    pub(super) nonce_setup_device: Nonce,
    pub(super) outcome: Outcome,
    /// Largest message that the device accepts.
    pub(super) mtu: u16,
    pub(super) inbox: Inbox,
    pub(super) devmod: DevModInbox,
}

impl Talk {
    pub(super) fn hear(
        mut self: Box<Self>,
        run: Box<Run>,
        message: &Message,
    ) -> Result<OwnerStep, Error> {
        let kind = MessageType::To2DeviceServiceInfo;
        let body = self.tunnel.open(message, kind)?;
        self.inbox.count()?;
        let (device_has_more, items) = read_body(kind, &body, |r| {
            r.array(2)?;
            Ok((r.bool()?, self.inbox.take(r)?))
        })?;
        let items = self.sort_out_devmod(items)?;
        if !device_has_more {
            if !self.devmod.is_complete() {
                return Err(Error::Check {
                    message: kind,
                    what: "devmod is incomplete",
                });
            }
            if self.inbox.is_mid_value() {
                return Err(Error::Check {
                    message: kind,
                    what: "value without its end",
                });
            }
        }
        Ok(OwnerStep::ServiceInfo(OwnerTurn {
            run,
            talk: self,
            device_has_more,
            items,
        }))
    }

    /// Takes devmod for itself; nothing else may come before it is complete.
    fn sort_out_devmod(&mut self, items: Vec<Item>) -> Result<Vec<Item>, Error> {
        let kind = MessageType::To2DeviceServiceInfo;
        let mut others = Vec::new();
        for item in items {
            if item.module == "devmod" {
                let malformed = |fault: CborError| Error::Malformed {
                    message: kind,
                    fault,
                };
                self.devmod.take(&item).map_err(malformed)?;
            } else if self.devmod.is_complete() {
                others.push(item);
            } else {
                return Err(Error::Check {
                    message: kind,
                    what: "devmod does not come first",
                });
            }
        }
        Ok(others)
    }

    pub(super) fn finish(
        self,
        run: &Run,
        message: &Message,
        rng: &mut dyn CryptoRng,
    ) -> Result<OwnerStep, Error> {
        let kind = MessageType::To2Done;
        let body = self.tunnel.open(message, kind)?;
        let nonce = read_body(kind, &body, |r| {
            r.array(1)?;
            Ok(Nonce(r.bytes_exact()?))
        })?;
        if nonce != run.nonce_prove_device {
            return Err(Error::Check {
                message: kind,
                what: "nonce",
            });
        }
        let body = nonce_body(self.nonce_setup_device);
        let reply = self.tunnel.seal(MessageType::To2Done2, &body, rng);
        Ok(OwnerStep::Finished(self.outcome, reply))
    }
}

/// The owner's turn in the exchange of ServiceInfo.
#[derive(Debug)]
pub struct OwnerTurn {
    run: Box<Run>,
    talk: Box<Talk>,
    device_has_more: bool,
    items: Vec<Item>,
}

impl OwnerTurn {
    /// The GUID by which the device came.
    pub fn guid(&self) -> Guid {
        self.run.terms.voucher.guid()
    }

    /// The voucher by which the device proved itself.
    pub fn voucher(&self) -> &Voucher {
        &self.run.terms.voucher
    }

    /// What the credential will be after this session, if it ends well.
    pub fn outcome(&self) -> &Outcome {
        &self.talk.outcome
    }

    /// What the device said of itself so far; complete once [`OwnerTurn::device_has_more`] was
    /// false for the first time.
    pub fn devmod(&self) -> &DevMod {
        self.talk.devmod.devmod()
    }

    /// Whether the device has more to say at once; then the answer will be empty by itself.
    pub fn device_has_more(&self) -> bool {
        self.device_has_more
    }

    /// What the device said now, beside devmod; whole values.
    pub fn take_items(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.items)
    }

    /// Answers with as much of `outbox` as the device accepts in one message. `finished` means that
    /// nothing will follow once the outbox is empty: then the device is told to end.
    pub fn answer(
        self,
        outbox: &mut Outbox,
        finished: bool,
        rng: &mut dyn CryptoRng,
    ) -> (OwnerSession, Message) {
        let Self {
            run,
            talk,
            device_has_more,
            ..
        } = self;
        let info = if device_has_more {
            nothing()
        } else {
            outbox.fill(talk.mtu)
        };
        let has_more = !device_has_more && !outbox.is_empty();
        let done = !device_has_more && !has_more && finished;
        let body = cbor::encode(|w| _ = w.array(3).bool(has_more).bool(done).raw(&info));
        let reply = talk
            .tunnel
            .seal(MessageType::To2OwnerServiceInfo, &body, rng);
        let state = if done {
            State::Done(talk)
        } else {
            State::ServiceInfo(talk)
        };
        (OwnerSession { run, state }, reply)
    }
}
