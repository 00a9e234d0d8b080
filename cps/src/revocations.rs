//! The numbered list of revoked certificates, in a small doubly written file beside the keys. Kept by
//! the roster's refresh after each commit; asked for every peer through the roster. It survives the
//! registry: a registry that was lost, or restored from an older copy, brings nobody back. Without a
//! good copy of it nobody is admitted, until an operator restores it from the log.
//!
//! The list only grows, and its number with it. What has expired for certain leaves the file when it
//! is full, never the number.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_link::time::{Time, TimeQuality};
use holdfast_protocol::wire::cbor::{self, CborError, Reader};
use holdfast_store::StoreError;
use holdfast_store::twice::{MAX_BYTES, Twice};
use serde::Serialize;
use tokio::time::Instant;

use crate::tables::CertificateRow;

/// Name of the file, in the folder of the keys.
const FILE: &str = "revocations";
/// Longest serial as hex digits.
const MAX_SERIAL: usize = 40;
/// Most serials in the file: each takes at most 42 bytes there.
const MOST: usize = (MAX_BYTES - 64) / (MAX_SERIAL + 2);

/// The list as people see it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ListView {
    /// Grows with each certificate that was revoked.
    pub number: u64,
    /// Certificates in the list.
    pub count: usize,
    /// When it grew last, unix seconds; 0: never.
    pub changed: u64,
    /// How good that time is.
    pub changed_quality: String,
    /// Seconds since the other server was asked for news of it; none: not since the start.
    pub heard_secs_ago: Option<u64>,
    /// No good copy was found: nobody is admitted.
    pub lost: bool,
}

/// The list; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Revocations(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// None: both copies are bad.
    file: Option<Twice>,
    list: List,
    heard: Option<Instant>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct List {
    number: u64,
    changed: Time,
    serials: BTreeSet<String>,
}

impl Revocations {
    /// Opens the file in the folder of the keys. A damaged one is no error here: it denies.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub(crate) fn open(folder: &Path) -> Result<Self, StoreError> {
        let opened = match Twice::open(folder.join(FILE)) {
            Ok(file) => List::decode(file.content()).map(|list| (file, list)),
            Err(StoreError::Damaged { .. }) => Err(CborError::Value("list")),
            Err(other) => return Err(other),
        };
        let (file, list) = match opened {
            Ok((file, list)) => (Some(file), list),
            Err(_) => {
                tracing::error!(
                    folder = %folder.display(),
                    "both copies of the list of revoked certificates are damaged: nobody is admitted; run 'certificates restore-revocations' to make it anew from the log"
                );
                (None, List::default())
            }
        };
        let state = State {
            file,
            list,
            heard: None,
        };
        Ok(Self(Arc::new(Mutex::new(state))))
    }

    /// What is revoked: by the rows of the registry and by the file. What the file lacks is in it when
    /// this returns, or else was told to the log and comes with the next call: it holds at once all
    /// the same. `None`: the list is lost.
    pub(crate) fn with(&self, rows: &[CertificateRow], now: Time) -> Option<BTreeSet<String>> {
        let mut state = self.lock();
        state.file.as_ref()?;
        if let Err(error) = state.take(rows, now) {
            tracing::error!(%error, "the list of revoked certificates cannot be written; the registry alone has the last of them");
        }
        let mut revoked = state.list.serials.clone();
        // What a full file has no room for is in the registry alone.
        let of_rows = rows.iter().filter(|row| row.revoked);
        revoked.extend(of_rows.map(|row| row.serial.clone()));
        Some(revoked)
    }

    /// Makes a lost list anew from the registry's rows. A good one stays as it is.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn restore(
        &self,
        folder: &Path,
        rows: &[CertificateRow],
        now: Time,
    ) -> Result<(), StoreError> {
        let mut state = self.lock();
        if state.file.is_some() {
            return Ok(());
        }
        for copy in ["a", "b"] {
            let (bad, aside) = (
                folder.join(format!("{FILE}.{copy}")),
                folder.join(format!("{FILE}.{copy}.damaged")),
            );
            match std::fs::rename(&bad, &aside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
        state.file = Some(Twice::open(folder.join(FILE))?);
        state.list = List::default();
        state.take(rows, now)?;
        tracing::warn!(
            number = state.list.number,
            "the list of revoked certificates was made anew from the log"
        );
        Ok(())
    }

    /// The other server was asked for news just now.
    pub(crate) fn heard(&self) {
        self.lock().heard = Some(Instant::now());
    }

    pub(crate) fn view(&self) -> ListView {
        let state = self.lock();
        ListView {
            number: state.list.number,
            count: state.list.serials.len(),
            changed: state.list.changed.secs,
            changed_quality: state.list.changed.quality.to_string(),
            heard_secs_ago: state.heard.map(|at| at.elapsed().as_secs()),
            lost: state.file.is_none(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self, rows: &[CertificateRow], now: Time) -> Result<(), StoreError> {
        let revoked = rows.iter().filter(|row| row.revoked);
        let new: Vec<&str> = revoked
            .map(|row| row.serial.as_str())
            .filter(|serial| !self.list.serials.contains(*serial))
            .collect();
        let Some(file) = self.file.as_mut().filter(|_| !new.is_empty()) else {
            return Ok(());
        };
        let mut list = self.list.clone();
        list.serials.extend(new.iter().map(|it| (*it).to_owned()));
        list.number += new.len() as u64;
        list.changed = now;
        if list.serials.len() > MOST {
            list.shorten(rows, now);
        }
        file.write(&list.encode())?;
        self.list = list;
        Ok(())
    }
}

impl Default for List {
    fn default() -> Self {
        Self {
            number: 0,
            changed: Time::UNKNOWN,
            serials: BTreeSet::new(),
        }
    }
}

impl List {
    /// Drops what no one can use any more; on time that is not known nothing is dropped for age.
    fn shorten(&mut self, rows: &[CertificateRow], now: Time) {
        let over = |row: &&CertificateRow| row.not_after != 0 && row.not_after < now.secs;
        if now.quality == TimeQuality::Authenticated {
            for row in rows.iter().filter(over) {
                self.serials.remove(&row.serial);
            }
        }
        while self.serials.len() > MOST {
            tracing::error!(
                most = MOST,
                "the file of revoked certificates is full: the rest is in the registry alone"
            );
            self.serials.pop_last();
        }
    }

    fn encode(&self) -> Vec<u8> {
        cbor::encode(|w| {
            w.array(3).uint(self.number);
            w.array(2)
                .uint(self.changed.secs)
                .uint(self.changed.quality.code().into());
            w.array(self.serials.len());
            self.serials.iter().for_each(|serial| _ = w.text(serial));
        })
    }

    /// An empty file is a first start.
    fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut r = Reader::new(bytes)?;
        r.array(3)?;
        let number = r.uint()?;
        r.array(2)?;
        let changed = Time::new(r.uint()?, TimeQuality::from_code(r.uint()?));
        let len = r.array_len(MOST)?;
        let serials = (0..len).map(|_| r.text(MAX_SERIAL).map(str::to_owned));
        let serials = serials.collect::<Result<_, _>>()?;
        r.end()?;
        Ok(Self {
            number,
            changed,
            serials,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time::new(1_800_000_000, TimeQuality::Authenticated);

    fn row(serial: &str, revoked: bool, not_after: u64) -> CertificateRow {
        CertificateRow {
            serial: serial.to_owned(),
            subject: "x".into(),
            site: "north".parse().unwrap(),
            device: None,
            issuer: "gw1".parse().unwrap(),
            not_before: 1,
            not_after,
            revoked,
            told: None,
        }
    }

    fn held(list: &Revocations, rows: &[CertificateRow]) -> Vec<String> {
        let revoked = list.with(rows, NOW).expect("not lost");
        revoked.into_iter().collect()
    }

    #[test]
    fn a_lost_registry_brings_nobody_back_and_the_number_grows() {
        let folder = tempfile::tempdir().unwrap();
        let list = Revocations::open(folder.path()).unwrap();
        assert_eq!(held(&list, &[row("0a", false, 9)]), [""; 0]);
        assert_eq!(list.view().number, 0);
        assert_eq!(held(&list, &[row("0a", true, 9)]), ["0a"]);
        let more = [row("0a", true, 9), row("0b", true, 9), row("0c", false, 9)];
        assert_eq!(held(&list, &more), ["0a", "0b"]);
        assert_eq!((list.view().number, list.view().count), (2, 2));
        let list = Revocations::open(folder.path()).unwrap();
        assert_eq!(held(&list, &[]), ["0a", "0b"], "the registry is gone");
        assert_eq!((list.view().number, list.view().changed), (2, NOW.secs));
        assert_eq!(list.view().heard_secs_ago, None);
        list.heard();
        assert_eq!(list.view().heard_secs_ago, Some(0));
    }

    #[test]
    fn one_good_copy_serves_and_none_denies_until_restored() {
        let folder = tempfile::tempdir().unwrap();
        let rows = [row("0a", true, 9)];
        held(&Revocations::open(folder.path()).unwrap(), &rows);
        let spoil = |copy: &str| {
            let path = folder.path().join(format!("{FILE}.{copy}"));
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[25] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        };
        spoil("a");
        let list = Revocations::open(folder.path()).unwrap();
        assert_eq!(held(&list, &[]), ["0a"]);
        drop(list);
        spoil("a");
        spoil("b");
        let list = Revocations::open(folder.path()).unwrap();
        assert_eq!(list.with(&rows, NOW), None, "deny");
        assert!(list.view().lost);
        list.restore(folder.path(), &rows, NOW).unwrap();
        assert_eq!(held(&list, &rows), ["0a"]);
        assert!(folder.path().join("revocations.a.damaged").exists());
        let list = Revocations::open(folder.path()).unwrap();
        assert_eq!(held(&list, &[]), ["0a"]);
    }

    #[test]
    fn a_full_file_drops_what_expired_for_certain_and_denies_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let list = Revocations::open(folder.path()).unwrap();
        let many = |end: u64| -> Vec<CertificateRow> {
            let ends = (0..=MOST as u64).map(|n| if n < 100 { end } else { NOW.secs + 1 });
            let rows = ends.enumerate();
            rows.map(|(n, end)| row(&format!("{n:040x}"), true, end))
                .collect()
        };
        let rows = many(NOW.secs - 1);
        assert_eq!(held(&list, &rows).len(), MOST + 1, "the rows hold");
        assert_eq!(list.view().number, MOST as u64 + 1);
        assert_eq!(list.view().count, MOST + 1 - 100);
        let bytes = list.lock().list.encode().len();
        assert!(bytes <= MAX_BYTES, "{bytes}");
    }
}
