//! Enrolment tokens as an operator deals with them: made, listed, taken back. A token is for one
//! gateway of one site. With more than one use it serves that name again: a machine that was set up
//! anew, as often as the token says; each use is an enrolment of its own, which takes the place of
//! the one before.

use std::time::Duration;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_store::WriteError;
use rand_core::Rng as _;
use serde::Serialize;
use zeroize::Zeroizing;

use super::{Enrolment, Refusal, Token, flat, hashed};
use crate::registry::{Registry, Writing};
use crate::tables::{LockRow, TokenRow};

/// Most uses of one token.
pub const MOST_USES: u32 = 16;
/// How long a token that is over is still listed.
const SHOWN_AFTER: u64 = 30 * 24 * 60 * 60;
/// Hex digits by which a token is named.
const NAME: usize = 12;

/// What a token is good for.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// How long.
    pub life: Duration,
    /// How often, at most [`MOST_USES`].
    pub uses: u32,
}

/// A token in a listing; its secret is known to nobody here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// By which it is named; nothing of its secret.
    pub token: String,
    /// Its site.
    pub site: String,
    /// Its gateway.
    pub gateway: String,
    /// `open`, `used`, `expired` or `void`.
    pub state: &'static str,
    /// How often it was used.
    pub used: u32,
    /// How often it may be used.
    pub uses: u32,
    /// Unix seconds.
    pub expires: u64,
    /// When it was used last, unix seconds.
    pub last_used: Option<u64>,
}

impl Enrolment {
    /// Makes a token of one use for one gateway of one site. It is shown once and stored as a hash.
    ///
    /// # Errors
    /// No such site, a name that another server bears, or our own store.
    pub async fn token(
        &self,
        site: &SiteId,
        gateway: &ServerId,
        life: Duration,
    ) -> Result<Zeroizing<String>, Refusal> {
        let terms = Terms { life, uses: 1 };
        self.token_with(site, gateway, terms, None).await
    }

    /// The same on other terms.
    ///
    /// # Errors
    /// No such site, a name that another server bears, uses out of bounds, or our own store.
    pub async fn token_on(
        &self,
        site: &SiteId,
        gateway: &ServerId,
        terms: Terms,
    ) -> Result<Zeroizing<String>, Refusal> {
        match (1..=MOST_USES).contains(&terms.uses) {
            true => self.token_with(site, gateway, terms, None).await,
            false => Err(Refusal::Uses(terms.uses)),
        }
    }

    /// The same, and locks an enrolment out in the same commit.
    pub(super) async fn token_with(
        &self,
        site: &SiteId,
        gateway: &ServerId,
        terms: Terms,
        lock: Option<LockRow>,
    ) -> Result<Zeroizing<String>, Refusal> {
        let mut secret = Zeroizing::new([0; 32]);
        SystemRandom.fill_bytes(&mut *secret);
        let root = self.authority.anchors()?.remove(0);
        let name = self.authority.own_party().dns(&self.core.config.domain);
        let token = Token::new(site.clone(), gateway.clone(), secret.clone(), &root, name);
        let now = self.core.clock.now();
        let row = TokenRow {
            site: site.clone(),
            gateway: gateway.clone(),
            expires: now.secs.saturating_add(terms.life.as_secs()),
            used: None,
            enrolled: None,
            uses: terms.uses,
            former: Vec::new(),
            void: false,
        };
        let key = hashed(&*secret);
        if *gateway == self.core.config.server {
            return Err(Refusal::NameTaken(gateway.clone(), "the cloud".into()));
        }
        let forgotten = match now.is_authenticated() {
            true => now.secs.saturating_sub(SHOWN_AFTER),
            false => 0,
        };
        let done = self.core.registry.write(move |it| {
            if it.tables.site(&row.site)?.is_none() {
                return Err(WriteError::Job(Refusal::NoSite(row.site.clone())));
            }
            if let Some(known) = it.tables.gateway(&row.gateway)?
                && known.site != row.site
            {
                let bearer = format!("a gateway of site {}", known.site);
                let taken = Refusal::NameTaken(row.gateway.clone(), bearer);
                return Err(WriteError::Job(taken));
            }
            if let Some(lock) = &lock {
                it.tables.put_lock(lock)?;
                it.rights_changed();
            }
            for (hash, old) in it.tables.tokens()? {
                if old.expires < forgotten {
                    it.tables.remove_token(&hash)?;
                }
            }
            Ok(it.tables.put_token(&key, &row)?)
        });
        done.await.map_err(flat)?;
        Ok(token.to_text())
    }

    /// The tokens that were made here, those over for long left out.
    ///
    /// # Errors
    /// Our own store.
    pub fn tokens(&self) -> Result<Vec<Shown>, Refusal> {
        let now = self.core.clock.now().secs;
        let rows = self.core.registry.read(|view| view.tokens())?;
        let mut shown: Vec<_> = rows
            .iter()
            .map(|(hash, row)| show(hash, row, now))
            .collect();
        shown.sort_by_key(|token| token.expires);
        Ok(shown)
    }

    /// Takes a token back, by the name that the listing gives it: nobody enrols by it any more. Who
    /// enrolled by it before stays.
    ///
    /// # Errors
    /// No such token, or our own store.
    pub async fn void(&self, token: &str) -> Result<(), Refusal> {
        let named = token.to_owned();
        void(&self.core.registry, move |hash, _| name_of(hash) == named)
            .await
            .and_then(|count| match count {
                0 => Err(Refusal::NoToken(token.chars().take(super::SHOWN).collect())),
                _ => Ok(()),
            })?;
        tracing::warn!(token, "an enrolment token was taken back");
        Ok(())
    }
}

async fn void(
    registry: &Registry,
    mut of: impl FnMut(&[u8; 32], &TokenRow) -> bool + Send + 'static,
) -> Result<usize, Refusal> {
    let done = registry.write(move |it| void_in(it, &mut of));
    done.await.map_err(flat)
}

/// Takes back what is meant, within a commit; how many.
pub(super) fn void_in(
    it: &Writing<'_>,
    mut of: impl FnMut(&[u8; 32], &TokenRow) -> bool,
) -> Result<usize, WriteError<Refusal>> {
    let mut count = 0;
    for (hash, row) in it.tables.tokens()? {
        if of(&hash, &row) {
            it.tables
                .put_token(&hash, &TokenRow { void: true, ..row })?;
            count += 1;
        }
    }
    Ok(count)
}

fn name_of(hash: &[u8; 32]) -> String {
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    digits[..NAME].to_owned()
}

fn show(hash: &[u8; 32], row: &TokenRow, now: u64) -> Shown {
    let used = row.times();
    let state = match () {
        () if row.void => "void",
        () if used >= row.uses => "used",
        () if row.expires <= now => "expired",
        () => "open",
    };
    Shown {
        token: name_of(hash),
        site: row.site.to_string(),
        gateway: row.gateway.to_string(),
        state,
        used,
        uses: row.uses,
        expires: row.expires,
        last_used: row.used,
    }
}
