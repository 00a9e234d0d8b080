//! The files by which a foreign broker and this gateway know each other: whom to believe, who we
//! are, the password.
//!
//! Read by [`crate::config`] to check them when the configuration is read, and by
//! [`super::foreign`] anew before each connection. Nothing is kept and nothing secret is printed.

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

/// Largest file read; a system's whole list of authorities has some 200 KiB.
const MAX_BYTES: u64 = 1 << 20;
/// Longest password that MQTT can carry.
const MAX_PASSWORD: usize = 65_535;
/// Bits by which everybody may read, write or enter.
const OTHERS: u32 = 0o007;

/// What is wrong with a file, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}; {remedy}")]
pub struct FileFault {
    /// One clause.
    pub what: String,
    /// One clause.
    pub remedy: String,
}

impl FileFault {
    fn new(path: &Path, what: impl std::fmt::Display, remedy: &str) -> Self {
        Self {
            what: format!("{} {what}", path.display()),
            remedy: remedy.to_owned(),
        }
    }

    /// Whether that file is meant.
    #[must_use]
    pub fn concerns(&self, path: &Path) -> bool {
        self.what.starts_with(&format!("{} ", path.display()))
    }
}

/// The authorities that the remote's certificate may come from.
///
/// # Errors
/// The file cannot be read or holds no certificate.
pub fn roots(path: &Path) -> Result<Arc<RootCertStore>, FileFault> {
    let bytes = read(path)?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, &bytes)? {
        roots.add(certificate).map_err(|error| {
            let remedy = "give the PEM file of the authority that certified the remote's broker";
            FileFault::new(path, format!("holds no authority ({error})"), remedy)
        })?;
    }
    Ok(Arc::new(roots))
}

/// Our certificate chain and its key, which must belong together.
///
/// # Errors
/// A file cannot be read, the key can be read by others, or they do not fit.
pub fn identity(certificate: &Path, key: &Path) -> Result<Arc<CertifiedKey>, FileFault> {
    let chain = certificates(certificate, &read(certificate)?)?;
    let pem = secret(key)?;
    let key_der = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let remedy = "give the unencrypted PEM file of the private key (PKCS#8, SEC1 or PKCS#1)";
        FileFault::new(key, format!("holds no private key ({error})"), remedy)
    })?;
    let signer = rustls::crypto::ring::sign::any_supported_type(&key_der).map_err(|_| {
        let remedy = "use a key of kind RSA (2048 bits or more), P-256, P-384 or Ed25519";
        FileFault::new(key, "holds a key that TLS here cannot use", remedy)
    })?;
    let pair = CertifiedKey::new(chain, signer);
    match pair.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(Arc::new(pair))
        }
        Err(_) => {
            let what = format!("is not the key of {}", certificate.display());
            let remedy = "give the key that belongs to the file's first certificate";
            Err(FileFault::new(key, what, remedy))
        }
    }
}

/// The first line of a password file.
///
/// # Errors
/// The file cannot be read, can be read by others, or is empty.
pub fn password(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileFault> {
    let bytes = secret(path)?;
    let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or(&[]);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.is_empty() || line.len() > MAX_PASSWORD {
        let remedy = "write the password into its first line, at most 65535 bytes";
        return Err(FileFault::new(path, "holds no password", remedy));
    }
    Ok(Zeroizing::new(line.to_vec()))
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, FileFault> {
    let remedy = "give a PEM file with BEGIN CERTIFICATE blocks";
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(FileFault::new(path, "holds no certificate", remedy)),
        Err(error) => {
            let what = format!("is no good PEM file ({error})");
            Err(FileFault::new(path, what, remedy))
        }
    }
}

fn secret(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileFault> {
    let bytes = Zeroizing::new(read(path)?);
    let mode = std::fs::metadata(path).map_or(0, |found| found.mode());
    if mode & OTHERS != 0 {
        let remedy = format!("chmod o-rwx {}", path.display());
        return Err(FileFault::new(path, "can be read by everybody", &remedy));
    }
    Ok(bytes)
}

fn read(path: &Path) -> Result<Vec<u8>, FileFault> {
    let unreadable = |error: std::io::Error| {
        let remedy = "check the path, and that the gateway's user may read it";
        FileFault::new(path, format!("cannot be read ({error})"), remedy)
    };
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    if bytes.len() as u64 > MAX_BYTES {
        let remedy = "is this the right file?";
        return Err(FileFault::new(path, "is larger than 1 MiB", remedy));
    }
    Ok(bytes)
}

/// Tells one state of a set of files from another: place, length and time of change.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fingerprint(Vec<Option<(u64, u64, i64, i64)>>);

impl Fingerprint {
    /// Of the files as they are now.
    #[must_use]
    pub fn of<'a>(paths: impl IntoIterator<Item = &'a Path>) -> Self {
        let look = |path: &Path| {
            let found = std::fs::metadata(path).ok()?;
            Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
        };
        Self(paths.into_iter().map(look).collect())
    }
}

#[cfg(test)]
pub(crate) mod tests;
