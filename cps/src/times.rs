//! Real time for what was recorded before the time was known, and what is on record, in its order.
//!
//! The binaries drive [`Times::keep`]; the admin API and the CLI ask for the records. Nothing here
//! waits for the time: as soon as the clock knows it, what this run of the machine recorded gets its
//! own, in the registry by an entry of its own that goes to the other server, in the ledger at once.

use std::time::Duration;

use holdfast_protocol::id::{DeviceId, SiteId};
use holdfast_protocol::record::SignedEntry;
use holdfast_store::StoreError;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::Core;
use crate::registry::RegistryError;
use crate::tables::{CertificateRow, GatewayRow, Source, Tables, When};
use crate::telemetry::Ledger;

/// How often the clock is asked whether it knows the time now.
const LOOK: Duration = Duration::from_secs(5);
/// Most records in one answer.
pub const MOST: usize = 1_000;

/// One entry of the log, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RecordView {
    /// Its place in the order, which needs no clock; entries of equal rank knew nothing of one another.
    pub rank: u64,
    /// When, as far as it is known by now.
    pub when: When,
    /// Whose log.
    pub site: String,
    /// Who wrote it.
    pub origin: String,
    /// In which enrolment.
    pub epoch: u32,
    /// Its number.
    pub seq: u64,
    /// The device that it is about.
    pub device: Option<String>,
    /// What changed.
    pub what: &'static str,
}

/// A certificate, and when it was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IssuedView {
    /// What it says.
    #[serde(flatten)]
    pub certificate: CertificateRow,
    /// When its issue was recorded, as far as it is known by now; none if only its revocation is.
    pub issued: Option<When>,
}

/// The room; cheap to clone.
#[derive(Clone, Debug)]
pub struct Times {
    core: Core,
    ledger: Ledger,
}

impl Times {
    pub(crate) fn new(core: Core, ledger: Ledger) -> Self {
        Self { core, ledger }
    }

    /// Gives what was recorded on untrusted time its real time, as soon as it is known, until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        loop {
            if let Err(error) = self.learn().await {
                tracing::warn!(%error, "times that became known are not on record yet; tried again");
            }
            let wait = tokio::time::sleep(LOOK);
            if stop.run_until_cancelled(wait).await.is_none() {
                return;
            }
        }
    }

    /// The same, once: how many entries of the registry got their time.
    ///
    /// # Errors
    /// The stores; what is not on record yet can be learnt again.
    pub async fn learn(&self) -> Result<usize, RegistryError> {
        let learnt = self.core.registry.learn_times().await?;
        if learnt > 0 {
            tracing::info!(
                learnt,
                "records made on untrusted time have their real time now"
            );
        }
        self.ledger.learn_times(&*self.core.clock).await?;
        Ok(learnt)
    }

    /// All certificates that either server issued.
    ///
    /// # Errors
    /// Our own store.
    pub fn certificates(&self) -> Result<Vec<IssuedView>, StoreError> {
        self.core.registry.read(|view| {
            let rows = view.certificates()?.into_iter();
            rows.map(|certificate| {
                let issued = view.when_told(&certificate.site, certificate.told.as_ref())?;
                Ok(IssuedView {
                    certificate,
                    issued,
                })
            })
            .collect()
        })
    }

    /// When a gateway enrolled, as far as it is known by now.
    ///
    /// # Errors
    /// Our own store.
    pub fn enrolled(&self, row: &GatewayRow) -> Result<Option<When>, StoreError> {
        let told = row.told.as_ref();
        self.core
            .registry
            .read(|view| view.when_told(&row.site, told))
    }

    /// The last entries about a device, or of the logs of a site or all sites, oldest first.
    ///
    /// # Errors
    /// Our own store.
    pub fn records(
        &self,
        site: Option<&SiteId>,
        device: Option<DeviceId>,
        max: usize,
    ) -> Result<Vec<RecordView>, StoreError> {
        self.core.registry.read(|view| {
            let max = max.clamp(1, MOST);
            let mut entries = match device {
                Some(device) => view.device_entries(device)?,
                None => view.latest(site, max)?,
            };
            entries.retain(|one| site.is_none_or(|site| one.entry().site == *site));
            entries.sort_by_key(|one| one.entry().order());
            let older = entries.len().saturating_sub(max);
            entries[older..]
                .iter()
                .map(|one| shown(view, one))
                .collect()
        })
    }
}

fn shown<S: Source>(view: Tables<S>, signed: &SignedEntry) -> Result<RecordView, StoreError> {
    let it = signed.entry();
    Ok(RecordView {
        rank: it.rank,
        when: view.when(it)?,
        site: it.site.to_string(),
        origin: it.id.origin.to_string(),
        epoch: it.id.epoch,
        seq: it.id.seq,
        device: it.device.map(|device| device.to_string()),
        what: it.change.word(),
    })
}
