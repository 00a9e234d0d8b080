//! Whose notices the device believes: the signing keys named at its onboarding or last renewal, and
//! those that followed them since, by statements of the keys themselves.
//!
//! Hears what `connection` takes from the device's `identity` topic. A succession counts if its old key
//! is believed at that moment; it is on the disk before the new key is believed, and with it the old
//! one is believed no more. So a statement played again moves nothing, and a key that gave way does
//! not come back, whatever a server with old news says. It decides nothing about certificates.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_config::secret_file;
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::site_module::SiteConfig;
use holdfast_protocol::succession::{KeyRole, SignedSuccession};
use holdfast_protocol::wire::cbor::{self, CborError, Reader, Writer};
use tracing::{info, warn};

const FILE: &str = "signers";
/// Number at the head of the file.
const FORMAT: u64 = 1;
/// Largest file.
const MAX_FILE: u64 = 64 << 10;
/// Most keys of one list; of those that gave way the latest.
const MOST: usize = 64;
/// Largest public key, and longest id.
const MAX_SPKI: usize = 256;
const MAX_ID: usize = 80;

/// The room. Clones share it.
#[derive(Debug, Clone)]
pub struct Signers(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    site: String,
    kept: Kept,
}

/// What is on the disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Kept {
    /// As the vault names them.
    base: Vec<VerifyingKey>,
    /// Took another's place.
    taken: Vec<VerifyingKey>,
    /// Gave way, the oldest first.
    gone: Vec<VerifyingKey>,
}

impl Signers {
    /// In the folder `state`, for the site of the device. Without a good file it begins with the
    /// keys of the site, and is told of successions again.
    #[must_use]
    pub fn open(state: &Path, site: &SiteConfig) -> Self {
        let path = state.join(FILE);
        let name = site.site.to_string();
        let mut kept = load(&path, &name).unwrap_or_else(|why| {
            warn!(
                why,
                "the keys for notices cannot be read; the device is told again"
            );
            Kept::default()
        });
        let known = kept.clone();
        kept.stand_on(&site.notice_keys);
        let inner = Inner {
            path,
            site: name,
            kept,
        };
        if inner.kept != known
            && !known.base.is_empty()
            && let Err(error) = inner.write(&inner.kept)
        {
            // The same is found out at the next start.
            warn!(%error, "the keys for notices cannot be stored");
        }
        Self(Arc::new(Mutex::new(inner)))
    }

    /// The keys that are believed.
    #[must_use]
    pub fn trusted(&self) -> Vec<VerifyingKey> {
        self.lock().kept.trusted()
    }

    /// These and those that gave way: for what the device itself has stored.
    #[must_use]
    pub fn ever(&self) -> Vec<VerifyingKey> {
        let inner = self.lock();
        let mut keys = inner.kept.trusted();
        keys.extend(inner.kept.gone.iter().cloned());
        keys
    }

    /// Takes statements, in any order; true if another key is believed now. Durable when it returns.
    ///
    /// # Errors
    /// The disk's; nothing has changed then, and the statements come again.
    pub fn hear(&self, statements: &[SignedSuccession]) -> io::Result<bool> {
        let mut inner = self.lock();
        let mut kept = inner.kept.clone();
        while statements.iter().any(|one| kept.take(one)) {}
        if kept == inner.kept {
            return Ok(false);
        }
        inner.write(&kept)?;
        inner.kept = kept;
        info!("a signing key gave way to its successor");
        Ok(true)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn trusted(&self) -> Vec<VerifyingKey> {
        let base = self.base.iter().filter(|key| !self.gone.contains(key));
        let mut keys: Vec<_> = base.cloned().collect();
        keys.extend(
            self.taken
                .iter()
                .filter(|key| !self.base.contains(key))
                .cloned(),
        );
        keys
    }

    /// Whether the statement put another key in the place of one that is believed.
    fn take(&mut self, statement: &SignedSuccession) -> bool {
        let said = statement.said();
        let counts = said.role == KeyRole::Signing
            && self.trusted().contains(&said.old)
            && !self.gone.contains(&said.new)
            && self.taken.len() < MOST
            && statement.verify().is_ok();
        if counts {
            self.taken.retain(|key| *key != said.old);
            self.taken.push(said.new.clone());
            self.drop_key(said.old.clone());
        }
        counts
    }

    /// Another onboarding or renewal named these keys. What they do not name any more is over.
    fn stand_on(&mut self, base: &[VerifyingKey]) {
        let before = std::mem::replace(&mut self.base, base.to_vec());
        for key in before {
            if !base.contains(&key) && !self.taken.contains(&key) {
                self.drop_key(key);
            }
        }
    }

    fn drop_key(&mut self, key: VerifyingKey) {
        self.gone.retain(|gone| *gone != key);
        self.gone.push(key);
        let over = self.gone.len().saturating_sub(MOST);
        self.gone.drain(..over);
    }
}

impl Inner {
    fn write(&self, kept: &Kept) -> io::Result<()> {
        secret_file::write(&self.path, &encode(&self.site, kept))
    }
}

/// `[format, site, [base...], [taken...], [gone...]]`
fn encode(site: &str, kept: &Kept) -> Vec<u8> {
    let list = |w: &mut Writer, keys: &[VerifyingKey]| {
        w.array(keys.len());
        keys.iter().for_each(|key| _ = w.bytes(&key.to_spki_der()));
    };
    cbor::encode(|w| {
        w.array(5).uint(FORMAT).text(site);
        list(w, &kept.base);
        list(w, &kept.taken);
        list(w, &kept.gone);
    })
}

fn load(path: &Path, site: &str) -> Result<Kept, String> {
    let bytes = match std::fs::metadata(path) {
        Ok(found) if found.len() > MAX_FILE => return Err("it is too long".to_owned()),
        Ok(_) => std::fs::read(path),
        Err(error) => Err(error),
    };
    match bytes {
        Ok(bytes) => decode(&bytes, site).map_err(|fault| fault.to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Kept::default()),
        Err(error) => Err(error.to_string()),
    }
}

fn decode(bytes: &[u8], site: &str) -> Result<Kept, CborError> {
    let mut r = Reader::new(bytes)?;
    r.array(5)?;
    if r.uint()? != FORMAT {
        return Err(CborError::Value("format"));
    }
    let ours = r.text(MAX_ID)? == site;
    let mut list = || -> Result<Vec<VerifyingKey>, CborError> {
        let keys = (0..r.array_len(MOST)?).map(|_| {
            let key = VerifyingKey::from_spki_der(r.bytes(MAX_SPKI)?);
            key.map_err(|_| CborError::Value("public key"))
        });
        keys.collect()
    };
    let kept = Kept {
        base: list()?,
        taken: list()?,
        gone: list()?,
    };
    r.end()?;
    Ok(if ours { kept } else { Kept::default() })
}

#[cfg(test)]
mod tests;
