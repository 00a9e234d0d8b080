//! The floor of the time on disk: two checked copies, written in turn.
//!
//! Called by [`super::SystemClock`] alone. A copy torn by a power cut is seen and the other stands.
//! Never lowers what it holds.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// Why the floor cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("time floor {}: {source}; check that the state folder exists and is writable", path.display())]
pub struct FloorError {
    path: PathBuf,
    source: io::Error,
}

#[derive(Debug)]
pub(super) struct FloorFile {
    copies: [PathBuf; 2],
    next: usize,
    kept: u64,
}

/// The first line of each copy.
const HEADER: &str = "holdfast-floor-1";
/// A copy is some fifty bytes; more is not ours.
const LONGEST: u64 = 256;

impl FloorFile {
    /// Reads both copies; gives the higher of the good ones.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<u64>), FloorError> {
        let copies = [0, 1].map(|n| {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        });
        let found = [read(&copies[0])?, read(&copies[1])?];
        let kept = found.iter().flatten().copied().max();
        // The next write goes over the lower or missing copy.
        let next = usize::from(found[0] > found[1]);
        Ok((
            Self {
                copies,
                next,
                kept: kept.unwrap_or(0),
            },
            kept,
        ))
    }

    /// Writes `floor` to one copy and syncs it and its folder. A lower floor is not written.
    pub(super) fn write(&mut self, floor: u64) -> Result<(), FloorError> {
        if floor <= self.kept {
            return Ok(());
        }
        let path = &self.copies[self.next];
        write_synced(path, floor).map_err(|source| FloorError {
            path: path.clone(),
            source,
        })?;
        self.kept = floor;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn write_synced(path: &Path, floor: u64) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(path)?;
    file.write_all(print(floor).as_bytes())?;
    file.sync_all()?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<u64>, FloorError> {
    let at = |source| FloorError {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(at(error)),
    };
    let mut bytes = Vec::new();
    file.take(LONGEST).read_to_end(&mut bytes).map_err(at)?;
    let floor = parse(&bytes);
    if floor.is_none() {
        tracing::warn!(path = %path.display(), "a copy of the time floor is damaged; using the other");
    }
    Ok(floor)
}

/// The value and its complement: a torn or flipped copy does not pass.
fn print(floor: u64) -> String {
    format!("{HEADER}\n{floor:016x} {:016x}\n", !floor)
}

fn parse(bytes: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(bytes).ok()?;
    let value = text.strip_prefix(HEADER)?.trim_start().split(' ').next()?;
    let floor = u64::from_str_radix(value, 16).ok()?;
    (print(floor) == text).then_some(floor)
}
