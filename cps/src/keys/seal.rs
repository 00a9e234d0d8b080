//! The seal of this process: the secret that systemd hands to the service as the credential
//! `holdfast-seal`. Asked by `keys` for each file. With it, key files are sealed, and plain ones are
//! sealed when they are next read; without it they are plain, and sealed ones are refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use holdfast_protocol::crypto::Seal;
use zeroize::Zeroizing;

use super::KeyError;

/// The credential's name.
pub const CREDENTIAL: &str = "holdfast-seal";
/// Where systemd says that the credentials lie.
const FOLDER: &str = "CREDENTIALS_DIRECTORY";

static OF_THIS_PROCESS: OnceLock<Option<Seal>> = OnceLock::new();

/// The seal, if the service has one. The same for the whole life of the process.
///
/// # Errors
/// The credential is there and cannot be used: keys must not be written plain then.
pub fn of_this_process() -> Result<Option<&'static Seal>, KeyError> {
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

fn read(path: &Path) -> Result<Option<Seal>, KeyError> {
    match fs::read(path).map(Zeroizing::new) {
        Ok(secret) => Seal::from_secret(&secret)
            .map(Some)
            .ok_or_else(|| KeyError::Credential(path.to_path_buf())),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(KeyError::File {
            path: path.to_path_buf(),
            cause,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credential_is_taken_missed_or_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CREDENTIAL);
        assert!(read(&path).unwrap().is_none());
        fs::write(&path, [7; 32]).unwrap();
        assert!(read(&path).unwrap().is_some());
        fs::write(&path, b"short").unwrap();
        assert!(matches!(read(&path), Err(KeyError::Credential(_))));
    }
}
