//! Which of this gateway's authorities have all that they ever issued on record, so that a certificate
//! by one of them with a serial that is not in the log was signed by hand, with a stolen key.
//!
//! An authority is witnessed before it issues anything: at the first opening after enrolment, or with
//! its renewal, whose key is fresh. A registry that was lost begins anew without that word: what its
//! authority had issued is not on record any more, and nobody is locked out for it; the next
//! authority is witnessed again. The roster asks; the cloud judges by revocations alone, for what a
//! gateway issued may come to it late.

use std::path::Path;

use holdfast_store::{WriteError, Written};

use super::{Authority, AuthorityError, spki_of};
use crate::keys::{KeyError, Keys, read_file, write_secret};
use crate::registry::Registry;

/// Left by an enrolment in the key folder, until the registry has it: the authority's key, hashed.
const FILE: &str = "witness";
/// Length of its content.
const DIGITS: usize = 64;

/// The key of a certificate as the roster compares it: the SHA-256 of its SubjectPublicKeyInfo, hex.
pub(crate) fn key_print(certificate: &[u8]) -> Option<String> {
    use holdfast_protocol::crypto::{HashAlg, hash};
    let digest = hash(HashAlg::Sha256, &spki_of(certificate)?);
    Some(
        digest
            .value()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect(),
    )
}

/// An enrolment gave an authority over a key that has issued nothing yet. Kept before the enrolment is.
pub(crate) fn note_fresh(folder: &Path, certificate: &[u8]) -> Result<(), KeyError> {
    match key_print(certificate) {
        Some(print) => write_secret(&folder.join(FILE), print.as_bytes()),
        None => Ok(()),
    }
}

/// At the opening of a gateway: what the enrolment left is put on record, once.
pub(crate) async fn take_fresh(keys: &Keys, registry: &Registry) -> Result<(), AuthorityError> {
    let path = keys.folder().join(FILE);
    let Some(print) = read_file(&path)? else {
        return Ok(());
    };
    let print = String::from_utf8(print).unwrap_or_default();
    if print.len() == DIGITS {
        put(registry, print).await?;
    }
    // Were it to stay, a registry that is lost later would pass for whole.
    holdfast_disk::remove(&path).map_err(|cause| KeyError::File { path, cause }.into())
}

async fn put(registry: &Registry, print: String) -> Result<(), AuthorityError> {
    let done: Written<()> = registry
        .write(move |it| {
            it.tables.put_witnessed(&print)?;
            it.rights_changed();
            Ok(())
        })
        .await;
    done.map_err(|error| match error {
        WriteError::Store(error) => error.into(),
        WriteError::Job(never) => match never {},
    })
}

impl Authority {
    /// Puts a renewed authority on record before it issues anything. One that goes on with its key
    /// is no new one: what it issued may be forgotten.
    pub(super) async fn witness(&self, certificate: &[u8]) -> Result<(), AuthorityError> {
        let chain = self.chain(self.core.config.role.site())?;
        let present = chain.first().and_then(|der| key_print(der));
        match key_print(certificate) {
            Some(print) if present.as_ref() != Some(&print) => {
                put(&self.core.registry, print).await
            }
            _ => Ok(()),
        }
    }

    /// At a gateway: whether all that its present authority issued is on record; none at the cloud.
    ///
    /// # Errors
    /// The chain, or our own store.
    pub fn is_witnessed(&self) -> Result<Option<bool>, AuthorityError> {
        let Some(site) = self.core.config.role.site() else {
            return Ok(None);
        };
        let chain = self.chain(Some(site))?;
        let print = chain.first().and_then(|der| key_print(der));
        let known = self.core.registry.read(|view| view.witnessed())?;
        Ok(Some(print.is_some_and(|print| known.contains(&print))))
    }
}
