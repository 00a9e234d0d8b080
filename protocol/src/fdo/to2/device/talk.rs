//! The device's part of the talk in the tunnel, and the end of the session (67 to 71).

use rand_core::CryptoRng;

use super::{DeviceSession, DeviceStep, Run, State};
use crate::credential::DeviceCredential;
use crate::fdo::Error;
use crate::fdo::message::{Message, MessageType, Nonce, read_body};
use crate::fdo::service_info::{Inbox, Item, Outbox, nothing};
use crate::fdo::to2::{Tunnel, nonce_body, read_mtu};
use crate::wire::cbor;

/// The exchange of ServiceInfo and the end.
#[derive(Debug)]
pub(super) struct Talk {
    pub(super) tunnel: Tunnel,
    pub(super) nonce_setup_device: Nonce,
    pub(super) nonce_prove_device: Nonce,
    pub(super) replacement: Option<DeviceCredential>,
    /// Largest message that the owner accepts; known after 67.
    pub(super) mtu: u16,
    pub(super) inbox: Inbox,
}

impl Talk {
    pub(super) fn begin(
        mut self: Box<Self>,
        run: Box<Run>,
        message: &Message,
    ) -> Result<DeviceStep, Error> {
        let kind = MessageType::To2OwnerServiceInfoReady;
        let body = self.tunnel.open(message, kind)?;
        self.mtu = read_body(kind, &body, |r| {
            r.array(1)?;
            read_mtu(r)
        })?;
        let items = Vec::new();
        let turn = DeviceTurn {
            run,
            talk: self,
            owner_has_more: false,
            done: false,
            items,
        };
        Ok(DeviceStep::ServiceInfo(turn))
    }

    pub(super) fn hear(
        mut self: Box<Self>,
        run: Box<Run>,
        message: &Message,
    ) -> Result<DeviceStep, Error> {
        let kind = MessageType::To2OwnerServiceInfo;
        let body = self.tunnel.open(message, kind)?;
        self.inbox.count()?;
        let (owner_has_more, done, items) = read_body(kind, &body, |r| {
            r.array(3)?;
            Ok((r.bool()?, r.bool()?, self.inbox.take(r)?))
        })?;
        if owner_has_more && done {
            return Err(Error::Check {
                message: kind,
                what: "more to come, yet done",
            });
        }
        if done && self.inbox.is_mid_value() {
            return Err(Error::Check {
                message: kind,
                what: "value without its end",
            });
        }
        let turn = DeviceTurn {
            run,
            talk: self,
            owner_has_more,
            done,
            items,
        };
        Ok(DeviceStep::ServiceInfo(turn))
    }

    pub(super) fn finish(self, message: &Message) -> Result<DeviceStep, Error> {
        let kind = MessageType::To2Done2;
        let body = self.tunnel.open(message, kind)?;
        let nonce = read_body(kind, &body, |r| {
            r.array(1)?;
            Ok(Nonce(r.bytes_exact()?))
        })?;
        if nonce != self.nonce_setup_device {
            return Err(Error::Check {
                message: kind,
                what: "nonce",
            });
        }
        Ok(DeviceStep::Finished)
    }
}

/// The device's turn in the exchange of ServiceInfo.
#[derive(Debug)]
pub struct DeviceTurn {
    run: Box<Run>,
    talk: Box<Talk>,
    owner_has_more: bool,
    done: bool,
    items: Vec<Item>,
}

impl DeviceTurn {
    /// What the owner said now; whole values.
    pub fn take_items(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.items)
    }

    /// Whether the owner has more to say at once; then the answer will be empty by itself.
    pub fn owner_has_more(&self) -> bool {
        self.owner_has_more
    }

    /// Whether the owner ended the exchange: [`DeviceTurn::next`] will send 70.
    pub fn owner_is_done(&self) -> bool {
        self.done
    }

    /// The credential that will be valid when the session ends well; none if it stays the same.
    ///
    /// Store it as pending beside the present one before sending message 70: the owner may have
    /// replaced the voucher although its last message was lost. With a pending credential at start,
    /// try it first, then the old one.
    pub fn replacement(&self) -> Option<&DeviceCredential> {
        self.talk.replacement.as_ref()
    }

    /// Goes on: 68 with as much of `outbox` as the owner accepts in one message, or 70 when the
    /// owner is done (what is still in the outbox then is not sent).
    pub fn next(self, outbox: &mut Outbox, rng: &mut dyn CryptoRng) -> (DeviceSession, Message) {
        let Self {
            run,
            talk,
            owner_has_more,
            done,
            ..
        } = self;
        if done {
            let body = nonce_body(talk.nonce_prove_device);
            let reply = talk.tunnel.seal(MessageType::To2Done, &body, rng);
            return (
                DeviceSession {
                    run,
                    state: State::Done2(talk),
                },
                reply,
            );
        }
        let info = if owner_has_more {
            nothing()
        } else {
            outbox.fill(talk.mtu)
        };
        let has_more = !owner_has_more && !outbox.is_empty();
        let body = cbor::encode(|w| _ = w.array(2).bool(has_more).raw(&info));
        let reply = talk
            .tunnel
            .seal(MessageType::To2DeviceServiceInfo, &body, rng);
        (
            DeviceSession {
                run,
                state: State::ServiceInfo(talk),
            },
            reply,
        )
    }
}
