//! Whether an onboarding that another server reports is proved. Asked by 40 for what 50 did.

use super::change::Onboarded;
use crate::{crypto::VerifyingKey, id::ServerId};

/// How far a claim is proved; the later is the stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// The gateway says so; the device made no statement (a foreign device cannot).
    Attested,
    /// The device itself says so, with the key that the voucher names.
    Proved,
}

/// What the evidence must agree with.
#[derive(Debug, Clone, Copy)]
pub struct Expected<'a> {
    /// The server that reports it: the entry's origin.
    pub origin: &'a ServerId,
    /// The owner keys that this server's CPS may have: the voucher must end with one of them.
    pub owner_keys: &'a [VerifyingKey],
}

/// Why evidence was refused. Blame: the server that reports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EvidenceFault {
    /// To be filled with the voucher room.
    #[error("the voucher does not verify")]
    Voucher,
}

/// Checks for itself what a server reports: the voucher chain, and the device's own statement.
///
/// # Errors
/// [`EvidenceFault`] when anything presented is wrong; a missing statement is no fault.
pub fn verify_evidence(
    _onboarded: &Onboarded,
    _expected: &Expected<'_>,
) -> Result<Standing, EvidenceFault> {
    todo!("once the voucher room stands")
}
