//! Revoking, by serial number or by whom the certificates name. Called by the API and the CLI; works
//! offline. The roster denies what is revoked as soon as the commit is in; sync tells the other side.

use std::fmt;

use holdfast_protocol::id::{ClientName, DeviceId, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Change, Serial};

use super::{Authority, AuthorityError, parse_serial};
use crate::registry::Draft;
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
        let rows = self.core.registry.read(|view| view.certificates())?;
        let domain = &self.core.config.domain;
        let is_theirs = |row: &&CertificateRow| match whose {
            Whose::Serial(serial) => row.serial == serial.to_string(),
            Whose::Device(device) => row.device == Some(*device),
            Whose::Client(name, site) => {
                let party = Party::Client {
                    name: name.clone(),
                    site: site.clone(),
                };
                row.subject == party.dns(domain)
            }
            Whose::Gateway(server) => Party::parse(&row.subject, domain).is_ok_and(
                |party| matches!(party, Party::Gateway { server: named, .. } if named == *server),
            ),
        };
        let theirs: Vec<_> = rows.into_iter().filter(|row| is_theirs(&row)).collect();
        if theirs.is_empty() {
            return Err(match whose {
                Whose::Serial(serial) => AuthorityError::UnknownSerial(serial.clone()),
                other => AuthorityError::NothingOf(other.to_string()),
            });
        }
        let (mut drafts, mut serials) = (Vec::new(), Vec::new());
        for row in theirs.into_iter().filter(|row| !row.revoked) {
            let Some(serial) = parse_serial(&row.serial) else {
                continue;
            };
            serials.push(serial.clone());
            drafts.push(Draft {
                site: row.site,
                device: row.device,
                change: Change::CertificateRevoked { serial },
            });
        }
        if !drafts.is_empty() {
            self.core.registry.append(drafts).await?;
            serials.iter().for_each(|_| self.core.metrics.revoked());
            tracing::warn!(%whose, count = serials.len(), "certificates revoked");
        }
        Ok(serials)
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
