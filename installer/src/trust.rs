//! Which root this installer believes in: the SHA-256 of the root certificate that the site's
//! gateways show.
//!
//! Pinned once by `trust`, or given for one call by `--root`. Without it nothing is sent to anybody:
//! whoever answers on a LAN could be anyone. A root that follows a pinned one is pinned beside it, by the
//! cross-certificate that the pinned one signed; one that no gateway tells any more is dropped.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_config::secret_file;
use holdfast_link::tls::{AnchorError, Anchors};
use holdfast_protocol::crypto::{HashAlg, hash};
use holdfast_protocol::roots;

/// A root certificate has about a kilobyte.
const MAX_FILE: u64 = 64 * 1024;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// Why there is no root to believe in.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum TrustFault {
    #[error(
        "no root certificate is trusted yet; run `holdfast-gateway root` on a gateway of the site, then `holdfast-installer trust FILE` here, or give --root FILE"
    )]
    Missing,
    #[error("{path} cannot be used: {source}; check the path and its rights")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(
        "{0} is neither a certificate file nor a fingerprint of 64 hexadecimal digits; `holdfast-gateway root` prints the one, with --fingerprint the other"
    )]
    Neither(String),
    #[error("{0} was damaged; run `holdfast-installer trust FILE` again")]
    Damaged(PathBuf),
    #[error(
        "another root ({0}) is trusted already; if the site was really set up anew, remove {1} first"
    )]
    Other(String, PathBuf),
}

/// SHA-256 of a root certificate's DER.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root(pub(crate) [u8; 32]);

impl std::fmt::Display for Root {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(out, "{byte:02x}"))
    }
}

impl std::fmt::Debug for Root {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Root({self})")
    }
}

/// The roots believed: more than one while another takes the first one's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Roots(pub(crate) Vec<[u8; 32]>);

impl From<Root> for Roots {
    fn from(root: Root) -> Self {
        Self(vec![root.0])
    }
}

impl Roots {
    /// Those to believe after a gateway, believed by these, has told its own (DER).
    fn after(&self, told: &[Vec<u8>], crosses: &[Vec<u8>]) -> Self {
        let digest = |der: &Vec<u8>| -> [u8; 32] {
            let digest = hash(HashAlg::Sha256, der);
            digest.value().try_into().expect("SHA-256 has 32 bytes")
        };
        let held = told.iter().filter(|der| self.0.contains(&digest(der)));
        let held: Vec<Vec<u8>> = held.cloned().collect();
        let believed = roots::believed(&held, told, crosses);
        match believed.is_empty() {
            // It was believed by one of ours, and tells of others only: nothing is learnt from it.
            true => self.clone(),
            false => Self(believed.iter().map(digest).collect()),
        }
    }
}

/// Reads a certificate file, or a fingerprint (colons and capitals are fine).
pub(crate) fn read(given: &str) -> Result<Root, TrustFault> {
    let path = Path::new(given);
    if !path.exists() {
        return from_hex(given).ok_or_else(|| TrustFault::Neither(given.to_owned()));
    }
    let file = |source| TrustFault::File {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(file)?.len() > MAX_FILE {
        return Err(TrustFault::Neither(given.to_owned()));
    }
    let bytes = std::fs::read(path).map_err(file)?;
    let der = from_pem(&String::from_utf8_lossy(&bytes)).unwrap_or(bytes);
    match Anchors::new([der.clone()]) {
        Ok(_) => {
            let digest = hash(HashAlg::Sha256, &der);
            Ok(Root(
                digest.value().try_into().expect("SHA-256 has 32 bytes"),
            ))
        }
        Err(AnchorError::Empty | AnchorError::Malformed { .. }) => {
            Err(TrustFault::Neither(given.to_owned()))
        }
    }
}

/// Pins a root for all later calls. The same one again changes nothing; another one is refused.
pub(crate) fn pin(state: &Path, root: Root) -> Result<(), TrustFault> {
    let path = file_of(state);
    match pinned(state) {
        Ok(known) if known.0.contains(&root.0) => return Ok(()),
        Ok(known) => return Err(TrustFault::Other(text_of(&known).trim().to_owned(), path)),
        Err(TrustFault::Missing | TrustFault::Damaged(_)) => {}
        Err(fault) => return Err(fault),
    }
    write(state, &root.into())
}

/// Pins what a gateway tells of its roots, as far as those pinned vouch for it; whether anything changed.
pub(crate) fn follow(
    state: &Path,
    told: &[Vec<u8>],
    crosses: &[Vec<u8>],
) -> Result<bool, TrustFault> {
    let known = pinned(state)?;
    let next = known.after(told, crosses);
    if next == known {
        return Ok(false);
    }
    write(state, &next).map(|()| true)
}

fn write(state: &Path, roots: &Roots) -> Result<(), TrustFault> {
    let path = file_of(state);
    secret_file::make_folder(state)
        .and_then(|()| secret_file::write(&path, text_of(roots).as_bytes()))
        .map_err(|source| TrustFault::File { path, source })
}

fn text_of(roots: &Roots) -> String {
    let lines = roots.0.iter().map(|hash| format!("{}\n", Root(*hash)));
    lines.collect()
}

/// The roots pinned before.
pub(crate) fn pinned(state: &Path) -> Result<Roots, TrustFault> {
    let path = file_of(state);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            let roots: Option<Vec<_>> = text
                .lines()
                .take(roots::MOST_ROOTS)
                .map(|line| from_hex(line.trim()).map(|root| root.0))
                .collect();
            match roots {
                Some(roots) if !roots.is_empty() => Ok(Roots(roots)),
                _ => Err(TrustFault::Damaged(path)),
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(TrustFault::Missing),
        Err(source) => Err(TrustFault::File { path, source }),
    }
}

fn file_of(state: &Path) -> PathBuf {
    state.join("trusted-root")
}

fn from_hex(text: &str) -> Option<Root> {
    let digits: Vec<u8> = text
        .bytes()
        .filter(|byte| *byte != b':')
        .map(|byte| {
            char::from(byte)
                .to_digit(16)
                .and_then(|it| u8::try_from(it).ok())
        })
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks_exact(2)
        .map(|pair| pair[0] << 4 | pair[1])
        .collect();
    match digits.len() {
        64 => Some(Root(bytes.try_into().ok()?)),
        _ => None,
    }
}

fn from_pem(text: &str) -> Option<Vec<u8>> {
    let (_, rest) = text.split_once(BEGIN)?;
    let (body, _) = rest.split_once(END)?;
    let dense: String = body.split_whitespace().collect();
    STANDARD.decode(dense).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_pinned_once_and_never_silently_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        assert!(matches!(pinned(folder.path()), Err(TrustFault::Missing)));
        let root = read(&format!("{}CD", "AB:".repeat(31))).expect("fingerprint");
        pin(folder.path(), root).expect("pinned");
        pin(folder.path(), root).expect("twice");
        assert_eq!(pinned(folder.path()).expect("pinned"), root.into());
        // A gateway that tells of other roots alone teaches nothing.
        let told = follow(folder.path(), &[b"no root".to_vec()], &[]).expect("told");
        assert!(!told && pinned(folder.path()).expect("pinned") == root.into());
        let other = pin(folder.path(), Root([1; 32]));
        assert!(matches!(other, Err(TrustFault::Other(..))));
        std::fs::write(file_of(folder.path()), "spoilt").expect("write");
        let damaged = pinned(folder.path());
        assert!(matches!(damaged, Err(TrustFault::Damaged(_))));
    }

    #[test]
    fn what_is_neither_certificate_nor_fingerprint_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("root.pem");
        for text in [
            "",
            "garbage",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        ] {
            std::fs::write(&file, text).expect("write");
            let read = read(file.to_str().expect("text"));
            assert!(matches!(read, Err(TrustFault::Neither(_))), "{text}");
        }
        for text in ["", "ab", "no such file", &"a".repeat(63), &"a".repeat(66)] {
            assert!(matches!(read(text), Err(TrustFault::Neither(_))), "{text}");
        }
    }
}
