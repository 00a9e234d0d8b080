//! The certificate authority: root at the cloud, one intermediate per site at its gateway and one
//! at the cloud, leaves from templates. Called by the registrar (devices), enrolment (gateways),
//! `clients`, and the binaries for their own identity. Works offline. It takes nothing from a
//! request but its key, and hands out nothing that is not in the log.

mod error;
mod following;
mod identity;
mod intermediate;
mod leaning;
pub(crate) mod pem;
mod revoke;
mod rotation;
mod signer;
mod template;
pub(crate) mod witness;

use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_link::tls::Anchors;
use holdfast_protocol::certificate::validity;
use holdfast_protocol::crypto::{Curve, VerifyingKey};
use holdfast_protocol::csr::Csr;
use holdfast_protocol::id::{DeviceId, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::Change;
use holdfast_protocol::renewal::BACKDATE;
use holdfast_protocol::roots;
use holdfast_store::{WriteError, Written};
use rand_core::Rng as _;
use tokio::sync::watch;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use error::AuthorityError;
pub(crate) use error::csr_reason;
pub use following::Followed;
pub(crate) use following::PATH as ROOTS_PATH;
pub use holdfast_protocol::csr::CsrError;
pub use holdfast_protocol::record::Serial;
pub use intermediate::{RenewalError, WINDOW_WARNING};
pub use leaning::{Leaning, Standing};
pub use revoke::Whose;
pub use rotation::RotationError;
pub use signer::{FileSigner, Signer, SignerError};
pub use template::{Issuer, Subject, Template, is_private};

use crate::Core;
use crate::registry::Draft;
use crate::tables::{CertificateRow, SiteRow};

/// Random; positive and of full length, so that its DER has always 16 bytes.
fn random_serial() -> [u8; 16] {
    let mut bytes = [0; 16];
    SystemRandom.fill_bytes(&mut bytes);
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    bytes
}

/// The serial number of a certificate.
#[must_use]
pub fn serial_of(certificate: &[u8]) -> Option<Serial> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Serial::new(parsed.raw_serial())
}

/// A serial number from its hex digits, as listings show it.
#[must_use]
pub fn parse_serial(text: &str) -> Option<Serial> {
    if text.is_empty() || text.len() % 2 == 1 || !text.is_ascii() {
        return None;
    }
    let pairs = (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16));
    Serial::new(&pairs.collect::<Result<Vec<u8>, _>>().ok()?)
}

/// What is asked: a certificate for `party`, over the key of `csr`.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Whom it will name: decided by the caller from what the peer proved.
    pub party: Party,
    /// PKCS#10 DER.
    pub csr: &'a [u8],
    /// Addresses for a server's certificate; others have none.
    pub addresses: Vec<IpAddr>,
}

/// An issued certificate.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, DER.
    pub leaf: Vec<u8>,
    /// What goes with it: the intermediate, and cross-certificates while there are two roots.
    pub chain: Vec<Vec<u8>>,
    /// Its serial.
    pub serial: Serial,
    /// Unix seconds.
    pub not_after: u64,
    /// The certified key.
    pub key: VerifyingKey,
}

impl Issued {
    /// Leaf and intermediates, as a TLS peer shows them.
    #[must_use]
    pub fn full_chain(&self) -> Vec<Vec<u8>> {
        std::iter::once(&self.leaf)
            .chain(&self.chain)
            .cloned()
            .collect()
    }
}

/// The authority's five verbs: issue, renew, revoke, list, chain.
#[derive(Clone, Debug)]
pub struct Authority {
    core: Core,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// What every handshake of this server believes.
    trust: Anchors,
    /// Counts changes of what is believed or of who issues.
    changes: watch::Sender<u64>,
    /// One change of roots and issuers at a time.
    changing: Mutex<()>,
    /// At the cloud: how gateways stood when they last asked.
    gateways: Mutex<leaning::Gateways>,
}

impl Authority {
    pub(crate) fn new(core: Core) -> Result<Self, AuthorityError> {
        let gateways = leaning::Gateways::open(core.keys.folder())?;
        Ok(Self {
            core,
            shared: Arc::new(Shared {
                trust: Anchors::none(),
                changes: watch::Sender::new(0),
                changing: Mutex::default(),
                gateways: Mutex::new(gateways),
            }),
        })
    }

    /// Makes what is missing, finishes what a power cut interrupted, and believes what is on the disk.
    pub(crate) fn open(&self) -> Result<(), AuthorityError> {
        if self.core.cloud.is_none() {
            self.establish_root()?;
            self.renew_issuers()?;
        }
        self.believe()
    }

    /// The roots that every handshake of this server believes, as they change.
    #[must_use]
    pub fn trust(&self) -> Anchors {
        self.shared.trust.clone()
    }

    /// Tells when roots or issuers changed: this server's own certificate may be due then.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// Takes over from the disk what is believed.
    fn believe(&self) -> Result<(), AuthorityError> {
        let broken = |_| SignerError::Encoding(rcgen::Error::CouldNotParseCertificate);
        let anchors = self.anchors()?;
        let chain = self.chain(self.core.config.role.site())?;
        let since = chain.first().and_then(|der| validity(der));
        let since = since.map_or(0, |(since, _)| since);
        self.core.metrics.believes(anchors.len(), since);
        self.shared.trust.set(anchors.clone()).map_err(broken)?;
        self.core.roster.believe(anchors);
        self.shared.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        let lock = self.shared.changing.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Issues a certificate from the party's template.
    ///
    /// # Errors
    /// A bad request, a party of another server, or our own keys and store.
    pub async fn issue(&self, request: Request<'_>) -> Result<Issued, AuthorityError> {
        let issued = self.try_issue(request).await;
        if let Err(error) = &issued {
            self.core.metrics.refused("authority", error.reason());
        }
        issued
    }

    async fn try_issue(&self, request: Request<'_>) -> Result<Issued, AuthorityError> {
        let key = csr_key(request.csr)?;
        self.certify(request.party, key, &request.addresses).await
    }

    /// Renews: the party of `current` (a leaf that the caller verified in a handshake) gets a new
    /// certificate from the same template, over the key of `csr`.
    ///
    /// # Errors
    /// The current one is revoked or not of our making; else as [`Authority::issue`].
    pub async fn renew(
        &self,
        party: Party,
        current: &[u8],
        request: Request<'_>,
    ) -> Result<Issued, AuthorityError> {
        let serial =
            serial_of(current).ok_or_else(|| AuthorityError::ForeignParty(party.clone()))?;
        if self.core.roster.is_revoked(&serial) {
            return Err(AuthorityError::Revoked(serial));
        }
        let renewed = self.try_renew(party, serial, request).await;
        if let Err(error) = &renewed {
            self.core.metrics.refused("authority", error.reason());
        }
        renewed
    }

    async fn try_renew(
        &self,
        party: Party,
        word: Serial,
        request: Request<'_>,
    ) -> Result<Issued, AuthorityError> {
        let (issued, draft) = self.sign_request(party, request.csr, &request.addresses)?;
        self.record_on_word(vec![word], draft).await?;
        Ok(issued)
    }

    /// The certificates issued for a site, by either server, or all of them.
    ///
    /// # Errors
    /// Our own store.
    pub fn list(&self, site: Option<&SiteId>) -> Result<Vec<CertificateRow>, AuthorityError> {
        let rows = self.core.registry.read(|view| view.certificates())?;
        Ok(rows
            .into_iter()
            .filter(|row| site.is_none_or(|site| row.site == *site))
            .collect())
    }

    /// The chain of the issuer that certifies for `site` here (`None`: the cloud's own): its own
    /// certificate first, cross-certificates, roots.
    ///
    /// # Errors
    /// No such issuer, or its files.
    pub fn chain(&self, site: Option<&SiteId>) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let issuer = site.map_or(Issuer::Servers, |site| Issuer::Site(site.clone()));
        let chain = self.core.keys.signer().chain(&issuer)?;
        if chain.is_empty() {
            return Err(SignerError::NoIssuer(issuer.label()).into());
        }
        Ok(chain)
    }

    /// The root certificates believed, DER, the present one first.
    ///
    /// # Errors
    /// The authority has no root yet.
    pub fn anchors(&self) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let chain = match self.core.config.role.site() {
            None => self.core.keys.signer().chain(&Issuer::Root)?,
            Some(site) => self.chain(Some(site))?,
        };
        let (_, roots) = roots::split(&chain);
        match roots.is_empty() {
            true => Err(SignerError::NoIssuer("root".into()).into()),
            false => Ok(roots),
        }
    }

    /// What others are told of roots: cross-certificates, and the roots.
    pub(crate) fn told(&self) -> Result<[Vec<Vec<u8>>; 2], AuthorityError> {
        let chain = match self.core.config.role.site() {
            None => self.core.keys.signer().chain(&Issuer::Root)?,
            // Its own certificate is no cross-certificate.
            Some(site) => self.chain(Some(site))?.split_off(1),
        };
        let (crosses, roots) = roots::split(&chain);
        Ok([crosses, roots])
    }

    /// Adds a site at the cloud, with an intermediate of its own.
    pub(crate) async fn add_site(&self, site: &SiteId) -> Result<(), AuthorityError> {
        self.establish_site(site)?;
        let row = SiteRow {
            site: site.clone(),
            at: self.core.clock.now().secs,
        };
        let done: Written<()> = self
            .core
            .registry
            .write(move |it| match it.tables.site(&row.site)? {
                Some(_) => Ok(()),
                None => Ok(it.tables.put_site(&row)?),
            })
            .await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error.into(),
            WriteError::Job(never) => match never {},
        })
    }

    /// Makes what is missing at the cloud: the root and the issuer for servers.
    pub(crate) fn establish_root(&self) -> Result<(), AuthorityError> {
        let signer = self.core.keys.signer();
        if signer.chain(&Issuer::Root)?.is_empty() {
            let spki = signer.prepare(&Issuer::Root)?;
            let subject = Subject::Root {
                domain: self.core.config.domain.clone(),
            };
            let template = self.template(subject, spki, self.core.config.lives.root);
            let root = signer.sign(&Issuer::Root, &template)?;
            signer.install(&Issuer::Root, &[root])?;
        }
        if signer.chain(&Issuer::Servers)?.is_empty() {
            self.establish_issuer(&Issuer::Servers)?;
        }
        Ok(())
    }

    /// The cloud's own intermediate for a site; nothing where there is one already.
    pub(crate) fn establish_site(&self, site: &SiteId) -> Result<(), AuthorityError> {
        let issuer = Issuer::Site(site.clone());
        if self.core.keys.signer().chain(&issuer)?.is_empty() {
            self.establish_issuer(&issuer)?;
        }
        Ok(())
    }

    fn establish_issuer(&self, issuer: &Issuer) -> Result<(), AuthorityError> {
        let signer = self.core.keys.signer();
        let spki = signer.prepare(issuer)?;
        let chain = self.sign_issuer(issuer, &self.core.config.server, spki)?;
        Ok(signer.install(issuer, &chain)?)
    }

    /// Signs an intermediate by the present root: its own certificate first, then what goes with it.
    pub(crate) fn sign_issuer(
        &self,
        issuer: &Issuer,
        holder: &ServerId,
        spki: Vec<u8>,
    ) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let config = &self.core.config;
        let subtrees = match config.name_constraints {
            true => issuer.subtrees(&config.domain),
            false => Vec::new(),
        };
        let subject = Subject::Issuer {
            issuer: issuer.clone(),
            holder: holder.to_string(),
            subtrees,
        };
        let template = self.template(subject, spki, config.lives.issuer);
        let signer = self.core.keys.signer();
        let (own, root) = signed_within(signer, &Issuer::Root, &template)?;
        Ok(std::iter::once(own).chain(above_issuers(&root)).collect())
    }

    /// Signs by template over the key of a request: the certificate, and the entry to be recorded
    /// before it goes out.
    pub(crate) fn sign_request(
        &self,
        party: Party,
        csr: &[u8],
        addresses: &[IpAddr],
    ) -> Result<(Issued, Draft), AuthorityError> {
        self.sign_leaf(party, csr_key(csr)?, addresses)
    }

    pub(crate) async fn certify(
        &self,
        party: Party,
        key: VerifyingKey,
        addresses: &[IpAddr],
    ) -> Result<Issued, AuthorityError> {
        let (issued, draft) = self.sign_leaf(party, key, addresses)?;
        // A certificate counts as issued only once its serial is in the log.
        self.core.registry.append(vec![draft]).await?;
        self.core.metrics.issued();
        Ok(issued)
    }

    fn sign_leaf(
        &self,
        party: Party,
        key: VerifyingKey,
        addresses: &[IpAddr],
    ) -> Result<(Issued, Draft), AuthorityError> {
        let issuer = self.issuer_of(&party)?;
        let addresses = if party.is_server() {
            addresses.to_vec()
        } else {
            Vec::new()
        };
        let in_site = matches!(issuer, Issuer::Site(_));
        if let Some(public) = addresses
            .iter()
            .find(|address| in_site && !is_private(**address))
        {
            return Err(AuthorityError::PublicAddress(*public));
        }
        let signer = self.core.keys.signer();
        let chain = signer.chain(&issuer)?;
        let site = party.site().cloned().unwrap_or_else(SiteId::of_cloud);
        let life = match party.is_server() {
            true => self.core.config.lives.server,
            false => self.core.config.lives.leaf,
        };
        let (device, dns) = (party.device(), party.dns(&self.core.config.domain));
        let own = party == self.own_party();
        let subject = Subject::Leaf {
            party,
            dns: dns.clone(),
            addresses,
        };
        let mut template = self.template(subject, key.to_spki_der(), life);
        // Nothing outlives its issuer.
        let limit = chain
            .first()
            .and_then(|der| not_after(der))
            .unwrap_or(u64::MAX);
        template.not_after = match own && !self.core.clock.certain().is_authenticated() {
            // How far our clock is behind those of our peers nobody knows; the issuer's key is ours
            // anyway. It is made anew as soon as the time is known.
            true => limit,
            false => template.not_after.min(limit),
        };
        let (leaf, chain) = signed_within(signer, &issuer, &template)?;
        let draft = issue_draft(&site, device, &leaf, dns)?;
        let (chain, _) = roots::split(&chain);
        let not_after = template.not_after;
        let serial = Serial::new(&template.serial).expect("a random serial begins with a bit");
        Ok((
            Issued {
                leaf,
                chain,
                serial,
                not_after,
                key,
            },
            draft,
        ))
    }

    fn issuer_of(&self, party: &Party) -> Result<Issuer, AuthorityError> {
        let foreign = || AuthorityError::ForeignParty(party.clone());
        match (party.site(), self.core.config.role.site()) {
            (Some(site), Some(own)) if site != own => Err(foreign()),
            (Some(site), _) => Ok(Issuer::Site(site.clone())),
            (None, None) => Ok(Issuer::Servers),
            (None, Some(_)) => Err(foreign()),
        }
    }

    fn template(&self, subject: Subject, spki: Vec<u8>, life: Duration) -> Template {
        let now = self.core.clock.certain().secs;
        Template {
            subject,
            serial: random_serial(),
            not_before: now.saturating_sub(BACKDATE.as_secs()),
            not_after: now.saturating_add(life.as_secs()),
            spki,
        }
    }
}

/// Signs, and gives the issuer's chain that goes with the signature: another may take its place between
/// the two.
fn signed_within(
    signer: &dyn Signer,
    issuer: &Issuer,
    template: &Template,
) -> Result<(Vec<u8>, Vec<Vec<u8>>), SignerError> {
    const TRIES: usize = 4;
    for _ in 0..TRIES {
        let signed = signer.sign(issuer, template)?;
        let chain = signer.chain(issuer)?;
        if chain
            .first()
            .is_some_and(|own| roots::is_signed_by(&signed, own))
        {
            return Ok((signed, chain));
        }
    }
    Err(SignerError::NoIssuer(issuer.label()))
}

/// What an issuer keeps above its own certificate, of the root's chain: cross-certificates first,
/// since a program that looks for a way up takes the first that fits.
fn above_issuers(root: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let (mut above, roots) = roots::split(root);
    above.extend(roots);
    above
}

/// The entry that logs an issue.
fn issue_draft(
    site: &SiteId,
    device: Option<DeviceId>,
    certificate: &[u8],
    subject: String,
) -> Result<Draft, AuthorityError> {
    let broken = || SignerError::Encoding(rcgen::Error::CouldNotParseCertificate);
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| broken())?;
    let change = Change::CertificateIssued {
        serial: Serial::new(parsed.raw_serial()).ok_or_else(broken)?,
        subject,
        not_before: seconds(parsed.validity().not_before.timestamp()),
        not_after: seconds(parsed.validity().not_after.timestamp()),
        key: VerifyingKey::from_spki_der(parsed.public_key().raw).map_err(|_| broken())?,
    };
    Ok(Draft {
        site: site.clone(),
        device,
        change,
    })
}

/// The key of a request that is signed by that key; P-256 only.
fn csr_key(der: &[u8]) -> Result<VerifyingKey, CsrError> {
    let key = Csr::parse(der)?.key().clone();
    match key.curve() {
        Curve::P256 => Ok(key),
        Curve::P384 => Err(CsrError::UnsupportedKey),
    }
}

fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

fn not_after(certificate: &[u8]) -> Option<u64> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(seconds(parsed.validity().not_after.timestamp()))
}

/// The SubjectPublicKeyInfo of a certificate, DER.
pub(crate) fn spki_of(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    Some(parsed.public_key().raw.to_vec())
}
