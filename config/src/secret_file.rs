//! Files that only their owner may read and that are replaced as a whole or not at all.
//!
//! Used for keys, credentials, tokens and small state. A crash at any point leaves the old content
//! or the new, never a mixture; the steps are `holdfast-disk`'s.

use std::fs::{DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

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
    holdfast_disk::write(path, content, 0o600)
}

/// As [`write`], for what others may read, such as certificates (mode 0644).
///
/// # Errors
/// Whatever the file system says; the old content, if any, then still stands.
pub fn write_public(path: &Path, content: &[u8]) -> io::Result<()> {
    holdfast_disk::write(path, content, 0o644)
}

/// Removes `path` durably; that it is already gone is no error.
///
/// # Errors
/// Whatever else the file system says.
pub fn remove(path: &Path) -> io::Result<()> {
    holdfast_disk::remove(path)
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
        let beside = folder.path().join("key.new");
        std::fs::write(&beside, b"old").expect("leftover");
        std::fs::set_permissions(&beside, Permissions::from_mode(0o666)).expect("widen");
        write(&path, b"new").expect("write");
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn removing_what_is_gone_is_no_error() {
        let folder = tempfile::tempdir().expect("folder");
        remove(&folder.path().join("never")).expect("already gone");
    }
}
