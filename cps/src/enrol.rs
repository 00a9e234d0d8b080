//! Enrolment of a gateway with its cloud by a token: the cloud's side here, the gateway's in
//! [`client`], the tokens in [`tokens`], replacing, revoking and letting in again in [`replace`].
//! Called by the CLI and the HTTPS API. A token is bound to a site and a gateway, has a life and a
//! number of uses (one, if not said otherwise), and is stored as a hash only. Each use is for one
//! machine, told by its keys. That machine may ask again while the token lives, in case the answer
//! got lost, and hears the same; another one beyond the uses is refused and alarmed.

mod client;
mod enter;
mod replace;
mod token;
mod tokens;

use std::net::IpAddr;

use holdfast_protocol::crypto::{HashAlg, VerifyingKey, hash};
use holdfast_protocol::id::{Domain, ServerId, SiteId};
use holdfast_protocol::succession::KeyRole;
use holdfast_store::{StoreError, WriteError};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize as _;

pub use client::{Cloud, EnrolError, Enrolling, enrol};
pub(crate) use replace::authority_of;
pub use token::{BadToken, Token};
pub use tokens::{MOST_USES, Shown, Terms};

use crate::Core;
use crate::authority::{Authority, AuthorityError, CsrError, csr_reason};
use crate::registry::{Draft, RegistryError};
use crate::rotation::known::{self, Era, Known};
use crate::tables::GatewayRow;
use crate::vouchers::{VoucherRefusal, extend_to};

/// How much of a name that nobody has checked is logged.
const SHOWN: usize = 64;

/// What a gateway asks for. All byte strings are base64 in JSON.
#[derive(Debug, Serialize, Deserialize)]
pub struct Asked {
    /// The token's secret.
    pub secret: Secret,
    /// PKCS#10 for the site's intermediate.
    #[serde(with = "crate::tables::base64")]
    pub issuer_request: Vec<u8>,
    /// PKCS#10 for the gateway's own certificate.
    #[serde(with = "crate::tables::base64")]
    pub server_request: Vec<u8>,
    /// Will sign its entries and notices.
    #[serde(with = "crate::tables::key")]
    pub record_key: VerifyingKey,
    /// Vouchers for it are extended to this.
    #[serde(with = "crate::tables::key")]
    pub owner_key: VerifyingKey,
    /// The gateway's name, which must be the token's.
    pub gateway: String,
    /// Its addresses on the LAN, for its certificate.
    pub addresses: Vec<IpAddr>,
    /// Where devices reach its broker.
    pub mqtt: Vec<String>,
    /// Where devices reach its HTTPS.
    pub https: Vec<String>,
}

/// What a gateway gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Given {
    /// The cloud's server id.
    pub server: String,
    /// The installation's domain.
    pub domain: String,
    /// Its site.
    pub site: String,
    /// The number of this enrolment; higher than any before of this gateway.
    pub epoch: u32,
    /// The site's intermediate for the gateway and the root.
    pub issuer_chain: Vec<Bytes>,
    /// The gateway's own certificate, with all above it.
    pub server_chain: Vec<Bytes>,
    /// Signs the cloud's entries and notices.
    #[serde(with = "crate::tables::key")]
    pub record_key: VerifyingKey,
    /// The cloud's owner key.
    #[serde(with = "crate::tables::key")]
    pub owner_key: VerifyingKey,
    /// Where the cloud's broker is reached.
    pub mqtt: Vec<String>,
    /// Where the cloud's HTTPS is reached.
    pub https: Vec<String>,
    /// By which keys the cloud signed in this site's log, and from which number on.
    #[serde(default)]
    pub record_eras: Vec<Era>,
    /// Owner keys that the cloud has had.
    #[serde(default)]
    pub owner_keys: Vec<Known>,
}

/// A secret that is base64 in JSON, is wiped, and is never printed.
#[derive(Serialize, Deserialize)]
pub struct Secret(#[serde(with = "crate::tables::base64")] Vec<u8>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Bytes that are base64 in JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bytes(#[serde(with = "crate::tables::base64")] pub Vec<u8>);

/// Why a gateway was not enrolled. Blame: the gateway or its operator, but for the last ones.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// No such token was given out.
    #[error("the token is not known here; make a new one with 'gateways token' and copy it whole")]
    UnknownToken,
    /// It was used, and is presented with other keys: somebody has a copy of it.
    #[error(
        "the token was used already, by another machine; if that was not the gateway {0}, run 'gateways replace' for it at once, and keep tokens secret"
    )]
    StolenToken(ServerId),
    /// It was used.
    #[error("the token was used already; make a new one with 'gateways token'")]
    UsedToken,
    /// An operator took it back.
    #[error("the token was taken back; make a new one with 'gateways token'")]
    VoidToken,
    /// No such token in the listing.
    #[error("no token {0} here; 'gateways tokens list' shows them")]
    NoToken(String),
    /// Out of bounds.
    #[error("a token has from 1 to {MOST_USES} uses, not {0}")]
    Uses(u32),
    /// Its life is over.
    #[error("the token has expired; make a new one with 'gateways token'")]
    ExpiredToken,
    /// It was made for another gateway.
    #[error(
        "the token is for gateway '{0}'; configure the gateway so, or make a token for its name"
    )]
    OtherGateway(ServerId),
    /// A request does not hold.
    #[error("a certification request is refused: {0}; run the enrolment again")]
    Csr(#[from] CsrError),
    /// The site was never added.
    #[error("no site {0} here; add it first with 'sites add'")]
    NoSite(SiteId),
    /// Names are unique in an installation: a second bearer would lock the first out.
    #[error("the name {0} is taken, by {1}; choose another for this gateway")]
    NameTaken(ServerId, String),
    /// Nothing to replace or unlock.
    #[error("no gateway {0} is enrolled at site {1}; 'gateways list' shows them")]
    NoGateway(ServerId, SiteId),
    /// Nothing to unlock.
    #[error("gateway {0} is not locked out; nothing changed")]
    NotLocked(ServerId),
    /// Too late to unlock.
    #[error(
        "gateway {0} was replaced by enrolment {1} and the old one's certificates are revoked for good; to use the old machine, enrol it anew with a token and an empty state folder"
    )]
    Replaced(ServerId, u32),
    /// Too late to unlock.
    #[error(
        "gateway {0} was revoked, and that is for good; to use the machine again, enrol it anew with a token and an empty state folder"
    )]
    Revoked(ServerId),
    /// This server is no cloud.
    #[error("gateways enrol with the cloud, not with another gateway; check the address")]
    NotHere,
    /// The authority could not certify.
    #[error(transparent)]
    Authority(AuthorityError),
    /// Our own store.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

impl From<AuthorityError> for Refusal {
    fn from(error: AuthorityError) -> Self {
        match error {
            AuthorityError::Csr(fault) => Self::Csr(fault),
            other => Self::Authority(other),
        }
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Registry(error.into())
    }
}

impl Refusal {
    /// One word for the counters and for the API's answer.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownToken => "unknown token",
            Self::UsedToken => "used token",
            Self::StolenToken(_) => "used token, other keys",
            Self::VoidToken => "void token",
            Self::NoToken(_) => "no token",
            Self::Uses(_) => "uses",
            Self::ExpiredToken => "expired token",
            Self::OtherGateway(_) => "other gateway",
            Self::Csr(fault) => csr_reason(*fault),
            Self::NoSite(_) => "no site",
            Self::NameTaken(..) => "name taken",
            Self::NoGateway(..) => "no gateway",
            Self::NotLocked(_) => "not locked",
            Self::Replaced(..) => "replaced",
            Self::Revoked(_) => "revoked",
            Self::NotHere => "not here",
            Self::Authority(_) => "authority",
            Self::Registry(_) => "own store",
        }
    }
}

/// Tokens and enrolments; cheap to clone.
#[derive(Clone, Debug)]
pub struct Enrolment {
    core: Core,
    authority: Authority,
}

impl Enrolment {
    pub(crate) fn new(core: Core, authority: Authority) -> Self {
        Self { core, authority }
    }

    /// Enrols a gateway: checks the token, certifies its authority and itself, and records both,
    /// the enrolment and the token's use in one commit.
    ///
    /// # Errors
    /// See [`Refusal`]; each is counted and logged once.
    pub async fn enrol(&self, asked: &Asked) -> Result<Given, Refusal> {
        self.try_enrol(asked).await.inspect_err(|refusal| {
            // Whoever asks may call itself anything, at any length.
            let gateway: String = asked.gateway.chars().take(SHOWN).collect();
            match refusal {
                Refusal::StolenToken(_) => {
                    tracing::error!(gateway, %refusal, "enrolment refused: ALARM");
                }
                _ => tracing::warn!(gateway, %refusal, "enrolment refused"),
            }
            self.core.metrics.refused("enrolment", refusal.reason());
        })
    }

    /// The vouchers that the site's devices have so far, extended to the new gateway.
    fn vouchers_for(&self, site: &SiteId, next: &VerifyingKey) -> Result<Vec<Draft>, Refusal> {
        let rows = self.core.registry.read(|view| view.vouchers())?;
        let mut drafts = Vec::new();
        for row in rows.iter().filter(|row| row.live && row.site == *site) {
            match extend_to(&self.core, row, std::slice::from_ref(next)) {
                Ok(more) => drafts.extend(more),
                // One odd voucher must not keep a gateway from its site.
                Err(VoucherRefusal::Faulty(fault)) => {
                    tracing::warn!(guid = ?row.guid, %fault, "voucher not extended to a gateway");
                }
                Err(VoucherRefusal::Registry(error)) => return Err(error.into()),
                Err(other) => tracing::warn!(%other, "voucher not extended to a gateway"),
            }
        }
        Ok(drafts)
    }

    fn given(
        &self,
        site: &SiteId,
        issuer_chain: Vec<Vec<u8>>,
        server_chain: Vec<Vec<u8>>,
    ) -> Result<Given, StoreError> {
        let (record_eras, owner_keys) = self.cloud_keys(site)?;
        let (config, advertise) = (&self.core.config, self.core.advertise());
        Ok(Given {
            server: config.server.to_string(),
            domain: config.domain.to_string(),
            site: site.to_string(),
            // Known within the commit.
            epoch: 0,
            issuer_chain: issuer_chain.into_iter().map(Bytes).collect(),
            server_chain: server_chain.into_iter().map(Bytes).collect(),
            record_key: self.core.keys.record().public(),
            owner_key: self.core.keys.owner().public(),
            mqtt: advertise.mqtt,
            https: advertise.https,
            record_eras,
            owner_keys,
        })
    }

    /// What a gateway must know to verify what the cloud wrote before: the keys that it has had.
    fn cloud_keys(&self, site: &SiteId) -> Result<(Vec<Era>, Vec<Known>), StoreError> {
        let (core, server) = (&self.core, &self.core.config.server);
        let epoch = core.registry.epoch()?;
        let steps = core
            .registry
            .read(|view| view.rotations(site, Some((server, epoch))))?;
        let signing = known::steps(&steps, KeyRole::Signing);
        let present = core.keys.record().public();
        let first = signing
            .first()
            .map_or(present, |(_, step)| step.old.clone());
        let mut eras = vec![Era {
            from: 1,
            key: first,
        }];
        eras.extend(signing.into_iter().map(|(seq, step)| Era {
            from: seq + 1,
            key: step.new,
        }));
        let mut owners = core.keys.all(KeyRole::Owner);
        owners.extend(
            known::steps(&steps, KeyRole::Owner)
                .into_iter()
                .map(|(_, step)| step.old),
        );
        Ok((eras, owners.into_iter().map(Known).collect()))
    }

    /// Gateways of all sites, in their highest enrolment.
    ///
    /// # Errors
    /// Our own store.
    pub fn gateways(&self) -> Result<Vec<GatewayRow>, StoreError> {
        self.core.registry.read(|view| view.gateways())
    }
}

/// The secret is random, so a plain hash keeps it.
fn hashed(secret: &[u8]) -> [u8; 32] {
    hash(HashAlg::Sha256, secret)
        .value()
        .try_into()
        .expect("SHA-256 has 32 bytes")
}

fn flat(error: WriteError<Refusal>) -> Refusal {
    match error {
        WriteError::Store(error) => error.into(),
        WriteError::Job(refusal) => refusal,
    }
}

/// The parts of a cloud's answer that a gateway checks before it keeps anything.
pub(crate) fn parse_given(given: &Given) -> Option<(ServerId, Domain, SiteId)> {
    Some((
        given.server.parse().ok()?,
        given.domain.parse().ok()?,
        given.site.parse().ok()?,
    ))
}
