//! The registry's tables, typed. Called by `registry` (which alone writes truth) and by the rooms
//! for what is local to this server (tokens, rendezvous entries, registrations). No other room
//! knows redb: the cloud may keep its registry elsewhere one day, behind these same verbs.
//!
//! `ENTRIES` is the truth; the tables marked *fold* can be thrown away and made again from it
//! (`registry::rebuild`, tested). The tables marked *local* are this server's own business.

mod read;
mod rotations;
mod rows;
mod source;
mod times;
mod write;

use holdfast_protocol::crypto::{HashAlg, VerifyingKey, hash};
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::record::{EntryId, ListedAs, SignedEntry};
use holdfast_store::StoreError;
use redb::{TableDefinition, WriteTransaction};

pub(crate) use read::Rank;
pub(crate) use rotations::Rotation;
pub(crate) use rows::{AlternateRow, Enrolled, NoticeRow, RendezvousRow, TokenRow};
pub use rows::{
    CertificateRow, ClientRow, GatewayRow, InboxRow, KeyRow, LockCause, LockRow, PeerRow,
    RefusalRow, RefusedRow, SiteRow, VoucherRow,
};
pub(crate) use rows::{base64, key};
pub(crate) use source::Source;
pub(crate) use times::Untimed;
pub use times::When;

type EntryKey = (&'static str, &'static str, u32, u64);
type SpanKey = (&'static str, &'static str, u32, u64, u32);
type Json = TableDefinition<'static, &'static str, &'static [u8]>;

/// (site, origin, epoch, seq) -> signed entry. The truth.
const ENTRIES: TableDefinition<'_, EntryKey, &[u8]> = TableDefinition::new("entries");
/// (site, origin, epoch) -> last number without a gap. *Fold.*
const HEADS: TableDefinition<'_, (&str, &str, u32), u64> = TableDefinition::new("heads");
/// site -> its entry of the highest rank. *Fold.*
const RANKS: TableDefinition<'_, &str, (u64, &str, u32, u64)> = TableDefinition::new("ranks");
/// (device, its entry). *Fold.*
const DEVICES: TableDefinition<'_, (&str, &str, &str, u32, u64), ()> =
    TableDefinition::new("devices");
/// Any GUID a device ever had -> its id. *Fold.*
const GUIDS: TableDefinition<'_, &[u8; 16], &str> = TableDefinition::new("guids");
/// GUID -> voucher by which this server is the owner. *Fold.*
const VOUCHERS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("vouchers");
/// serial (hex) -> certificate. *Fold.*
const CERTIFICATES: Json = TableDefinition::new("certificates");
/// gateway/epoch -> an enrolment. *Fold.*
const GATEWAYS: Json = TableDefinition::new("gateways");
/// site/name -> ordinary client. *Fold.*
const CLIENTS: Json = TableDefinition::new("clients");
/// (site, roll, entry): who said what of listed keys; see [`Roll`]. *Fold.*
const LISTINGS: TableDefinition<'_, (&str, &str, &str, u32, u64), ()> =
    TableDefinition::new("listings");
/// site/roll/key -> what holds of a listed key. *Fold.*
const KEYS: Json = TableDefinition::new("keys");
/// A GUID of TO2 -> the manufacturer's key, hashed, in the voucher presented. *Fold.*
const MAKERS: TableDefinition<'_, &[u8; 16], &str> = TableDefinition::new("makers");
/// GUID whose device an operator gave his word for. *Fold.*
const VOUCHED: TableDefinition<'_, &[u8; 16], ()> = TableDefinition::new("vouched");
/// (site, origin, epoch, seq) of each succession of a key. *Fold.*
const ROTATIONS: TableDefinition<'_, EntryKey, ()> = TableDefinition::new("rotations");
/// (device, serial) of each certificate that shall be renewed. *Fold.*
const RENEWALS: TableDefinition<'_, (&str, &str), ()> = TableDefinition::new("renewals");

/// (site, origin, epoch, the entry that says so, number within it) -> first, last, shift: by how much the
/// times of a log's earlier entries are off. *Fold.*
const LEARNT: TableDefinition<'_, SpanKey, (u64, u64, i64)> = TableDefinition::new("learnt");

/// Entries that are authentic but not believed: they count as received and change nothing.
const REFUSED: TableDefinition<'_, EntryKey, &[u8]> = TableDefinition::new("refused");
/// *Local.*
const SITES: Json = TableDefinition::new("local.sites");
/// Vouchers that no site has yet. *Local.*
const INBOX: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("local.inbox");
/// SHA-256 of a token's secret -> token. *Local.*
const TOKENS: TableDefinition<'_, &[u8; 32], &[u8]> = TableDefinition::new("local.tokens");
/// GUID -> what TO0 left here. *Local.*
const RENDEZVOUS: TableDefinition<'_, &[u8; 16], &[u8]> = TableDefinition::new("local.rendezvous");
/// server -> where it said that it can be reached. *Local.*
const PEERS: Json = TableDefinition::new("local.peers");
/// number -> what was refused, oldest first. *Local.*
const REFUSALS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("local.refusals");
/// party and what it brought -> number of its row in `REFUSALS`. *Local.*
const REFUSALS_OF: TableDefinition<'_, (&str, &str), u64> =
    TableDefinition::new("local.refusals-of");
/// Numbers that were passed over because what came with them was not authentic: an honest entry of
/// that number is still wanted. *Local.*
const HOLES: TableDefinition<'_, EntryKey, ()> = TableDefinition::new("local.holes");
/// gateway -> the enrolment that is locked out. *Local.*
const LOCKS: Json = TableDefinition::new("local.locks");
/// gateway/epoch -> the turn that it took last; see `turns`. *Local.*
const TURNS: Json = TableDefinition::new("local.turns");
/// Key of an authority of this gateway, hashed: all that it issued is on record. *Local.*
const WITNESSED: TableDefinition<'_, &str, ()> = TableDefinition::new("local.witnessed");
/// device -> the notice that it is sent. *Local.*
const NOTICES: Json = TableDefinition::new("local.notices");
/// device -> the notice of the other server that it is sent. *Local.*
const ALTERNATES: Json = TableDefinition::new("local.alternates");
/// SHA-256 of an entry of ours that shared its number with another one, and was written anew. *Local.*
const SETTLED: TableDefinition<'_, &[u8; 32], ()> = TableDefinition::new("local.settled");
/// This server's entries on untrusted time -> run of the machine and milliseconds of it. *Local.*
const UNTIMED: TableDefinition<'_, EntryKey, (u64, u64)> = TableDefinition::new("local.untimed");
/// *Local.*
const META: TableDefinition<'_, &str, u64> = TableDefinition::new("local.meta");

/// Most spans of one log that count: a log that says more than that of its times is none.
const SPANS: usize = 4_096;
/// How many neighbours of an entry are looked at for one whose time is known.
const NEIGHBOURS: usize = 4_096;
/// Longest listing of entries that are kept but not believed.
const REFUSED_SHOWN: usize = 1_000;

/// The rolls on which keys stand. At the cloud a gateway's word about manufacturers stands on a roll
/// of its own: it is heard and shown, and believed by nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Roll {
    pub(crate) role: ListedAs,
    pub(crate) counts: bool,
}

impl Roll {
    pub(crate) const INSTALLERS: Self = Self {
        role: ListedAs::Installer,
        counts: true,
    };
    pub(crate) const MANUFACTURERS: Self = Self {
        role: ListedAs::Manufacturer,
        counts: true,
    };
    pub(crate) const HEARD_MANUFACTURERS: Self = Self {
        role: ListedAs::Manufacturer,
        counts: false,
    };

    fn name(self) -> &'static str {
        match (self.role, self.counts) {
            (ListedAs::Installer, _) => "installer",
            (ListedAs::Manufacturer, true) => "manufacturer",
            (ListedAs::Manufacturer, false) => "manufacturer heard of",
        }
    }
}

/// A key as text, for finding it again: the SHA-256 of its SubjectPublicKeyInfo, hex.
pub(crate) fn key_hash(key: &VerifyingKey) -> String {
    let digest = hash(HashAlg::Sha256, &key.to_spki_der());
    let bytes = digest.value().iter();
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

fn roll_key(site: &SiteId, roll: Roll, key_hash: &str) -> String {
    format!("{site}/{}/{key_hash}", roll.name())
}

/// Makes the registry's tables; given to `Store::open` by the binary.
///
/// # Errors
/// The store failed.
pub fn prepare(tx: &WriteTransaction) -> Result<(), StoreError> {
    tx.open_table(ENTRIES)?;
    tx.open_table(REFUSED)?;
    for table in [
        SITES,
        PEERS,
        KEYS,
        LOCKS,
        TURNS,
        CERTIFICATES,
        GATEWAYS,
        CLIENTS,
        NOTICES,
        ALTERNATES,
    ] {
        tx.open_table(table)?;
    }
    for table in [VOUCHERS, INBOX, RENDEZVOUS] {
        tx.open_table(table)?;
    }
    tx.open_table(HEADS)?;
    tx.open_table(RANKS)?;
    tx.open_table(DEVICES)?;
    tx.open_table(GUIDS)?;
    tx.open_table(TOKENS)?;
    tx.open_table(META)?;
    tx.open_table(LISTINGS)?;
    tx.open_table(MAKERS)?;
    tx.open_table(VOUCHED)?;
    tx.open_table(ROTATIONS)?;
    tx.open_table(RENEWALS)?;
    tx.open_table(REFUSALS)?;
    tx.open_table(REFUSALS_OF)?;
    tx.open_table(HOLES)?;
    tx.open_table(LEARNT)?;
    tx.open_table(UNTIMED)?;
    tx.open_table(WITNESSED)?;
    tx.open_table(SETTLED)?;
    Ok(())
}

/// The verbs over one transaction; reading ones on a snapshot, all of them in a write.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tables<S>(pub(crate) S);

type Answer<T> = Result<T, StoreError>;

fn enrolment_key(server: &ServerId, epoch: u32) -> String {
    format!("{server}/{epoch:010}")
}

fn text(row: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows are plain structs with string keys")
}

fn json<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Answer<T> {
    serde_json::from_slice(bytes).map_err(|_| damaged("row"))
}

fn parse_entry(bytes: &[u8]) -> Answer<SignedEntry> {
    SignedEntry::parse(bytes).map_err(|_| damaged("entry"))
}

fn damaged(what: &str) -> StoreError {
    StoreError::Misuse(format!("a {what} in the registry is not of this version").into())
}
