//! What the fault tests share: a small schema with a ledger, a deterministic source of numbers.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)] // each test uses a part of it

pub mod told;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use holdfast_store::fault::CrashBackend;
use holdfast_store::{Halt, Medium, Reader, Schema, StoreError};
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use tokio::sync::oneshot;

const ROWS: TableDefinition<u64, (u64, &[u8])> = TableDefinition::new("rows");
const SIZES: TableDefinition<u64, u64> = TableDefinition::new("sizes");

/// xorshift64*: reproducible, and no dependency.
#[derive(Debug, Clone)]
pub struct Numbers(pub u64);

impl Numbers {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

/// One version of one key. Every fifth version is a removal; the others' content follows from
/// (key, version).
#[derive(Debug)]
pub struct Put {
    pub key: u64,
    pub version: u64,
    pub reply: oneshot::Sender<Result<(), StoreError>>,
}

pub fn content(key: u64, version: u64) -> Option<Vec<u8>> {
    if version.is_multiple_of(5) {
        return None;
    }
    let mut numbers = Numbers((key << 32 | version) ^ 0x9E37_79B9_7F4A_7C15);
    let length = [40, 300, 900, 3000, 6000][usize::try_from(numbers.below(5)).unwrap()];
    Some(
        (0..length)
            .map(|_| numbers.next().to_le_bytes()[3])
            .collect(),
    )
}

/// What was acknowledged, and at which position of the disk.
#[derive(Debug, Default)]
pub struct Ledger {
    pub acknowledged: Vec<(u64, u64, usize)>,
    pub applied: BTreeMap<(u64, u64), u32>,
    /// Batches that were told although something came in between since it was asked whether they can be.
    pub stale: u32,
}

/// When the schema answers: the planted defect answers too early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answers {
    AfterCommit,
    BeforeCommit,
}

#[derive(Debug)]
pub struct Rows {
    pub disk: CrashBackend,
    pub ledger: Arc<Mutex<Ledger>>,
    pub answers: Answers,
}

impl Rows {
    fn note(&self, ops: &[Put]) {
        let at = self.disk.position();
        let mut ledger = self.ledger.lock().unwrap();
        ledger
            .acknowledged
            .extend(ops.iter().map(|op| (op.key, op.version, at)));
    }
}

impl Schema for Rows {
    type Op = Put;

    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        tx.open_table(ROWS)?;
        tx.open_table(SIZES)?;
        Ok(())
    }

    fn apply(&mut self, tx: &WriteTransaction, ops: &mut [Put]) -> Result<(), Halt> {
        let mut rows = tx.open_table(ROWS)?;
        let mut sizes = tx.open_table(SIZES)?;
        for op in ops.iter() {
            *self
                .ledger
                .lock()
                .unwrap()
                .applied
                .entry((op.key, op.version))
                .or_default() += 1;
            match content(op.key, op.version) {
                Some(content) => {
                    rows.insert(op.key, (op.version, content.as_slice()))?;
                    sizes.insert(op.key, content.len() as u64)?;
                }
                None => {
                    rows.remove(op.key)?;
                    sizes.remove(op.key)?;
                }
            }
        }
        if self.answers == Answers::BeforeCommit {
            self.note(ops);
        }
        Ok(())
    }

    fn done(&mut self, ops: Vec<Put>) {
        if self.answers == Answers::AfterCommit {
            self.note(&ops);
        }
        for op in ops {
            let _ = op.reply.send(Ok(()));
        }
    }

    fn failed(&mut self, ops: Vec<Put>, error: &StoreError) {
        for op in ops {
            let _ = op.reply.send(Err(error.clone()));
        }
    }

    fn essential(op: &Put) -> bool {
        op.key != 0
    }
}

/// All rows of a store, with the two tables checked against each other.
pub fn read_all(reader: &Reader) -> Result<BTreeMap<u64, (u64, Vec<u8>)>, String> {
    reader
        .read(|tx| {
            let rows = tx.open_table(ROWS)?;
            let sizes = tx.open_table(SIZES)?;
            let mut found = BTreeMap::new();
            for row in rows.iter()? {
                let (key, value) = row?;
                let (version, bytes) = value.value();
                let size = sizes.get(key.value())?.map(|size| size.value());
                if size != Some(bytes.len() as u64) {
                    return Err(StoreError::Misuse("the tables disagree".into()));
                }
                found.insert(key.value(), (version, bytes.to_vec()));
            }
            Ok(found)
        })
        .map_err(|error| error.to_string())
}

/// Whether `found` is what one of the versions from `least` to `most` leaves of `key`.
pub fn fits(key: u64, found: Option<&(u64, Vec<u8>)>, least: u64, most: u64) -> bool {
    (least..=most).any(|version| match (content(key, version), found) {
        (None, None) => true,
        (Some(content), Some((stored, bytes))) => *stored == version && *bytes == content,
        _ => false,
    })
}

/// Opens an image with plain redb, as the store would: the judge is not the accused.
pub fn open_image(bytes: Vec<u8>) -> Result<BTreeMap<u64, (u64, Vec<u8>)>, String> {
    let backend = redb::backends::InMemoryBackend::new();
    redb::StorageBackend::set_len(&backend, bytes.len() as u64).unwrap();
    redb::StorageBackend::write(&backend, 0, &bytes).unwrap();
    let database = redb::Builder::new()
        .set_cache_size(4 << 20)
        .create_with_backend(backend)
        .map_err(|error| error.to_string())?;
    let tx = database.begin_read().map_err(|error| error.to_string())?;
    let rows = match tx.open_table(ROWS) {
        Ok(rows) => rows,
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error.to_string()),
    };
    let sizes = tx.open_table(SIZES).map_err(|error| error.to_string())?;
    let mut found = BTreeMap::new();
    for row in rows.iter().map_err(|error| error.to_string())? {
        let (key, value) = row.map_err(|error| error.to_string())?;
        let (version, bytes) = value.value();
        let size = sizes.get(key.value()).map_err(|error| error.to_string())?;
        if size.map(|size| size.value()) != Some(bytes.len() as u64) {
            return Err("the tables disagree".to_owned());
        }
        found.insert(key.value(), (version, bytes.to_vec()));
    }
    Ok(found)
}

pub fn medium(disk: &CrashBackend) -> Medium {
    Medium::Backend(Arc::new(disk.clone()))
}
