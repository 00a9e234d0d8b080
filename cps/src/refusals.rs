//! Entries that sync refused, for the operator: who delivered what, when, and why it was not
//! believed. Filled by `sync`, shown by the admin API and the CLI. The table is bounded, per party
//! and in all, so that nobody can push another's refusals out; what comes again is counted, not
//! listed again. It decides nothing: what is believed is `sync::judge`'s to say.

use std::sync::Arc;

use holdfast_protocol::id::{DeviceId, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{EntryId, SignedEntry};
use holdfast_store::{StoreError, WriteError, Written};

use crate::Core;
use crate::quiet::Quiet;
use crate::registry::Writing;
use crate::sync::Distrust;
use crate::tables::RefusalRow;

/// Most refusals kept of one party; its oldest gives way.
pub const MOST_OF_PARTY: u64 = 200;
/// Most refusals kept in all; the oldest gives way.
pub const MOST: u64 = 2_000;

/// What the command lines show of each.
pub const COLUMNS: [&str; 11] = [
    "last", "quality", "times", "party", "site", "origin", "epoch", "seq", "device", "reason",
    "why",
];

/// What was refused, before it is on record.
#[derive(Clone, Debug)]
pub(crate) struct Refused {
    pub(crate) id: Option<EntryId>,
    pub(crate) device: Option<DeviceId>,
    pub(crate) distrust: Box<Distrust>,
}

impl Refused {
    /// `entry` is what could be read of it.
    pub(crate) fn new(entry: Option<&SignedEntry>, distrust: Distrust) -> Self {
        let entry = entry.map(SignedEntry::entry);
        Self {
            id: entry.map(|it| it.id.clone()),
            device: entry.and_then(|it| it.device),
            distrust: Box::new(distrust),
        }
    }
}

/// The refusals; cheap to clone.
#[derive(Clone, Debug)]
pub struct Refusals {
    core: Core,
    quiet: Arc<Quiet<(String, &'static str)>>,
}

impl Refusals {
    pub(crate) fn new(core: Core) -> Self {
        Self {
            core,
            quiet: Arc::default(),
        }
    }

    /// What was refused, the newest first.
    ///
    /// # Errors
    /// Our own store.
    pub fn list(&self) -> Result<Vec<RefusalRow>, StoreError> {
        self.core.registry.read(|view| view.refusals())
    }

    /// The name in the certificate of a server that delivers entries of a site's log.
    pub(crate) fn party(&self, from: &ServerId, site: &SiteId) -> String {
        let cloud = self.core.cloud.as_ref();
        let party = match cloud.is_some_and(|cloud| cloud.server() == *from) {
            true => Party::Cloud {
                server: from.clone(),
            },
            false => Party::Gateway {
                server: from.clone(),
                site: site.clone(),
            },
        };
        party.dns(&self.core.config.domain)
    }

    /// Puts it on record, within the commit of what came with it.
    pub(crate) fn keep(
        it: &Writing<'_>,
        (party, site): (&str, &SiteId),
        refused: &Refused,
    ) -> Result<(), StoreError> {
        let (now, id) = (it.now(), refused.id.as_ref());
        let row = RefusalRow {
            at: now.secs,
            quality: now.quality.to_string(),
            party: party.to_owned(),
            site: site.to_string(),
            origin: id.map(|id| id.origin.to_string()),
            epoch: id.map(|id| id.epoch),
            seq: id.map(|id| id.seq),
            device: refused.device.map(|device| device.to_string()),
            reason: refused.distrust.reason().to_owned(),
            why: refused.distrust.to_string(),
            times: 1,
            last: now.secs,
        };
        it.tables.put_refusal(&row, (MOST_OF_PARTY, MOST))
    }

    /// Whether this is to be logged now, for this peer; if so, how often it was not before.
    pub(crate) fn says(&self, peer: String, reason: &'static str) -> Option<u64> {
        self.quiet.admits((peer, reason))
    }

    /// Puts a whole delivery on record that was not even let in, because its party's enrolment is over:
    /// once a minute for each, for such a machine asks for ever.
    ///
    /// # Errors
    /// Our own store.
    pub(crate) async fn turned_away(
        &self,
        (server, site): (&ServerId, &SiteId),
        (reason, why): (&'static str, String),
    ) -> Result<(), StoreError> {
        let party = self.party(server, site);
        let Some(unsaid) = self.quiet.admits((party.clone(), reason)) else {
            return Ok(());
        };
        let now = self.core.clock.now();
        let row = RefusalRow {
            at: now.secs,
            quality: now.quality.to_string(),
            party,
            site: site.to_string(),
            origin: Some(server.to_string()),
            epoch: None,
            seq: None,
            device: None,
            reason: reason.to_owned(),
            why,
            times: unsaid.saturating_add(1),
            last: now.secs,
        };
        let keep =
            move |it: &mut Writing<'_>| Ok(it.tables.put_refusal(&row, (MOST_OF_PARTY, MOST))?);
        let done: Written<()> = self.core.registry.write(keep).await;
        done.map_err(|error| match error {
            WriteError::Store(error) => error,
            WriteError::Job(never) => match never {},
        })
    }

    /// Counts it, and says it once a minute for each party and reason.
    pub(crate) fn tell(&self, party: &str, site: &SiteId, refused: &Refused) {
        let reason = refused.distrust.reason();
        self.core.metrics.refused("sync", reason);
        if let Some(unsaid) = self.quiet.admits((party.to_owned(), reason)) {
            let entry = refused.id.as_ref();
            let entry = entry.map(|id| format!("{} {}/{}", id.origin, id.epoch, id.seq));
            let distrust = &refused.distrust;
            tracing::error!(party, %site, ?entry, reason, unsaid, %distrust,
                "a change entry was refused; `refusals list` shows it");
        }
    }
}
