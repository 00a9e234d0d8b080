//! The seller's voucher management server (110): keeps vouchers, extends each to one next owner.
//!
//! Filled by the factory ([`crate::factory`]) and by imports, emptied by the operator through
//! [`crate::admin`]. A voucher is extended once: the next owner's copy is committed before it
//! leaves, and asking again for the same owner gives the same bytes. Two extensions of one voucher
//! would be a fork that rendezvous servers refuse. It knows nothing of devices or sites but a name.

use std::fmt;
use std::sync::Arc;

use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::{Guid, InvalidId, SiteId};
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::voucher::{Policy, Voucher, VoucherError};
use holdfast_store::{Medium, Options, Store, StoreError, WriteError, Written};
use redb::{
    ReadOnlyTable, ReadableTable as _, ReadableTableMetadata as _, TableDefinition,
    WriteTransaction,
};

/// GUID -> voucher as it came in, its owner being this server.
const ISSUED: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("issued");
/// GUID -> the same voucher extended to its next owner.
const GIVEN: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("given");
/// GUID -> site for which the owner took the device.
const SITES: TableDefinition<'_, &[u8; 16], &str> = TableDefinition::new("sites");

/// GUID -> serial number that the device told its factory.
const SERIALS: TableDefinition<'_, &[u8; 16], &str> = TableDefinition::new("serials");

/// Most vouchers that one listing shows.
pub const LIST_MOST: usize = 10_000;

/// Why the stock refused.
#[derive(Debug, thiserror::Error)]
pub enum StockError {
    /// No such voucher.
    #[error("no voucher {0} is kept here; `vouchers list` shows those that are")]
    Unknown(Guid),
    /// It was extended to someone else before.
    #[error(
        "voucher {0} was already extended to another owner; a second extension would make both worthless"
    )]
    AlreadyGiven(Guid),
    /// Another voucher of the same device is kept.
    #[error("a different voucher of device {0} is kept here already; export that one")]
    Taken(Guid),
    /// The device was assigned to another site before.
    #[error("device {guid} is assigned to site {site} already")]
    Assigned {
        /// The device's voucher.
        guid: Guid,
        /// The site it has.
        site: SiteId,
    },
    /// The voucher's last owner is neither this server nor the owner here.
    #[error(
        "the voucher is for another owner: have its present owner extend it to this server's key"
    )]
    ForeignOwner,
    /// The factory has made as many as may lie here.
    #[error(
        "{0} vouchers lie here that have not left yet; assign or extend some, or raise manufacturing.stock"
    )]
    Full(u64),
    /// Its chain does not hold.
    #[error("the voucher is not good: {0}; ask for a new copy")]
    Voucher(#[from] VoucherError),
    /// What the store holds does not parse.
    #[error("the voucher store holds something unreadable ({0}); restore it from a backup")]
    Content(String),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<InvalidId> for StockError {
    fn from(error: InvalidId) -> Self {
        Self::Content(error.to_string())
    }
}

/// One kept voucher.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Its newest form: extended if it has been.
    pub voucher: Voucher,
    /// Whether it has left for its next owner.
    pub given: bool,
    /// The site that its device was assigned to.
    pub site: Option<SiteId>,
    /// The device's serial number, if its factory was here.
    pub serial: Option<String>,
}

/// The stock of vouchers; clone it freely.
#[derive(Clone)]
pub struct Stock {
    store: Store,
    key: Arc<SigningKey>,
    public: PublicKey,
}

impl fmt::Debug for Stock {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Stock").finish_non_exhaustive()
    }
}

impl Stock {
    /// Opens the stock on `medium`; `key` is this server's, to which vouchers are issued.
    ///
    /// # Errors
    /// The store cannot be opened. A damaged one is refused: vouchers must not vanish silently.
    pub fn open(
        medium: Medium,
        options: Options,
        key: Arc<SigningKey>,
    ) -> Result<Self, StoreError> {
        let store = Store::open(medium, options, |tx| {
            tx.open_table(ISSUED)?;
            tx.open_table(GIVEN)?;
            tx.open_table(SITES)?;
            tx.open_table(SERIALS)?;
            Ok(())
        })?;
        let public = PublicKey::x509(&key.public());
        Ok(Self { store, key, public })
    }

    /// The key that factories name as a voucher's first owner.
    #[must_use]
    pub fn public_key(&self) -> &PublicKey {
        &self.public
    }

    /// Keeps a voucher that is this server's to extend; `serial` is the device's number, if known.
    /// Keeping the same one twice is no error.
    ///
    /// # Errors
    /// It is not good, another's, or differs from the one kept.
    pub async fn keep(&self, voucher: Voucher, serial: Option<&str>) -> Result<(), StockError> {
        self.keep_within(voucher, serial, u64::MAX).await
    }

    /// The same for the factory, which anybody who reaches it can have work: at most `most` vouchers
    /// lie here that have not left.
    ///
    /// # Errors
    /// As for [`Self::keep`], or there is no room.
    pub async fn keep_within(
        &self,
        voucher: Voucher,
        serial: Option<&str>,
        most: u64,
    ) -> Result<(), StockError> {
        voucher.verify(&Policy::default())?;
        if !voucher.owner_key().same_key(&self.public) {
            return Err(StockError::ForeignOwner);
        }
        let (guid, serial) = (voucher.guid(), serial.map(str::to_owned));
        self.write(move |tx| {
            match bytes_of(tx, ISSUED, guid)? {
                Some(bytes) if bytes == voucher.as_bytes() => return Ok(()),
                Some(_) => return refuse(StockError::Taken(guid)),
                None => {}
            }
            let mut issued = tx.open_table(ISSUED)?;
            let lying = issued.len()?.saturating_sub(tx.open_table(GIVEN)?.len()?);
            if lying >= most {
                return refuse(StockError::Full(most));
            }
            issued.insert(&guid.0, voucher.as_bytes())?;
            if let Some(serial) = &serial {
                tx.open_table(SERIALS)?.insert(&guid.0, serial.as_str())?;
            }
            Ok(())
        })
        .await
    }

    /// Extends a kept voucher to `next`, durably, and gives the extended one.
    ///
    /// # Errors
    /// It is unknown, or went to another owner before.
    pub async fn extend(&self, guid: Guid, next: &PublicKey) -> Result<Voucher, StockError> {
        let (key, next) = (Arc::clone(&self.key), next.clone());
        self.write(move |tx| {
            if let Some(given) = bytes_of(tx, GIVEN, guid)? {
                let given = parse(&given)?;
                if given.owner_key().same_key(&next) {
                    return Ok(given);
                }
                return refuse(StockError::AlreadyGiven(guid));
            }
            let Some(issued) = bytes_of(tx, ISSUED, guid)? else {
                return refuse(StockError::Unknown(guid));
            };
            let extended = parse(&issued)?
                .extend(&next, &key)
                .map_err(|e| job(e.into()))?;
            let mut table = tx.open_table(GIVEN)?;
            table.insert(&guid.0, extended.as_bytes())?;
            Ok(extended)
        })
        .await
    }

    /// Notes the site that took the device. The same one twice is no error.
    ///
    /// # Errors
    /// Another site has it.
    pub async fn assign(&self, guid: Guid, site: &SiteId) -> Result<(), StockError> {
        let site = site.clone();
        self.write(move |tx| {
            let mut table = tx.open_table(SITES)?;
            let before = table.get(&guid.0)?.map(|text| text.value().to_owned());
            match before
                .map(|text| text.parse::<SiteId>())
                .transpose()
                .map_err(|e| job(e.into()))?
            {
                Some(other) if other != site => {
                    return refuse(StockError::Assigned { guid, site: other });
                }
                Some(_) => return Ok(()),
                None => {}
            }
            table.insert(&guid.0, site.as_str())?;
            Ok(())
        })
        .await
    }

    /// One voucher, in its newest form.
    ///
    /// # Errors
    /// It is unknown or unreadable.
    pub fn get(&self, guid: Guid) -> Result<Kept, StockError> {
        self.store.read(|tx| {
            let bytes = |definition| -> Result<Option<Vec<u8>>, StoreError> {
                let table: ReadOnlyTable<&[u8; 16], &[u8]> = tx.open_table(definition)?;
                Ok(table.get(&guid.0)?.map(|found| found.value().to_vec()))
            };
            let text = |definition| -> Result<Option<String>, StoreError> {
                let table: ReadOnlyTable<&[u8; 16], &str> = tx.open_table(definition)?;
                Ok(table.get(&guid.0)?.map(|found| found.value().to_owned()))
            };
            let given = bytes(GIVEN)?;
            let was_given = given.is_some();
            let newest = given.or(bytes(ISSUED)?).ok_or(StockError::Unknown(guid))?;
            Ok(Kept {
                voucher: read_voucher(&newest)?,
                given: was_given,
                site: text(SITES)?.map(|site| site.parse()).transpose()?,
                serial: text(SERIALS)?,
            })
        })
    }

    /// All vouchers, by GUID, at most [`LIST_MOST`].
    ///
    /// # Errors
    /// One of them is unreadable, or the store failed.
    pub fn list(&self) -> Result<Vec<Kept>, StockError> {
        let guids = self.store.read(|tx| -> Result<Vec<[u8; 16]>, StoreError> {
            let table = tx.open_table(ISSUED)?;
            let rows = table.iter()?.take(LIST_MOST);
            rows.map(|row| Ok(*row?.0.value())).collect()
        })?;
        guids.into_iter().map(|guid| self.get(Guid(guid))).collect()
    }

    async fn write<T: Send + 'static>(
        &self,
        run: impl FnMut(&WriteTransaction) -> Written<T, StockError> + Send + 'static,
    ) -> Result<T, StockError> {
        self.store.write(run).await.map_err(|error| match error {
            WriteError::Job(refusal) => refusal,
            WriteError::Store(error) => error.into(),
        })
    }
}

fn bytes_of(
    tx: &WriteTransaction,
    definition: TableDefinition<'_, &'static [u8; 16], &'static [u8]>,
    guid: Guid,
) -> Written<Option<Vec<u8>>, StockError> {
    let table = tx.open_table(definition)?;
    let found = table.get(&guid.0)?;
    Ok(found.map(|bytes| bytes.value().to_vec()))
}

fn parse(bytes: &[u8]) -> Written<Voucher, StockError> {
    read_voucher(bytes).map_err(job)
}

fn read_voucher(bytes: &[u8]) -> Result<Voucher, StockError> {
    Voucher::parse(bytes).map_err(|error| StockError::Content(error.to_string()))
}

fn refuse<T>(refusal: StockError) -> Written<T, StockError> {
    Err(job(refusal))
}

fn job(refusal: StockError) -> WriteError<StockError> {
    WriteError::Job(refusal)
}

#[cfg(test)]
mod tests;
