//! The intermediates of sites: certified by the cloud's root, held by gateways, renewed while the cloud
//! is in reach, each time with a fresh key. Called by enrolment and the API at the cloud, by the
//! gateway's upkeep at the site. What an earlier intermediate issued stays good with its own chain.

use holdfast_link::https;
use holdfast_protocol::certificate::validity;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::roots;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{Authority, AuthorityError, Issuer, SignerError, csr_key, issue_draft, serial_of};
use crate::enrol::Bytes;
use crate::http::wire::{RenewAsk, RenewIssuerGiven};
use crate::registry::Draft;

/// Below this an operator is warned that the site must see its cloud soon.
pub const WINDOW_WARNING: u64 = 90 * 86_400;

/// Why the site's intermediate was not renewed; it is tried again.
#[derive(Debug, thiserror::Error)]
pub enum RenewalError {
    /// The cloud was not reached.
    #[error("the cloud was not reached: {0}")]
    Link(#[from] https::Error),
    /// The cloud said no.
    #[error("the cloud refused a new intermediate (HTTP {status}): {why}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        why: String,
    },
    /// What came is not what was asked for.
    #[error("the cloud's intermediate does not hold: {0}; the present one stays")]
    Answer(String),
    /// Our own keys.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl From<SignerError> for RenewalError {
    fn from(error: SignerError) -> Self {
        Self::Authority(error.into())
    }
}

impl Authority {
    /// Certifies a gateway's own authority over the key of its request: the chain, and the entry
    /// to be recorded before the chain goes out.
    pub(crate) fn sign_intermediate(
        &self,
        site: &SiteId,
        holder: &ServerId,
        csr: &[u8],
    ) -> Result<(Vec<Vec<u8>>, Draft), AuthorityError> {
        let key = csr_key(csr)?;
        let chain = self.sign_issuer(&Issuer::Site(site.clone()), holder, key.to_spki_der())?;
        let subject = crate::enrol::authority_of(site, holder);
        let draft = issue_draft(site, None, &chain[0], subject)?;
        Ok((chain, draft))
    }

    /// At the cloud: certifies a gateway's authority anew, on the word of the certificates that it `shows`,
    /// and records it. Its own may be one that the cloud has not heard of yet, but not the authority
    /// above it.
    ///
    /// # Errors
    /// A bad request, the gateway was revoked meanwhile, or our own keys and store.
    pub(crate) async fn renew_intermediate(
        &self,
        site: &SiteId,
        (holder, shows): (&ServerId, &[Vec<u8>]),
        csr: &[u8],
    ) -> Result<Vec<Vec<u8>>, AuthorityError> {
        let words = shows.iter().filter_map(|der| serial_of(der)).collect();
        let (chain, draft) = self.sign_intermediate(site, holder, csr)?;
        self.record_on_word(words, draft).await?;
        tracing::info!(%site, gateway = %holder, "intermediate renewed");
        Ok(chain)
    }

    /// At a gateway: seconds for which the site's intermediate still holds; none at the cloud.
    ///
    /// # Errors
    /// The chain cannot be read.
    pub fn window(&self) -> Result<Option<u64>, AuthorityError> {
        let Some(site) = self.core.config.role.site() else {
            return Ok(None);
        };
        let chain = self.chain(Some(site))?;
        let end = chain.first().and_then(|der| validity(der));
        let now = self.core.clock.certain().secs;
        Ok(end.map(|(_, end)| end.saturating_sub(now)))
    }

    /// At a gateway: whether the intermediate is old enough to be renewed while the cloud is there.
    ///
    /// # Errors
    /// The chain cannot be read.
    pub fn is_intermediate_due(&self) -> Result<bool, AuthorityError> {
        match self.core.config.role.site() {
            Some(site) => Ok(self.is_aged(&self.chain(Some(site))?)),
            None => Ok(false),
        }
    }

    /// Whether an issuer's certificate is to be replaced by its age.
    pub(super) fn is_aged(&self, chain: &[Vec<u8>]) -> bool {
        let Some((from, to)) = chain.first().and_then(|der| validity(der)) else {
            return true;
        };
        let age = self.core.config.lives.issuer_renewal.as_secs();
        // One that was made for a short life is renewed by a third of it.
        let due = from + age.min((to - from) / 3).max(1);
        self.core.clock.certain().secs >= due
    }

    /// At a gateway: asks the cloud for a new intermediate over a fresh key. The present one stays
    /// until the new one has been checked and is on the disk.
    ///
    /// # Errors
    /// See [`RenewalError`]; nothing has changed then.
    pub async fn refresh_intermediate(&self, cloud: &https::Client) -> Result<(), RenewalError> {
        let Some(site) = self.core.config.role.site() else {
            return Ok(());
        };
        let issuer = Issuer::Site(site.clone());
        let signer = self.core.keys.signer();
        let csr = signer.request_next(&issuer)?;
        let body = serde_json::to_vec(&RenewAsk { csr }).expect("bytes are plain");
        let answer = cloud
            .post("/api/v1/renew/issuer", "application/json", body)
            .await?;
        if !answer.status.is_success() {
            let why = serde_json::from_slice::<serde_json::Value>(&answer.body).ok();
            let why = why.and_then(|it| it["error"].as_str().map(str::to_owned));
            return Err(RenewalError::Refused {
                status: answer.status.as_u16(),
                why: why.unwrap_or_default(),
            });
        }
        let given: RenewIssuerGiven = serde_json::from_slice(&answer.body)
            .map_err(|error| RenewalError::Answer(error.to_string()))?;
        let chain: Vec<Vec<u8>> = given.chain.into_iter().map(|Bytes(der)| der).collect();
        let chain = self.check_intermediate(&chain)?;
        // Its key is fresh: from its first certificate on all is on record.
        self.witness(&chain[0]).await?;
        let _one = self.changing();
        // One file, replaced in one step: by whom the site is certified, and in whom it believes.
        signer.install(&issuer, &chain)?;
        self.believe()?;
        tracing::info!(%site, "the site's intermediate was renewed");
        Ok(())
    }

    /// It must lead to what we believe in, and be what issues for this site. The chain to be kept: with
    /// no root but those we hold and those that one of them has cross-signed.
    fn check_intermediate(&self, chain: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, RenewalError> {
        let bad = |why: &str| RenewalError::Answer(why.to_owned());
        let (shown, told) = roots::split(chain);
        let own = shown.first().ok_or_else(|| bad("it is empty"))?;
        let believed = roots::believed(&self.anchors()?, &told, &shown);
        if roots::leads_to(&shown, &believed).is_none() {
            return Err(bad("it leads to another root"));
        }
        let parsed = X509Certificate::from_der(own).ok();
        let basic = parsed
            .as_ref()
            .and_then(|(_, own)| own.basic_constraints().ok()?);
        match basic.map(|basic| (basic.value.ca, basic.value.path_len_constraint)) {
            Some((true, Some(0))) => {}
            _ => return Err(bad("it is no authority of path length 0")),
        }
        if !shown[1..]
            .iter()
            .all(|cross| is_endorsement(cross, &believed))
        {
            return Err(bad("it brings certificates that do not belong to it"));
        }
        Ok(shown.into_iter().chain(believed).collect())
    }
}

/// A cross-certificate of one root that we believe by another.
pub(super) fn is_endorsement(cross: &[u8], believed: &[Vec<u8>]) -> bool {
    let key = super::spki_of(cross);
    believed.iter().any(|root| super::spki_of(root) == key)
        && believed.iter().any(|root| roots::is_signed_by(cross, root))
}
