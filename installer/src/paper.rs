//! Voucher files: read, checked, described for a person, extended, written.
//!
//! A file holds one voucher, as PEM or plain CBOR. Nothing is shown or signed before the voucher's
//! chain held.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use holdfast_config::secret_file;
use holdfast_protocol::crypto::{HashAlg, SigningKey, VerifyingKey, hash};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::voucher::{Policy, Voucher, VoucherError};

use crate::handed::{self, HandedFault};

/// A voucher has at most 32 KiB; in PEM a third more.
const MAX_FILE: u64 = 64 * 1024;

/// Why a voucher cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum PaperFault {
    #[error("{path} cannot be used: {source}; check the path and its rights")]
    File {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not a voucher that can be trusted: {source}; ask its sender for a new copy")]
    Voucher { path: PathBuf, source: VoucherError },
    #[error(
        "{path} is not for this installer: its owner's key is {owner}, yours is {yours}; ask the seller to extend it to the key that `holdfast-installer key show` prints"
    )]
    NotOurs {
        path: PathBuf,
        owner: String,
        yours: String,
    },
    #[error(
        "{path} was extended to {next} before: hand on that file, or the device would have two owners"
    )]
    AlreadyTheirs { path: PathBuf, next: String },
    #[error(
        "{path} was extended by this installer to {next} and further: it is not yours to extend any more; use the newest file of this device"
    )]
    Elsewhere { path: PathBuf, next: String },
    #[error(transparent)]
    Handed(#[from] HandedFault),
    #[error("{0} exists already; choose another --out, so that no voucher is overwritten")]
    WouldOverwrite(PathBuf),
}

/// Reads a voucher file and verifies its chain.
pub(crate) fn read(path: &Path) -> Result<Voucher, PaperFault> {
    let file = |source| PaperFault::File {
        path: path.to_owned(),
        source,
    };
    let fault = |source| PaperFault::Voucher {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(file)?.len() > MAX_FILE {
        return Err(fault(VoucherError::TooLarge));
    }
    let voucher = Voucher::read(&std::fs::read(path).map_err(file)?).map_err(fault)?;
    voucher.verify(&Policy::default()).map_err(fault)?;
    Ok(voucher)
}

/// What a person wants to know of a voucher.
pub(crate) fn describe(voucher: &Voucher) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<14}{value}");
    };
    line("device", &voucher.guid().to_string());
    line("model", voucher.device_info());
    line("manufacturer", &fingerprint(voucher.manufacturer().key()));
    for (index, entry) in voucher.entries().iter().enumerate() {
        line(
            &format!("owner {}", index + 1),
            &fingerprint(entry.next().key()),
        );
    }
    if voucher.entries().is_empty() {
        line("owner", "still the manufacturer");
    }
    line("chain", "holds");
    text
}

/// Extends the voucher at `from` to `next` and writes the result to `to`, which must not exist.
pub(crate) fn extend(
    from: &Path,
    next: &VerifyingKey,
    signer: &SigningKey,
    state: &Path,
    to: &Path,
) -> Result<Voucher, PaperFault> {
    let voucher = read(from)?;
    if voucher.is_owned_by(next) && !voucher.is_owned_by(&signer.public()) {
        return Err(PaperFault::AlreadyTheirs {
            path: from.to_owned(),
            next: fingerprint(next),
        });
    }
    check_ours(&voucher, from, &signer.public())?;
    if to.exists() {
        return Err(PaperFault::WouldOverwrite(to.to_owned()));
    }
    handed::note(state, voucher.guid(), next, "the owner of that key")?;
    let extended = sign(&voucher, from, next, signer)?;
    secret_file::write(to, extended.to_pem().as_bytes()).map_err(|source| PaperFault::File {
        path: to.to_owned(),
        source,
    })?;
    Ok(extended)
}

/// Whether the voucher is this installer's to extend.
pub(crate) fn check_ours(
    voucher: &Voucher,
    path: &Path,
    ours: &VerifyingKey,
) -> Result<(), PaperFault> {
    if voucher.is_owned_by(ours) {
        return Ok(());
    }
    let path = path.to_owned();
    let owner = fingerprint(voucher.owner_key().key());
    let entries = voucher.entries();
    let was_ours = entries.iter().any(|entry| entry.next().key() == ours);
    Err(match was_ours {
        true => PaperFault::Elsewhere { path, next: owner },
        false => PaperFault::NotOurs {
            path,
            owner,
            yours: fingerprint(ours),
        },
    })
}

/// The voucher with one more entry. The caller has noted the next owner before.
pub(crate) fn sign(
    voucher: &Voucher,
    path: &Path,
    next: &VerifyingKey,
    signer: &SigningKey,
) -> Result<Voucher, PaperFault> {
    let extended = voucher.extend(&PublicKey::x509(next), signer);
    extended.map_err(|source| PaperFault::Voucher {
        path: path.to_owned(),
        source,
    })
}

/// The first half of the SHA-256 of a public key's SubjectPublicKeyInfo, in hex: short enough to
/// compare by eye.
pub(crate) fn fingerprint(key: &VerifyingKey) -> String {
    let digest = hash(HashAlg::Sha256, &key.to_spki_der());
    digest
        .value()
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
