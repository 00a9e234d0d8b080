//! The seller's own keys: the voucher server's (110) and the factory's (90).
//!
//! Made at the first start by [`crate::app`], each file whole or not at all, mode 0600. They have
//! nothing to do with the purchaser's root, owner or record keys, which [`holdfast_cps::Keys`] keeps.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_config::secret_file;
use holdfast_cps::keys::{KeyError, load_or_make};
use holdfast_protocol::crypto::SigningKey;

use crate::factory::{FactoryAuthority, FactoryError};

/// Why the seller's keys could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SellerError {
    /// A file failed.
    #[error("cannot use {}: {cause}; check its owner and mode (0600)", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        cause: io::Error,
    },
    /// A key file failed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The factory's certificate.
    #[error(transparent)]
    Factory(#[from] FactoryError),
}

/// The seller's keys.
#[derive(Debug)]
pub struct Seller {
    /// Owner of new vouchers.
    pub vouchers: Arc<SigningKey>,
    /// Issues device certificates.
    pub factory: FactoryAuthority,
}

impl Seller {
    /// Opens the keys in `folder`, making what is missing. `now` dates a new factory certificate.
    ///
    /// # Errors
    /// A file that cannot be read, written or understood.
    pub fn open(folder: &Path, now: u64) -> Result<Self, SellerError> {
        secret_file::make_folder(folder).map_err(|cause| SellerError::File {
            path: folder.to_owned(),
            cause,
        })?;
        let factory = load_or_make(&folder.join("factory.key"))?;
        Ok(Self {
            vouchers: Arc::new(load_or_make(&folder.join("vouchers.key"))?),
            factory: FactoryAuthority::open(&folder.join("factory.der"), factory, now)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_once_and_a_spoilt_one_is_kept() {
        let folder = tempfile::tempdir().expect("folder");
        let first = Seller::open(folder.path(), 0).expect("made");
        let again = Seller::open(folder.path(), 0).expect("read");
        assert_eq!(first.vouchers.public(), again.vouchers.public());
        let path = folder.path().join("vouchers.key");
        std::fs::write(&path, b"spoilt").expect("write");
        assert!(matches!(
            Seller::open(folder.path(), 0),
            Err(SellerError::Key(KeyError::Content(_)))
        ));
        assert_eq!(std::fs::read(&path).expect("read"), b"spoilt");
    }
}
