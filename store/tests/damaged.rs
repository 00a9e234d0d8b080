//! What may lie where the store should be: each kind is refused or, by choice, moved away intact.
#![allow(clippy::unwrap_used)] // the lint knows only functions marked as tests

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use holdfast_store::{Damaged, Medium, Options, State, Store, StoreError, WriteError, Written};
use redb::{ReadableTable, TableDefinition};

const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("table");

fn open(path: &Path, damaged: Damaged) -> Result<Store, StoreError> {
    let options = Options {
        damaged,
        ..Options::default()
    };
    Store::open(Medium::File(path.to_owned()), options, |tx| {
        tx.open_table(TABLE)?;
        Ok(())
    })
}

async fn put(store: &Store, key: u64) -> Written<()> {
    store
        .write(move |tx| {
            tx.open_table(TABLE)?.insert(key, [7; 2000].as_slice())?;
            Ok(())
        })
        .await
}

fn count(store: &Store) -> Result<u64, StoreError> {
    store.read(|tx| {
        let table = tx.open_table(TABLE)?;
        let mut count = 0;
        for row in table.iter()? {
            row?;
            count += 1;
        }
        Ok(count)
    })
}

async fn good_file(path: &Path) {
    let store = open(path, Damaged::Refuse).unwrap();
    for key in 0..50 {
        put(&store, key).await.unwrap();
    }
}

type Spoil = fn(&Path);

const CASES: [(&str, Spoil); 8] = [
    ("empty", |path| fs::write(path, b"").unwrap()),
    ("truncated to half", |path| cut(path, 2)),
    ("truncated to the header", |path| {
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..320]).unwrap();
    }),
    ("zeros", |path| {
        let length = fs::metadata(path).unwrap().len();
        fs::write(path, vec![0; usize::try_from(length).unwrap()]).unwrap();
    }),
    ("text", |path| {
        fs::write(path, "dear diary\n".repeat(1000)).unwrap()
    }),
    ("older format", |path| {
        let mut bytes = fs::read(path).unwrap();
        // The version byte opens each of the two commit slots.
        bytes[64] = 1;
        bytes[192] = 1;
        fs::write(path, bytes).unwrap();
    }),
    ("directory", |path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
    }),
    ("symbolic link", |path| {
        let other = path.with_extension("elsewhere");
        fs::rename(path, &other).unwrap();
        symlink(other, path).unwrap();
    }),
];

fn cut(path: &Path, part: usize) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / part]).unwrap();
}

#[tokio::test]
async fn each_kind_of_damage_is_refused_or_moved_away() {
    for (name, spoil) in CASES {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.redb");
        good_file(&path).await;
        spoil(&path);
        let error = open(&path, Damaged::Refuse).map(|_| ()).expect_err(name);
        assert!(
            matches!(error, StoreError::Damaged { .. }),
            "{name}: {error}"
        );
        assert!(
            error.to_string().contains("journal.redb"),
            "{name}: {error}"
        );

        let store =
            open(&path, Damaged::Quarantine).unwrap_or_else(|error| panic!("{name}: {error}"));
        let health = store.health().borrow().clone();
        assert_eq!(health.state, State::Open, "{name}");
        let moved = health
            .quarantined
            .unwrap_or_else(|| panic!("{name}: not reported"));
        assert!(
            fs::symlink_metadata(&moved.path).is_ok(),
            "{name}: the copy is gone"
        );
        assert_eq!(count(&store).unwrap(), 0, "{name}");
        put(&store, 1).await.unwrap();
        drop(store);
        // A second damage does not overwrite the first copy.
        fs::write(&path, b"again").unwrap();
        let store = open(&path, Damaged::Quarantine).unwrap();
        let again = store.health().borrow().quarantined.clone().unwrap();
        assert_ne!(again.path, moved.path, "{name}");
    }
}

#[tokio::test]
async fn a_good_file_is_never_moved_and_nobody_else_may_open_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.redb");
    good_file(&path).await;
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let store = open(&path, Damaged::Quarantine).unwrap();
    assert_eq!(count(&store).unwrap(), 50);
    assert!(store.health().borrow().quarantined.is_none());
    for damaged in [Damaged::Refuse, Damaged::Quarantine] {
        assert!(matches!(open(&path, damaged), Err(StoreError::InUse)));
    }
    put(&store, 99).await.unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_half_made_file_of_an_interrupted_first_start_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.redb");
    fs::write(folder.path().join("journal.redb.new"), b"half").unwrap();
    let store = open(&path, Damaged::Refuse).unwrap();
    put(&store, 1).await.unwrap();
    assert_eq!(count(&store).unwrap(), 1);
}

#[tokio::test]
async fn a_missing_folder_is_an_error_of_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let error = open(&folder.path().join("no/such"), Damaged::Quarantine)
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(error, StoreError::Io(_)), "{error}");
    assert!(!matches!(
        WriteError::<()>::from(error),
        WriteError::Job(())
    ));
}
