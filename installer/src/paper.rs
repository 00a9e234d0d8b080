//! Voucher files: read, checked, described for a person, extended, written.
//!
//! A file holds a voucher as PEM, plain CBOR or base64 of it (what a QR code carries), or several in PEM: while a key
//! is being changed the seller issues one for the old and one for the new, and the one that names ours is taken.
//! Nothing is shown or signed before the voucher's chain held.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use holdfast_config::secret_file;
use holdfast_protocol::crypto::{HashAlg, SigningKey, VerifyingKey, hash};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::voucher::{Policy, Voucher, VoucherError};

use crate::handed::{HandedFault, Notes};

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
    #[error("{0} is empty: the copy was cut short; copy it again, or ask its sender for a new one")]
    Empty(PathBuf),
    #[error("{0} holds vouchers of several devices; put each into a file of its own")]
    Several(PathBuf),
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

/// Reads a voucher file and verifies its chain; of several vouchers takes the one that names `ours`.
pub(crate) fn read(path: &Path, ours: &VerifyingKey) -> Result<Voucher, PaperFault> {
    let mut all = candidates(path)?;
    let is_ours =
        |one: &Result<Voucher, VoucherError>| one.as_ref().is_ok_and(|one| one.is_owned_by(ours));
    let mut named = all.iter().filter(|one| is_ours(one)).flatten();
    if let (Some(one), Some(other)) = (named.next(), named.next())
        && one.guid() != other.guid()
    {
        return Err(PaperFault::Several(path.to_owned()));
    }
    let at = all.iter().position(is_ours).unwrap_or(0);
    checked(path, all.swap_remove(at))
}

/// Reads a voucher file and verifies the chains of all that it holds.
pub(crate) fn read_all(path: &Path) -> Result<Vec<Voucher>, PaperFault> {
    let all = candidates(path)?.into_iter();
    all.map(|one| checked(path, one)).collect()
}

fn checked(path: &Path, one: Result<Voucher, VoucherError>) -> Result<Voucher, PaperFault> {
    one.map_err(|source| PaperFault::Voucher {
        path: path.to_owned(),
        source,
    })
}

/// What the file holds, good or not; at least one.
fn candidates(path: &Path) -> Result<Vec<Result<Voucher, VoucherError>>, PaperFault> {
    let file = |source| PaperFault::File {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(file)?.len();
    let bytes = match length {
        0 => return Err(PaperFault::Empty(path.to_owned())),
        1..=MAX_FILE => std::fs::read(path).map_err(file)?,
        _ => return Ok(vec![Err(VoucherError::TooLarge)]),
    };
    let verified = |bytes: &[u8]| {
        let voucher = Voucher::parse(bytes)?;
        voucher.verify(&Policy::default())?;
        Ok(voucher)
    };
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    if text.contains("-----BEGIN") {
        let blocks = Voucher::pem_blocks(text);
        return Ok(match blocks {
            Ok(blocks) => blocks.iter().map(|block| verified(block)).collect(),
            Err(error) => vec![Err(error)],
        });
    }
    Ok(vec![match from_base64(text) {
        Some(decoded) => verified(&decoded),
        None => verified(&bytes),
    }])
}

/// Text that is nothing but base64, of either alphabet, padded or not.
fn from_base64(text: &str) -> Option<Vec<u8>> {
    let dense: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    let plain = dense
        .trim_end_matches('=')
        .replace('-', "+")
        .replace('_', "/");
    let decoded = STANDARD_NO_PAD.decode(plain).ok()?;
    (!decoded.is_empty()).then_some(decoded)
}

/// [`describe`] for each.
pub(crate) fn describe_all(vouchers: &[Voucher]) -> String {
    let shown: Vec<_> = vouchers.iter().map(describe).collect();
    shown.join("\n")
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
    notes: Notes<'_>,
    to: &Path,
) -> Result<Voucher, PaperFault> {
    let voucher = read(from, &signer.public())?;
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
    notes.note(voucher.guid(), next, "the owner of that key")?;
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
