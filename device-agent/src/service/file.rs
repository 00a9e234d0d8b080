//! Where the state of the services is kept: one file, replaced as a whole, mode 0600.
//!
//! It holds service keys, the device credential and the highest notice numbers. A damaged one is
//! never replaced by an empty one: old notices would count again.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_config::secret_file;
use holdfast_protocol::lifecycle::Device;
use zeroize::Zeroizing;

const FILE: &str = "services";
/// Largest file.
const MAX_FILE: u64 = 1 << 20;

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The file cannot be read or written.
    #[error("{path}: {source}; check the folder's rights and free space")]
    Io {
        /// The file.
        path: String,
        /// What the system says.
        source: io::Error,
    },
    /// The file is not what we wrote.
    #[error(
        "{0} is damaged: restore it from a copy, or move the state folder away and onboard anew"
    )]
    Damaged(String),
}

/// Where a state is kept. A seam: tests kill here.
pub trait Keep: Send {
    /// What was kept last; the state of a device without services if nothing ever was.
    ///
    /// # Errors
    /// See [`FileError`].
    fn load(&mut self) -> Result<Device, FileError>;

    /// Keeps a state durably, or changes nothing.
    ///
    /// # Errors
    /// See [`FileError`].
    fn keep(&mut self, device: &Device) -> Result<(), FileError>;
}

/// The file in the agent's folder.
#[derive(Debug)]
pub struct File {
    path: PathBuf,
}

impl File {
    /// In the folder `state`; nothing is read yet.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self {
            path: state.join(FILE),
        }
    }

    fn io(&self, source: io::Error) -> FileError {
        FileError::Io {
            path: self.path.display().to_string(),
            source,
        }
    }
}

impl Keep for File {
    fn load(&mut self) -> Result<Device, FileError> {
        let damaged = || FileError::Damaged(self.path.display().to_string());
        match std::fs::metadata(&self.path) {
            Ok(found) if found.len() > MAX_FILE => return Err(damaged()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Device::default()),
            Err(error) => return Err(self.io(error)),
        }
        let bytes = std::fs::read(&self.path).map(Zeroizing::new);
        let bytes = bytes.map_err(|error| self.io(error))?;
        Device::from_cbor(&bytes).map_err(|_| damaged())
    }

    fn keep(&mut self, device: &Device) -> Result<(), FileError> {
        secret_file::write(&self.path, &device.to_cbor()).map_err(|error| self.io(error))
    }
}
