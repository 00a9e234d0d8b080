//! Another root in the place of the present one, and the end of the one before: at the cloud, on the
//! operator's order. Called by the admin API, and by whoever opens the authority, to finish what a
//! power cut interrupted.
//!
//! The rename of the root's chain file is the moment of each change. From then on both roots are
//! believed and the new one signs; whoever knows the old one alone is shown the cross-certificate. The
//! issuers here follow one by one, each by a rename of its own; until then what they issue leads to
//! the old root, which stays believed until it is retired.

use holdfast_protocol::certificate::validity;
use holdfast_protocol::roots;

use super::{Authority, AuthorityError, Issuer, Leaning, SignerError, Subject, above_issuers};
use crate::registry::RegistryError;

/// Why a root was not rotated or retired.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// Only the cloud has a root.
    #[error("the root is the cloud's; run this at the cloud")]
    NotHere,
    /// One change at a time.
    #[error(
        "the root {0} is still believed beside the present one; retire it first: 'authority retire {0}'"
    )]
    Unfinished(String),
    /// Nothing of that name.
    #[error("{0} is no earlier root that is still believed; 'authority show' lists them")]
    NotRetirable(String),
    /// Somebody would be locked out.
    #[error(
        "{} still lean on that root and would be locked out: {}; 'authority show' says what each of them needs; --force locks them out",
        .0.len(), shown(.0)
    )]
    LeanedOn(Vec<Leaning>),
    /// Our own keys and store.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl From<SignerError> for RotationError {
    fn from(error: SignerError) -> Self {
        Self::Authority(error.into())
    }
}

/// Those who lean, as far as one sentence goes.
fn shown(all: &[Leaning]) -> String {
    const MOST: usize = 5;
    let mut names: Vec<&str> = all.iter().take(MOST).map(|one| one.who.as_str()).collect();
    if all.len() > MOST {
        names.push("...");
    }
    names.join(", ")
}

impl Authority {
    /// Makes another root, by the key of which everything is signed from now on; its fingerprint. The
    /// present root's key is destroyed, its certificate believed until it is retired.
    ///
    /// # Errors
    /// Not at a gateway, not before the last rotation is finished; our own keys.
    pub fn rotate_root(&self) -> Result<String, RotationError> {
        if self.core.cloud.is_some() {
            return Err(RotationError::NotHere);
        }
        let _one = self.changing();
        let signer = self.core.keys.signer();
        let present = signer.chain(&Issuer::Root)?;
        let (_, roots) = roots::split(&present);
        let root = match roots.as_slice() {
            [root] => root,
            [] => return Err(SignerError::NoIssuer("root".into()).into()),
            [_, older, ..] => return Err(RotationError::Unfinished(roots::fingerprint(older))),
        };
        let template = || {
            let domain = self.core.config.domain.clone();
            self.template(
                Subject::Root { domain },
                Vec::new(),
                self.core.config.lives.root,
            )
        };
        let mut cross = template();
        // Nothing outlives its issuer.
        let end = validity(root).map_or(u64::MAX, |(_, end)| end);
        cross.not_after = cross.not_after.min(end);
        let [fresh, cross] = signer.succeed(&template(), &cross)?;
        let name = roots::fingerprint(&fresh);
        signer.install(&Issuer::Root, &[fresh, cross, root.clone()])?;
        tracing::warn!(root = name, "another root signs from now on");
        self.follow_root()?;
        self.believe()?;
        Ok(name)
    }

    /// Believes an earlier root no longer. Without `force` only if nobody on record leans on it.
    ///
    /// # Errors
    /// Who leans on it; no such root; our own keys and store.
    pub fn retire_root(&self, name: &str, force: bool) -> Result<Vec<Leaning>, RotationError> {
        if self.core.cloud.is_some() {
            return Err(RotationError::NotHere);
        }
        let _one = self.changing();
        let signer = self.core.keys.signer();
        let (shown, roots) = roots::split(&signer.chain(&Issuer::Root)?);
        let older = roots.iter().skip(1);
        let named = |der: &&Vec<u8>| !name.is_empty() && roots::fingerprint(der).starts_with(name);
        let retired = match older.filter(named).collect::<Vec<_>>().as_slice() {
            [one] => (*one).clone(),
            _ => return Err(RotationError::NotRetirable(name.to_owned())),
        };
        self.follow_root()?;
        let leaning = self.leaning_on(&retired)?;
        if !leaning.is_empty() && !force {
            return Err(RotationError::LeanedOn(leaning));
        }
        let kept = |der: &Vec<u8>| *der != retired && !roots::is_signed_by(der, &retired);
        let chain: Vec<Vec<u8>> = roots.into_iter().chain(shown).filter(kept).collect();
        signer.install(&Issuer::Root, &chain)?;
        let name = roots::fingerprint(&retired);
        tracing::warn!(
            root = name,
            locked_out = leaning.len(),
            "a root is believed no longer"
        );
        self.follow_root()?;
        self.believe()?;
        Ok(leaning)
    }

    /// At the cloud: issuers that are old, or do not lead to the present root, are made anew with a
    /// fresh key. What they issued stays good with its own chain.
    ///
    /// # Errors
    /// Our own keys and store.
    pub fn renew_issuers(&self) -> Result<(), AuthorityError> {
        let _one = self.changing();
        if self.follow_root()? {
            self.believe()?;
        }
        Ok(())
    }

    /// At the cloud: all its own issuers get fresh keys now.
    ///
    /// # Errors
    /// Not at a gateway; our own keys and store.
    pub fn rotate_issuers(&self) -> Result<(), RotationError> {
        if self.core.cloud.is_some() {
            return Err(RotationError::NotHere);
        }
        let _one = self.changing();
        for issuer in self.own_issuers()? {
            self.renew_issuer(&issuer)?;
        }
        Ok(self.believe()?)
    }

    /// Whether an issuer changed.
    fn follow_root(&self) -> Result<bool, AuthorityError> {
        let signer = self.core.keys.signer();
        let above = above_issuers(&signer.chain(&Issuer::Root)?);
        let (_, roots) = roots::split(&above);
        let mut changed = false;
        for issuer in self.own_issuers()? {
            let chain = signer.chain(&issuer)?;
            let leads = roots::leads_to(&chain, &roots) == roots.first();
            if !leads || self.is_aged(&chain) {
                self.renew_issuer(&issuer)?;
            } else if chain[1..] != above {
                let own = chain.into_iter().take(1);
                let chain: Vec<_> = own.chain(above.iter().cloned()).collect();
                signer.install(&issuer, &chain)?;
            } else {
                continue;
            }
            changed = true;
        }
        Ok(changed)
    }

    fn renew_issuer(&self, issuer: &Issuer) -> Result<(), AuthorityError> {
        let signer = self.core.keys.signer();
        let key = super::csr_key(&signer.request_next(issuer)?)?;
        let chain = self.sign_issuer(issuer, &self.core.config.server, key.to_spki_der())?;
        signer.install(issuer, &chain)?;
        tracing::info!(issuer = issuer.label(), "an issuer's key was renewed");
        Ok(())
    }

    /// The cloud's own issuers that there are.
    fn own_issuers(&self) -> Result<Vec<Issuer>, AuthorityError> {
        let rows = self.core.registry.read(|view| view.sites());
        let rows = rows.map_err(RegistryError::from)?;
        let sites = rows.into_iter().map(|row| Issuer::Site(row.site));
        let mut found = Vec::new();
        for issuer in std::iter::once(Issuer::Servers).chain(sites) {
            if !self.core.keys.signer().chain(&issuer)?.is_empty() {
                found.push(issuer);
            }
        }
        Ok(found)
    }
}
