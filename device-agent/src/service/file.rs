//! Where the state of the services is kept: one file, replaced as a whole, mode 0600, sealed where the
//! service has a seal.
//!
//! It holds service keys, the device credential and the highest notice numbers. A damaged one is
//! never replaced by an empty one: old notices would count again.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_config::secret_file;
use holdfast_link::seal::{self, SealFault};
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
    /// What it holds is sealed, and not for this process, or cannot be sealed.
    #[error("{path} {fault}")]
    Seal {
        /// The file.
        path: String,
        /// Why.
        fault: SealFault,
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

    fn seal(&self, fault: SealFault) -> FileError {
        FileError::Seal {
            path: self.path.display().to_string(),
            fault,
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
        let opened = seal::open(bytes).map_err(|fault| self.seal(fault))?;
        let device = Device::from_cbor(&opened.plain).map_err(|_| damaged())?;
        if opened.is_due {
            self.keep(&device)?;
        }
        Ok(device)
    }

    fn keep(&mut self, device: &Device) -> Result<(), FileError> {
        let plain = Zeroizing::new(device.to_cbor());
        let bytes = seal::close(&plain).map_err(|fault| self.seal(fault))?;
        secret_file::write(&self.path, &bytes).map_err(|error| self.io(error))
    }
}
