//! The seal of this process ([`holdfast_link::seal`]), with faults in the words of key files. Asked by
//! `keys` for each file.

use std::path::PathBuf;

use holdfast_link::seal::{self, SealFault};
use holdfast_protocol::crypto::Seal;

use super::KeyError;

pub use seal::{CREDENTIAL, standing};

/// The seal, if the service has one. The same for the whole life of the process.
///
/// # Errors
/// The credential is there and cannot be used: keys must not be written plain then.
pub fn of_this_process() -> Result<Option<&'static Seal>, KeyError> {
    seal::of_this_process().map_err(|fault| match fault {
        SealFault::Unreadable { path, cause } => KeyError::File { path, cause },
        SealFault::Credential(path) => KeyError::Credential(path),
        // Said of files alone.
        SealFault::Sealed => KeyError::Sealed(PathBuf::from(CREDENTIAL)),
        SealFault::OtherSeal => KeyError::OtherSeal(PathBuf::from(CREDENTIAL)),
    })
}
