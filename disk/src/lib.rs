//! `holdfast-disk`: small files that are replaced as a whole or not at all.
//!
//! Keys, credentials, tokens and small state of all programs go through the three verbs here: write
//! beside, sync, rename over, sync the folder. A crash at any point leaves the old content or the
//! new, never a mixture. Each step is told to [`fault`], where a test may be listening in order to
//! ask what a power cut between any two of them could leave. The registry's and journal's files are
//! `holdfast-store`'s.

pub mod fault;

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Puts `content` into `path` with those rights, durably and atomically.
///
/// # Errors
/// Whatever the file system says; the old content, if any, then still stands.
pub fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let beside = beside(path);
    // A leftover of an earlier crash may have another mode: never reuse it.
    unlink(&beside)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    fault::created(&beside);
    file.write_all(content)?;
    fault::wrote(&beside, content);
    file.sync_all()?;
    fault::synced(&beside);
    rename(&beside, path)
}

/// Gives a file another name, durably; what had that name is gone.
///
/// # Errors
/// Whatever the file system says.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::rename(from, to)?;
    fault::renamed(from, to);
    sync_folder(to)
}

/// Removes `path` durably; that it is already gone is no error.
///
/// # Errors
/// Whatever else the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    unlink(path)?;
    sync_folder(path)
}

fn unlink(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => {
            fault::unlinked(path);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let folder = parent.unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()?;
    fault::folder_synced(folder);
    Ok(())
}

/// Beside the file and named after it, so that a key and its chain never share one.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests;
