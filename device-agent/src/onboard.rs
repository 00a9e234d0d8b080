//! Onboarding: finds the owner by the rendezvous info of the credential (TO1), proves itself and
//! becomes its device (TO2), and comes out with an identity to work by.
//!
//! Called by `app` before anything is served, and as long as there is no identity. Every attempt can
//! be cut or killed at any step: what TO2 brings is staged in the vault before the owner is told
//! that it is stored, and committed when the owner has said its last word, or has proved later that
//! it holds the new voucher (`pending`). It never gives up, and says what it waits for. FDO secures
//! itself: addresses, DNS and refusals are not trusted for anything.

mod pending;
mod places;
mod talk;

use std::sync::Arc;
use std::time::Duration;

use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::discovery::Discovery;
use holdfast_link::fdo::{Client, Run};
use holdfast_link::https::Limits;
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::Backoff;
use holdfast_link::time::{Clock as _, SystemClock};
use holdfast_link::{fdo as link_fdo, https};
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::fdo::to1::{self, To1d};
use holdfast_protocol::fdo::to2::{self, DeviceSession, DeviceStep, DeviceTurn};
use holdfast_protocol::fdo::{ErrorCode, Message, MessageType, di};
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::rv::Contact;
use tracing::{debug, info, warn};

use crate::config;
use crate::network::NetworkFile;
use crate::status::{Board, Phase};
use crate::vault::{Contents, Identity, Staged, Vault, VaultError};
use places::Places;
pub(crate) use talk::check_certificate;
use talk::{Talk, TalkFault};

/// The longest delay that a rendezvous directive may ask for.
const MAX_DELAY: Duration = Duration::from_secs(600);

/// Why one attempt at one place led nowhere.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody there, or nobody who speaks FDO, or it refused.
    #[error(transparent)]
    Exchange(#[from] link_fdo::Error),
    /// What came does not follow the protocol, or does not prove the owner.
    #[error("{}: {error}", blame(*.after))]
    Protocol {
        /// What is wrong.
        error: holdfast_protocol::fdo::Error,
        /// Our message before it.
        after: MessageType,
    },
    /// The owner does not make us a device of a site.
    #[error(transparent)]
    Talk(#[from] TalkFault),
    /// Our own disk.
    #[error(transparent)]
    Vault(#[from] VaultError),
    /// Our own disk, for the LAN's credentials.
    #[error("the LAN's credentials cannot be kept: {0}; check the state folder and the disk")]
    Network(#[source] std::io::Error),
    /// The directive leads nowhere.
    #[error("{0}")]
    Nowhere(String),
}

/// The owner proves itself in 61 to 65: a failure there has one likely reason.
fn blame(message: MessageType) -> &'static str {
    match message {
        MessageType::To2HelloDevice
        | MessageType::To2GetOvNextEntry
        | MessageType::To2ProveDevice => {
            "who answered is not this device's owner by its voucher (give it the voucher, or correct the rendezvous registration)"
        }
        _ => "the other side broke the protocol",
    }
}

impl Fault {
    /// Whether the rendezvous server said that it knows no such device. Anybody on the path can say
    /// so: good for a sentence to people, never for a decision.
    fn is_unregistered(&self) -> bool {
        matches!(
            self,
            Self::Exchange(link_fdo::Error::Refused { message: MessageType::To1HelloRv, error })
                if error.code == ErrorCode::ResourceNotFound
        )
    }
}

/// What is wanted of an owner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Aim {
    /// All of TO2.
    Identity,
    /// Its proof alone: that it is the owner by the voucher of this very credential.
    Proof,
}

/// What came of it.
#[derive(Debug)]
enum Came {
    Identity(Box<Identity>),
    Paired,
    Proof,
}

/// What one round over all places showed.
#[derive(Debug, Default)]
struct Round {
    /// The last fault, and whether it is just that nobody has registered us.
    last: Option<String>,
    unregistered: bool,
}

/// The onboarding of one device.
#[derive(Debug)]
pub struct Onboarding {
    /// Who the device is.
    pub vault: Vault,
    /// Pauses and bounds.
    pub config: config::Onboarding,
    /// For `.local` names; none when switched off.
    pub discovery: Option<Arc<Discovery>>,
    /// How long mDNS may take.
    pub patience: Duration,
    /// Where LAN credentials go that an installer hands over.
    pub network: NetworkFile,
    /// Learns the owner's time.
    pub clock: Arc<SystemClock>,
    /// Where people see how far it is.
    pub board: Board,
}

impl Onboarding {
    /// The identity: the one in the vault, or a new one. Waits as long as it takes.
    ///
    /// # Errors
    /// The vault's: without it nothing can go on.
    pub async fn run(&self) -> Result<Identity, VaultError> {
        let mut backoff = Backoff::new(self.config.retry);
        let mut told = String::new();
        loop {
            let contents = self.vault.load()?;
            if let Contents {
                identity: Some(identity),
                staged: None,
                ..
            } = contents
            {
                return Ok(identity);
            }
            if let Some(staged) = &contents.staged
                && let Some(identity) = self.settle_pending(&contents.credential, staged).await?
            {
                return Ok(identity);
            }
            let round = match self.round(&contents.credential).await? {
                Ok(identity) => return Ok(identity),
                Err(round) => round,
            };
            let pause = backoff.failed(&mut SystemRandom);
            let why = self.explain(&contents.credential, &round);
            if told == why {
                debug!(?pause, "{why}");
            } else {
                warn!(?pause, "{why}");
                told.clone_from(&why);
            }
            self.board.phase(Phase::Onboarding, why);
            tokio::time::sleep(pause).await;
        }
    }

    fn explain(&self, credential: &DeviceCredential, round: &Round) -> String {
        let device = DeviceId::from_guid(credential.guid);
        if round.unregistered {
            return format!(
                "waiting: no rendezvous server knows {device} yet; assign its voucher to a site (`holdfast-cloud vouchers assign {device} --site SITE`)"
            );
        }
        let last = round
            .last
            .as_deref()
            .unwrap_or("its credential names no rendezvous server");
        format!("waiting: {last}")
    }

    /// Tries all places once. The outer result is our own disk's.
    async fn round(
        &self,
        credential: &DeviceCredential,
    ) -> Result<Result<Identity, Round>, VaultError> {
        let mut round = Round::default();
        for contact in credential.rendezvous.device_contacts() {
            match self.visit(credential, &contact, Aim::Identity).await {
                Ok(Came::Identity(identity)) => return Ok(Ok(*identity)),
                Ok(Came::Paired | Came::Proof) => {
                    round.last = Some("paired with the installer: looking for the site".into());
                    round.unregistered = false;
                }
                Err(Fault::Vault(error)) => return Err(error),
                Err(fault) => {
                    debug!(?contact, %fault, "no onboarding by this directive");
                    let unregistered = fault.is_unregistered();
                    // "Nobody there" says less than "I am here and do not know you".
                    if !round.unregistered
                        || !matches!(fault, Fault::Nowhere(_) | Fault::Exchange(_))
                    {
                        round.last = Some(fault.to_string());
                        round.unregistered = unregistered;
                    }
                }
            }
            if let Some(delay) = contact.delay_secs {
                let delay = Duration::from_secs(delay.into()).min(MAX_DELAY);
                tokio::time::sleep(places::jitter(delay, &mut SystemRandom)).await;
            }
        }
        Ok(Err(round))
    }

    async fn visit(
        &self,
        credential: &DeviceCredential,
        contact: &Contact,
        aim: Aim,
    ) -> Result<Came, Fault> {
        let places = Places {
            board: &self.board,
            discovery: self.discovery.as_deref(),
            patience: self.patience,
        };
        let addresses = places.of_contact(contact).await?;
        self.board.phase(
            Phase::Onboarding,
            format!("asking at {}", addresses.join(", ")),
        );
        if contact.bypass {
            return self.transfer(credential, addresses, None, aim).await;
        }
        let to1d = self.ask_rendezvous(credential, addresses).await?;
        let mut last = Fault::Nowhere("the owner registered no address that we can dial".into());
        for address in to1d.addresses() {
            let addresses = match places.of_owner(address).await {
                Ok(addresses) => addresses,
                Err(fault) => {
                    last = fault;
                    continue;
                }
            };
            let to1d = Some(to1d.clone());
            match self.transfer(credential, addresses, to1d, aim).await {
                Ok(came) => return Ok(came),
                Err(fault @ Fault::Vault(_)) => return Err(fault),
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    /// TO1: who is the owner's server now?
    async fn ask_rendezvous(
        &self,
        credential: &DeviceCredential,
        addresses: Vec<String>,
    ) -> Result<To1d, Fault> {
        let mut dialogue = Dialogue::new(addresses, self.config.deadline);
        let (state, hello) = to1::hello(credential);
        let answer = dialogue.ask(&hello).await?;
        let (state, prove) = dialogue.judge(state.step(&answer), hello.kind).await?;
        let answer = dialogue.ask(&prove).await?;
        dialogue.judge(state.step(&answer), prove.kind).await
    }

    /// TO2: becomes the owner's device, or only gets the LAN's credentials from it: then the
    /// credential stays as it is, and the site's own server is still to be found.
    async fn transfer(
        &self,
        credential: &DeviceCredential,
        addresses: Vec<String>,
        to1d: Option<To1d>,
        aim: Aim,
    ) -> Result<Came, Fault> {
        self.board.phase(
            Phase::Onboarding,
            format!("owner at {}", addresses.join(", ")),
        );
        let mut dialogue = Dialogue::new(addresses, self.config.deadline);
        let options = to2::Options {
            to1d,
            // An installer pairs without taking the device over.
            allow_reuse: true,
            ..to2::Options::default()
        };
        let (mut session, mut message) = to2::start(credential, options, &mut SystemRandom);
        let mut talk = Talk::new(credential, &mut SystemRandom)?;
        loop {
            let kind = message.kind;
            let answer = dialogue.ask(&message).await?;
            let step = session.step(&answer, &mut SystemRandom);
            (session, message) = match dialogue.judge(step, kind).await? {
                // The voucher's MAC and every signature up to the owner's own have held.
                DeviceStep::Continue(_, message)
                    if aim == Aim::Proof && message.kind == MessageType::To2ProveDevice =>
                {
                    dialogue.leave(message.kind).await;
                    return Ok(Came::Proof);
                }
                DeviceStep::Continue(session, message) => (session, message),
                DeviceStep::ServiceInfo(turn) => {
                    let heard = self.hear(credential, &mut talk, turn);
                    dialogue.keep(heard, kind).await?
                }
                DeviceStep::Finished => break,
            };
        }
        if !talk.is_stored() {
            info!("paired: the LAN's credentials are kept");
            return Ok(Came::Paired);
        }
        let identity = self.vault.commit()?.identity.ok_or(TalkFault::NoSite)?;
        self.learn(&identity);
        Ok(Came::Identity(Box::new(identity)))
    }

    fn hear(
        &self,
        credential: &DeviceCredential,
        talk: &mut Talk,
        mut turn: DeviceTurn,
    ) -> Result<(DeviceSession, Message), Fault> {
        for item in turn.take_items() {
            talk.hear(&item)?;
        }
        if let Some(identity) = talk.take_identity(self.clock.certain())? {
            let credential = turn.replacement().unwrap_or(credential).clone();
            self.vault.stage(Staged {
                credential,
                identity,
            })?;
            talk.stored()?;
        }
        if let Some(network) = talk.take_network() {
            self.network.keep(&network).map_err(Fault::Network)?;
            talk.paired()?;
        }
        let only_paired = talk.is_paired() && turn.replacement().is_none();
        if turn.owner_is_done() && !talk.is_stored() && !only_paired {
            return Err(TalkFault::NoSite.into());
        }
        Ok(turn.next(talk.outbox(), &mut SystemRandom))
    }

    fn learn(&self, identity: &Identity) {
        let site = &identity.site;
        info!(device = %site.device, site = %site.site, owner = %site.server, "onboarded");
        self.clock.hear(site.time);
        if let Err(error) = self.clock.keep_floor() {
            warn!(%error, "the time floor was not kept");
        }
    }
}

/// One run of a protocol; the other side hears of our refusals.
#[derive(Debug)]
struct Dialogue {
    run: Option<Run>,
}

impl Dialogue {
    fn new(addresses: Vec<String>, deadline: Duration) -> Self {
        Self {
            run: Some(client(addresses, "", deadline).start()),
        }
    }

    async fn ask(&mut self, message: &Message) -> Result<Message, Fault> {
        let run = self
            .run
            .as_mut()
            .ok_or_else(|| Fault::Nowhere("the run is over".into()))?;
        Ok(run.exchange(message).await?)
    }

    /// Passes a step's result on; an error of it ends the run and is reported there.
    async fn judge<T>(
        &mut self,
        step: Result<T, holdfast_protocol::fdo::Error>,
        message: MessageType,
    ) -> Result<T, Fault> {
        match step {
            Ok(next) => Ok(next),
            Err(error) => {
                if let (Some(run), Some(report)) = (self.run.take(), error.report(message)) {
                    run.give_up(report).await;
                }
                Err(Fault::Protocol {
                    error,
                    after: message,
                })
            }
        }
    }

    /// The same for a fault of ours or of the talk inside the tunnel.
    async fn keep<T>(&mut self, heard: Result<T, Fault>, message: MessageType) -> Result<T, Fault> {
        if heard.is_err() {
            self.leave(message).await;
        }
        heard
    }

    /// Ends the run before its end; the other side need not wait for the rest.
    async fn leave(&mut self, message: MessageType) {
        let error = holdfast_protocol::fdo::Error::Own("the device does not go on");
        if let (Some(run), Some(report)) = (self.run.take(), error.report(message)) {
            run.give_up(report).await;
        }
    }
}

fn client(addresses: Vec<String>, prefix: &str, deadline: Duration) -> Client {
    let endpoint = Endpoint {
        addresses,
        security: Security::Plain,
    };
    let limits = Limits {
        deadline,
        ..https::Limits::default()
    };
    Client::new(endpoint, prefix, limits)
}

/// Factory initialisation (DI): gets a credential from the manufacturer at `address` (host:port, with
/// a path `prefix` or an empty one) and puts it in the vault.
///
/// Killed in between, it is simply run again; the manufacturer is left with a voucher that no device
/// answers to.
///
/// # Errors
/// [`Fault`]; nothing is stored then.
pub async fn initialise(
    vault: &Vault,
    address: String,
    prefix: &str,
    serial: &str,
    model: &str,
    deadline: Duration,
) -> Result<DeviceId, Fault> {
    vault.check_absent()?;
    let mut dialogue = Dialogue {
        run: Some(client(vec![address], prefix, deadline).start()),
    };
    let kind = MessageType::DiAppStart;
    let started = di::start(serial, model, SigningKey::generate(&mut SystemRandom));
    let (state, start) = started.map_err(|error| Fault::Protocol { error, after: kind })?;
    let answer = dialogue.ask(&start).await?;
    let step = state.step(&answer, &mut SystemRandom);
    let (state, set_hmac) = dialogue.judge(step, kind).await?;
    let answer = dialogue.ask(&set_hmac).await?;
    let credential = dialogue.judge(state.step(&answer), set_hmac.kind).await?;
    let device = DeviceId::from_guid(credential.guid);
    vault.create(credential)?;
    Ok(device)
}

#[cfg(test)]
mod tests;
