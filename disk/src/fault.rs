//! A test kit: listens to the steps of [`crate`]'s verbs and tells what a power cut could leave.
//! Nothing in a running daemon uses it; without a listener a step costs one load of a counter.
//!
//! The model is what POSIX promises and no more: content is durable once its file was synced; a
//! name (made, renamed, removed) once its folder was synced. Of what was not synced any subset may
//! have reached the disk: of names each for itself, of a content nothing, a beginning, zeros of its
//! length, or all. Folders themselves are taken to be there.

mod image;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use image::Image;
use image::{Event, Inode};

/// How many listen; zero but in tests.
static LISTENERS: AtomicUsize = AtomicUsize::new(0);
static ALL: Mutex<Vec<Arc<Mutex<Tape>>>> = Mutex::new(Vec::new());

/// Tells how far other disks are, so that one order holds for all: positions of `CrashBackend`s.
pub type Others = Box<dyn Fn() -> Vec<usize> + Send>;

/// Listens to the files below some folders until it is dropped.
#[derive(Debug)]
pub struct Recorder {
    tape: Arc<Mutex<Tape>>,
}

struct Tape {
    folders: Vec<PathBuf>,
    start: BTreeMap<PathBuf, Vec<u8>>,
    names: BTreeMap<PathBuf, Inode>,
    next: Inode,
    events: Vec<(Event, Vec<usize>)>,
    others: Others,
    lying: bool,
}

impl std::fmt::Debug for Tape {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut shown = out.debug_struct("Tape");
        shown.field("events", &self.events.len());
        shown.finish_non_exhaustive()
    }
}

impl Recorder {
    /// Listens to the files below `folders`; what is there now is durable.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn watch(folders: &[&Path]) -> io::Result<Self> {
        Self::watch_beside(folders, Box::new(Vec::new))
    }

    /// The same, and notes with each step how far `others` are.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn watch_beside(folders: &[&Path], others: Others) -> io::Result<Self> {
        let mut start = BTreeMap::new();
        for folder in folders {
            read_below(folder, &mut start)?;
        }
        let names = start.keys().cloned().zip(0..).collect();
        let tape = Arc::new(Mutex::new(Tape {
            folders: folders.iter().map(|folder| folder.to_path_buf()).collect(),
            next: start.len(),
            start,
            names,
            events: Vec::new(),
            others,
            lying: false,
        }));
        lock(&ALL).push(Arc::clone(&tape));
        LISTENERS.fetch_add(1, Ordering::SeqCst);
        Ok(Self { tape })
    }

    /// From now on every sync is forgotten, as by a disk that lies or a program that does not sync:
    /// the control that a crash test must catch.
    pub fn forget_syncs(&self) {
        lock(&self.tape).lying = true;
    }

    /// Steps so far.
    #[must_use]
    pub fn position(&self) -> usize {
        lock(&self.tape).events.len()
    }

    /// The positions right after each sync of a file or folder, and how far the others were then.
    #[must_use]
    pub fn boundaries(&self) -> Vec<(usize, Vec<usize>)> {
        let tape = lock(&self.tape);
        let numbered = tape.events.iter().zip(1..);
        numbered
            .filter(|((event, _), _)| event.is_sync())
            .map(|((_, others), at)| (at, others.clone()))
            .collect()
    }

    /// The position of the last step taken before the other disk `which` was at `position`.
    #[must_use]
    pub fn before(&self, which: usize, position: usize) -> usize {
        let tape = lock(&self.tape);
        let earlier = |(_, others): &&(Event, Vec<usize>)| {
            others.get(which).is_none_or(|other| *other < position)
        };
        tape.events.iter().take_while(earlier).count()
    }

    /// What a cut after `at` steps could leave. `random` gives uniformly random numbers; they choose
    /// what of the unsynced reached the disk.
    #[must_use]
    pub fn image(&self, at: usize, mut random: impl FnMut() -> u64) -> Image {
        let tape = lock(&self.tape);
        let events = tape.events[..at].iter().map(|(event, _)| event);
        Image::after(&tape.start, events, &mut random)
    }

    /// Visits, for each sync, the image right after it and `subsets` torn ones of cuts between the
    /// sync before it and this one.
    pub fn each_image(
        &self,
        subsets: usize,
        mut random: impl FnMut() -> u64,
        mut visit: impl FnMut(usize, Image),
    ) {
        let mut from = 0;
        for (at, _) in self.boundaries() {
            for _ in 0..subsets {
                let cut = from + usize::try_from(random() % 64).unwrap_or(0) % (at - from);
                visit(cut, self.image(cut, &mut random));
            }
            visit(at, self.image(at, &mut random));
            from = at;
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        lock(&ALL).retain(|tape| !Arc::ptr_eq(tape, &self.tape));
        LISTENERS.fetch_sub(1, Ordering::SeqCst);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn read_below(folder: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() => read_below(&entry.path(), into)?,
            kind if kind.is_file() => _ = into.insert(entry.path(), fs::read(entry.path())?),
            _ => {}
        }
    }
    Ok(())
}

pub(crate) fn created(path: &Path) {
    tell(path, |tape| {
        let inode = tape.next;
        tape.next += 1;
        tape.names.insert(path.to_owned(), inode);
        Event::Name(path.to_owned(), inode)
    });
}

pub(crate) fn wrote(path: &Path, content: &[u8]) {
    tell(path, |tape| {
        Event::Content(tape.inode(path), content.into())
    });
}

pub(crate) fn synced(path: &Path) {
    tell(path, |tape| Event::Synced(tape.inode(path)));
}

pub(crate) fn renamed(from: &Path, to: &Path) {
    tell(to, |tape| {
        let inode = tape.inode(from);
        tape.names.remove(from);
        tape.names.insert(to.to_owned(), inode);
        Event::Renamed(from.to_owned(), to.to_owned(), inode)
    });
}

pub(crate) fn unlinked(path: &Path) {
    tell(path, |tape| {
        tape.names.remove(path);
        Event::Gone(path.to_owned())
    });
}

pub(crate) fn folder_synced(folder: &Path) {
    tell(&folder.join("."), |_| {
        Event::FolderSynced(folder.to_owned())
    });
}

fn tell(path: &Path, event: impl Fn(&mut Tape) -> Event) {
    if LISTENERS.load(Ordering::SeqCst) == 0 {
        return;
    }
    for tape in lock(&ALL).iter() {
        let mut tape = lock(tape);
        if tape.folders.iter().any(|folder| path.starts_with(folder)) {
            let others = (tape.others)();
            let event = event(&mut tape);
            if !(tape.lying && event.is_sync()) {
                tape.events.push((event, others));
            }
        }
    }
}

impl Tape {
    /// A file made past this kit has no number yet.
    fn inode(&mut self, path: &Path) -> Inode {
        if let Some(inode) = self.names.get(path) {
            return *inode;
        }
        self.next += 1;
        self.names.insert(path.to_owned(), self.next - 1);
        self.next - 1
    }
}
