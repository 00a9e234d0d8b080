//! How often the journal began anew: the epoch of this server's own stamps.
//!
//! Row ids of a journal grow for ever, but a journal that was damaged or removed begins at 1 again;
//! a stamp must then be known as a new one. Used by each server's `app` around opening the broker. The
//! count lives in a small doubly written file beside the journal, not in it.

use std::path::{Path, PathBuf};

use holdfast_store::StoreError;
use holdfast_store::twice::Twice;

/// What was there before the journal was opened.
#[derive(Debug)]
pub struct Before {
    existed: bool,
    damaged: usize,
}

impl Before {
    /// Looks at the journal's file and at the damaged ones moved away so far.
    #[must_use]
    pub fn look(journal: &Path) -> Self {
        Self {
            existed: journal.exists(),
            damaged: damaged(journal).len(),
        }
    }

    /// The epoch now that the journal is open: one higher if it began anew, and kept in `file`
    /// before anything is stamped with it.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn after_opening(self, journal: &Path, file: &Path) -> Result<u64, StoreError> {
        let mut kept = Twice::open(file)?;
        let epoch = std::str::from_utf8(kept.content())
            .ok()
            .and_then(|text| text.parse().ok());
        let epoch: u64 = epoch.unwrap_or(0);
        let anew = !self.existed || damaged(journal).len() > self.damaged;
        if !anew && epoch > 0 {
            return Ok(epoch);
        }
        kept.write((epoch + 1).to_string().as_bytes())?;
        Ok(epoch + 1)
    }
}

fn damaged(journal: &Path) -> Vec<PathBuf> {
    let name = journal
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let mark = format!("{name}.damaged-");
    let folder = journal
        .parent()
        .and_then(|folder| std::fs::read_dir(folder).ok());
    let files = folder
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    files
        .filter(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&mark))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_epoch_grows_only_when_the_journal_began_anew() {
        let folder = tempfile::tempdir().expect("folder");
        let (journal, file) = (folder.path().join("j.redb"), folder.path().join("epoch"));
        let open = |make: &dyn Fn()| {
            let before = Before::look(&journal);
            make();
            before.after_opening(&journal, &file).expect("epoch")
        };
        let create = || std::fs::write(&journal, b"x").expect("write");
        assert_eq!(open(&create), 1, "first start");
        assert_eq!(open(&|| ()), 1, "restart");
        assert_eq!(
            open(&|| {
                std::fs::rename(&journal, folder.path().join("j.redb.damaged-1")).expect("rename");
                create();
            }),
            2,
            "quarantined"
        );
        assert_eq!(open(&|| ()), 2, "restart");
        std::fs::remove_file(&journal).expect("remove");
        assert_eq!(open(&create), 3, "removed by hand");
    }
}
