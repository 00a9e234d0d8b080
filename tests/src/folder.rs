//! Folders for one run, gone with it. What a killed run left is removed by the next one that makes a folder at
//! the same place: a run holds a lock on a file in its folder, and a lock ends with its process.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::Path;

use tempfile::TempDir;

/// Locked by the run that the folder belongs to. Not there: nobody's to remove.
const MARK: &str = ".run";

/// A folder of this run.
#[derive(Debug)]
pub struct Folder {
    folder: TempDir,
    _mark: File,
}

impl Folder {
    /// Makes one among the machine's temporary files.
    ///
    /// # Errors
    /// The file system's.
    pub fn new(prefix: &str) -> io::Result<Self> {
        Self::new_in(&std::env::temp_dir(), prefix)
    }

    /// Removes what killed runs left in `place` under this prefix, and makes a folder there.
    ///
    /// # Errors
    /// The file system's.
    pub fn new_in(place: &Path, prefix: &str) -> io::Result<Self> {
        sweep(place, prefix);
        let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(place)?;
        // It is locked before it has the name by which others find it.
        let early = folder.path().join(".run.new");
        let mark = File::create(&early)?;
        mark.lock()?;
        fs::rename(&early, folder.path().join(MARK))?;
        Ok(Self {
            folder,
            _mark: mark,
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Leaves it behind for good.
    pub fn keep(&mut self) {
        self.folder.disable_cleanup(true);
        // If it stays, a later run removes the folder: no more than that is lost.
        let _ = fs::remove_file(self.path().join(MARK));
    }
}

/// Removes folders whose run has ended. What cannot be removed is another user's, or is removed by another run now.
fn sweep(place: &Path, prefix: &str) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let Ok(mark) = File::open(entry.path().join(MARK)) else {
            continue;
        };
        if let Err(TryLockError::WouldBlock) = mark.try_lock() {
            continue;
        }
        if fs::remove_dir_all(entry.path()).is_ok() {
            eprintln!("removed what a killed run left: {}", entry.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_run_left_goes_and_what_lives_or_was_kept_stays() {
        let place = tempfile::tempdir().unwrap();
        let make = |prefix| Folder::new_in(place.path(), prefix).unwrap();
        let living = make("run-");
        let mut kept = make("run-");
        kept.keep();
        // A killed run: the folder stays, the lock goes with the process.
        let mut killed = make("run-");
        killed.folder.disable_cleanup(true);
        let left = killed.path().to_owned();
        fs::create_dir(left.join("state")).unwrap();
        let mut of_others = make("other-");
        of_others.folder.disable_cleanup(true);
        let (kept, others) = (kept.path().to_owned(), of_others.path().to_owned());
        drop((killed, of_others));
        assert!(left.exists() && others.exists(), "nobody has looked yet");

        let next = make("run-");
        assert!(!left.exists(), "what a killed run left stays");
        for stays in [living.path(), &kept, &others, next.path()] {
            assert!(stays.exists(), "{}", stays.display());
        }
    }
}
