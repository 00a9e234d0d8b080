//! Who may speak, in memory: revoked serials, gateways' enrolments and the patterns of ordinary
//! clients, as of the last commit. Asked by the brokers and HTTP for every peer, so it never
//! touches the store; refreshed by `registry` after each commit that changes any of it.

mod grounds;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use holdfast_link::time::{Clock, Time, TimeQuality};
use holdfast_protocol::certificate::{CertificateFault, Leaf, Purpose};
use holdfast_protocol::id::{Domain, ServerId, SiteId};
use holdfast_protocol::name::{InvalidName, Party};
use holdfast_protocol::record::Serial;
use holdfast_protocol::rights::{Patterns, Place, Rights};
use holdfast_store::StoreError;
use serde::Serialize;
use tokio::sync::watch;

use crate::config::{CpsConfig, Role};
use crate::revocations::{ListView, Revocations};
use crate::tables::{CertificateRow, ClientRow, GatewayRow, LockCause, LockRow};
use grounds::Grounds;

/// Why a peer is nobody here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It showed no certificate.
    #[error("no client certificate; give the client one issued by this installation")]
    NoCertificate,
    /// The certificate is not one of ours, or not for this use.
    #[error("the client certificate is refused: {0}")]
    Certificate(#[from] CertificateFault),
    /// Its name is no party of ours.
    #[error("the client certificate names nobody of this installation: {0}")]
    Name(#[from] InvalidName),
    /// It was revoked.
    #[error("the certificate {0} is revoked; admit the party anew if it should come back")]
    Revoked(String),
    /// Signed by this gateway's own authority, and never issued here.
    #[error(
        "the certificate {0} is not on record, though it is signed by this gateway's own authority: its key was used by somebody else; run 'gateways replace' at the cloud"
    )]
    UnknownSerial(String),
    /// It leads to a root that was retired.
    #[error(
        "the certificate {0} leads to a root that was retired; enrol the gateway, onboard the device, or issue the client's certificate anew"
    )]
    RootGone(String),
    /// Nobody knows who was revoked.
    #[error(
        "the list of revoked certificates is damaged, so nobody is admitted; run 'certificates restore-revocations' here"
    )]
    ListLost,
    /// A gateway whose machine another one replaced.
    #[error(
        "{0} was replaced: this machine is locked out; to use it again enrol it anew with a token and an empty state folder"
    )]
    Replaced(String),
    /// A gateway that waits for its replacement.
    #[error(
        "{0} is locked out, to be replaced; if that was a mistake, 'gateways unlock' at the cloud lets it in again"
    )]
    Locked(String),
    /// A gateway of which there are two, or that was set back to a copy.
    #[error("{}", crate::turns::sentence(.0, .1))]
    Copied(String, String),
    /// A gateway that was revoked.
    #[error(
        "{0} was revoked: it is no gateway any more; to use the machine again enrol it anew with a token and an empty state folder"
    )]
    GatewayRevoked(String),
    /// It belongs to another site.
    #[error("{0} has no business at this server; it belongs to another site")]
    ForeignSite(Party),
}

impl Refusal {
    /// One word for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NoCertificate => "no certificate",
            Self::Certificate(fault) => fault.reason(),
            Self::Name(_) => "name of nobody",
            Self::Revoked(_) => "revoked",
            Self::UnknownSerial(_) => "unknown serial",
            Self::RootGone(_) => "root retired",
            Self::ListLost => "revocations lost",
            Self::Replaced(_) => "replaced",
            Self::Locked(_) => "locked",
            Self::Copied(..) => "copied",
            Self::GatewayRevoked(_) => "gateway revoked",
            Self::ForeignSite(_) => "foreign site",
        }
    }

    /// The name of a gateway whose enrolment is over or locked; of others none.
    #[must_use]
    pub fn gateway_out(&self) -> Option<&str> {
        match self {
            Self::Replaced(name)
            | Self::Locked(name)
            | Self::Copied(name, _)
            | Self::GatewayRevoked(name) => Some(name),
            _ => None,
        }
    }
}

/// A peer that is somebody.
#[derive(Clone, Debug)]
pub struct Known {
    /// Who it is.
    pub party: Party,
    /// Its DNS name: the subject under which its session is kept.
    pub subject: String,
    /// Its certificate's serial.
    pub serial: Serial,
    /// What it may do on a broker here.
    pub rights: Rights,
}

/// What the registry says of who may speak.
#[derive(Debug, Default)]
pub(crate) struct Content {
    revoked: BTreeSet<String>,
    /// Nobody knows what is revoked: nobody is admitted.
    lost: bool,
    /// Serials in the log: what a revoked authority issued counts only if it is among them, and what
    /// a witnessed one issued too.
    issued: BTreeSet<String>,
    /// Keys of this gateway's authorities, hashed, of which every serial is on record.
    witnessed: BTreeSet<String>,
    /// Gateways that are locked out, and why.
    locked: BTreeMap<ServerId, LockCause>,
    clients: BTreeMap<(SiteId, String), Arc<Patterns>>,
    gateways: BTreeMap<ServerId, GatewayRow>,
}

/// The roster; cheap to clone.
#[derive(Clone, Debug)]
pub struct Roster {
    content: Arc<RwLock<Content>>,
    refreshing: Arc<Mutex<()>>,
    changed: watch::Sender<u64>,
    domain: Domain,
    place: Place,
    clock: Arc<dyn Clock>,
    revocations: Revocations,
    /// At the cloud: who came by a certificate that sync has not brought yet.
    unrecorded: Arc<Mutex<BTreeMap<String, Unrecorded>>>,
    grounds: Arc<Grounds>,
    /// Counts the roots that went.
    retired: watch::Sender<u64>,
}

/// A certificate that was admitted though it is not on record yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unrecorded {
    /// Hex.
    pub serial: String,
    /// Whom it names.
    pub subject: String,
    /// When it came first since the start, unix seconds.
    pub since: u64,
}

/// Most of those that are remembered; beyond it they are admitted all the same.
const MOST_UNRECORDED: usize = 256;

impl Roster {
    pub(crate) fn new(config: &CpsConfig, clock: Arc<dyn Clock>, revocations: Revocations) -> Self {
        let place = match &config.role {
            Role::Cloud => Place::Cloud,
            Role::Gateway { site } => Place::Site(site.clone()),
        };
        Self {
            content: Arc::default(),
            refreshing: Arc::default(),
            changed: watch::Sender::new(0),
            domain: config.domain.clone(),
            place,
            clock,
            revocations,
            unrecorded: Arc::default(),
            grounds: Arc::default(),
            retired: watch::Sender::new(0),
        }
    }

    /// Whose brokers ask here, for rights that are compiled elsewhere.
    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Who the peer with this chain (leaf first, already verified in the handshake) is.
    ///
    /// # Errors
    /// [`Refusal`]; the broker answers "not authorized".
    pub fn identify(&self, certificates: &[Vec<u8>]) -> Result<Known, Refusal> {
        self.identify_at(certificates, self.clock.certain())
    }

    /// The same for whoever wants another certificate, and whose own expired within `grace`: the
    /// handshake has let it in.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn identify_late(
        &self,
        certificates: &[Vec<u8>],
        grace: Duration,
    ) -> Result<Known, Refusal> {
        let now = self.clock.certain();
        let then = Time::new(now.secs.saturating_sub(grace.as_secs()), TimeQuality::Floor);
        self.identify_at(certificates, then)
    }

    fn identify_at(&self, certificates: &[Vec<u8>], now: Time) -> Result<Known, Refusal> {
        let leaf = certificates.first().ok_or(Refusal::NoCertificate)?;
        let leaf = Leaf::inspect(leaf, &self.domain, Purpose::Client)?;
        leaf.check_time(now)?;
        if self.read(|content| content.lost) {
            return Err(Refusal::ListLost);
        }
        self.check_standing(&leaf, certificates)?;
        self.check_place(&leaf.party)?;
        self.check_lock(&leaf.party, &leaf.dns)?;
        if !self.grounds.hold(&leaf.serial, certificates, now) {
            return Err(Refusal::RootGone(leaf.serial.to_string()));
        }
        self.note_unrecorded(&leaf);
        let rights = self.rights_of(&leaf.party);
        Ok(Known {
            party: leaf.party,
            subject: leaf.dns,
            serial: leaf.serial,
            rights,
        })
    }

    /// The rights of a subject whose certificate was checked before (a stored session).
    ///
    /// # Errors
    /// The subject names nobody of ours.
    pub fn rights_for_subject(&self, subject: &str) -> Result<(Party, Rights), Refusal> {
        let party = Party::parse(subject, &self.domain)?;
        self.check_place(&party)?;
        self.check_lock(&party, subject)?;
        let rights = self.rights_of(&party);
        Ok((party, rights))
    }

    /// The numbered list of what was revoked, as people see it.
    #[must_use]
    pub fn revocations(&self) -> ListView {
        self.revocations.view()
    }

    /// The list itself, for who keeps it.
    pub(crate) fn revocation_list(&self) -> &Revocations {
        &self.revocations
    }

    /// Neither the certificate nor, for what the log does not know, an authority above it is revoked.
    fn check_standing(&self, leaf: &Leaf, certificates: &[Vec<u8>]) -> Result<(), Refusal> {
        let above: Vec<String> = certificates
            .iter()
            .skip(1)
            .filter_map(|der| crate::authority::serial_of(der))
            .map(|serial| serial.to_string())
            .collect();
        let serial = leaf.serial.to_string();
        if self.is_made_up(&serial, certificates) {
            return Err(Refusal::UnknownSerial(serial));
        }
        let (revoked, known) = self.read(|content| {
            let by_revoked = above.iter().any(|one| content.revoked.contains(one));
            let known = !by_revoked || content.issued.contains(&serial);
            let gateway = matches!(leaf.party, Party::Gateway { .. });
            let revoked = content.revoked.contains(&serial) || (by_revoked && gateway);
            (revoked, known)
        });
        if !revoked && known {
            return Ok(());
        }
        if let Party::Gateway { server, .. } = &leaf.party
            && self.lock_of(server) == Some(LockCause::Revoke)
        {
            return Err(Refusal::GatewayRevoked(leaf.dns.clone()));
        }
        let replaced = match &leaf.party {
            // Whatever a later enrolment left void, it has replaced.
            Party::Gateway { server, .. } => self.gateway(server).is_some_and(|row| row.epoch > 1),
            _ => false,
        };
        Err(match replaced {
            true => Refusal::Replaced(leaf.dns.clone()),
            false => Refusal::Revoked(serial),
        })
    }

    /// Whether an authority of ours of which everything is on record signed it, but it is not. Any
    /// authority in the chain counts: who signs by hand must show the one whose key he has.
    fn is_made_up(&self, serial: &str, certificates: &[Vec<u8>]) -> bool {
        if self.read(|it| it.witnessed.is_empty() || it.issued.contains(serial)) {
            return false;
        }
        let mut above = certificates.iter().skip(1);
        above.any(|der| {
            let print = crate::authority::witness::key_print(der);
            print.is_some_and(|print| self.read(|it| it.witnessed.contains(&print)))
        })
    }

    /// At the cloud a site's certificate may come before the entry that records it.
    fn note_unrecorded(&self, leaf: &Leaf) {
        let serial = leaf.serial.to_string();
        let late = matches!(self.place, Place::Cloud) && leaf.party.site().is_some();
        if !late || self.read(|content| content.issued.contains(&serial)) {
            return;
        }
        let mut all = self
            .unrecorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if all.contains_key(&serial) || all.len() >= MOST_UNRECORDED {
            return;
        }
        tracing::info!(
            subject = leaf.dns,
            serial,
            "a certificate came that is not on record yet"
        );
        let row = Unrecorded {
            serial: serial.clone(),
            subject: leaf.dns.clone(),
            since: self.clock.now().secs,
        };
        all.insert(serial, row);
    }

    /// At the cloud: certificates that were admitted and are not on record yet.
    #[must_use]
    pub fn unrecorded(&self) -> Vec<Unrecorded> {
        let mut all = self
            .unrecorded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.read(|content| all.retain(|serial, _| !content.issued.contains(serial)));
        all.values().cloned().collect()
    }

    /// Takes note of what this server issued, before anybody can show it.
    pub(crate) fn issued(&self, serials: &[String]) {
        if serials.is_empty() {
            return;
        }
        // An older snapshot that is being taken must not put them out again.
        let _one = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut content = self.content.write().unwrap_or_else(PoisonError::into_inner);
        content.issued.extend(serials.iter().cloned());
    }

    fn check_lock(&self, party: &Party, name: &str) -> Result<(), Refusal> {
        let Party::Gateway { server, .. } = party else {
            return Ok(());
        };
        match self.lock_of(server) {
            None => Ok(()),
            Some(LockCause::Replace) => Err(Refusal::Locked(name.to_owned())),
            Some(LockCause::Revoke) => Err(Refusal::GatewayRevoked(name.to_owned())),
            Some(LockCause::Copy(why)) => Err(Refusal::Copied(name.to_owned(), why)),
        }
    }

    /// Why a gateway's present enrolment is locked out, if it is.
    #[must_use]
    pub fn lock_of(&self, gateway: &ServerId) -> Option<LockCause> {
        self.read(|content| content.locked.get(gateway).cloned())
    }

    /// What an operator granted to an ordinary client; nobody else has patterns.
    #[must_use]
    pub fn patterns(&self, party: &Party) -> Option<Arc<Patterns>> {
        let Party::Client { name, site } = party else {
            return None;
        };
        let site = site.clone().unwrap_or_else(SiteId::of_cloud);
        let key = (site, name.as_str().to_owned());
        self.read(|content| content.clients.get(&key).cloned())
    }

    /// Whether a serial was revoked, or might have been for all that is known.
    #[must_use]
    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.read(|content| content.lost || content.revoked.contains(&serial.to_string()))
    }

    /// Whether a session by that certificate leans on a root that was retired a moment ago.
    #[must_use]
    pub fn is_groundless(&self, serial: &Serial) -> bool {
        self.grounds.went(serial)
    }

    /// These roots are believed from now on, the present one first. If one went, sessions are asked again.
    pub(crate) fn believe(&self, roots: Vec<Vec<u8>>) {
        if self.grounds.believe(roots) {
            self.retired.send_modify(|count| *count += 1);
            self.changed.send_modify(|version| *version += 1);
        }
    }

    /// Tells when a root went: standing connections were let in by what holds no longer.
    pub(crate) fn retirements(&self) -> watch::Receiver<u64> {
        self.retired.subscribe()
    }

    /// A gateway's highest enrolment.
    #[must_use]
    pub fn gateway(&self, server: &ServerId) -> Option<GatewayRow> {
        self.read(|content| content.gateways.get(server).cloned())
    }

    /// What to tell of the time to whom has been admitted.
    #[must_use]
    pub fn certain(&self) -> Time {
        self.clock.certain()
    }

    /// Tells when anything changed, so that live sessions can be asked again.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// At a site only its own parties have business; servers of the cloud have at both.
    fn check_place(&self, party: &Party) -> Result<(), Refusal> {
        match (&self.place, party) {
            (Place::Cloud, _) | (_, Party::Cloud { .. }) => Ok(()),
            (Place::Site(site), party) if party.site() == Some(site) => Ok(()),
            _ => Err(Refusal::ForeignSite(party.clone())),
        }
    }

    fn rights_of(&self, party: &Party) -> Rights {
        Rights::compile(party, self.patterns(party).as_deref(), &self.place)
    }

    /// Takes the content anew. One at a time, so that an older snapshot never replaces a newer.
    pub(crate) fn refresh(
        &self,
        load: impl FnOnce() -> Result<Content, StoreError>,
    ) -> Result<(), StoreError> {
        let _one = self
            .refreshing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let content = load()?;
        *self.content.write().unwrap_or_else(PoisonError::into_inner) = content;
        self.changed.send_modify(|version| *version += 1);
        Ok(())
    }

    fn read<T>(&self, read: impl FnOnce(&Content) -> T) -> T {
        read(&self.content.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Content {
    /// From the rows as of one commit.
    pub(crate) fn new(
        certificates: Vec<CertificateRow>,
        clients: Vec<ClientRow>,
        gateways: Vec<GatewayRow>,
        locks: &[LockRow],
        revoked: Option<BTreeSet<String>>,
    ) -> Self {
        let mut content = Self {
            lost: revoked.is_none(),
            revoked: revoked.unwrap_or_default(),
            ..Self::default()
        };
        for row in certificates {
            content.issued.insert(row.serial);
        }
        for row in clients {
            let patterns = Patterns {
                publish: row.publish,
                subscribe: row.subscribe,
                shared: false,
            };
            let key = (row.site, row.name.as_str().to_owned());
            content.clients.insert(key, Arc::new(patterns));
        }
        for row in gateways {
            content.gateways.insert(row.server.clone(), row);
        }
        for lock in locks {
            let present = content.gateways.get(&lock.gateway);
            // A higher enrolment is in: the lock has done its work.
            if present.is_some_and(|row| row.epoch <= lock.epoch) {
                content
                    .locked
                    .insert(lock.gateway.clone(), lock.cause.clone());
            }
        }
        content
    }

    /// The same with the authorities of which everything is on record.
    pub(crate) fn witnessed(mut self, keys: BTreeSet<String>) -> Self {
        self.witnessed = keys;
        self
    }
}
