//! The TO0 client: registers the vouchers by which we are the owner, so that devices find us, and
//! refreshes before the registration lapses. Called by the binaries with the rendezvous servers
//! to use; a gateway also registers at its own. It decides nothing about vouchers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_link::fdo::{Client, Error as LinkError};
use holdfast_link::random::SystemRandom;
use holdfast_link::retry::{Backoff, Policy as Retry};
use holdfast_protocol::fdo::Error;
use holdfast_protocol::fdo::to0::{Registration, hello};
use holdfast_protocol::id::Guid;
use holdfast_protocol::rv::{To2Address, To2Protocol};
use holdfast_protocol::voucher::{Voucher, VoucherError};
use holdfast_store::StoreError;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::Core;
use crate::config::FdoAddress;
use crate::rendezvous::Rendezvous;
use crate::tables::VoucherRow;

/// How often the vouchers are looked through.
const ROUND: Duration = Duration::from_secs(5);
/// Rest before a voucher is offered again to a server that refused it.
const REFUSED_REST: Duration = Duration::from_secs(600);

/// Why a voucher could not be registered.
#[derive(Debug, thiserror::Error)]
pub enum To0Error {
    /// The configuration advertises no address for TO2.
    #[error("no FDO address to register; set the advertised addresses in the configuration")]
    NoAddress,
    /// The voucher is not registrable.
    #[error(transparent)]
    Voucher(#[from] VoucherError),
    /// A message of the server does not hold, or it refused.
    #[error("the rendezvous server's answer does not hold: {0}")]
    Protocol(#[from] Error),
    /// The server was not reached, or answered 255.
    #[error("the rendezvous server refused or was lost: {0}")]
    Link(#[from] LinkError),
    /// Our own store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The TO0 client; cheap to clone.
#[derive(Clone, Debug)]
pub struct To0 {
    core: Core,
    local: Arc<Rendezvous>,
    wake: watch::Sender<u64>,
}

/// What one rendezvous server holds of us, as far as we know: GUID -> when to register again, and
/// the voucher's length: one that was extended is registered anew at once. Kept
/// in memory: after a restart all is registered anew, which also mends a server that forgot.
#[derive(Debug, Default)]
pub struct Registered(HashMap<Guid, (Instant, usize)>);

/// What one round did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Round {
    /// Registrations made or refreshed.
    pub done: usize,
    /// Registrations that failed, to be tried again.
    pub failed: usize,
}

impl To0 {
    pub(crate) fn new(core: Core, local: Arc<Rendezvous>) -> Self {
        Self {
            core,
            local,
            wake: watch::Sender::new(0),
        }
    }

    /// Looks through the vouchers at once (a new one has come).
    pub fn wake(&self) {
        self.wake.send_modify(|count| *count += 1);
    }

    /// Registers and refreshes at `server` until cancelled. One of these for each server.
    pub async fn run(&self, server: Client, cancel: CancellationToken) {
        let mut backoff = Backoff::new(Retry::default());
        let (mut wake, mut registered) = (self.wake.subscribe(), Registered::default());
        loop {
            wake.mark_unchanged();
            let wait = match self.round(&server, &mut registered).await {
                Ok(Round { failed: 0, .. }) => {
                    backoff.worked();
                    ROUND
                }
                Ok(_) => backoff.failed(&mut SystemRandom).max(ROUND),
                Err(error) => {
                    tracing::warn!(%error, "cannot register vouchers");
                    backoff.failed(&mut SystemRandom).max(ROUND)
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = wake.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Registers at `server` what is due: live vouchers without a registration, or with one that
    /// is half over.
    ///
    /// # Errors
    /// Our own store or configuration; a server's refusals are counted in the answer.
    pub async fn round(
        &self,
        server: &Client,
        registered: &mut Registered,
    ) -> Result<Round, To0Error> {
        let mut round = Round::default();
        let live = self.live()?;
        registered
            .0
            .retain(|guid, _| live.iter().any(|row| row.guid == *guid));
        let now = Instant::now();
        for row in &live {
            let length = row.voucher.len();
            let known = registered.0.get(&row.guid);
            if known.is_some_and(|(due, of)| *due > now && *of == length) {
                continue;
            }
            match self.register(server, row).await {
                Ok(granted) => {
                    round.done += 1;
                    let half = Duration::from_secs(u64::from(granted) / 2);
                    registered.0.insert(row.guid, (now + half, length));
                }
                Err(error) => {
                    tracing::warn!(guid = ?row.guid, %error, "registration failed");
                    self.core.metrics.refused("to0 client", "failed");
                    round.failed += 1;
                    if let To0Error::Link(LinkError::Transport(_)) = error {
                        break;
                    }
                    // The server said no and will say so again: others go first.
                    registered.0.insert(row.guid, (now + REFUSED_REST, length));
                }
            }
        }
        self.core
            .metrics
            .registered(live.len().saturating_sub(round.failed));
        Ok(round)
    }

    /// Registers at this server's own rendezvous whatever is live (a gateway's 70).
    ///
    /// # Errors
    /// Our own store or configuration.
    pub async fn register_here(&self) -> Result<Round, To0Error> {
        let registration = self.registration()?;
        let mut round = Round::default();
        for row in self.live()? {
            let voucher = registrable(&row, &self.core)?;
            match self.local.register_here(&voucher, &registration).await {
                Ok(_) => round.done += 1,
                Err(error) => {
                    tracing::warn!(guid = ?row.guid, %error, "local registration failed");
                    round.failed += 1;
                }
            }
        }
        Ok(round)
    }

    /// Registers one voucher; the seconds granted.
    ///
    /// # Errors
    /// See [`To0Error`].
    pub async fn register(&self, server: &Client, row: &VoucherRow) -> Result<u32, To0Error> {
        let registration = self.registration()?;
        let voucher = registrable(row, &self.core)?;
        let mut run = server.start();
        let (state, first) = hello();
        let answer = run.exchange(&first).await?;
        let (state, second) = state.step(
            &answer,
            &voucher,
            &*self.core.keys.owner_of(&voucher)?,
            &registration,
        )?;
        Ok(state.step(&run.exchange(&second).await?)?)
    }

    fn live(&self) -> Result<Vec<VoucherRow>, StoreError> {
        let rows = self.core.registry.read(|view| view.vouchers())?;
        Ok(rows.into_iter().filter(|row| row.live).collect())
    }

    fn registration(&self) -> Result<Registration, To0Error> {
        let addresses: Vec<To2Address> =
            self.core.advertise().fdo.iter().map(to2_address).collect();
        if addresses.is_empty() {
            return Err(To0Error::NoAddress);
        }
        let asked = self.core.config.limits.registration.as_secs();
        Ok(Registration {
            addresses,
            wait_secs: u32::try_from(asked).unwrap_or(u32::MAX),
        })
    }
}

/// A voucher that came from a TO2 has no entry yet, and rendezvous servers want one: we extend it
/// to ourselves.
pub(crate) fn registrable(row: &VoucherRow, core: &Core) -> Result<Voucher, VoucherError> {
    let voucher = Voucher::parse(&row.voucher)?;
    if !voucher.entries().is_empty() {
        return Ok(voucher);
    }
    // Signing is deterministic: the entry is the same each time, also after the key has given way.
    let own = core.keys.owner_of(&voucher)?;
    let next = holdfast_protocol::key::PublicKey::x509(&own.public());
    voucher.extend(&next, &own)
}

fn to2_address(address: &FdoAddress) -> To2Address {
    let protocol = if address.tls {
        To2Protocol::Https
    } else {
        To2Protocol::Http
    };
    To2Address {
        ip: address.ip,
        dns: address.dns.clone(),
        port: address.port,
        protocol,
    }
}
