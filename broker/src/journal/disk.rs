//! Room on the journal's disk: asked for before a batch is written, so that a full disk is met here
//! and not within the store, whose handle a failed write spoils.
//!
//! Part of `schema`, on the writer thread. Only publishes are refused for it; what frees space, and
//! control writes, go on.

use std::path::PathBuf;

use holdfast_store::Medium;

use super::op::Op;

/// Room that is left to what is not a publish.
const LEFT: u64 = 4 << 20;
/// Bytes written for each byte of a message: its page is written anew, and the trees above it.
const FACTOR: u64 = 4;

/// The log may be this part of the file system, and is not made smaller than that, in bytes.
const LOG_PART: u64 = 64;
const LEAST_LOG: u64 = 64 << 10;

/// Where the room is asked for; nowhere for a journal that is no file.
#[derive(Debug)]
pub(super) struct Disk {
    folder: Option<PathBuf>,
}

impl Disk {
    pub(super) fn of(medium: &Medium) -> Self {
        let folder = match medium {
            Medium::File(path) => path.parent().map(|folder| {
                if folder.as_os_str().is_empty() {
                    PathBuf::from(".")
                } else {
                    folder.to_owned()
                }
            }),
            Medium::Backend(_) => None,
        };
        Self { folder }
    }

    /// The size of the journal's log: as wanted, but a small part of a small file system.
    pub(super) fn log_bytes(&self, wanted: u64) -> u64 {
        let Some(folder) = &self.folder else {
            return wanted;
        };
        let whole =
            rustix::fs::statvfs(folder).map_or(u64::MAX, |found| found.f_blocks * found.f_frsize);
        wanted.min((whole / LOG_PART).max(LEAST_LOG))
    }

    /// Whether the publishes among these may be written, beside so many bytes that are in the log and not in the tables yet.
    pub(super) fn has_room_for(&self, ops: &[Op], told: u64) -> bool {
        let Some(folder) = &self.folder else {
            return true;
        };
        let bytes: u64 = ops.iter().map(weight).sum();
        if bytes == 0 {
            return true;
        }
        let too_little = rustix::fs::statvfs(folder)
            .is_ok_and(|found| found.f_bavail * found.f_frsize < LEFT + FACTOR * (bytes + told));
        // A disk that cannot be asked is tried.
        !too_little
    }
}

fn weight(op: &Op) -> u64 {
    match op {
        Op::Accept { entries, .. } => entries
            .iter()
            .map(|entry| entry.message.weight() as u64)
            .sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Entry, Reply};
    use super::*;
    use crate::Message;

    #[test]
    fn only_publishes_that_fit_have_room() {
        let here = Disk::of(&Medium::File("journal.redb".into()));
        assert!(here.has_room_for(&[Op::Tick], 0));
        let route = crate::exchange::Exchange::default().route("t", &Nobody);
        let entry = |bytes: usize| {
            let message = Arc::new(Message::new("t", vec![0; bytes]));
            Entry::new(message, Arc::clone(&route), None)
        };
        let accept = |count: usize| Op::Accept {
            entries: (0..count).map(|_| entry(10)).collect(),
            reply: Reply::None,
        };
        assert!(here.has_room_for(&[accept(1)], 0));
        // What was told needs its room too.
        assert!(!here.has_room_for(&[accept(1)], u64::MAX / 8));
        let gone = Disk {
            folder: Some("/proc".into()),
        };
        // A file system without any room.
        assert!(!gone.has_room_for(&[accept(1)], 0));
        assert!(gone.has_room_for(&[Op::Tick], 0));
    }

    struct Nobody;

    impl crate::Rights for Nobody {
        fn identify(
            &self,
            _: &crate::Peer,
            _: &crate::Connect<'_>,
        ) -> Result<crate::Identity, crate::Refusal> {
            Err(crate::Refusal::NotAuthorized)
        }
    }
}
