//! Whether an onboarding that another server reports is proved. Asked by 40 for what 50 did.
//!
//! The device's HMAC in a voucher can be checked by the device alone; what a third party can check
//! is checked here: the chain of owners down to the reporting server, that the replacement is the
//! same device's, and that the device itself named this server and this key.

use super::change::Onboarded;
use crate::{
    crypto::VerifyingKey,
    id::ServerId,
    site_module::{SiteFault, Statement},
    voucher::{Policy, Relation, Voucher, VoucherError},
};

/// How far a claim is proved; the later is the stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Nobody whose word counts here knows the manufacturer: the device may be made up. Whoever
    /// keeps the list of believed manufacturers says so, not [`verify_evidence`].
    UnknownMaker,
    /// The gateway says so; the device made no statement (a foreign device cannot).
    Attested,
    /// The device itself says so, with the key that the voucher names.
    Proved,
}

impl Standing {
    /// How it is shown.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::UnknownMaker => "unknown manufacturer",
            Self::Attested => "attested by gateway only",
            Self::Proved => "proved",
        }
    }
}

/// What the evidence must agree with.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The server that reports it: the entry's origin.
    pub origin: &'a ServerId,
    /// The owner keys that this server's CPS may have: the voucher must end with one of them.
    pub owner_keys: &'a [VerifyingKey],
    /// The voucher that we know under the old GUID, if any: what is presented must be the same
    /// chain, or that one extended.
    pub known: Option<&'a Voucher>,
    /// What is demanded of vouchers.
    pub policy: Policy<'a>,
}

/// Why evidence was refused. Blame: the server that reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceFault {
    /// The voucher is none, or its chain does not hold.
    #[error("the voucher presented does not verify: {0}")]
    Voucher(VoucherError),
    /// The voucher bears another GUID than the entry.
    #[error("the voucher presented is for another GUID")]
    Guid,
    /// The chain does not end with the server that reports.
    #[error("the voucher presented does not make the reporting server the owner")]
    NotOwner,
    /// We know another chain of the same GUID.
    #[error("the voucher presented is not the one known here, nor an extension of it: {0:?}")]
    Relation(Relation),
    /// The replacement is no voucher.
    #[error("the replacement voucher is malformed: {0}")]
    Replacement(VoucherError),
    /// The replacement bears another GUID, device or owner.
    #[error("the replacement voucher is not this device's, or another server owns it")]
    ReplacementDiffers,
    /// TO2 always replaces the GUID; only pairing keeps it, and pairing makes no claim.
    #[error("the device's GUID was not replaced")]
    GuidKept,
    /// There is a statement, but the voucher names no device key to check it with.
    #[error("the voucher names no device key, so the device's statement cannot be its own")]
    NoDeviceKey,
    /// The statement is none, or not signed by the device.
    #[error("the device's statement does not verify: {0}")]
    Statement(SiteFault),
    /// The statement is the device's, but about something else.
    #[error("the device's statement names another GUID, key or server")]
    StatementDiffers,
}

/// Checks for itself what a server reports: the voucher chain, and the device's own statement.
///
/// # Errors
/// [`EvidenceFault`] when anything presented is wrong; a missing statement is no fault.
pub fn verify_evidence(
    onboarded: &Onboarded,
    expected: &Expected<'_>,
) -> Result<Standing, EvidenceFault> {
    let presented = check_presented(onboarded, expected)?;
    check_replacement(onboarded, &presented, expected)?;
    let Some(statement) = &onboarded.evidence.statement else {
        return Ok(Standing::Attested);
    };
    let device_key = presented.device_key().ok_or(EvidenceFault::NoDeviceKey)?;
    let said = Statement::verify(statement, device_key).map_err(EvidenceFault::Statement)?;
    // The nonce was checked by the server that drew it. A statement replayed by that server says
    // once more what was true: this device, this key, this server.
    let agrees = said.guid == onboarded.old_guid
        && said.cps_key == onboarded.cps_key
        && said.server == *expected.origin;
    if agrees {
        Ok(Standing::Proved)
    } else {
        Err(EvidenceFault::StatementDiffers)
    }
}

fn check_presented(
    onboarded: &Onboarded,
    expected: &Expected<'_>,
) -> Result<Voucher, EvidenceFault> {
    let voucher = Voucher::parse(&onboarded.evidence.voucher).map_err(EvidenceFault::Voucher)?;
    voucher
        .verify(&expected.policy)
        .map_err(EvidenceFault::Voucher)?;
    if voucher.guid() != onboarded.old_guid {
        return Err(EvidenceFault::Guid);
    }
    if !expected
        .owner_keys
        .iter()
        .any(|key| voucher.is_owned_by(key))
    {
        return Err(EvidenceFault::NotOwner);
    }
    match expected.known.map(|known| voucher.relation_to(known)) {
        None | Some(Relation::Same | Relation::Descendant) => Ok(voucher),
        Some(other) => Err(EvidenceFault::Relation(other)),
    }
}

fn check_replacement(
    onboarded: &Onboarded,
    presented: &Voucher,
    expected: &Expected<'_>,
) -> Result<(), EvidenceFault> {
    if onboarded.new_guid == onboarded.old_guid {
        return Err(EvidenceFault::GuidKept);
    }
    if onboarded.voucher.is_empty() {
        // Some devices compute no HMAC for a new voucher: they work, but cannot be passed on.
        return Ok(());
    }
    let replacement = Voucher::parse(&onboarded.voucher).map_err(EvidenceFault::Replacement)?;
    replacement
        .verify(&expected.policy)
        .map_err(EvidenceFault::Replacement)?;
    let same_device = replacement.guid() == onboarded.new_guid
        && replacement.device_chain() == presented.device_chain();
    // The reporting server made it, so its chain begins there, wherever it was extended to since.
    let made_here = expected
        .owner_keys
        .contains(replacement.manufacturer().key());
    if same_device && made_here {
        Ok(())
    } else {
        Err(EvidenceFault::ReplacementDiffers)
    }
}
