//! The vault: the one file that holds who the device is. FDO credential, CPS key, certificate, site.
//!
//! Made by `init`, changed by `onboard`, read by everything. One file, replaced as a whole with mode
//! 0600, so that each change is in or not. What TO2 brings is staged beside what holds until the owner
//! has said its last word: killed at any step, the agent finds out on the next start which of the
//! two the owner believes. Sealed where the service has a seal. It never logs a secret.

use std::io;
use std::path::{Path, PathBuf};

use holdfast_config::secret_file;
use holdfast_link::seal::{self, SealFault};
use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::site_module::{MAX_CERTIFICATE, SiteConfig, SiteFault};
use holdfast_protocol::wire::cbor::{self, CborError, Reader, Writer};
use zeroize::Zeroizing;

const FILE: &str = "vault";
/// Number at the head of the file.
const FORMAT: u64 = 1;
/// Largest credential, key and site configuration, in bytes.
const MAX_PART: usize = 256 << 10;
/// Largest file.
const MAX_FILE: u64 = 1 << 20;

/// Why the vault cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// There is none: the device was never initialised.
    #[error(
        "this device has no credential yet: run `holdfast-agent init --manufacturer URL --serial S`"
    )]
    Missing,
    /// There is one already, and making another would lose it.
    #[error(
        "this device is initialised already as {0}: to begin anew, move its state folder away first"
    )]
    Present(DeviceId),
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
    #[error("{path} is damaged ({why}): restore it from a copy, or initialise the device anew")]
    Damaged {
        /// The file.
        path: String,
        /// What was found.
        why: String,
    },
}

/// By what the device works at its site.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The CPS key, made in TO2.
    pub key: SigningKey,
    /// Its certificate, DER. The intermediates are in `site.chain`.
    pub certificate: Vec<u8>,
    /// Where and with whom.
    pub site: SiteConfig,
}

/// What TO2 brought, until it is certain that the owner has it too.
#[derive(Debug, Clone)]
pub struct Staged {
    /// The replacement, or the same as before when the owner lets it be reused.
    pub credential: DeviceCredential,
    /// The new identity.
    pub identity: Identity,
}

/// Everything in the vault.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The FDO credential that holds.
    pub credential: DeviceCredential,
    /// The identity that holds; none before the first onboarding.
    pub identity: Option<Identity>,
    /// What a TO2 brought whose end we have not seen.
    pub staged: Option<Staged>,
}

impl Contents {
    /// The device's id: its owner's word once it has one, before that the id of its factory.
    #[must_use]
    pub fn device(&self) -> DeviceId {
        match &self.identity {
            Some(identity) => identity.site.device,
            None => DeviceId::from_guid(self.credential.guid),
        }
    }
}

/// The file. Its one writer is whoever holds the agent's lock.
#[derive(Debug, Clone)]
pub struct Vault {
    path: PathBuf,
    #[cfg(test)]
    pub(crate) dies: std::sync::Arc<std::sync::Mutex<Option<Death>>>,
}

/// A disk that dies at a write, for tests.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Death {
    /// Writes that still go well.
    pub(crate) after: u32,
    /// Whether the one that dies is on the disk all the same.
    pub(crate) written: bool,
}

impl Vault {
    /// The vault in the folder `state`; nothing is read yet.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self {
            path: state.join(FILE),
            #[cfg(test)]
            dies: std::sync::Arc::default(),
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// See [`VaultError`].
    pub fn load(&self) -> Result<Contents, VaultError> {
        let bytes = match std::fs::metadata(&self.path) {
            Ok(found) if found.len() > MAX_FILE => return Err(self.damaged("too long")),
            Ok(_) => std::fs::read(&self.path).map(Zeroizing::new),
            Err(error) => Err(error),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(VaultError::Missing);
            }
            Err(error) => return Err(self.io(error)),
        };
        let opened = seal::open(bytes).map_err(|fault| self.seal(fault))?;
        let damaged = |fault: Fault| self.damaged(&fault.to_string());
        let contents = decode(&opened.plain).map_err(damaged)?;
        if opened.is_due {
            self.put(&contents)?;
            tracing::info!("the vault is sealed now");
        }
        Ok(contents)
    }

    /// Puts the first credential in.
    ///
    /// # Errors
    /// [`VaultError::Present`] rather than overwrite one; I/O errors.
    pub fn create(&self, credential: DeviceCredential) -> Result<(), VaultError> {
        self.check_absent()?;
        self.write(&Contents {
            credential,
            identity: None,
            staged: None,
        })
    }

    /// That there is no credential yet.
    ///
    /// # Errors
    /// [`VaultError::Present`], or that what is there cannot be read.
    pub fn check_absent(&self) -> Result<(), VaultError> {
        match self.load() {
            Ok(found) => Err(VaultError::Present(found.device())),
            Err(VaultError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Puts what TO2 brought beside what holds.
    ///
    /// # Errors
    /// I/O errors; nothing has changed then.
    pub fn stage(&self, staged: Staged) -> Result<(), VaultError> {
        let mut contents = self.load()?;
        contents.staged = Some(staged);
        self.write(&contents)
    }

    /// What was staged holds from now on. Without anything staged nothing changes.
    ///
    /// # Errors
    /// I/O errors; nothing has changed then.
    pub fn commit(&self) -> Result<Contents, VaultError> {
        let mut contents = self.load()?;
        if let Some(staged) = contents.staged.take() {
            contents.credential = staged.credential;
            contents.identity = Some(staged.identity);
            self.write(&contents)?;
        }
        Ok(contents)
    }

    /// Another identity of the same device holds from now on: its certificate was renewed.
    ///
    /// # Errors
    /// I/O errors; nothing has changed then.
    pub fn renew(&self, identity: Identity) -> Result<(), VaultError> {
        let mut contents = self.load()?;
        contents.identity = Some(identity);
        self.write(&contents)
    }

    fn write(&self, contents: &Contents) -> Result<(), VaultError> {
        #[cfg(test)]
        self.may_die(contents)?;
        self.put(contents)
    }

    fn put(&self, contents: &Contents) -> Result<(), VaultError> {
        let bytes = seal::close(&encode(contents)).map_err(|fault| self.seal(fault))?;
        secret_file::write(&self.path, &bytes).map_err(|error| self.io(error))
    }

    #[cfg(test)]
    fn may_die(&self, contents: &Contents) -> Result<(), VaultError> {
        let mut dies = self.dies.lock().unwrap();
        match dies.as_mut() {
            Some(Death { after: 0, written }) => {
                if *written {
                    self.put(contents).unwrap();
                }
                *dies = None;
                Err(self.io(io::Error::other("dead")))
            }
            Some(death) => {
                death.after -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn io(&self, source: io::Error) -> VaultError {
        VaultError::Io {
            path: self.path.display().to_string(),
            source,
        }
    }

    fn seal(&self, fault: SealFault) -> VaultError {
        VaultError::Seal {
            path: self.path.display().to_string(),
            fault,
        }
    }

    fn damaged(&self, why: &str) -> VaultError {
        VaultError::Damaged {
            path: self.path.display().to_string(),
            why: why.to_owned(),
        }
    }
}

fn encode(contents: &Contents) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(cbor::encode(|w| {
        w.array(4).uint(FORMAT).bytes(&contents.credential.encode());
        match &contents.identity {
            Some(identity) => encode_identity(w, identity),
            None => _ = w.null(),
        }
        match &contents.staged {
            Some(staged) => {
                w.array(2).bytes(&staged.credential.encode());
                encode_identity(w, &staged.identity);
            }
            None => _ = w.null(),
        }
    }))
}

/// An identity by itself, for the file of one that is being tried.
pub(crate) fn write_identity(identity: &Identity) -> io::Result<Zeroizing<Vec<u8>>> {
    let plain = Zeroizing::new(cbor::encode(|w| {
        w.array(2).uint(FORMAT);
        encode_identity(w, identity);
    }));
    seal::close(&plain).map_err(io::Error::other)
}

/// Reads [`write_identity`] back.
pub(crate) fn read_identity(bytes: &[u8]) -> Option<Identity> {
    let opened = seal::open(Zeroizing::new(bytes.to_vec())).ok()?;
    let mut r = Reader::new(&opened.plain).ok()?;
    r.array(2).ok()?;
    let ours = r.uint().ok()? == FORMAT;
    let identity = decode_identity(&mut r).ok()?;
    r.end().ok()?;
    ours.then_some(identity)
}

fn encode_identity(w: &mut Writer, identity: &Identity) {
    w.array(3).bytes(&identity.key.to_pkcs8_der());
    w.bytes(&identity.certificate)
        .bytes(&identity.site.to_cbor());
}

/// What can be wrong with the file.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Cbor(#[from] CborError),
    #[error(transparent)]
    Site(#[from] SiteFault),
    #[error("its key is none")]
    Key,
    #[error("its format is {0}")]
    Format(u64),
}

fn decode(bytes: &[u8]) -> Result<Contents, Fault> {
    let mut r = Reader::new(bytes)?;
    r.array(4)?;
    let format = r.uint()?;
    if format != FORMAT {
        return Err(Fault::Format(format));
    }
    let credential = DeviceCredential::decode(r.bytes(MAX_PART)?)?;
    let identity = if r.null() {
        None
    } else {
        Some(decode_identity(&mut r)?)
    };
    let staged = if r.null() {
        None
    } else {
        Some(decode_staged(&mut r)?)
    };
    r.end()?;
    Ok(Contents {
        credential,
        identity,
        staged,
    })
}

fn decode_staged(r: &mut Reader<'_>) -> Result<Staged, Fault> {
    r.array(2)?;
    let credential = DeviceCredential::decode(r.bytes(MAX_PART)?)?;
    Ok(Staged {
        credential,
        identity: decode_identity(r)?,
    })
}

fn decode_identity(r: &mut Reader<'_>) -> Result<Identity, Fault> {
    r.array(3)?;
    let key = SigningKey::from_pkcs8_der(r.bytes(MAX_PART)?).map_err(|_| Fault::Key)?;
    let certificate = r.bytes(MAX_CERTIFICATE)?.to_vec();
    let site = SiteConfig::from_cbor(r.bytes(MAX_PART)?)?;
    Ok(Identity {
        key,
        certificate,
        site,
    })
}

#[cfg(test)]
pub(crate) mod tests;
