//! A gateway's machine is lost, or stolen: the cloud's side of putting another in its place.
//!
//! `replace` locks the present enrolment out at once and gives a token; when the fresh machine
//! enrols under the same name, a higher epoch, the certificates and the authority of all earlier
//! enrolments are revoked for good, in the same commit. Until then `unlock` takes the lock back.
//! Devices keep working: what the lost authority certified and the log knows stays good.

use std::time::Duration;

use holdfast_protocol::id::{Domain, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Change, Serial};
use holdfast_store::StoreError;
use zeroize::Zeroizing;

use super::{Enrolment, Refusal, flat};
use crate::authority::parse_serial;
use crate::registry::Draft;
use crate::sync::Replaced;
use crate::tables::{LockRow, Source, Tables};

/// How the log names a site's authority at a gateway.
pub(crate) fn authority_of(site: &SiteId, gateway: &ServerId) -> String {
    format!("intermediate of {site} at {gateway}")
}

impl Enrolment {
    /// Locks the gateway's present enrolment out and gives a token for the machine in its place.
    /// Asked twice, the second token serves as well as the first.
    ///
    /// # Errors
    /// No such gateway at that site, or our own store.
    pub async fn replace(
        &self,
        site: &SiteId,
        gateway: &ServerId,
        life: Duration,
    ) -> Result<Zeroizing<String>, Refusal> {
        let row = self.core.registry.read(|view| view.gateway(gateway))?;
        let row = row
            .filter(|row| row.site == *site)
            .ok_or_else(|| Refusal::NoGateway(gateway.clone(), site.clone()))?;
        let lock = LockRow {
            gateway: gateway.clone(),
            epoch: row.epoch,
            at: self.core.clock.now().secs,
        };
        let token = self.token_with(site, gateway, life, Some(lock)).await?;
        tracing::warn!(%site, %gateway, epoch = row.epoch, "gateway locked out, to be replaced");
        Ok(token)
    }

    /// The signed word that the gateway's present enrolment replaced earlier ones; `None` if there
    /// was no earlier one.
    ///
    /// # Errors
    /// Our own store.
    pub fn replacement(
        &self,
        site: &SiteId,
        gateway: &ServerId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let row = self.core.registry.read(|view| view.gateway(gateway))?;
        let row = row.filter(|row| row.site == *site && row.epoch > 1);
        let key = self.core.keys.record();
        Ok(row.map(|row| Replaced::sign(site, gateway, (row.epoch, row.at), key)))
    }

    /// Lets a gateway in again that `replace` locked out, as long as nothing took its place.
    ///
    /// # Errors
    /// It is not locked, or was replaced meanwhile: revocations are for good.
    pub async fn unlock(&self, site: &SiteId, gateway: &ServerId) -> Result<(), Refusal> {
        let (row, lock) = self
            .core
            .registry
            .read(|view| Ok((view.gateway(gateway)?, view.lock(gateway)?)))?;
        let row = row
            .filter(|row| row.site == *site)
            .ok_or_else(|| Refusal::NoGateway(gateway.clone(), site.clone()))?;
        let lock = lock.ok_or_else(|| Refusal::NotLocked(gateway.clone()))?;
        if row.epoch > lock.epoch {
            return Err(Refusal::Replaced(gateway.clone(), row.epoch));
        }
        let name = gateway.clone();
        let done = self.core.registry.write(move |it| {
            it.tables.remove_lock(&name)?;
            it.rights_changed();
            Ok(())
        });
        done.await.map_err(flat)?;
        tracing::warn!(%site, %gateway, "gateway let in again");
        Ok(())
    }
}

/// What is void as soon as the gateway enrols anew: its certificates and its authority.
pub(super) fn voided<S: Source>(
    tables: Tables<S>,
    domain: &Domain,
    (site, gateway): (&SiteId, &ServerId),
) -> Result<Vec<Draft>, StoreError> {
    let party = Party::Gateway {
        server: gateway.clone(),
        site: site.clone(),
    };
    let subjects = [party.dns(domain), authority_of(site, gateway)];
    let rows = tables.certificates()?;
    let serials = rows
        .iter()
        .filter(|row| !row.revoked && row.site == *site && subjects.contains(&row.subject))
        .filter_map(|row| parse_serial(&row.serial));
    Ok(serials.map(|serial| revocation(site, serial)).collect())
}

fn revocation(site: &SiteId, serial: Serial) -> Draft {
    Draft {
        site: site.clone(),
        device: None,
        change: Change::CertificateRevoked { serial },
    }
}
