//! A schema that tells in the log what it can: the kit's puts, each with a shadow of its own so that half a batch shows.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_store::fault::CrashBackend;
use holdfast_store::{Halt, Medium, Options, Reader, Schema, StoreError, Writer};
use redb::WriteTransaction;
use tokio::sync::oneshot;

use super::{Answers, Ledger, Put, ROWS, SIZES, content, fits, read_all};

/// So much further lies the shadow of a key.
pub const SHADOW: u64 = 1 << 20;

pub const LOG: u64 = 8 << 10;

pub fn options(log_bytes: u64) -> Options {
    Options {
        log_bytes,
        reopen_pause: Duration::from_millis(20),
        ..Options::default()
    }
}

#[derive(Debug)]
pub struct Told {
    disk: CrashBackend,
    ledger: Arc<Mutex<Ledger>>,
    answers: Answers,
    /// The planted defect: what the log told is forgotten at the opening.
    pub forgets: bool,
    /// Key -> version, in the log only.
    told: BTreeMap<u64, u64>,
    is_told: bool,
    checkpoints: u32,
    /// So many had been when it was asked last whether a batch can be told.
    asked_at: Cell<u32>,
}

impl Told {
    pub fn new(disk: &CrashBackend, ledger: &Arc<Mutex<Ledger>>, answers: Answers) -> Self {
        Self {
            disk: disk.clone(),
            ledger: Arc::clone(ledger),
            answers,
            forgets: false,
            told: BTreeMap::new(),
            is_told: false,
            checkpoints: 0,
            asked_at: Cell::new(0),
        }
    }

    /// For looking only.
    pub fn alone() -> Self {
        Self::new(&CrashBackend::new(), &Arc::default(), Answers::AfterCommit)
    }

    fn count(&self, ops: &[Put]) {
        let mut ledger = self.ledger.lock().unwrap();
        for op in ops {
            *ledger.applied.entry((op.key, op.version)).or_default() += 1;
        }
        drop(ledger);
        if self.answers == Answers::BeforeCommit {
            self.note(ops);
        }
    }

    fn note(&self, ops: &[Put]) {
        let at = self.disk.position();
        let mut ledger = self.ledger.lock().unwrap();
        let each = ops.iter().map(|op| (op.key, op.version, at));
        ledger.acknowledged.extend(each);
    }
}

/// Some go to the tables only.
pub fn is_loggable(version: u64) -> bool {
    version % 7 != 3
}

fn put(tx: &WriteTransaction, key: u64, version: u64) -> Result<(), StoreError> {
    let mut rows = tx.open_table(ROWS)?;
    let mut sizes = tx.open_table(SIZES)?;
    for key in [key, key + SHADOW] {
        match content(key, version) {
            Some(content) => {
                rows.insert(key, (version, content.as_slice()))?;
                sizes.insert(key, content.len() as u64)?;
            }
            None => {
                rows.remove(key)?;
                sizes.remove(key)?;
            }
        }
    }
    Ok(())
}

/// Content is told too, so that records are of many lengths.
fn length(op: &Put) -> usize {
    20 + content(op.key, op.version).map_or(0, |content| content.len())
}

fn number(record: &mut &[u8]) -> Option<u64> {
    let (first, rest) = record.split_first_chunk()?;
    *record = rest;
    Some(u64::from_be_bytes(*first))
}

impl Schema for Told {
    type Op = Put;

    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        tx.open_table(ROWS)?;
        tx.open_table(SIZES)?;
        if self.forgets {
            self.told.clear();
        }
        self.checkpoint(tx)
    }

    fn apply(&mut self, tx: &WriteTransaction, ops: &mut [Put]) -> Result<(), Halt> {
        self.is_told = false;
        self.checkpoint(tx)?;
        for op in &*ops {
            put(tx, op.key, op.version)?;
        }
        self.count(ops);
        Ok(())
    }

    fn loggable(&self, ops: &[Put]) -> Option<usize> {
        self.asked_at.set(self.checkpoints);
        let all = ops.iter().all(|op| is_loggable(op.version));
        all.then(|| ops.iter().map(length).sum())
    }

    fn log(
        &mut self,
        _reader: &Reader,
        ops: &mut [Put],
        record: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        self.is_told = true;
        if self.asked_at.get() != self.checkpoints {
            self.ledger.lock().unwrap().stale += 1;
        }
        for op in &*ops {
            let content = content(op.key, op.version).unwrap_or_default();
            record.extend(op.key.to_be_bytes());
            record.extend(op.version.to_be_bytes());
            record.extend(u32::try_from(content.len()).unwrap().to_be_bytes());
            record.extend(content);
            self.told.insert(op.key, op.version);
        }
        self.count(ops);
        Ok(())
    }

    fn checkpoint(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        let mut told = self.told.iter();
        told.try_for_each(|(key, version)| put(tx, *key, *version))
    }

    fn checkpointed(&mut self) {
        self.checkpoints += 1;
        self.told.clear();
    }

    fn begin_replay(&mut self) {
        self.told.clear();
    }

    fn replay(&mut self, mut record: &[u8]) -> Result<(), StoreError> {
        let damaged = || StoreError::Misuse("a record of another schema".into());
        while !record.is_empty() {
            let key = number(&mut record).ok_or_else(damaged)?;
            let version = number(&mut record).ok_or_else(damaged)?;
            let (length, rest) = record.split_first_chunk().ok_or_else(damaged)?;
            let length = usize::try_from(u32::from_be_bytes(*length)).unwrap();
            let told = rest.split_at_checked(length).ok_or_else(damaged)?;
            if told.0 != content(key, version).unwrap_or_default() {
                return Err(damaged());
            }
            record = told.1;
            self.told.insert(key, version);
        }
        Ok(())
    }

    fn prepared(&mut self) {
        self.told.clear();
    }

    fn done(&mut self, ops: Vec<Put>) {
        if !self.is_told {
            self.told.clear();
        }
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
}

pub type Found = BTreeMap<u64, (u64, Vec<u8>)>;

/// What a store holds that opens this; each row must have its shadow.
pub fn opened(medium: Medium, schema: Told) -> Result<Found, String> {
    let writer = Writer::open(medium, options(LOG), schema).map_err(|error| error.to_string())?;
    let mut found = read_all(&writer.reader())?;
    let shadows = found.split_off(&SHADOW);
    let versions = |rows: &Found, less: u64| -> Vec<(u64, u64)> {
        let each = rows
            .iter()
            .map(|(key, (version, _))| (key - less, *version));
        each.collect()
    };
    if versions(&found, 0) != versions(&shadows, SHADOW) {
        return Err("half of a batch".to_owned());
    }
    let right = |(key, row): (&u64, &(u64, Vec<u8>))| fits(*key, Some(row), row.0, row.0);
    if !shadows.iter().all(right) {
        return Err("a wrong shadow".to_owned());
    }
    Ok(found)
}

/// Hands a put in and waits for its answer.
pub fn send(writer: &Writer<Told>, key: u64, version: u64) -> Result<(), StoreError> {
    let (reply, answer) = oneshot::channel();
    let put = Put {
        key,
        version,
        reply,
    };
    writer.blocking_send(put).unwrap();
    answer.blocking_recv().expect("every operation is answered")
}
