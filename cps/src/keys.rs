//! The private keys of a CPS server: owner key (FDO), record key (signs change entries and
//! notices), and the folder they live in. Opened once by the binary before the rooms exist.
//! The certificate authority's keys are behind `authority::Signer` and never come out of it.
//! Files are 0600, replaced atomically, and sealed where the service has a seal ([`seal`]); `Debug`
//! shows no secret.

mod ring;
pub mod seal;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{Seal, SigningKey, VerifyingKey};
use holdfast_protocol::succession::KeyRole;
use holdfast_protocol::voucher::{Voucher, VoucherError};
use zeroize::Zeroizing;

use crate::authority::{FileSigner, Signer};

use ring::Ring;

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
    /// Sealed, and this process has no seal.
    #[error(
        "{0} is sealed, and this process was not given the credential 'holdfast-seal': start it by systemd with LoadCredentialEncrypted=holdfast-seal"
    )]
    Sealed(PathBuf),
    /// Sealed by another secret, or altered.
    #[error(
        "{0} does not open by this machine's credential 'holdfast-seal': it was sealed by another one, or is damaged; restore the credential or the file"
    )]
    OtherSeal(PathBuf),
    /// The log names a key that no file holds.
    #[error(
        "the {0} key {1} is in use, and no file in {2} holds it; restore the folder from a backup that is not older than the last rotation; a gateway without one begins anew: 'gateways replace' at the cloud, then enrol with that token and an empty state folder"
    )]
    Lost(&'static str, String, PathBuf),
    /// Rotated again and again, and never retired.
    #[error("{0} holds as many keys of one kind as it may; retire some with 'keys retire'")]
    TooMany(PathBuf),
    /// The credential is no secret.
    #[error("the credential {0} is shorter than 32 bytes; make it anew from 32 random bytes")]
    Credential(PathBuf),
}

/// The keys of one server.
#[derive(Clone)]
pub struct Keys {
    owner: Ring,
    record: Ring,
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
        seal_all(folder)?;
        Ok(Self {
            owner: Ring::open(folder, "owner")?,
            record: Ring::open(folder, "record")?,
            signer,
            folder: folder.to_path_buf(),
        })
    }

    /// The present FDO owner key: vouchers are extended to it.
    #[must_use]
    pub fn owner(&self) -> Arc<SigningKey> {
        self.owner.present()
    }

    /// The present key that signs this server's change entries and notices.
    #[must_use]
    pub fn record(&self) -> Arc<SigningKey> {
        self.record.present()
    }

    /// The present key of a role.
    #[must_use]
    pub fn present(&self, role: KeyRole) -> Arc<SigningKey> {
        self.ring(role).present()
    }

    /// The key of a role with that public half, present or not.
    pub(crate) fn find(&self, role: KeyRole, public: &VerifyingKey) -> Option<Arc<SigningKey>> {
        self.ring(role).find(public)
    }

    /// The owner key that a voucher names last.
    pub(crate) fn owner_of(&self, voucher: &Voucher) -> Result<Arc<SigningKey>, VoucherError> {
        let found = self.owner.find(voucher.owner_key().key());
        found.ok_or(VoucherError::NotOwned)
    }

    /// Whether a voucher makes this server the owner, by whichever of its keys.
    pub(crate) fn owns(&self, voucher: &Voucher) -> bool {
        self.owner_of(voucher).is_ok()
    }

    /// The public halves of a role's keys, the first made first.
    pub(crate) fn all(&self, role: KeyRole) -> Vec<VerifyingKey> {
        self.ring(role).all()
    }

    /// Takes another key into use; false where there is no such key here.
    pub(crate) fn make_present(&self, role: KeyRole, public: &VerifyingKey) -> bool {
        self.ring(role).make_present(public)
    }

    /// A key that is none of `used`, durable.
    pub(crate) fn spare(
        &self,
        role: KeyRole,
        used: &[VerifyingKey],
    ) -> Result<Arc<SigningKey>, KeyError> {
        self.ring(role).spare(used)
    }

    /// Takes a key away for good; the present one stays.
    pub(crate) fn forget(&self, role: KeyRole, public: &VerifyingKey) -> Result<(), KeyError> {
        self.ring(role).forget(public)
    }

    fn ring(&self, role: KeyRole) -> &Ring {
        match role {
            KeyRole::Owner => &self.owner,
            KeyRole::Signing => &self.record,
        }
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

/// Seals the plain key files of a folder, if there is a seal: some are read only when they are needed.
fn seal_all(folder: &Path) -> Result<(), KeyError> {
    if seal::of_this_process()?.is_none() {
        return Ok(());
    }
    let fault = |cause| KeyError::File {
        path: folder.to_path_buf(),
        cause,
    };
    for entry in fs::read_dir(folder).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        if path.extension().is_some_and(|end| end == "key") {
            load(&path)?;
        }
    }
    Ok(())
}

/// Reads a PKCS#8 key, or makes and stores one where there is none.
///
/// # Errors
/// The file cannot be read, written or understood.
pub fn load_or_make(path: &Path) -> Result<SigningKey, KeyError> {
    if let Some(key) = load(path)? {
        return Ok(key);
    }
    let key = SigningKey::generate(&mut SystemRandom);
    store(path, &key.to_pkcs8_der(), seal::of_this_process()?)?;
    Ok(key)
}

/// Reads a PKCS#8 key, if there is a file. A plain one is sealed now if there is a seal.
pub(crate) fn load(path: &Path) -> Result<Option<SigningKey>, KeyError> {
    load_by(path, seal::of_this_process()?)
}

fn load_by(path: &Path, seal: Option<&Seal>) -> Result<Option<SigningKey>, KeyError> {
    let Some(kept) = read_file(path)?.map(Zeroizing::new) else {
        return Ok(None);
    };
    let is_sealed = Seal::is_sealed(&kept);
    let der = match (is_sealed, seal) {
        (false, _) => kept,
        (true, None) => return Err(KeyError::Sealed(path.to_path_buf())),
        (true, Some(seal)) => seal
            .open(&kept)
            .map_err(|_| KeyError::OtherSeal(path.to_path_buf()))?,
    };
    let key =
        SigningKey::from_pkcs8_der(&der).map_err(|_| KeyError::Content(path.to_path_buf()))?;
    if !is_sealed && seal.is_some() {
        store(path, &der, seal)?;
        tracing::info!(path = %path.display(), "key file sealed");
    }
    Ok(Some(key))
}

fn store(path: &Path, der: &[u8], seal: Option<&Seal>) -> Result<(), KeyError> {
    match seal {
        Some(seal) => write_secret(path, &seal.close(der, &mut SystemRandom)),
        None => write_secret(path, der),
    }
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
    holdfast_disk::write(path, bytes, 0o600).map_err(|cause| KeyError::File {
        path: path.to_path_buf(),
        cause,
    })
}

/// Gives a key file another name, durably; what had that name is gone.
pub(crate) fn rename_synced(from: &Path, to: &Path) -> Result<(), KeyError> {
    holdfast_disk::rename(from, to).map_err(|cause| KeyError::File {
        path: to.to_path_buf(),
        cause,
    })
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
    fn a_plain_key_is_sealed_when_there_is_a_seal_and_opens_by_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("owner.key");
        let seal = |byte: u8| Seal::from_secret(&[byte; 32]).unwrap();
        let made = load_or_make(&path).unwrap();
        let plain = fs::read(&path).unwrap();
        let read = |by: Option<&Seal>| load_by(&path, by).map(|key| key.unwrap().public());
        assert_eq!(read(Some(&seal(1))).unwrap(), made.public());
        let sealed = fs::read(&path).unwrap();
        assert!(Seal::is_sealed(&sealed) && !Seal::is_sealed(&plain));
        assert_eq!(read(Some(&seal(1))).unwrap(), made.public());
        assert!(matches!(read(None), Err(KeyError::Sealed(_))));
        assert!(matches!(read(Some(&seal(2))), Err(KeyError::OtherSeal(_))));
        assert_eq!(fs::read(&path).unwrap(), sealed, "a refused file is kept");
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
