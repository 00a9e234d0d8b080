//! What this installer extended to whom: one small file per voucher, written before the extended
//! voucher leaves, so that no device ever gets two owners by this hand, whatever is cut or killed,
//! unless the person says that the former one is lost.
//!
//! Called before each extension. Extending again to the same owner is always fine: signatures are
//! deterministic, so the same voucher comes out.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_config::secret_file;
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::Guid;

use crate::paper::fingerprint;

/// Why a voucher may not be extended to this owner.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum HandedFault {
    #[error(
        "the voucher of {guid} was extended to {name} (key {next}) before, and a second extension would give the device two owners; hand it in there, or, if that owner is lost for good, say --anew"
    )]
    Elsewhere {
        guid: Guid,
        name: String,
        next: String,
    },
    #[error("{path} cannot be used: {source}; check the path and its rights")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{0} was damaged; restore it from a copy, it tells who owns the device")]
    Damaged(PathBuf),
}

/// Whether the note is of now or of an earlier try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Noted {
    Now,
    Before,
}

/// The notes of one installer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Notes<'a> {
    state: &'a Path,
    anew: bool,
}

impl<'a> Notes<'a> {
    /// In the folder `state`; `anew` lets another owner take the place of a former one.
    pub(crate) fn of(state: &'a Path, anew: bool) -> Self {
        Self { state, anew }
    }

    /// Notes that the voucher goes to `next`, called `name`; refuses where it went to another before.
    pub(crate) fn note(
        self,
        guid: Guid,
        next: &VerifyingKey,
        name: &str,
    ) -> Result<Noted, HandedFault> {
        let path = file_of(self.state, guid);
        match std::fs::read_to_string(&path) {
            Ok(text) => {
                let (name, key) = parse(&text).ok_or(HandedFault::Damaged(path.clone()))?;
                match (key == *next, self.anew) {
                    (true, _) => return Ok(Noted::Before),
                    (false, true) => {}
                    (false, false) => {
                        let next = fingerprint(&key);
                        return Err(HandedFault::Elsewhere { guid, name, next });
                    }
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(HandedFault::File { path, source }),
        }
        let key = STANDARD.encode(next.to_spki_der());
        secret_file::make_folder(&folder_of(self.state))
            .and_then(|()| secret_file::write(&path, format!("{key} {name}\n").as_bytes()))
            .map_err(|source| HandedFault::File { path, source })?;
        Ok(Noted::Now)
    }

    /// Takes a note back: the other side refused the voucher for good and did not keep it.
    pub(crate) fn forget(self, guid: Guid) -> Result<(), HandedFault> {
        let path = file_of(self.state, guid);
        std::fs::remove_file(&path).map_err(|source| HandedFault::File { path, source })
    }
}

fn parse(text: &str) -> Option<(String, VerifyingKey)> {
    let (key, name) = text.trim_end().split_once(' ')?;
    let key = VerifyingKey::from_spki_der(&STANDARD.decode(key).ok()?).ok()?;
    Some((name.to_owned(), key))
}

fn folder_of(state: &Path) -> PathBuf {
    state.join("handed")
}

fn file_of(state: &Path, guid: Guid) -> PathBuf {
    folder_of(state).join(guid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_link::random::SystemRandom;
    use holdfast_protocol::crypto::SigningKey;

    #[test]
    fn a_voucher_goes_to_one_owner_unless_that_one_refused_it() {
        let folder = tempfile::tempdir().expect("folder");
        let key = || SigningKey::generate(&mut SystemRandom).public();
        let (guid, one, other) = (Guid([7; 16]), key(), key());
        let note = |key, name| Notes::of(folder.path(), false).note(guid, key, name);
        assert_eq!(note(&one, "gw1").expect("noted"), Noted::Now);
        assert_eq!(note(&one, "gw1").expect("noted"), Noted::Before);
        let twice = note(&other, "gw2").expect_err("two owners");
        assert!(twice.to_string().contains("gw1"), "{twice}");
        let anew = Notes::of(folder.path(), true);
        assert_eq!(anew.note(guid, &one, "gw1").expect("noted"), Noted::Before);
        assert_eq!(anew.note(guid, &other, "gw2").expect("noted"), Noted::Now);
        let back = note(&one, "gw1").expect_err("gw2 has it now");
        assert!(back.to_string().contains("gw2"), "{back}");
        anew.forget(guid).expect("forgotten");
        assert_eq!(note(&other, "gw2").expect("noted"), Noted::Now);
        std::fs::write(file_of(folder.path(), guid), "spoilt").expect("write");
        let damaged = note(&other, "gw2");
        assert!(matches!(damaged, Err(HandedFault::Damaged(_))));
    }
}
