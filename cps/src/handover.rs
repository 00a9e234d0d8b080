//! Vouchers handed in over the LAN by an installer (flow S37). Called by the HTTPS API: anybody may
//! ask. Whose hands are trusted, `lists` says.
//!
//! The voucher authenticates itself: its chain must verify and end in our owner key. Beside that
//! the key that extended it to us, or the manufacturer's, must be listed here, unless the
//! configuration takes any chain. Nothing here needs the cloud.

use holdfast_protocol::crypto::{HashAlg, VerifyingKey, hash};
use holdfast_protocol::id::Guid;
use holdfast_protocol::voucher::Voucher;

use crate::Core;
use crate::config::HandoverPolicy;
use crate::lists::Lists;
use crate::vouchers::{Accepted, Hand, VoucherRefusal, Vouchers};

/// Why a voucher was not taken from whoever brought it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HandoverRefusal {
    /// Neither the installer's key nor the manufacturer's is listed.
    #[error(
        "the installer with key {0} is not listed here; on the gateway run `holdfast-gateway installers add PUBKEY.pem --name NAME` with the file that `holdfast-installer key show` prints"
    )]
    NotListed(String),
    /// The voucher itself.
    #[error(transparent)]
    Voucher(#[from] VoucherRefusal),
}

/// Handing in; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handover {
    core: Core,
    vouchers: Vouchers,
    lists: Lists,
}

impl Handover {
    pub(crate) fn new(core: Core, vouchers: Vouchers, lists: Lists) -> Self {
        Self {
            core,
            vouchers,
            lists,
        }
    }

    /// Takes a voucher file (PEM or CBOR) that was extended to this server. The same one again, or
    /// one that is shorter than what was made of it here, changes nothing.
    ///
    /// # Errors
    /// See [`HandoverRefusal`]; each is counted and logged once.
    pub async fn take(&self, bytes: &[u8]) -> Result<(Guid, Accepted), HandoverRefusal> {
        let limit = self.core.config.limits.voucher_bytes;
        // Whatever cannot be read is refused by the same words as an import.
        if let Some(voucher) = (bytes.len() <= 2 * limit)
            .then(|| Voucher::read(bytes).ok())
            .flatten()
        {
            self.check_hands(&voucher)?;
        }
        Ok(self.vouchers.take(bytes, None, Hand::Other).await?)
    }

    fn check_hands(&self, voucher: &Voucher) -> Result<(), HandoverRefusal> {
        let ours = self.core.keys.owns(voucher);
        if self.core.config.handover == HandoverPolicy::AnyChain || !ours {
            return Ok(());
        }
        let giver = giver(voucher);
        for key in [giver, voucher.manufacturer().key()] {
            if self.lists.takes_from(key).map_err(VoucherRefusal::from)? {
                return Ok(());
            }
        }
        let refusal = HandoverRefusal::NotListed(fingerprint(giver));
        tracing::warn!(guid = %voucher.guid(), %refusal, "voucher refused");
        self.core.metrics.refused("voucher", "not listed");
        Err(refusal)
    }
}

/// Who signed the last entry: the owner before the present one.
fn giver(voucher: &Voucher) -> &VerifyingKey {
    match voucher.entries() {
        [.., before, _] => before.next().key(),
        _ => voucher.manufacturer().key(),
    }
}

/// The first half of the SHA-256 of a key's SubjectPublicKeyInfo in hex, as the installer shows it.
#[must_use]
pub fn fingerprint(key: &VerifyingKey) -> String {
    let digest = hash(HashAlg::Sha256, &key.to_spki_der());
    let half = digest.value().iter().take(16);
    half.map(|byte| format!("{byte:02x}")).collect()
}
