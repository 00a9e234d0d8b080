//! The steps, and what of them is on the disk after a cut. Called by the recorder.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Number of a file, whatever its name.
pub(super) type Inode = usize;

/// One step.
#[derive(Debug)]
pub(super) enum Event {
    /// A file was made under that name.
    Name(PathBuf, Inode),
    /// All of its content was written.
    Content(Inode, Vec<u8>),
    /// Its content was synced.
    Synced(Inode),
    /// It has another name.
    Renamed(PathBuf, PathBuf, Inode),
    /// The name is gone.
    Gone(PathBuf),
    /// The names in the folder were synced.
    FolderSynced(PathBuf),
}

impl Event {
    pub(super) fn is_sync(&self) -> bool {
        matches!(self, Self::Synced(_) | Self::FolderSynced(_))
    }
}

/// What a cut left of the watched folders: path to content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    files: BTreeMap<PathBuf, Vec<u8>>,
}

impl Image {
    /// Makes `to` hold what the image has below `folder`, and nothing else.
    ///
    /// # Errors
    /// The file system's.
    pub fn put(&self, folder: &Path, to: &Path) -> io::Result<()> {
        if to.exists() {
            fs::remove_dir_all(to)?;
        }
        fs::create_dir_all(to)?;
        for (path, content) in &self.files {
            if let Ok(below) = path.strip_prefix(folder) {
                let path = to.join(below);
                fs::create_dir_all(path.parent().unwrap_or(to))?;
                fs::write(path, content)?;
            }
        }
        Ok(())
    }

    /// The content of one file, if it is there.
    #[must_use]
    pub fn file(&self, path: &Path) -> Option<&[u8]> {
        self.files.get(path).map(Vec::as_slice)
    }

    pub(super) fn after<'e>(
        start: &BTreeMap<PathBuf, Vec<u8>>,
        events: impl Iterator<Item = &'e Event>,
        random: &mut impl FnMut() -> u64,
    ) -> Self {
        let mut disk = Disk::new(start);
        for event in events {
            disk.take(event);
        }
        disk.cut(random)
    }
}

/// What is durable, and what waits for a sync.
struct Disk<'e> {
    names: BTreeMap<PathBuf, Inode>,
    contents: BTreeMap<Inode, Vec<u8>>,
    waiting_names: Vec<&'e Event>,
    waiting_contents: BTreeMap<Inode, &'e [u8]>,
}

impl<'e> Disk<'e> {
    fn new(start: &BTreeMap<PathBuf, Vec<u8>>) -> Self {
        Self {
            names: start.keys().cloned().zip(0..).collect(),
            contents: (0..).zip(start.values().cloned()).collect(),
            waiting_names: Vec::new(),
            waiting_contents: BTreeMap::new(),
        }
    }

    fn take(&mut self, event: &'e Event) {
        match event {
            Event::Name(..) | Event::Renamed(..) | Event::Gone(_) => self.waiting_names.push(event),
            Event::Content(inode, content) => _ = self.waiting_contents.insert(*inode, content),
            Event::Synced(inode) => {
                if let Some(content) = self.waiting_contents.remove(inode) {
                    self.contents.insert(*inode, content.to_vec());
                }
            }
            Event::FolderSynced(folder) => {
                let waiting = std::mem::take(&mut self.waiting_names);
                let (now, later) = waiting
                    .into_iter()
                    .partition(|event| folder_of(event) == Some(folder));
                self.waiting_names = later;
                let now: Vec<&Event> = now;
                now.into_iter().for_each(|event| self.name(event));
            }
        }
    }

    fn name(&mut self, event: &Event) {
        match event {
            Event::Name(path, inode) => _ = self.names.insert(path.clone(), *inode),
            Event::Renamed(from, to, inode) => {
                self.names.remove(from);
                self.names.insert(to.clone(), *inode);
            }
            Event::Gone(path) => _ = self.names.remove(path),
            Event::Content(..) | Event::Synced(_) | Event::FolderSynced(_) => {}
        }
    }

    fn cut(mut self, random: &mut impl FnMut() -> u64) -> Image {
        // A new chance for each image, so that nearly all and nearly none occur too.
        let chance = random() % 101;
        for event in std::mem::take(&mut self.waiting_names) {
            if random() % 100 < chance {
                self.name(event);
            }
        }
        let named: BTreeSet<Inode> = self.names.values().copied().collect();
        for (inode, content) in std::mem::take(&mut self.waiting_contents) {
            if named.contains(&inode) {
                self.contents.insert(inode, torn(content, random));
            }
        }
        let content = |inode| self.contents.get(inode).cloned().unwrap_or_default();
        let files = self.names.iter();
        Image {
            files: files
                .map(|(path, inode)| (path.clone(), content(inode)))
                .collect(),
        }
    }
}

fn folder_of(event: &Event) -> Option<&Path> {
    match event {
        Event::Name(path, _) | Event::Renamed(_, path, _) | Event::Gone(path) => path.parent(),
        Event::Content(..) | Event::Synced(_) | Event::FolderSynced(_) => None,
    }
}

fn torn(content: &[u8], random: &mut impl FnMut() -> u64) -> Vec<u8> {
    let length = content.len() as u64;
    match random() % 4 {
        0 => Vec::new(),
        1 => vec![0; content.len()],
        2 => content.to_vec(),
        _ => {
            let kept = usize::try_from(random() % (length + 1)).unwrap_or(0);
            content[..kept].to_vec()
        }
    }
}
