//! Renewal of certificates by their holders: devices, services and ordinary clients with the server
//! that certified them. Called by the one endpoint that accepts an expired certificate, within the
//! stated grace. Offline it works as well as online.
//!
//! The new certificate is the holder's to try; the old one stays good until the holder says that the
//! new one works ([`Renewal::confirm`]), and is revoked then. Whoever was revoked gets nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Change, Serial};
use tokio::time::Instant;

use crate::Core;
use crate::authority::{Authority, AuthorityError, Issued, Request, parse_serial};
use crate::registry::{Draft, RegistryError};
use crate::roster::{self, Known};

/// Certificates that one party may be given at once after a quiet time; then one each [`REFILL`].
const BURST: u32 = 8;
/// The log grows with each certificate: a holder gone wild must not fill it.
const REFILL: Duration = Duration::from_secs(60);
/// Parties remembered for that; beyond it new ones share one budget.
const MOST: usize = 4_096;

/// Why nobody got a certificate.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// Who asks is nobody here, was revoked, or came too late. Blame: the peer.
    #[error(transparent)]
    Peer(#[from] roster::Refusal),
    /// A server makes its certificate itself.
    #[error("{0} is a server, which renews its certificate by its own authority")]
    Server(Party),
    /// Far too often.
    #[error("{0} asks for certificates too often; try again in a minute")]
    TooOften(Party),
    /// The request, or our own keys and store.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// Our own store.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl Refusal {
    /// One word for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Peer(refusal) => refusal.reason(),
            Self::Server(_) => "server",
            Self::TooOften(_) => "too often",
            Self::Authority(error) => error.reason(),
            Self::Registry(_) => "own store",
        }
    }
}

/// The room; cheap to clone.
#[derive(Clone, Debug)]
pub struct Renewal {
    core: Core,
    authority: Authority,
    budget: Arc<Mutex<HashMap<String, (u32, Instant)>>>,
}

impl Renewal {
    pub(crate) fn new(core: Core, authority: Authority) -> Self {
        Self {
            core,
            authority,
            budget: Arc::default(),
        }
    }

    /// Another certificate for the holder of this one, over the key of `csr`.
    ///
    /// # Errors
    /// See [`Refusal`]; each is counted.
    pub async fn renew(&self, certificates: &[Vec<u8>], csr: &[u8]) -> Result<Issued, Refusal> {
        let done = self.try_renew(certificates, csr).await;
        done.inspect_err(|refusal| self.core.metrics.refused("renewal", refusal.reason()))
    }

    async fn try_renew(&self, certificates: &[Vec<u8>], csr: &[u8]) -> Result<Issued, Refusal> {
        let grace = self.core.config.lives.grace;
        let known = self.core.roster.identify_late(certificates, grace)?;
        let party = holder(&known)?;
        if !self.admits(&known.subject) {
            return Err(Refusal::TooOften(party));
        }
        let request = Request {
            party: party.clone(),
            csr,
            addresses: Vec::new(),
        };
        let issued = self
            .authority
            .renew(party.clone(), &certificates[0], request);
        let issued = issued.await?;
        tracing::info!(%party, old = %known.serial, new = %issued.serial, "certificate renewed");
        Ok(issued)
    }

    /// The holder works by this certificate now: all others of its name are void from here on.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn confirm(&self, certificates: &[Vec<u8>]) -> Result<Known, Refusal> {
        let known = self.core.roster.identify(certificates)?;
        holder(&known)?;
        let serial = known.serial.to_string();
        let rows = self.core.registry.read(|view| view.certificates());
        let rows = rows.map_err(RegistryError::from)?;
        let old = rows
            .into_iter()
            .filter(|row| row.subject == known.subject && row.serial != serial && !row.revoked);
        let void = |serial: Serial, row: crate::CertificateRow| Draft {
            site: row.site,
            device: row.device,
            change: Change::CertificateRevoked { serial },
        };
        let drafts: Vec<Draft> = old
            .filter_map(|row| Some(void(parse_serial(&row.serial)?, row)))
            .collect();
        if !drafts.is_empty() {
            tracing::info!(party = %known.party, serial, count = drafts.len(), "superseded certificates are void");
            self.core.registry.append(drafts).await?;
        }
        Ok(known)
    }

    fn admits(&self, subject: &str) -> bool {
        let now = Instant::now();
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if budget.len() >= MOST && !budget.contains_key(subject) {
            let full = |since: &Instant| now.duration_since(*since) >= REFILL * BURST;
            budget.retain(|_, (_, since)| !full(since));
        }
        let shared = budget.len() >= MOST && !budget.contains_key(subject);
        let key = if shared { "" } else { subject };
        let (left, since) = budget.entry(key.to_owned()).or_insert((BURST, now));
        let earned = now.duration_since(*since).as_secs() / REFILL.as_secs();
        if earned > 0 {
            *left = BURST.min(left.saturating_add(u32::try_from(earned).unwrap_or(BURST)));
            *since = now;
        }
        match left.checked_sub(1) {
            Some(rest) => *left = rest,
            None => return false,
        }
        true
    }
}

fn holder(known: &Known) -> Result<Party, Refusal> {
    match known.party.is_server() {
        true => Err(Refusal::Server(known.party.clone())),
        false => Ok(known.party.clone()),
    }
}
