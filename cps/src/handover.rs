//! Vouchers handed in over the LAN by an installer (flow S37), and whose hands are trusted. Called
//! by the HTTPS API (anybody may ask), the admin socket and the CLI (who is listed).
//!
//! The voucher authenticates itself: its chain must verify and end in our owner key. Beside that
//! the key that extended it to us, or the manufacturer's, must be listed here, unless the
//! configuration takes any chain. Nothing here needs the cloud.

use holdfast_protocol::crypto::{HashAlg, VerifyingKey, hash};
use holdfast_protocol::id::{ClientName, Guid};
use holdfast_protocol::voucher::Voucher;
use holdfast_store::{StoreError, WriteError};

use crate::Core;
use crate::config::HandoverPolicy;
use crate::tables::InstallerRow;
use crate::vouchers::{Accepted, VoucherRefusal, Vouchers};

/// Most keys listed at once; far above the installers of one site.
pub const MOST_INSTALLERS: usize = 1_000;

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

/// Why a key was not listed.
#[derive(Debug, thiserror::Error)]
pub enum ListingError {
    /// The name stands for another key.
    #[error("the name {0} stands for another key already; choose another, or remove it first")]
    NameTaken(ClientName),
    /// Nobody of that name.
    #[error("no installer {0} is listed; `installers list` shows the names")]
    Unknown(ClientName),
    /// The bound.
    #[error("{MOST_INSTALLERS} installers are listed already; remove those that left")]
    Full,
    /// Our own store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Handing in; cheap to clone.
#[derive(Clone, Debug)]
pub struct Handover {
    core: Core,
    vouchers: Vouchers,
}

impl Handover {
    pub(crate) fn new(core: Core, vouchers: Vouchers) -> Self {
        Self { core, vouchers }
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
        Ok(self.vouchers.import(bytes, None).await?)
    }

    fn check_hands(&self, voucher: &Voucher) -> Result<(), HandoverRefusal> {
        let ours = voucher.is_owned_by(&self.core.keys.owner().public());
        if self.core.config.handover == HandoverPolicy::AnyChain || !ours {
            return Ok(());
        }
        let giver = giver(voucher);
        let rows = self.core.registry.read(|view| view.installers());
        let rows = rows.map_err(VoucherRefusal::from)?;
        let maker = voucher.manufacturer().key();
        if rows
            .iter()
            .any(|row| row.key == *giver || row.key == *maker)
        {
            return Ok(());
        }
        let refusal = HandoverRefusal::NotListed(fingerprint(giver));
        tracing::warn!(guid = %voucher.guid(), %refusal, "voucher refused");
        self.core.metrics.refused("voucher", "not listed");
        Err(refusal)
    }

    /// Lists an installer's or a manufacturer's key. The same pair twice changes nothing.
    ///
    /// # Errors
    /// See [`ListingError`].
    pub async fn list_key(&self, name: ClientName, key: VerifyingKey) -> Result<(), ListingError> {
        let at = self.core.clock.now().secs;
        let done = self.core.registry.write(move |it| {
            let rows = it.tables.installers()?;
            match rows.iter().find(|row| row.name == name) {
                Some(row) if row.key == key => return Ok(()),
                Some(_) => return Err(WriteError::Job(ListingError::NameTaken(name.clone()))),
                None if rows.len() >= MOST_INSTALLERS => {
                    return Err(WriteError::Job(ListingError::Full));
                }
                None => {}
            }
            let (name, key) = (name.clone(), key.clone());
            Ok(it.tables.put_installer(&InstallerRow { name, key, at })?)
        });
        done.await.map_err(flat)
    }

    /// Strikes a key off the list: vouchers that it extends later are refused; devices that came by
    /// it before keep working.
    ///
    /// # Errors
    /// Nobody of that name, or our own store.
    pub async fn strike(&self, name: ClientName) -> Result<(), ListingError> {
        let done = self
            .core
            .registry
            .write(move |it| match it.tables.remove_installer(&name)? {
                true => Ok(()),
                false => Err(WriteError::Job(ListingError::Unknown(name.clone()))),
            });
        done.await.map_err(flat)
    }

    /// The listed keys, by name.
    ///
    /// # Errors
    /// Our own store.
    pub fn listed(&self) -> Result<Vec<InstallerRow>, StoreError> {
        self.core.registry.read(|view| view.installers())
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

fn flat(error: WriteError<ListingError>) -> ListingError {
    match error {
        WriteError::Store(error) => error.into(),
        WriteError::Job(error) => error,
    }
}
