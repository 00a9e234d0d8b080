//! A small file written twice and checked: revocations, epochs, counters, the time floor.
//!
//! Two copies, `<name>.a` and `<name>.b`, each with a generation and a checksum, written one after the
//! other and in place (so that a full disk does not stop it): a torn write or a bad sector spoils one
//! copy, never both. Called by whoever must know its own past when the big store is damaged. It
//! never guesses: without a good copy it says so, and the caller answers "deny".

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::StoreError;
use crate::medium::sync_folder_of;

/// The largest content, in bytes.
pub const MAX_BYTES: usize = 1 << 20;

/// The first bytes of each copy; the digit is the format.
const MAGIC: [u8; 8] = *b"hftwice1";

/// Magic, generation (u64), length (u32), all little endian; the content and its CRC-64 follow.
const HEADER: usize = 8 + 8 + 4;
const CHECKSUM: usize = 8;

/// What was found at opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// No copy exists: a first start.
    Nothing,
    /// Both copies are good.
    Good,
    /// One copy was bad, missing or behind; the other served, and has been copied over it.
    OneCopy,
}

/// The open file: the newest good content, and the right to replace it.
#[derive(Debug)]
pub struct Twice {
    copies: [PathBuf; 2],
    generation: u64,
    content: Vec<u8>,
    found: Found,
}

impl Twice {
    /// Reads both copies beside `base`, takes the newest good one and brings the other up to it.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] when copies exist and none is good.
    pub fn open(base: impl AsRef<Path>) -> Result<Self, StoreError> {
        let base = base.as_ref();
        let copies = [with_suffix(base, ".a"), with_suffix(base, ".b")];
        let read = [read_copy(&copies[0]), read_copy(&copies[1])];
        let nothing = read.iter().all(|copy| matches!(copy, Copy::Missing));
        let same = matches!(&read, [Copy::Good(a), Copy::Good(b)] if a.generation == b.generation);
        let newest = read
            .into_iter()
            .filter_map(|copy| match copy {
                Copy::Good(content) => Some(content),
                Copy::Missing | Copy::Bad => None,
            })
            .max_by_key(|copy| copy.generation);
        let Some(Content {
            generation,
            content,
        }) = newest
        else {
            if nothing {
                let found = Found::Nothing;
                return Ok(Self {
                    copies,
                    generation: 0,
                    content: Vec::new(),
                    found,
                });
            }
            return Err(StoreError::damaged("both of its copies are bad").at(base));
        };
        let found = if same { Found::Good } else { Found::OneCopy };
        let mut twice = Self {
            copies,
            generation,
            content,
            found,
        };
        if !same && let Err(error) = twice.heal() {
            warn!(%error, file = %base.display(), "one copy is bad and could not be restored");
        }
        Ok(twice)
    }

    /// The newest content; empty at a first start.
    #[must_use]
    pub fn content(&self) -> &[u8] {
        &self.content
    }

    /// What was found at opening.
    #[must_use]
    pub fn found(&self) -> Found {
        self.found
    }

    /// Replaces the content durably: returns when both copies hold it.
    ///
    /// # Errors
    /// I/O errors. Which of the two contents a later opening finds is then open; a further write
    /// settles it.
    ///
    /// # Panics
    /// When `content` is longer than [`MAX_BYTES`].
    pub fn write(&mut self, content: &[u8]) -> Result<(), StoreError> {
        assert!(
            content.len() <= MAX_BYTES,
            "the caller bounds what it keeps here"
        );
        // The number is used up even if the write fails: two contents never share a generation.
        self.generation += 1;
        let image = encode(self.generation, content);
        for copy in &self.copies {
            write_copy(copy, &image)?;
        }
        self.content = content.to_vec();
        Ok(())
    }

    fn heal(&mut self) -> io::Result<()> {
        let image = encode(self.generation, &self.content);
        self.copies
            .iter()
            .try_for_each(|copy| match read_copy(copy) {
                Copy::Good(found) if found.generation == self.generation => Ok(()),
                _ => write_copy(copy, &image),
            })
    }
}

struct Content {
    generation: u64,
    content: Vec<u8>,
}

enum Copy {
    Missing,
    Bad,
    Good(Content),
}

fn read_copy(path: &Path) -> Copy {
    match read_bounded(path) {
        Ok(bytes) => decode(&bytes).map_or(Copy::Bad, Copy::Good),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Copy::Missing,
        Err(_) => Copy::Bad,
    }
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    use std::io::Read;
    let mut bytes = Vec::new();
    let limit = HEADER + MAX_BYTES + CHECKSUM;
    File::open(path)?
        .take(limit as u64)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Bytes behind the checksum are left over from a longer content and mean nothing.
fn decode(bytes: &[u8]) -> Option<Content> {
    let (magic, rest) = bytes.split_first_chunk::<8>()?;
    let (generation, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let content = rest.get(..length)?;
    let (checksum, _) = rest.get(length..)?.split_first_chunk::<CHECKSUM>()?;
    let right =
        *magic == MAGIC && u64::from_le_bytes(*checksum) == crc64(bytes.get(..HEADER + length)?);
    right.then(|| Content {
        generation: u64::from_le_bytes(*generation),
        content: content.to_vec(),
    })
}

fn encode(generation: u64, content: &[u8]) -> Vec<u8> {
    let length = u32::try_from(content.len()).expect("MAX_BYTES fits in 32 bits");
    let mut bytes = Vec::with_capacity(HEADER + content.len() + CHECKSUM);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&generation.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(content);
    bytes.extend_from_slice(&crc64(&bytes).to_le_bytes());
    bytes
}

/// In place if the copy exists; a new copy appears whole by a rename, so that a torn file under a
/// copy's name is damage and never a first start.
fn write_copy(path: &Path, image: &[u8]) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Ok(file) => {
            file.write_all_at(image, 0)?;
            file.sync_data()
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let fresh = with_suffix(path, ".new");
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&fresh)?;
            file.write_all_at(image, 0)?;
            file.sync_all()?;
            fs::rename(&fresh, path)?;
            sync_folder_of(path)
        }
        Err(error) => Err(error),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    PathBuf::from(name)
}

/// CRC-64 with the reflected ECMA-182 polynomial.
fn crc64(bytes: &[u8]) -> u64 {
    !bytes.iter().fold(!0, |crc: u64, byte| {
        TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)] ^ (crc >> 8)
    })
}

const TABLE: [u64; 256] = table();

const fn table() -> [u64; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut crc = index as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 {
                (crc >> 1) ^ 0xC96C_5795_D787_0F42
            } else {
                crc >> 1
            };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes_of(path: &Path) -> Vec<u8> {
        fs::read(path).unwrap()
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        // CRC-64/XZ check value.
        assert_eq!(crc64(b"123456789"), 0x995D_C9BB_DF19_39FA);
    }

    #[test]
    fn keeps_the_last_content() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("epochs");
        let mut twice = Twice::open(&base).unwrap();
        assert_eq!((twice.found(), twice.content()), (Found::Nothing, &[][..]));
        for content in [&b"a longer content"[..], b"short", b""] {
            twice.write(content).unwrap();
            let again = Twice::open(&base).unwrap();
            assert_eq!((again.found(), again.content()), (Found::Good, content));
        }
    }

    /// A write cut at any byte of either copy leaves the former or the new content, and the next
    /// opening has healed the file.
    #[test]
    fn a_torn_write_leaves_the_old_or_the_new() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("epochs");
        let mut twice = Twice::open(&base).unwrap();
        twice.write(b"former content, the longer one").unwrap();
        let former = bytes_of(&twice.copies[0]);
        twice.write(b"the new content").unwrap();
        let new = bytes_of(&twice.copies[0]);
        let image = encode(2, b"the new content");
        for copy in 0..2 {
            for cut in 0..=image.len() {
                let mut torn = former.clone();
                torn[..cut].copy_from_slice(&image[..cut]);
                // Copies are written in order: while the second is torn the first is new.
                let other = if copy == 0 { &former } else { &new };
                fs::write(&twice.copies[copy], &torn).unwrap();
                fs::write(&twice.copies[1 - copy], other).unwrap();
                let found = Twice::open(&base).unwrap();
                let is_new = found.content() == b"the new content";
                let is_former = found.content() == b"former content, the longer one";
                assert!(
                    if copy == 1 {
                        is_new
                    } else {
                        is_new || is_former
                    },
                    "{copy} {cut}"
                );
                assert_eq!(
                    Twice::open(&base).unwrap().found(),
                    Found::Good,
                    "{copy} {cut}"
                );
            }
        }
    }

    #[test]
    fn any_flipped_bit_is_seen_and_served_by_the_other_copy() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("epochs");
        let mut twice = Twice::open(&base).unwrap();
        twice.write(b"seven").unwrap();
        let good = bytes_of(&twice.copies[0]);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(&twice.copies[1], &bad).unwrap();
            let found = Twice::open(&base).unwrap();
            assert_eq!(
                (found.found(), found.content()),
                (Found::OneCopy, &b"seven"[..]),
                "{bit}"
            );
            // Both bad: never a guess.
            fs::write(&twice.copies[0], &bad).unwrap();
            fs::write(&twice.copies[1], &bad).unwrap();
            assert!(
                matches!(Twice::open(&base), Err(StoreError::Damaged { .. })),
                "{bit}"
            );
            fs::write(&twice.copies[0], &good).unwrap();
        }
    }

    #[test]
    fn a_missing_copy_is_made_again_and_an_empty_one_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("epochs");
        let mut twice = Twice::open(&base).unwrap();
        twice.write(b"kept").unwrap();
        fs::remove_file(&twice.copies[0]).unwrap();
        let found = Twice::open(&base).unwrap();
        assert_eq!(
            (found.found(), found.content()),
            (Found::OneCopy, &b"kept"[..])
        );
        assert!(twice.copies[0].exists());
        fs::write(&twice.copies[0], b"").unwrap();
        fs::remove_file(&twice.copies[1]).unwrap();
        assert!(matches!(
            Twice::open(&base),
            Err(StoreError::Damaged { .. })
        ));
    }
}
