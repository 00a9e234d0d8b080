//! Files that only their owner may read and that are replaced as a whole or not at all.
//!
//! Used for keys, credentials, tokens and small state. A crash at any point leaves the old content
//! or the new, never a mixture: write beside, sync, rename over, sync the folder.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Makes `folder` (and its parents) readable by the owner alone; an existing one is narrowed.
///
/// # Errors
/// Whatever the file system says.
pub fn make_folder(folder: &Path) -> io::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    std::fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// Puts `content` into `path` with mode 0600, durably and atomically.
///
/// # Errors
/// Whatever the file system says; the old content, if any, then still stands.
pub fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with_mode(path, content, 0o600)
}

/// As [`write`], for what others may read, such as certificates (mode 0644).
///
/// # Errors
/// Whatever the file system says; the old content, if any, then still stands.
pub fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    write_with_mode(path, content, 0o644)
}

fn write_with_mode(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let beside = beside(path);
    // A leftover of an earlier crash may have another mode: never reuse it.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    sync_folder(path)
}

/// Removes `path` durably; that it is already gone is no error.
///
/// # Errors
/// Whatever else the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_folder(path),
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path)
            .expect("metadata")
            .permissions()
            .mode()
            & 0o777
    }

    #[test]
    fn content_is_replaced_and_rights_are_narrow() {
        let folder = tempfile::tempdir().expect("folder");
        let state = folder.path().join("a/b");
        make_folder(&state).expect("make");
        let path = state.join("key");
        write(&path, b"one").expect("first");
        write(&path, b"two").expect("second");
        assert_eq!(std::fs::read(&path).expect("read"), b"two");
        assert_eq!((mode(&state), mode(&path)), (0o700, 0o600));
        assert_eq!(
            std::fs::read_dir(&state).expect("list").count(),
            1,
            "no leftovers"
        );
    }

    #[test]
    fn a_leftover_with_wide_rights_is_not_reused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("key");
        std::fs::write(beside(&path), b"old").expect("leftover");
        std::fs::set_permissions(beside(&path), Permissions::from_mode(0o666)).expect("widen");
        write(&path, b"new").expect("write");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn removing_what_is_gone_is_no_error() {
        let folder = tempfile::tempdir().expect("folder");
        remove(&folder.path().join("never")).expect("already gone");
    }
}
