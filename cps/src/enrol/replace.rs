//! A gateway's machine is lost, or stolen: the cloud's side of putting another in its place, or of
//! having none there any more.
//!
//! `replace` locks the present enrolment out at once and gives a token; when the fresh machine
//! enrols under the same name, a higher epoch, the certificates and the authority of all earlier
//! enrolments are revoked for good, in the same commit. Until then `unlock` takes the lock back.
//! Devices keep working: what the lost authority certified and the log knows stays good. `revoke`
//! voids the gateway, its authority and its open tokens at once and for good; devices go on at the
//! cloud. `unlock` also lets a gateway in again of which a copy was seen, see [`crate::turns`].

use std::time::Duration;

use holdfast_protocol::id::{Domain, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{Change, Serial};
use holdfast_protocol::succession::{KeyRole, SignedSuccession};
use holdfast_store::{StoreError, WriteError};
use zeroize::Zeroizing;

use super::tokens::void_in;
use super::{Enrolment, Refusal, Terms, flat};
use crate::authority::parse_serial;
use crate::registry::Draft;
use crate::sync::Replaced;
use crate::tables::{LockCause, LockRow, Source, Tables};
use crate::turns::TurnRow;

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
            cause: LockCause::Replace,
        };
        let terms = Terms { life, uses: 1 };
        let token = self.token_with(site, gateway, terms, Some(lock)).await?;
        tracing::warn!(%site, %gateway, epoch = row.epoch, "gateway locked out, to be replaced");
        Ok(token)
    }

    /// Voids a gateway for good: its certificates and its authority, and the tokens by which it
    /// could come back. In one commit, after which its sessions are cut. How many certificates.
    ///
    /// # Errors
    /// No such gateway at that site, or our own store.
    pub async fn revoke(&self, site: &SiteId, gateway: &ServerId) -> Result<usize, Refusal> {
        let (place, name) = (site.clone(), gateway.clone());
        let (domain, at) = (self.core.config.domain.clone(), self.core.clock.now().secs);
        let done = self.core.registry.write(move |it| {
            let row = it.tables.gateway(&name)?.filter(|row| row.site == place);
            let missing = || Refusal::NoGateway(name.clone(), place.clone());
            let row = row.ok_or_else(|| WriteError::Job(missing()))?;
            let lock = LockRow {
                gateway: name.clone(),
                epoch: row.epoch,
                at,
                cause: LockCause::Revoke,
            };
            it.tables.put_lock(&lock)?;
            it.rights_changed();
            void_in(it, |_, token| token.gateway == name && !token.void)?;
            let drafts = voided(it.tables, &domain, (&place, &name))?;
            let count = drafts.len();
            for draft in drafts {
                it.append(draft).map_err(|error| match error {
                    WriteError::Store(error) => WriteError::Store(error),
                    WriteError::Job(error) => WriteError::Job(Refusal::Registry(error)),
                })?;
            }
            Ok(count)
        });
        let count = done.await.map_err(flat)?;
        (0..count).for_each(|_| self.core.metrics.revoked());
        tracing::warn!(%site, %gateway, certificates = count, "gateway revoked");
        Ok(count)
    }

    /// The signed word that the gateway's present enrolment was revoked, or that it replaced earlier
    /// ones; `None` if neither is so.
    ///
    /// # Errors
    /// Our own store.
    pub fn replacement(
        &self,
        site: &SiteId,
        gateway: &ServerId,
    ) -> Result<Option<Vec<u8>>, StoreError> {
        let (row, lock) = self
            .core
            .registry
            .read(|view| Ok((view.gateway(gateway)?, view.lock(gateway)?)))?;
        let Some(row) = row.filter(|row| row.site == *site) else {
            return Ok(None);
        };
        let key = self.core.keys.record();
        let steps = self.signing_steps(site)?;
        let revoked =
            lock.filter(|lock| lock.cause == LockCause::Revoke && lock.epoch == row.epoch);
        let statement = match revoked {
            Some(lock) => Some(Replaced::sign_revoked(
                site,
                gateway,
                (row.epoch, lock.at),
                &key,
            )),
            None if row.epoch > 1 => Some(Replaced::sign(site, gateway, (row.epoch, row.at), &key)),
            None => None,
        };
        Ok(statement.map(|statement| Replaced::with_steps(statement, &steps)))
    }

    /// How this server's signing key was rotated, by a site's log.
    fn signing_steps(&self, site: &SiteId) -> Result<Vec<SignedSuccession>, StoreError> {
        let epoch = self.core.registry.epoch()?;
        let whose = Some((&self.core.config.server, epoch));
        let steps = self
            .core
            .registry
            .read(|view| view.rotations(site, whose))?;
        let steps = steps
            .into_iter()
            .filter(|step| step.is_of(KeyRole::Signing));
        Ok(steps.map(|step| step.statement).collect())
    }

    /// Lets a gateway in again that `replace` locked out, as long as nothing took its place; or one
    /// of which a copy was seen: then the machine that asks first is it.
    ///
    /// # Errors
    /// It is not locked, or was replaced or revoked meanwhile: revocations are for good.
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
        if lock.cause == LockCause::Revoke {
            return Err(Refusal::Revoked(gateway.clone()));
        }
        let name = gateway.clone();
        let done = self.core.registry.write(move |it| {
            it.tables.remove_lock(&name)?;
            if matches!(lock.cause, LockCause::Copy(_)) {
                it.tables.put_turn(&name, lock.epoch, &TurnRow::open())?;
            }
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
