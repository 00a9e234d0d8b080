//! The installer's own signing key, and the public keys of those it extends vouchers to.
//!
//! The private key lies in the state folder, readable by its user alone, and sealed where the tool is started with a
//! credential for it. Public keys travel as PEM
//! (`PUBLIC KEY`, RFC 7468 section 13), the form that `openssl pkey -pubout` writes.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_config::secret_file;
use holdfast_link::random::SystemRandom;
use holdfast_link::seal::{self, SealFault};
use holdfast_protocol::crypto::{SigningKey, VerifyingKey};
use zeroize::Zeroizing;

const BEGIN: &str = "-----BEGIN PUBLIC KEY-----";
const END: &str = "-----END PUBLIC KEY-----";
/// A public key file has a few hundred bytes; more is some other file.
const MAX_PEM: u64 = 16 * 1024;

/// Why a key cannot be had.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum KeyFault {
    #[error("there is no signing key in {0} yet; make one with `holdfast-installer key new`")]
    Missing(PathBuf),
    #[error(
        "there is a signing key in {0} already; vouchers may name it, so it is kept. Use another --state for a second key"
    )]
    Exists(PathBuf),
    #[error("{path} cannot be used: {source}; check the path and its rights")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} {fault}")]
    Seal { path: PathBuf, fault: SealFault },
    #[error("{0} is no signing key of this tool; restore it from a copy, or use another --state")]
    Damaged(PathBuf),
    #[error(
        "{0} holds no P-256 or P-384 public key in PEM; `openssl pkey -pubin -in FILE -text` shows what it is"
    )]
    NotPublic(PathBuf),
}

/// Makes the signing key; refuses to replace one.
pub(crate) fn make(state: &Path) -> Result<SigningKey, KeyFault> {
    let path = key_path(state);
    if path.exists() {
        return Err(KeyFault::Exists(state.to_owned()));
    }
    let key = SigningKey::generate(&mut SystemRandom);
    put(state, &key)?;
    Ok(key)
}

fn put(state: &Path, key: &SigningKey) -> Result<(), KeyFault> {
    let path = key_path(state);
    let bytes = match seal::close(&key.to_pkcs8_der()) {
        Ok(bytes) => bytes,
        Err(fault) => return Err(KeyFault::Seal { path, fault }),
    };
    secret_file::make_folder(state)
        .and_then(|()| secret_file::write(&path, &bytes))
        .map_err(|source| KeyFault::File { path, source })
}

/// Reads the signing key.
pub(crate) fn load(state: &Path) -> Result<SigningKey, KeyFault> {
    let path = key_path(state);
    let der = match std::fs::read(&path) {
        Ok(der) => Zeroizing::new(der),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(KeyFault::Missing(state.to_owned()));
        }
        Err(source) => return Err(KeyFault::File { path, source }),
    };
    let opened = match seal::open(der) {
        Ok(opened) => opened,
        Err(fault) => return Err(KeyFault::Seal { path, fault }),
    };
    let key = SigningKey::from_pkcs8_der(&opened.plain).map_err(|_| KeyFault::Damaged(path))?;
    if opened.is_due {
        put(state, &key)?;
    }
    Ok(key)
}

/// Reads somebody's public key from a PEM file.
pub(crate) fn read_public(path: &Path) -> Result<VerifyingKey, KeyFault> {
    let unusable = |source| KeyFault::File {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(unusable)?.len() > MAX_PEM {
        return Err(KeyFault::NotPublic(path.to_owned()));
    }
    let bytes = std::fs::read(path).map_err(unusable)?;
    from_pem(&String::from_utf8_lossy(&bytes)).ok_or(KeyFault::NotPublic(path.to_owned()))
}

/// The public key as PEM.
pub(crate) fn to_pem(key: &VerifyingKey) -> String {
    // A P-256 or P-384 key has at most 160 characters: two or three lines.
    let encoded = STANDARD.encode(key.to_spki_der());
    let lines: Vec<_> = encoded
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!("{BEGIN}\n{}\n{END}\n", lines.join("\n"))
}

fn from_pem(text: &str) -> Option<VerifyingKey> {
    let (_, rest) = text.split_once(BEGIN)?;
    let (body, _) = rest.split_once(END)?;
    let dense: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    VerifyingKey::from_spki_der(&STANDARD.decode(dense).ok()?).ok()
}

fn key_path(state: &Path) -> PathBuf {
    state.join("installer.key")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(matches!(load(folder.path()), Err(KeyFault::Missing(_))));
        let made = make(folder.path()).expect("made");
        assert!(matches!(make(folder.path()), Err(KeyFault::Exists(_))));
        assert_eq!(load(folder.path()).expect("loaded").public(), made.public());
        std::fs::write(key_path(folder.path()), b"garbage").expect("spoil");
        assert!(matches!(load(folder.path()), Err(KeyFault::Damaged(_))));
    }

    #[test]
    fn public_keys_survive_pem_and_openssl_reads_them() {
        let folder = tempfile::tempdir().expect("folder");
        let key = make(folder.path()).expect("made").public();
        let path = folder.path().join("pub.pem");
        std::fs::write(&path, to_pem(&key)).expect("write");
        assert_eq!(read_public(&path).expect("read"), key);
        let openssl = std::process::Command::new("openssl")
            .args(["pkey", "-pubin", "-noout", "-in"])
            .arg(&path)
            .status();
        assert!(openssl.expect("openssl runs").success());
        std::fs::write(
            &path,
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----",
        )
        .expect("write");
        assert!(matches!(read_public(&path), Err(KeyFault::NotPublic(_))));
    }
}
