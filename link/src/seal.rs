//! The seal of this process: the secret that systemd hands to the service as the credential
//! `holdfast-seal`. Asked by every program of the house for the files in which it keeps private keys.
//! With it such files are sealed, and plain ones are sealed when they are next read; without it they
//! are plain, and sealed ones are refused. It writes no file itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use holdfast_protocol::crypto::Seal;
use zeroize::Zeroizing;

use crate::random::SystemRandom;

/// The credential's name.
pub const CREDENTIAL: &str = "holdfast-seal";
/// Where systemd says that the credentials lie.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";

static OF_THIS_PROCESS: OnceLock<Option<Seal>> = OnceLock::new();

/// Why a file's secrets cannot be had, or must not be written. Reads on after the file's name.
#[derive(Debug, thiserror::Error)]
pub enum SealFault {
    /// Sealed, and this process has no seal.
    #[error(
        "is sealed, and this process was not given the credential 'holdfast-seal': start it by systemd with LoadCredentialEncrypted=holdfast-seal"
    )]
    Sealed,
    /// Sealed by another secret, or altered.
    #[error(
        "does not open by this machine's credential 'holdfast-seal': it was sealed by another one, or is damaged; restore the credential or the file"
    )]
    OtherSeal,
    /// The credential is no secret.
    #[error(
        "cannot be sealed: the credential {0} is shorter than 32 bytes; make it anew from 32 random bytes"
    )]
    Credential(PathBuf),
    /// The credential is there and cannot be read.
    #[error("cannot be sealed: the credential {path} cannot be read: {cause}")]
    Unreadable {
        /// The credential.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
}

/// What a file held.
#[derive(Debug)]
pub struct Opened {
    /// Its content.
    pub plain: Zeroizing<Vec<u8>>,
    /// It lies there plain though there is a seal: to be written anew.
    pub is_due: bool,
}

/// The seal, if the service has one. The same for the whole life of the process.
///
/// # Errors
/// The credential is there and cannot be used: keys must not be written plain then.
pub fn of_this_process() -> Result<Option<&'static Seal>, SealFault> {
    if let Some(found) = OF_THIS_PROCESS.get() {
        return Ok(found.as_ref());
    }
    let found = match std::env::var_os(FOLDER) {
        None => None,
        Some(folder) => read(&PathBuf::from(folder).join(CREDENTIAL))?,
    };
    Ok(OF_THIS_PROCESS.get_or_init(|| found).as_ref())
}

/// Whether key files are sealed here, in the words of `status`.
#[must_use]
pub fn standing() -> &'static str {
    match of_this_process() {
        Ok(Some(_)) => "sealed",
        Ok(None) | Err(_) => "not sealed",
    }
}

/// What is to be written in the place of this secret content.
///
/// # Errors
/// The credential cannot be used.
pub fn close(plain: &[u8]) -> Result<Zeroizing<Vec<u8>>, SealFault> {
    Ok(close_by(plain, of_this_process()?))
}

/// The content of a file, sealed or not.
///
/// # Errors
/// It is sealed, and this process cannot open it.
pub fn open(kept: Zeroizing<Vec<u8>>) -> Result<Opened, SealFault> {
    open_by(kept, of_this_process()?)
}

fn close_by(plain: &[u8], seal: Option<&Seal>) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(match seal {
        Some(seal) => seal.close(plain, &mut SystemRandom),
        None => plain.to_vec(),
    })
}

fn open_by(kept: Zeroizing<Vec<u8>>, seal: Option<&Seal>) -> Result<Opened, SealFault> {
    if !Seal::is_sealed(&kept) {
        return Ok(Opened {
            plain: kept,
            is_due: seal.is_some(),
        });
    }
    let plain = seal.ok_or(SealFault::Sealed)?.open(&kept);
    Ok(Opened {
        plain: plain.map_err(|_| SealFault::OtherSeal)?,
        is_due: false,
    })
}

fn read(path: &Path) -> Result<Option<Seal>, SealFault> {
    match fs::read(path).map(Zeroizing::new) {
        Ok(secret) => Seal::from_secret(&secret)
            .map(Some)
            .ok_or_else(|| SealFault::Credential(path.to_path_buf())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(SealFault::Unreadable {
            path: path.to_path_buf(),
            cause,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seal(byte: u8) -> Seal {
        Seal::from_secret(&[byte; 32]).unwrap()
    }

    #[test]
    fn a_credential_is_taken_missed_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CREDENTIAL);
        assert!(read(&path).unwrap().is_none());
        fs::write(&path, [7; 32]).unwrap();
        assert!(read(&path).unwrap().is_some());
        fs::write(&path, b"short").unwrap();
        assert!(matches!(read(&path), Err(SealFault::Credential(_))));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(matches!(read(&path), Err(SealFault::Unreadable { .. })));
    }

    #[test]
    fn what_lies_plain_is_read_and_due_and_what_is_sealed_opens_by_its_own_alone() {
        let plain = Zeroizing::new(b"a key".to_vec());
        let read = open_by(plain.clone(), None).unwrap();
        assert_eq!((&*read.plain, read.is_due), (&*plain, false));
        assert!(open_by(plain.clone(), Some(&seal(1))).unwrap().is_due);
        assert_eq!(*close_by(&plain, None), *plain);
        let sealed = close_by(&plain, Some(&seal(1)));
        assert!(Seal::is_sealed(&sealed));
        let read = open_by(sealed.clone(), Some(&seal(1))).unwrap();
        assert_eq!((&*read.plain, read.is_due), (&*plain, false));
        let refused = open_by(sealed.clone(), None).unwrap_err();
        assert!(matches!(refused, SealFault::Sealed), "{refused}");
        let refused = open_by(sealed, Some(&seal(2))).unwrap_err();
        assert!(matches!(refused, SealFault::OtherSeal), "{refused}");
    }
}
