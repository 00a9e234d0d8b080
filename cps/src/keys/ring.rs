//! The keys of one role (owner, signing): the present one, and earlier or later ones beside it. One
//! file for each, `<role>.key`, then `<role>-2.key` and so on; which of them is the present one is
//! said by the log (`rotation`), not by the files, so that making a key and taking it into use can be
//! cut anywhere between.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{SigningKey, VerifyingKey};

use super::{KeyError, load, load_or_make};

/// Most keys of one role; retire some before another is made.
pub(crate) const MAX_KEYS: usize = 64;

/// The keys of one role; clones share them.
#[derive(Clone)]
pub(super) struct Ring(Arc<RwLock<Held>>);

struct Held {
    folder: PathBuf,
    stem: &'static str,
    keys: Vec<One>,
    present: Arc<SigningKey>,
}

struct One {
    generation: u32,
    public: VerifyingKey,
    key: Arc<SigningKey>,
}

impl Ring {
    /// Reads the keys of a folder, making the first one. The latest counts as present until the log
    /// has been asked.
    pub(super) fn open(folder: &Path, stem: &'static str) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for generation in generations(folder, stem)? {
            keys.extend(
                load(&file(folder, stem, generation))?.map(|key| One::new(generation, key)),
            );
        }
        if keys.is_empty() {
            keys.push(One::new(1, load_or_make(&file(folder, stem, 1))?));
        }
        keys.sort_by_key(|one| one.generation);
        let last = keys.last().expect("one was made if there was none");
        let present = Arc::clone(&last.key);
        Ok(Self(Arc::new(RwLock::new(Held {
            folder: folder.to_path_buf(),
            stem,
            keys,
            present,
        }))))
    }

    pub(super) fn present(&self) -> Arc<SigningKey> {
        Arc::clone(&self.read().present)
    }

    pub(super) fn find(&self, public: &VerifyingKey) -> Option<Arc<SigningKey>> {
        let held = self.read();
        let found = held.keys.iter().find(|one| one.public == *public);
        found.map(|one| Arc::clone(&one.key))
    }

    /// All of them, the first made first.
    pub(super) fn all(&self) -> Vec<VerifyingKey> {
        let held = self.read();
        held.keys.iter().map(|one| one.public.clone()).collect()
    }

    /// Whether there is such a key; it is the present one from now on.
    pub(super) fn make_present(&self, public: &VerifyingKey) -> bool {
        let found = self.find(public);
        if let Some(key) = &found {
            self.write().present = Arc::clone(key);
        }
        found.is_some()
    }

    /// A key that is none of `used`: the one that a cut attempt left, or a fresh one. It is on the
    /// disk when this returns.
    pub(super) fn spare(&self, used: &[VerifyingKey]) -> Result<Arc<SigningKey>, KeyError> {
        let mut held = self.write();
        let is_spare = |one: &&One| !used.contains(&one.public);
        if let Some(one) = held.keys.iter().find(is_spare) {
            return Ok(Arc::clone(&one.key));
        }
        if held.keys.len() >= MAX_KEYS {
            return Err(KeyError::TooMany(held.folder.clone()));
        }
        let generation = held.keys.last().map_or(1, |one| one.generation + 1);
        let path = file(&held.folder, held.stem, generation);
        let key = SigningKey::generate(&mut SystemRandom);
        super::store(&path, &key.to_pkcs8_der(), super::seal::of_this_process()?)?;
        let one = One::new(generation, key);
        let key = Arc::clone(&one.key);
        held.keys.push(one);
        Ok(key)
    }

    /// Takes a key away for good, from the disk too. The present one stays.
    pub(super) fn forget(&self, public: &VerifyingKey) -> Result<(), KeyError> {
        let mut held = self.write();
        if held.present.public() == *public {
            return Ok(());
        }
        let Some(at) = held.keys.iter().position(|one| one.public == *public) else {
            return Ok(());
        };
        let path = file(&held.folder, held.stem, held.keys[at].generation);
        holdfast_disk::remove(&path).map_err(|cause| KeyError::File { path, cause })?;
        held.keys.remove(at);
        Ok(())
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Held> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Held> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl One {
    fn new(generation: u32, key: SigningKey) -> Self {
        Self {
            generation,
            public: key.public(),
            key: Arc::new(key),
        }
    }
}

fn file(folder: &Path, stem: &str, generation: u32) -> PathBuf {
    match generation {
        1 => folder.join(format!("{stem}.key")),
        later => folder.join(format!("{stem}-{later}.key")),
    }
}

fn generations(folder: &Path, stem: &str) -> Result<Vec<u32>, KeyError> {
    let fault = |cause| KeyError::File {
        path: folder.to_path_buf(),
        cause,
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fault)? {
        let name = entry.map_err(fault)?.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(stem)) else {
            continue;
        };
        let generation = match rest.strip_suffix(".key") {
            Some("") => Some(1),
            Some(number) => number.strip_prefix('-').and_then(|it| it.parse().ok()),
            None => None,
        };
        found.extend(generation.filter(|number| *number > 0));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_again_and_one_that_went_is_not_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Ring::open(folder.path(), "owner").unwrap();
        let ring = open();
        let first = ring.present().public();
        let second = ring.spare(std::slice::from_ref(&first)).unwrap().public();
        assert_eq!(ring.present().public(), first, "made, not yet in use");
        // A cut attempt: the next one finds what it left.
        let ring = open();
        assert_eq!(
            ring.spare(std::slice::from_ref(&first)).unwrap().public(),
            second
        );
        assert_eq!(ring.all(), [first.clone(), second.clone()]);
        assert!(
            ring.make_present(&second)
                && !ring.make_present(&SigningKey::generate(&mut SystemRandom).public())
        );
        ring.forget(&second).unwrap();
        assert!(ring.find(&second).is_some(), "the present one stays");
        ring.forget(&first).unwrap();
        assert_eq!(open().all().len(), 1);
        assert_eq!(open().present().public(), second);
        let third = ring.spare(std::slice::from_ref(&second)).unwrap().public();
        assert!(folder.path().join("owner-3.key").exists());
        assert_eq!(open().all(), [second, third]);
    }
}
