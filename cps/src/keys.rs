//! The private keys of a CPS server: owner key (FDO), record key (signs change entries and
//! notices), and the folder they live in. Opened once by the binary before the rooms exist.
//! The certificate authority's keys are behind `authority::Signer` and never come out of it.
//! Files are 0600 and replaced atomically; `Debug` shows no secret.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::SigningKey;
use zeroize::Zeroizing;

use crate::authority::{FileSigner, Signer};

/// Why the keys could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The folder or a file in it cannot be used.
    #[error("cannot use key file {path}: {cause}; check its owner and mode (0600)")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A file is there but holds no P-256 key in PKCS#8.
    #[error(
        "{0} holds no P-256 private key (PKCS#8 DER); restore it from a backup, or move it away to start anew"
    )]
    Content(PathBuf),
}

/// The keys of one server.
#[derive(Clone)]
pub struct Keys {
    owner: Arc<SigningKey>,
    record: Arc<SigningKey>,
    signer: Arc<dyn Signer>,
    folder: PathBuf,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Keys")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Keys {
    /// Opens the keys in `folder`, making the missing ones.
    ///
    /// # Errors
    /// A file that cannot be read, written or understood.
    pub fn open(folder: &Path) -> Result<Self, KeyError> {
        make_folder(folder)?;
        let signer: Arc<dyn Signer> = Arc::new(FileSigner::open(folder)?);
        Self::with_signer(folder, signer)
    }

    /// The same, with the authority's keys kept by another signer.
    ///
    /// # Errors
    /// As [`Keys::open`].
    pub fn with_signer(folder: &Path, signer: Arc<dyn Signer>) -> Result<Self, KeyError> {
        make_folder(folder)?;
        Ok(Self {
            owner: Arc::new(load_or_make(&folder.join("owner.key"))?),
            record: Arc::new(load_or_make(&folder.join("record.key"))?),
            signer,
            folder: folder.to_path_buf(),
        })
    }

    /// The FDO owner key: vouchers are extended to it.
    #[must_use]
    pub fn owner(&self) -> &SigningKey {
        &self.owner
    }

    /// The key that signs this server's change entries and notices.
    #[must_use]
    pub fn record(&self) -> &SigningKey {
        &self.record
    }

    pub(crate) fn record_shared(&self) -> Arc<SigningKey> {
        Arc::clone(&self.record)
    }

    pub(crate) fn signer(&self) -> &dyn Signer {
        &*self.signer
    }

    /// The folder of the key files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

pub(crate) fn make_folder(folder: &Path) -> Result<(), KeyError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .map_err(|cause| KeyError::File {
            path: folder.to_path_buf(),
            cause,
        })
}

/// Reads a PKCS#8 key, or makes and stores one where there is none.
pub(crate) fn load_or_make(path: &Path) -> Result<SigningKey, KeyError> {
    if let Some(key) = load(path)? {
        return Ok(key);
    }
    let key = SigningKey::generate(&mut SystemRandom);
    write_secret(path, &key.to_pkcs8_der())?;
    Ok(key)
}

/// Reads a PKCS#8 key, if there is a file.
pub(crate) fn load(path: &Path) -> Result<Option<SigningKey>, KeyError> {
    let Some(der) = read_file(path)? else {
        return Ok(None);
    };
    let der = Zeroizing::new(der);
    let key =
        SigningKey::from_pkcs8_der(&der).map_err(|_| KeyError::Content(path.to_path_buf()))?;
    Ok(Some(key))
}

/// A file's content; `None` where there is no file.
pub(crate) fn read_file(path: &Path) -> Result<Option<Vec<u8>>, KeyError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(KeyError::File {
            path: path.to_path_buf(),
            cause,
        }),
    }
}

/// Replaces a file atomically and durably, mode 0600: a power cut leaves the old or the new one.
pub(crate) fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), KeyError> {
    let fault = |cause| KeyError::File {
        path: path.to_path_buf(),
        cause,
    };
    // Beside the file and named after it, so that a key and its chain never share one.
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let write = || -> io::Result<()> {
        // A left-over of a cut write may be there with other rights: never write into it.
        match fs::remove_file(&fresh) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => return Err(cause),
            _ => {}
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        fs::File::open(folder)?.sync_all()
    };
    write().map_err(fault)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn keys_are_made_once_private_and_reread() {
        let folder = tempfile::tempdir().unwrap();
        let first = Keys::open(folder.path()).unwrap();
        let again = Keys::open(folder.path()).unwrap();
        assert_eq!(
            first.owner().public().to_spki_der(),
            again.owner().public().to_spki_der()
        );
        let mode = fs::metadata(folder.path().join("owner.key"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_spoilt_key_file_is_an_error_and_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("owner.key"), b"not a key").unwrap();
        assert!(matches!(
            Keys::open(folder.path()),
            Err(KeyError::Content(_))
        ));
        assert_eq!(
            fs::read(folder.path().join("owner.key")).unwrap(),
            b"not a key"
        );
    }

    #[test]
    fn debug_shows_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let shown = format!("{:?}", Keys::open(folder.path()).unwrap());
        assert!(
            shown.starts_with("Keys") && !shown.contains("owner"),
            "{shown}"
        );
    }
}
