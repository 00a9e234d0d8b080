//! The floor of the time on disk: two checked copies, written in turn.
//!
//! Called by [`super::SystemClock`] alone. With the floor goes the time since boot at which it held,
//! so that a daemon started again in the same boot loses nothing. A copy torn by a power cut is seen
//! and the other stands. Never lowers what it holds.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_protocol::crypto::{self, HashAlg};

/// Why the floor cannot be kept.
#[derive(Debug, thiserror::Error)]
#[error("time floor {}: {source}; check that the state folder exists and is writable", path.display())]
pub struct FloorError {
    path: PathBuf,
    source: io::Error,
}

/// What was known at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Kept {
    /// Unix seconds that had passed for certain.
    pub(super) floor: u64,
    /// The time since boot at that moment.
    pub(super) uptime: Duration,
    /// The boot; 0 if nobody knows.
    pub(super) boot: u64,
    /// Whether `floor` was the time itself, told by an authenticated peer.
    pub(super) authenticated: bool,
}

impl Kept {
    /// What has passed for certain by now, and whether it is still the time itself. In another boot
    /// at least the time since that boot has passed as well.
    pub(super) fn resumed(&self, uptime: Duration, boot: u64) -> (Duration, bool) {
        let known = self.boot != 0 && boot != 0;
        let (same, other) = (known && self.boot == boot, known && self.boot != boot);
        let since = uptime.checked_sub(self.uptime).filter(|_| !other);
        let passed = since.unwrap_or(uptime);
        let floor = Duration::from_secs(self.floor).saturating_add(passed);
        (floor, same && since.is_some() && self.authenticated)
    }
}

#[derive(Debug)]
pub(super) struct FloorFile {
    copies: [PathBuf; 2],
    next: usize,
    kept: u64,
}

/// The first line of each copy.
const HEADER: &str = "holdfast-floor-2";
/// The first line of a copy written before the time since boot was kept as well.
const FORMER: &str = "holdfast-floor-1";
/// A copy is some hundred bytes; more is not ours.
const LONGEST: u64 = 256;

impl FloorFile {
    /// Reads both copies; gives the higher of the good ones.
    pub(super) fn open(path: &Path) -> Result<(Self, Option<Kept>), FloorError> {
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
                kept: kept.map_or(0, |kept| kept.floor),
            },
            kept,
        ))
    }

    /// Writes to one copy and syncs it and its folder. A lower floor is not written.
    pub(super) fn write(&mut self, kept: Kept) -> Result<(), FloorError> {
        if kept.floor <= self.kept {
            return Ok(());
        }
        let path = &self.copies[self.next];
        write_synced(path, &kept).map_err(|source| FloorError {
            path: path.clone(),
            source,
        })?;
        self.kept = kept.floor;
        self.next = 1 - self.next;
        Ok(())
    }
}

fn write_synced(path: &Path, kept: &Kept) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .open(path)?;
    file.write_all(print(kept).as_bytes())?;
    file.sync_all()?;
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn read(path: &Path) -> Result<Option<Kept>, FloorError> {
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
    let kept = parse(&bytes);
    if kept.is_none() {
        tracing::warn!(path = %path.display(), "a copy of the time floor is damaged; using the other");
    }
    Ok(kept)
}

/// The values and a digest of them: a torn or flipped copy does not pass.
fn print(kept: &Kept) -> String {
    let Kept { floor, boot, .. } = kept;
    let (uptime, told) = (kept.uptime.as_secs(), u8::from(kept.authenticated));
    let values = format!("{HEADER}\n{floor:016x} {uptime:016x} {boot:016x} {told}");
    let digest = crypto::hash(HashAlg::Sha256, values.as_bytes());
    let check: String = digest.value()[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{values} {check}\n")
}

fn parse(bytes: &[u8]) -> Option<Kept> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (header, values) = text.split_once('\n')?;
    let mut words = values.trim_end().split(' ');
    let mut number = || u64::from_str_radix(words.next()?, 16).ok();
    let floor = number()?;
    if header == FORMER {
        let former = format!("{FORMER}\n{floor:016x} {:016x}\n", !floor);
        // Nothing is known of the boot: all time since this one has passed as well, at least.
        let kept = Kept {
            floor,
            uptime: Duration::MAX,
            boot: 0,
            authenticated: false,
        };
        return (former == text).then_some(kept);
    }
    let kept = Kept {
        floor,
        uptime: Duration::from_secs(number()?),
        boot: number()?,
        authenticated: number()? == 1,
    };
    (print(&kept) == text).then_some(kept)
}
