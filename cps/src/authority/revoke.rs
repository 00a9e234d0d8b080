//! Revoking, by serial number or by whom the certificates name, and issuing on the word of a certificate
//! that may be revoked at that moment. Called by the API, the CLI and whoever renews; works offline.
//! Each decides within its commit: of two at the same time the later sees what the earlier did, so
//! nobody slips through with a certificate that the other did not know of. The roster denies what is
//! revoked as soon as the commit is in; sync tells the other side.

use std::fmt;

use holdfast_protocol::id::{ClientName, DeviceId, Domain, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Change, Serial};
use holdfast_store::{WriteError, Written};

use super::{Authority, AuthorityError, parse_serial};
use crate::registry::{Draft, RegistryError};
use crate::tables::CertificateRow;

/// What is to be revoked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// One certificate.
    Serial(Serial),
    /// All of a device, those for its services too.
    Device(DeviceId),
    /// All of an ordinary client, of that site.
    Client(ClientName, Option<SiteId>),
    /// All of a gateway itself; its authority stays, and so do its devices.
    Gateway(ServerId),
}

impl fmt::Display for Whose {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(out, "{serial}"),
            Self::Device(device) => write!(out, "device {device}"),
            Self::Client(name, _) => write!(out, "client {name}"),
            Self::Gateway(gateway) => write!(out, "gateway {gateway}"),
        }
    }
}

impl Whose {
    fn is_of(&self, row: &CertificateRow, domain: &Domain) -> bool {
        match self {
            Self::Serial(serial) => row.serial == serial.to_string(),
            Self::Device(device) => row.device == Some(*device),
            Self::Client(name, site) => {
                let party = Party::Client {
                    name: name.clone(),
                    site: site.clone(),
                };
                row.subject == party.dns(domain)
            }
            Self::Gateway(server) => Party::parse(&row.subject, domain).is_ok_and(
                |party| matches!(party, Party::Gateway { server: named, .. } if named == *server),
            ),
        }
    }

    fn nobody(&self) -> AuthorityError {
        match self {
            Self::Serial(serial) => AuthorityError::UnknownSerial(serial.clone()),
            other => AuthorityError::NothingOf(other.to_string()),
        }
    }
}

impl Authority {
    /// Revokes one certificate by its serial.
    ///
    /// # Errors
    /// Unknown serial, or our own store.
    pub async fn revoke(&self, serial: Serial) -> Result<(), AuthorityError> {
        self.revoke_all(&Whose::Serial(serial)).await.map(drop)
    }

    /// Revokes what is not revoked yet; the serials, in one commit.
    ///
    /// # Errors
    /// Nothing there to be revoked, or our own store.
    pub async fn revoke_all(&self, whose: &Whose) -> Result<Vec<Serial>, AuthorityError> {
        let (wanted, domain) = (whose.clone(), self.core.config.domain.clone());
        let done: Written<Vec<Serial>, AuthorityError> = self
            .core
            .registry
            .write(move |it| {
                let rows = it.tables.certificates()?.into_iter();
                let theirs: Vec<_> = rows.filter(|row| wanted.is_of(row, &domain)).collect();
                if theirs.is_empty() {
                    return Err(WriteError::Job(wanted.nobody()));
                }
                let mut serials = Vec::new();
                for row in theirs.into_iter().filter(|row| !row.revoked) {
                    let Some(serial) = parse_serial(&row.serial) else {
                        continue;
                    };
                    serials.push(serial.clone());
                    let draft = Draft {
                        site: row.site,
                        device: row.device,
                        change: Change::CertificateRevoked { serial },
                    };
                    it.append(draft).map_err(own)?;
                }
                Ok(serials)
            })
            .await;
        let serials = done.map_err(flat)?;
        if !serials.is_empty() {
            serials.iter().for_each(|_| self.core.metrics.revoked());
            tracing::warn!(%whose, count = serials.len(), "certificates revoked");
        }
        Ok(serials)
    }

    /// Records what was issued on the word of certificates, all of which must hold.
    ///
    /// # Errors
    /// One was revoked since it was checked; or our own store.
    pub(super) async fn record_on_word(
        &self,
        words: Vec<Serial>,
        draft: Draft,
    ) -> Result<(), AuthorityError> {
        let done: Written<(), AuthorityError> = self
            .core
            .registry
            .write(move |it| {
                for word in &words {
                    if it.tables.is_void(word)? {
                        return Err(WriteError::Job(AuthorityError::Revoked(word.clone())));
                    }
                }
                it.append(draft.clone()).map_err(own)
            })
            .await;
        done.map_err(flat)?;
        self.core.metrics.issued();
        Ok(())
    }

    /// Makes a damaged list of revocations anew from the log, so that peers are admitted again.
    ///
    /// # Errors
    /// Our own store or folder.
    pub fn restore_revocations(&self) -> Result<(), AuthorityError> {
        let core = &self.core;
        let rows = core.registry.read(|view| view.certificates())?;
        let (list, now) = (core.roster.revocation_list(), core.clock.certain());
        list.restore(core.keys.folder(), &rows, now)?;
        Ok(core.registry.refresh_roster()?)
    }
}

fn own(error: WriteError<RegistryError>) -> WriteError<AuthorityError> {
    match error {
        WriteError::Store(error) => WriteError::Store(error),
        WriteError::Job(error) => WriteError::Job(error.into()),
    }
}

fn flat(error: WriteError<AuthorityError>) -> AuthorityError {
    match error {
        WriteError::Store(error) => error.into(),
        WriteError::Job(error) => error,
    }
}
