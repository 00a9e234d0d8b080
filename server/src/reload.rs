//! The file of clients with passwords, read again while the server runs: at SIGHUP, or when the operator
//! asks by `clients reload`.
//!
//! A faulty file changes nothing. Whoever is gone or has another password is cut at once, and what the
//! others may do from now on is asked anew.

use std::path::PathBuf;

use holdfast_broker::{Broker, CutReason};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::users;
use crate::users::{Users, named_by};

/// What is read again, and for whom.
#[derive(Debug, Clone)]
pub struct Reload {
    /// The file, if the configuration names one.
    pub file: Option<PathBuf>,
    /// Who is in it.
    pub users: Users,
    /// Where they are connected.
    pub broker: Broker,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloaded {
    /// Clients that the file names now.
    pub clients: usize,
    /// Connections that were cut.
    pub cut: usize,
}

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum ReloadFault {
    /// There is nothing to read.
    #[error(
        "the configuration names no file of clients; write [clients] file = \"clients.toml\" and start anew"
    )]
    NoFile,
    /// The file is faulty.
    #[error("{0}")]
    Faults(#[from] holdfast_config::Faults),
    /// A hash could not be used.
    #[error(transparent)]
    Passwords(#[from] holdfast_broker::PasswordsError),
}

impl Reload {
    /// Reads the file again.
    ///
    /// # Errors
    /// Then nothing changed.
    pub fn again(&self) -> Result<Reloaded, ReloadFault> {
        let file = self.file.as_deref().ok_or(ReloadFault::NoFile)?;
        let ended = self.users.replace(users::read(file)?)?;
        self.broker.rights_changed();
        let cut = self.broker.cut_where(CutReason::NotAuthorized, |who| {
            named_by(&who.subject).is_some_and(|name| ended.contains(name))
        });
        let clients = self.users.len();
        tracing::info!(file = %file.display(), clients, cut, "clients with passwords were read again");
        Ok(Reloaded { clients, cut })
    }

    /// Does so at each SIGHUP, until `stop`.
    ///
    /// # Errors
    /// The signal cannot be listened to.
    pub async fn run(self, stop: CancellationToken) -> std::io::Result<()> {
        let mut hangup = signal(SignalKind::hangup())?;
        while let Some(Some(())) = stop.run_until_cancelled(hangup.recv()).await {
            if let Err(fault) = self.again() {
                tracing::error!("SIGHUP: nothing changed: {fault}");
            }
        }
        stop.cancelled().await;
        Ok(())
    }
}
