//! Renewal on order: by `holdfast-agent renew`, which leaves a file in the state folder, or by the
//! device's servers, which name the certificate that shall go. The order is carried out by `renewal`.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use holdfast_config::secret_file;
use holdfast_protocol::certificate::{Leaf, Purpose};
use holdfast_protocol::notice::{Body, Notice};
use tokio::sync::Notify;
use tracing::{info, warn};

use crate::signers::Signers;
use crate::vault::Identity;

const FILE: &str = "renew";
/// From one look for the file to the next.
const LOOK: Duration = Duration::from_secs(1);

/// Whether somebody wants another certificate. Clones share it.
#[derive(Debug, Clone)]
pub struct Ordered {
    file: PathBuf,
    told: Arc<(AtomicBool, Notify)>,
}

impl Ordered {
    /// In the folder `state`.
    #[must_use]
    pub fn of(state: &Path) -> Self {
        Self {
            file: state.join(FILE),
            told: Arc::default(),
        }
    }

    /// Leaves the order of the command line; it holds until it is carried out.
    ///
    /// # Errors
    /// The disk's.
    pub fn leave(&self) -> io::Result<()> {
        secret_file::write(&self.file, b"renew\n")
    }

    /// Whether an order is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.told.0.load(Ordering::SeqCst) || self.file.exists()
    }

    /// Returns once an order is open.
    pub async fn come(&self) {
        while !self.is_open() {
            _ = tokio::time::timeout(LOOK, self.told.1.notified()).await;
        }
    }

    /// It was carried out.
    pub fn done(&self) {
        self.told.0.store(false, Ordering::SeqCst);
        if let Err(error) = secret_file::remove(&self.file) {
            warn!(%error, "the order to renew cannot be removed; it is carried out again");
        }
    }

    /// Takes a server's order. It must name the certificate of `identity`: an order that was carried
    /// out, or is played again, moves nothing.
    ///
    /// # Errors
    /// Why it is refused, in words.
    pub fn hear(&self, notice: &[u8], identity: &Identity, by: &Signers) -> Result<(), String> {
        let site = &identity.site;
        let notice = Notice::verify(notice, &by.trusted(), &site.site, site.device);
        let notice = notice.map_err(|fault| fault.to_string())?;
        let Body::Renew { serial } = &notice.body else {
            return Err("it is no order to renew".to_owned());
        };
        let own = Leaf::inspect(&identity.certificate, &site.domain, Purpose::Client);
        if own.is_ok_and(|own| own.serial == *serial) && !self.is_open() {
            info!(issuer = %notice.issuer, %serial, "the device is to renew its certificate");
            self.told.0.store(true, Ordering::SeqCst);
            self.told.1.notify_one();
        }
        Ok(())
    }
}
