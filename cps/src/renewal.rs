//! Renewal of certificates by their holders: devices, services and ordinary clients with the server
//! that certified them. Called by the one endpoint that accepts an expired certificate, within the
//! stated grace. Offline it works as well as online.
//!
//! The new certificate is the holder's to try; the old one stays good until the holder says that the
//! new one works ([`Renewal::confirm`]), and is revoked then. Whoever was revoked gets nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_protocol::certificate::validity;
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Change, Serial};
use holdfast_store::{WriteError, Written};
use tokio::time::Instant;

use crate::Core;
use crate::authority::{Authority, AuthorityError, Issued, Request, parse_serial};
use crate::registry::{Draft, RegistryError, Writing};
use crate::roster::{self, Known};
use crate::tables::{CertificateRow, Rank};

/// Certificates that one party may be given at once after a quiet time; then one each [`REFILL`].
const BURST: u32 = 8;
/// The log grows with each certificate: a holder gone wild must not fill it.
const REFILL: Duration = Duration::from_secs(60);
/// Parties remembered for that, beyond which new ones share one budget; and certificates of which it is
/// remembered on whose word they were given.
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
    words: Words,
}

impl Renewal {
    pub(crate) fn new(core: Core, authority: Authority) -> Self {
        Self {
            core,
            authority,
            budget: Arc::default(),
            words: Words::default(),
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
        self.words.note(&issued.serial, &known.serial);
        tracing::info!(%party, old = %known.serial, new = %issued.serial, "certificate renewed");
        Ok(issued)
    }

    /// The holder works by this certificate now: those before it are void from here on. One commit looks
    /// and voids: of two at the same time the later finds itself void and changes nothing, so the two
    /// never void each other.
    ///
    /// # Errors
    /// See [`Refusal`].
    pub async fn confirm(&self, certificates: &[Vec<u8>]) -> Result<Known, Refusal> {
        let known = self.core.roster.identify(certificates)?;
        holder(&known)?;
        let begin = certificates.first().and_then(|der| validity(der));
        let used = Used {
            subject: known.subject.clone(),
            serial: known.serial.clone(),
            begin: begin.map_or(0, |(begin, _)| begin),
            words: self.words.clone(),
        };
        let done: Written<usize, Refusal> = self
            .core
            .registry
            .write(move |it| used.void_others(it))
            .await;
        let count = done.map_err(|error| match error {
            WriteError::Store(error) => RegistryError::from(error).into(),
            WriteError::Job(refusal) => refusal,
        })?;
        if count > 0 {
            let serial = &known.serial;
            tracing::info!(party = %known.party, %serial, count, "superseded certificates are void");
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

/// On whose word certificates were given, by this process: serial numbers, the new one first. A request
/// that comes late was sent to this process too, so nobody else need know.
#[derive(Clone, Debug, Default)]
struct Words(Arc<Mutex<HashMap<String, String>>>);

impl Words {
    fn note(&self, new: &Serial, word: &Serial) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MOST {
            all.clear();
        }
        all.insert(new.to_string(), word.to_string());
    }

    /// Whether `serial` was given on the word of `word`, or of what that one was given since; unknown
    /// where this process gave it to nobody.
    fn descends(&self, serial: &str, word: &str) -> Option<bool> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut at = Some(all.get(serial)?);
        // As many steps as there are: no circle holds it up.
        for _ in 0..all.len() {
            match at {
                Some(above) if above == word => return Some(true),
                Some(above) => at = all.get(above),
                None => break,
            }
        }
        Some(false)
    }
}

/// A certificate that its holder works by.
struct Used {
    subject: String,
    serial: Serial,
    /// Unix seconds at which it begins.
    begin: u64,
    words: Words,
}

impl Used {
    /// Voids what was given before it, and what was given since to whoever held one of those; how many.
    /// Not what its own holder was given since: a confirmation may come late, for who lost the answer
    /// asks again, and the first may be on its way still when the holder works by the next.
    fn void_others(&self, it: &mut Writing<'_>) -> Result<usize, WriteError<Refusal>> {
        if it.tables.is_void(&self.serial)? {
            let refusal = roster::Refusal::Revoked(self.serial.to_string());
            return Err(WriteError::Job(refusal.into()));
        }
        let (mut others, serial) = (Vec::new(), self.serial.to_string());
        let own = match it.tables.certificate(&self.serial)? {
            Some(row) => it.tables.issued_at(&row)?,
            None => None,
        };
        for row in it.tables.certificates()? {
            if row.subject != self.subject || row.revoked || row.serial == serial {
                continue;
            }
            let is_before = self.words.descends(&serial, &row.serial) == Some(true);
            let is_anothers = self.words.descends(&row.serial, &serial) == Some(false);
            if is_before || is_anothers || self.is_after(&row, it.tables.issued_at(&row)?, &own) {
                others.push(row);
            }
        }
        let count = others.len();
        for row in others {
            let Some(serial) = parse_serial(&row.serial) else {
                continue;
            };
            let draft = Draft {
                site: row.site,
                device: row.device,
                change: Change::CertificateRevoked { serial },
            };
            it.append(draft).map_err(|error| match error {
                WriteError::Store(error) => WriteError::Store(error),
                WriteError::Job(error) => WriteError::Job(error.into()),
            })?;
        }
        Ok(count)
    }

    /// Whether it was given after that one, by the order of the log and by the issuers' clocks: two servers
    /// may not have known of each other, and in doubt nothing is voided.
    fn is_after(&self, row: &CertificateRow, its: Option<Rank>, own: &Option<Rank>) -> bool {
        let by_log = match (&its, own) {
            (Some(its), Some(own)) => its < own,
            _ => true,
        };
        by_log && row.not_before <= self.begin
    }
}

fn holder(known: &Known) -> Result<Party, Refusal> {
    match known.party.is_server() {
        true => Err(Refusal::Server(known.party.clone())),
        false => Ok(known.party.clone()),
    }
}
