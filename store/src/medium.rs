//! Where a store lives and how it is opened: a file, or a backend from a test kit.
//!
//! Called by the writer thread at start and after each failure. Decides what counts as damage and
//! moves a damaged file away if the caller chose so; it never deletes one.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use redb::backends::FileBackend;
use redb::{Builder, Database, ReadableDatabase, StorageBackend};
use tracing::warn;

use crate::StoreError;
use crate::gather::{GATHERED_BYTES, Gathering};
use crate::log::{self, Log};

/// The most memory a store may use as page cache and for writes on their way, in bytes.
pub const MAX_CACHE_BYTES: usize = 16 << 20;

/// Names tried for a quarantined file before giving up.
const MAX_QUARANTINED: u32 = 1000;

/// Where the store's bytes are.
#[derive(Debug, Clone)]
pub enum Medium {
    /// A file, made with mode 0600 if missing. Its folder must exist.
    File(PathBuf),
    /// A seam for crash images, failing I/O and other file systems: asked again at each reopening.
    Backend(Arc<dyn OpenBackend>),
}

/// Gives a fresh backend over the same bytes at each opening.
pub trait OpenBackend: fmt::Debug + Send + Sync {
    /// Opens the bytes once more; the former backend has been closed by then.
    ///
    /// # Errors
    /// What the device says.
    fn open(&self) -> io::Result<Box<dyn StorageBackend>>;
}

/// What to do with a file that is there but is no store of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damaged {
    /// Say so and do not start: for what must not silently begin empty.
    Refuse,
    /// Rename it to `<name>.damaged-<n>`, report it in [`crate::Health`], begin empty.
    Quarantine,
}

/// A damaged file that was moved away.
#[derive(Debug, Clone)]
pub struct Quarantined {
    /// Where it is now.
    pub path: PathBuf,
    /// Why it was not accepted.
    pub why: Arc<str>,
}

/// The bounds of a store. `Options::default()` suits a gateway.
#[derive(Debug, Clone)]
pub struct Options {
    /// Name of the writer thread (15 characters are seen by the system).
    pub name: &'static str,
    /// Page cache in bytes; more than [`MAX_CACHE_BYTES`] is cut to it.
    pub cache_bytes: usize,
    /// Operations that may wait in the mailbox.
    pub mailbox: usize,
    /// Operations in one commit, each by its [`crate::Schema::size`]; the last one may pass it.
    pub max_batch: usize,
    /// Bytes of the log in front of the tables, for a schema that tells batches there ([`crate::Schema::loggable`]); 0 =
    /// none. Decided when the file is made; one that was made without a log gets one at its next opening.
    pub log_bytes: u64,
    /// Disk space kept back for essential operations, in bytes, really written; 0 = none.
    pub reserve_bytes: u64,
    /// Where the reserve lies; `None` = beside the file, as `<name>.reserve`.
    pub reserve_file: Option<PathBuf>,
    /// What to do with a damaged file at the start.
    pub damaged: Damaged,
    /// Longest pause between two attempts to reopen; the first pause is a 64th of it.
    pub reopen_pause: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            name: "store",
            cache_bytes: MAX_CACHE_BYTES,
            mailbox: 1024,
            max_batch: 1024,
            log_bytes: 0,
            reserve_bytes: 0,
            reserve_file: None,
            damaged: Damaged::Refuse,
            reopen_pause: Duration::from_secs(2),
        }
    }
}

/// An open store: its tables, and the log before them.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) database: Database,
    pub(crate) log: Option<Log>,
}

/// Opens for the first time: by choice, a damaged file is moved away first.
pub(crate) fn open_first(
    medium: &Medium,
    options: &Options,
) -> Result<(Opened, Option<Quarantined>), StoreError> {
    let opened = match medium {
        Medium::File(path) => open(medium, options)
            .and_then(|opened| with_log(opened, path, options))
            .map_err(|error| error.at(path)),
        Medium::Backend(_) => open(medium, options),
    };
    let error = match opened {
        Ok(opened) => return Ok((opened, None)),
        Err(error) => error,
    };
    match (medium, &error) {
        (Medium::File(path), StoreError::Damaged { why, .. })
            if options.damaged == Damaged::Quarantine =>
        {
            let moved = Quarantined {
                path: move_away(path)?,
                why: Arc::clone(why),
            };
            Ok((open(medium, options)?, Some(moved)))
        }
        _ => Err(error),
    }
}

/// Opens what is there, or makes a new store where nothing is.
pub(crate) fn open(medium: &Medium, options: &Options) -> Result<Opened, StoreError> {
    match medium {
        Medium::File(path) => open_file(path, options).map_err(|error| error.at(path)),
        Medium::Backend(source) => open_backend(source.open()?, options),
    }
}

fn open_file(path: &Path, options: &Options) -> Result<Opened, StoreError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.is_file() => {
            return Err(StoreError::damaged("it is not a regular file"));
        }
        // Ours appear whole (see `create`), so an empty one has lost what it held.
        Ok(found) if found.len() == 0 => return Err(StoreError::damaged("it is empty")),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, options)?,
        Err(error) => return Err(error.into()),
    }
    loop {
        let file = existing(path)?;
        let ours = file.metadata()?;
        let opened = open_backend(Box::new(FileBackend::new(file)?), options)?;
        // Another process may have put a new one in its place while we waited for it to let go.
        let there = fs::metadata(path)?;
        if (ours.dev(), ours.ino()) == (there.dev(), there.ino()) {
            return Ok(opened);
        }
    }
}

/// A file of an earlier version gets its log; without room for a copy it goes on as it is.
fn with_log(opened: Opened, path: &Path, options: &Options) -> Result<Opened, StoreError> {
    if opened.log.is_some() || options.log_bytes == 0 {
        return Ok(opened);
    }
    if let Err(error) = put_behind_a_log(path, options) {
        warn!(file = %path.display(), %error, "no log is put before this store: it works without, more slowly");
        return Ok(opened);
    }
    // From here on the name means the copy, whatever happens.
    drop(opened);
    sync_folder_of(path)?;
    open_file(path, options)
}

fn existing(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new().read(true).write(true).open(path);
    file.map_err(|error| {
        match error.kind() {
            // A file of another owner in our own folder can be moved away, but not used.
            io::ErrorKind::PermissionDenied => StoreError::damaged("it may not be opened"),
            _ => error.into(),
        }
    })
}

/// A file that was made without a log, copied behind one. Whoever calls has it open, so that nobody else has.
fn put_behind_a_log(path: &Path, options: &Options) -> Result<(), StoreError> {
    let mut old = existing(path)?;
    let (mut file, fresh) = beside(path)?;
    let copied = copy_behind(&mut old, &mut file, options.log_bytes);
    if let Err(error) = copied.and_then(|()| fs::rename(&fresh, path)) {
        // What was there stands, and its disk may be full.
        let _ = fs::remove_file(&fresh);
        return Err(error.into());
    }
    Ok(())
}

fn copy_behind(old: &mut File, file: &mut File, log_bytes: u64) -> io::Result<()> {
    let (page, from) = log::front(log_bytes);
    file.write_all(&page)?;
    file.seek(SeekFrom::Start(from))?;
    io::copy(old, file)?;
    let meta = old.metadata()?;
    file.set_permissions(meta.permissions())?;
    file.sync_all()
}

/// A power cut while redb makes its file leaves one that redb refuses: so the file is made under
/// another name and gets its own when it is whole.
fn create(path: &Path, options: &Options) -> Result<(), StoreError> {
    let (file, fresh) = beside(path)?;
    let synced = file.try_clone()?;
    drop(open_backend(Box::new(FileBackend::new(file)?), options)?);
    synced.sync_all()?;
    fs::rename(&fresh, path)?;
    sync_folder_of(path)?;
    Ok(())
}

/// An empty file beside another, for its next content.
fn beside(path: &Path) -> io::Result<(File, PathBuf)> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let fresh = PathBuf::from(name);
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&fresh)?;
    Ok((file, fresh))
}

fn open_backend(backend: Box<dyn StorageBackend>, options: &Options) -> Result<Opened, StoreError> {
    // redb may panic on a file that was altered behind its back: that is damage like any other.
    catch_unwind(AssertUnwindSafe(|| {
        let (log, backend) = log::divide(backend, options.log_bytes)?;
        let database = Builder::new()
            .set_cache_size(options.cache_bytes.min(MAX_CACHE_BYTES - GATHERED_BYTES))
            .create_with_backend(Gathering::new(backend))?;
        database.begin_read()?.list_tables()?.for_each(drop);
        Ok(Opened { database, log })
    }))
    .unwrap_or_else(|_| Err(StoreError::damaged("its content contradicts itself")))
}

fn move_away(path: &Path) -> Result<PathBuf, StoreError> {
    for n in 1..=MAX_QUARANTINED {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        let target = PathBuf::from(name);
        if fs::symlink_metadata(&target).is_err() {
            fs::rename(path, &target)?;
            sync_folder_of(path)?;
            return Ok(target);
        }
    }
    Err(StoreError::damaged("too many damaged copies beside it: remove some").at(path))
}

pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}
