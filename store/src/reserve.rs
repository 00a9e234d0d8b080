//! Disk space kept back for essential operations: a file of real bytes beside the store.
//!
//! Used by the writer thread alone. When the disk is full the file is removed, which gives its space
//! to essential writes; when it can be written again, the emergency is over. It never touches the
//! store's own file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tracing::warn;

use crate::{Medium, Options};

/// The reserve is written in pieces of this many bytes.
const PIECE: usize = 64 << 10;

/// Pause between two attempts to write the reserve again.
const RETRY: Duration = Duration::from_secs(1);

/// The reserve of one store; inert without a place or a size.
#[derive(Debug)]
pub(crate) struct Reserve {
    file: Option<PathBuf>,
    bytes: u64,
    in_use: bool,
    last_try: Instant,
}

impl Reserve {
    pub(crate) fn new(medium: &Medium, options: &Options) -> Self {
        let bytes = options.reserve_bytes;
        let mut reserve = Self {
            file: place(medium, options),
            bytes,
            in_use: false,
            last_try: Instant::now(),
        };
        if let Some(path) = &reserve.file
            && let Err(error) = fill(path, bytes)
        {
            warn!(file = %path.display(), %error, "no room for the store's reserve: free some disk space");
            let _ = fs::remove_file(path);
            reserve.in_use = true;
        }
        reserve
    }

    /// Gives the space of an earlier run free, so that the store can be opened; false when there is none.
    pub(crate) fn give_free(medium: &Medium, options: &Options) -> bool {
        place(medium, options).is_some_and(|path| fs::remove_file(path).is_ok())
    }

    /// Whether only essential operations may be taken.
    pub(crate) fn in_use(&self) -> bool {
        self.in_use
    }

    /// Gives the reserved space free; false when there is none.
    pub(crate) fn release(&mut self) -> bool {
        let Some(path) = &self.file else { return false };
        if !self.in_use {
            let _ = fs::remove_file(path);
            self.in_use = true;
            self.last_try = Instant::now();
        }
        true
    }

    /// Tries to take the space back, not more often than every second; true when it is back.
    pub(crate) fn restore(&mut self) -> bool {
        let Some(path) = &self.file else { return true };
        if self.last_try.elapsed() < RETRY {
            return false;
        }
        self.last_try = Instant::now();
        match fill(path, self.bytes) {
            Ok(()) => {
                self.in_use = false;
                true
            }
            Err(_) => {
                let _ = fs::remove_file(path);
                false
            }
        }
    }
}

/// Where the reserve lies; `None` without one.
fn place(medium: &Medium, options: &Options) -> Option<PathBuf> {
    let beside = || match medium {
        Medium::File(path) => {
            let mut name = path.as_os_str().to_owned();
            name.push(".reserve");
            Some(PathBuf::from(name))
        }
        Medium::Backend(_) => None,
    };
    let file = options.reserve_file.clone().or_else(beside);
    file.filter(|_| options.reserve_bytes > 0)
}

/// Writes real bytes: a file with holes reserves nothing.
fn fill(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)?;
    let found = file.metadata()?.len();
    if found == bytes {
        return Ok(());
    }
    file.set_len(0)?;
    let piece = vec![0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).map_or(PIECE, |left| left.min(PIECE));
        file.write_all(&piece[..now])?;
        left -= now as u64;
    }
    file.sync_all()
}
