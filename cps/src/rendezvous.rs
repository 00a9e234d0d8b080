//! The rendezvous server: TO0 (owners register) and TO1 (devices ask). Called by HTTP, by the relay
//! as its local backend, and by the TO0 client of the same process. An entry is replaced only by
//! the same owner's or by a strict descendant of its voucher; forks and ancestors are refused.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::fdo::to0::{ExpectOwnerSign, Offer, Registration, hello};
use holdfast_protocol::fdo::to1::{ExpectProveToRv, HelloRv};
use holdfast_protocol::fdo::{Error, Message, MessageType};
use holdfast_protocol::id::Guid;
use holdfast_protocol::voucher::{Policy, Relation, Voucher, VoucherError};
use holdfast_store::{StoreError, WriteError, Written};
use tokio::time::Instant;

use crate::Core;
use crate::errors::{end_run, own_store};
use crate::fdo::{Answer, FdoParty, FdoReply, FdoRequest, Sessions, Token};
use crate::tables::RendezvousRow;

/// Pause between two looks for lapsed entries when the table is full.
const SWEEP_REST: Duration = Duration::from_secs(60);

/// TO0 and TO1 server. Anybody may begin either run, so neither can crowd the other out.
#[derive(Debug)]
pub struct Rendezvous {
    core: Core,
    registering: Sessions<ExpectOwnerSign>,
    asking: Sessions<ExpectProveToRv>,
    swept: Mutex<Option<Instant>>,
}

/// Why an entry is not taken.
enum Denied {
    /// Another chain is registered for the device.
    Second(Relation),
    /// The table is full.
    Full,
}

impl Rendezvous {
    pub(crate) fn new(core: Core) -> Self {
        let limits = &core.config.limits;
        let (most, life) = (limits.fdo_sessions, limits.fdo_session_life);
        Self {
            core,
            registering: Sessions::new(most, life),
            asking: Sessions::new(most, life),
            swept: Mutex::default(),
        }
    }

    /// Registers a voucher here without going through HTTP (a gateway at its own rendezvous);
    /// the same checks, the same messages. Seconds granted.
    ///
    /// # Errors
    /// As a TO0 client would be told.
    pub async fn register_here(
        &self,
        voucher: &Voucher,
        registration: &Registration,
    ) -> Result<u32, Error> {
        let (owner, first) = hello();
        let (server, answer) = ExpectOwnerSign::begin(&first, &mut SystemRandom)?;
        let own = self.core.keys.owner_of(voucher)?;
        let (owner, signed) = owner.step(&answer, voucher, &own, registration)?;
        let accepted = self.register(server, &signed).await?;
        owner.step(&accepted)
    }

    async fn answer_message(&self, request: FdoRequest) -> FdoReply {
        let kind = MessageType::from_number(request.message).unwrap_or(MessageType::Error);
        let message = Message::new(kind, request.body.to_vec());
        let token = request.token.clone();
        let done = match kind {
            MessageType::To0Hello => self.begin_registering(&message),
            MessageType::To1HelloRv => self.begin_asking(&message),
            MessageType::To0OwnerSign => self.end_registering(request.token, &message).await,
            _ => self.end_asking(request.token, &message),
        };
        done.unwrap_or_else(|error| {
            let area = if kind.number() < 30 { "to0" } else { "to1" };
            end_run(&self.core.metrics, area, &error, kind, token, "")
        })
    }

    fn begin_registering(&self, message: &Message) -> Result<FdoReply, Error> {
        let (next, answer) = ExpectOwnerSign::begin(message, &mut SystemRandom)?;
        let token = self.registering.begin(next);
        Ok(reply(answer, Some(token)))
    }

    fn begin_asking(&self, message: &Message) -> Result<FdoReply, Error> {
        let hello = HelloRv::read(message)?;
        let row = self
            .entry(hello.guid())
            .map_err(|error| own_store(&error))?;
        let row = row.ok_or(Error::NotFound)?;
        let voucher = Voucher::parse(&row.voucher)?;
        let key = voucher.device_key().cloned().ok_or(Error::NotFound)?;
        let (next, answer) = hello.answer(key, row.to1d, &mut SystemRandom);
        let token = self.asking.begin(next);
        Ok(reply(answer, Some(token)))
    }

    async fn end_registering(
        &self,
        token: Option<Token>,
        message: &Message,
    ) -> Result<FdoReply, Error> {
        let (run, state) = token
            .and_then(|token| self.registering.take(&token))
            .ok_or(Error::NoSession)?;
        let answer = self.register(state, message).await?;
        // The run ends here; the token goes out once more and is void.
        Ok(reply(answer, Some(run.token().clone())))
    }

    fn end_asking(&self, token: Option<Token>, message: &Message) -> Result<FdoReply, Error> {
        let (run, state) = token
            .and_then(|token| self.asking.take(&token))
            .ok_or(Error::NoSession)?;
        Ok(reply(state.step(message)?, Some(run.token().clone())))
    }

    async fn register(&self, state: ExpectOwnerSign, message: &Message) -> Result<Message, Error> {
        let policy = Policy {
            now: self.core.clock.certain(),
            ..Policy::default()
        };
        let offer = state.step(message, &policy)?;
        if offer.voucher.device_key().is_none() {
            return Err(Error::Voucher(VoucherError::DeviceChainMissing));
        }
        let longest = self.core.config.limits.rendezvous_life.as_secs();
        let granted = u64::from(offer.wait_secs).min(longest);
        self.keep(&offer, granted).await?;
        Ok(offer.accept(u32::try_from(granted).unwrap_or(u32::MAX)))
    }

    /// Keeps the entry, if it may take the place of the one that is there.
    async fn keep(&self, offer: &Offer, granted: u64) -> Result<(), Error> {
        let row = RendezvousRow {
            guid: offer.voucher.guid(),
            to1d: offer.to1d.as_bytes().to_vec(),
            voucher: offer.voucher.as_bytes().to_vec(),
            expires: self.core.clock.certain().secs.saturating_add(granted),
        };
        let ours = self.core.keys.owns(&offer.voucher);
        if !ours {
            self.sweep().await.map_err(|error| own_store(&error))?;
        }
        let (new, now) = (offer.voucher.clone(), self.core.clock.certain());
        let most = self.core.config.limits.rendezvous_entries;
        let done: Written<(), Denied> = self
            .core
            .registry
            .write(move |it| {
                let held = it.tables.rendezvous(row.guid)?;
                if held.is_none() && !ours && it.tables.rendezvous_entries()? >= most {
                    return Err(WriteError::Job(Denied::Full));
                }
                let held = held.filter(|held| !held.has_lapsed(now));
                let held = held.and_then(|held| Voucher::parse(&held.voucher).ok());
                match held.map(|held| new.relation_to(&held)) {
                    None | Some(Relation::Same | Relation::Descendant) => {
                        Ok(it.tables.put_rendezvous(&row)?)
                    }
                    Some(other) => Err(WriteError::Job(Denied::Second(other))),
                }
            })
            .await;
        match done {
            Ok(()) => Ok(()),
            Err(WriteError::Store(error)) => Err(own_store(&error)),
            Err(WriteError::Job(Denied::Full)) => Err(Error::TooMuch("registrations")),
            Err(WriteError::Job(Denied::Second(relation))) => {
                let guid = offer.voucher.guid();
                tracing::error!(
                    ?guid,
                    ?relation,
                    "a second chain for a registered device: refused"
                );
                self.core.metrics.refused("to0", "voucher fork");
                Err(Error::Voucher(VoucherError::NotOwned))
            }
        }
    }

    /// Makes room in a full table, now and then: it reads the whole of it.
    async fn sweep(&self) -> Result<(), StoreError> {
        let entries = self.core.registry.read(|view| view.rendezvous_entries())?;
        if entries < self.core.config.limits.rendezvous_entries {
            return Ok(());
        }
        {
            let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
            if swept.is_some_and(|last| last.elapsed() < SWEEP_REST) {
                return Ok(());
            }
            *swept = Some(Instant::now());
        }
        let now = self.core.clock.certain();
        let done: Written<()> = self
            .core
            .registry
            .write(move |it| Ok(it.tables.sweep_rendezvous(now)?))
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error,
            WriteError::Job(never) => match never {},
        })
    }

    /// Whether a device would be answered here.
    pub(crate) fn knows(&self, guid: Guid) -> bool {
        self.entry(guid).is_ok_and(|entry| entry.is_some())
    }

    /// The entry of a device, unless it has lapsed.
    fn entry(&self, guid: Guid) -> Result<Option<RendezvousRow>, StoreError> {
        let now = self.core.clock.certain();
        let row = self.core.registry.read(|view| view.rendezvous(guid))?;
        Ok(row.filter(|row| !row.has_lapsed(now)))
    }
}

impl FdoParty for Rendezvous {
    fn messages(&self) -> &'static [u8] {
        &[20, 22, 30, 32]
    }

    fn answer(&self, request: FdoRequest) -> Answer<'_> {
        Box::pin(self.answer_message(request))
    }

    fn give_up(&self, token: &Token) {
        self.registering.end(token);
        self.asking.end(token);
    }
}

pub(crate) fn reply(message: Message, token: Option<Token>) -> FdoReply {
    FdoReply {
        message: message.kind.number(),
        token,
        body: message.body,
    }
}

/// The rendezvous as a party of its own, TO0 alone: beside a relay that answers TO1.
#[derive(Debug)]
pub struct OnlyTo0(pub Arc<Rendezvous>);

impl FdoParty for OnlyTo0 {
    fn messages(&self) -> &'static [u8] {
        &[20, 22]
    }

    fn answer(&self, request: FdoRequest) -> Answer<'_> {
        self.0.answer(request)
    }

    fn give_up(&self, token: &Token) {
        self.0.give_up(token);
    }
}
