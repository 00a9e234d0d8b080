//! The store against a `BTreeMap`: any mix of writes, refusals, group commits and reopenings; and
//! the bounds of mailbox and batch.
#![allow(clippy::unwrap_used)] // the lint knows only functions marked as tests

mod kit;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use holdfast_store::fault::CrashBackend;
use holdfast_store::{
    Halt, Medium, Options, Schema, Store, StoreError, TrySendError, WriteError, Writer, Written,
};
use proptest::prelude::*;
use redb::{ReadableTable, TableDefinition, WriteTransaction};

const TABLE: TableDefinition<u16, u32> = TableDefinition::new("table");

#[derive(Debug, Clone)]
enum Step {
    /// Jobs sent at once, so that they share commits.
    Together(Vec<Job>),
    Reopen,
}

#[derive(Debug, Clone)]
enum Job {
    Insert(u16, u32),
    Remove(u16),
    /// Writes, then refuses if the key is there (after the jobs before it): must leave nothing.
    InsertNew(u16, u32),
}

fn job() -> impl Strategy<Value = Job> {
    let key = 0..24_u16;
    prop_oneof![
        (key.clone(), any::<u32>()).prop_map(|(key, value)| Job::Insert(key, value)),
        key.clone().prop_map(Job::Remove),
        (key, any::<u32>()).prop_map(|(key, value)| Job::InsertNew(key, value)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => prop::collection::vec(job(), 1..12).prop_map(Step::Together),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, PartialEq, Eq)]
struct Taken;

fn apply(tx: &WriteTransaction, job: &Job) -> Written<(), Taken> {
    let mut table = tx.open_table(TABLE)?;
    match *job {
        Job::Insert(key, value) => {
            table.insert(key, value)?;
        }
        Job::Remove(key) => {
            table.remove(key)?;
        }
        Job::InsertNew(key, value) => {
            if table.insert(key, value)?.is_some() {
                return Err(WriteError::Job(Taken));
            }
        }
    }
    Ok(())
}

fn open(disk: &CrashBackend) -> Store {
    Store::open(kit::medium(disk), Options::default(), |tx| {
        tx.open_table(TABLE)?;
        Ok(())
    })
    .unwrap()
}

fn contents(store: &Store) -> BTreeMap<u16, u32> {
    store
        .read::<_, StoreError>(|tx| {
            let mut found = BTreeMap::new();
            for row in tx.open_table(TABLE)?.iter()? {
                let (key, value) = row?;
                found.insert(key.value(), value.value());
            }
            Ok(found)
        })
        .unwrap()
}

async fn play(steps: Vec<Step>) {
    let disk = CrashBackend::new();
    let mut store = open(&disk);
    let mut model = BTreeMap::new();
    for step in steps {
        match step {
            Step::Reopen => {
                drop(store);
                store = open(&disk);
            }
            Step::Together(jobs) => together(&store, &mut model, jobs).await,
        }
        assert_eq!(contents(&store), model);
    }
}

/// The tasks run on one thread and enter the mailbox in the order they were spawned.
async fn together(store: &Store, model: &mut BTreeMap<u16, u32>, jobs: Vec<Job>) {
    let mut waiting = Vec::new();
    for job in jobs {
        let (store, mine) = (store.clone(), job.clone());
        let task = tokio::spawn(async move { store.write(move |tx| apply(tx, &mine)).await });
        waiting.push((job, task));
    }
    for (job, task) in waiting {
        let refused = match job {
            Job::Insert(key, value) => {
                model.insert(key, value);
                false
            }
            Job::Remove(key) => {
                model.remove(&key);
                false
            }
            Job::InsertNew(key, value) => {
                let taken = model.contains_key(&key);
                model.entry(key).or_insert(value);
                taken
            }
        };
        match task.await.unwrap() {
            Ok(()) => assert!(!refused, "{job:?} should have been refused"),
            Err(WriteError::Job(Taken)) => assert!(refused, "{job:?} should have been taken"),
            Err(WriteError::Store(error)) => panic!("{error}"),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn behaves_as_a_map(steps in prop::collection::vec(step(), 1..14)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(play(steps));
    }
}

/// Holds each batch until the test lets it go, and reports its size.
#[derive(Debug)]
struct Gate {
    entered: SyncSender<usize>,
    go: Receiver<()>,
    answered: SyncSender<u32>,
}

impl Schema for Gate {
    type Op = u32;

    fn prepare(&mut self, tx: &WriteTransaction) -> Result<(), StoreError> {
        tx.open_table(TABLE)?;
        Ok(())
    }

    fn apply(&mut self, _tx: &WriteTransaction, ops: &mut [u32]) -> Result<(), Halt> {
        self.entered.send(ops.len()).unwrap();
        self.go.recv().unwrap();
        Ok(())
    }

    fn done(&mut self, ops: Vec<u32>) {
        ops.into_iter()
            .for_each(|op| self.answered.send(op).unwrap());
    }

    fn failed(&mut self, _ops: Vec<u32>, error: &StoreError) {
        panic!("{error}");
    }
}

#[test]
fn a_full_mailbox_gives_the_operation_back_and_what_waited_shares_a_commit() {
    let (entered, batches) = sync_channel(16);
    let (open_gate, go) = sync_channel(16);
    let (answered, answers) = sync_channel(64);
    let options = Options {
        mailbox: 8,
        max_batch: 6,
        ..Options::default()
    };
    let medium = Medium::Backend(Arc::new(CrashBackend::new()));
    let writer = Writer::open(
        medium,
        options,
        Gate {
            entered,
            go,
            answered,
        },
    )
    .unwrap();
    writer.try_send(0).unwrap();
    assert_eq!(batches.recv().unwrap(), 1);
    for op in 1..=8 {
        writer.try_send(op).unwrap();
    }
    assert_eq!(writer.waiting(), 8);
    assert!(matches!(writer.try_send(9), Err(TrySendError::Full(9))));
    assert!(
        answers.try_recv().is_err(),
        "nothing is answered before its commit"
    );
    for _ in 0..3 {
        open_gate.send(()).unwrap();
    }
    assert_eq!((batches.recv().unwrap(), batches.recv().unwrap()), (6, 2));
    // The last handle waits for what is under way.
    drop(writer);
    assert_eq!(
        answers.try_iter().collect::<Vec<_>>(),
        (0..=8).collect::<Vec<_>>()
    );
}

/// A schema that panics costs its batch, not the store.
#[tokio::test]
async fn a_panicking_job_fails_alone() {
    let disk = CrashBackend::new();
    let store = open(&disk);
    let failed = store.write::<(), Taken, _>(|_| panic!("a defect")).await;
    assert!(matches!(failed, Err(WriteError::Store(_))));
    store
        .write(|tx| apply(tx, &Job::Insert(1, 1)))
        .await
        .unwrap();
    assert_eq!(contents(&store), BTreeMap::from([(1, 1)]));
}

#[tokio::test]
async fn a_snapshot_stays_as_it_was() {
    let disk = CrashBackend::new();
    let store = open(&disk);
    store
        .write(|tx| apply(tx, &Job::Insert(1, 1)))
        .await
        .unwrap();
    let snapshot = store.reader().begin().unwrap();
    store
        .write(|tx| apply(tx, &Job::Insert(1, 2)))
        .await
        .unwrap();
    let table = snapshot.open_table(TABLE).unwrap();
    assert_eq!(table.get(1).unwrap().unwrap().value(), 1);
    assert_eq!(contents(&store), BTreeMap::from([(1, 2)]));
}
