//! A cloud that was set back to its backup. It has forgotten what it wrote since, and its next
//! entries bear numbers that its gateways know for other entries. A gateway shows with each question
//! the newest entry of the cloud that it holds; a cloud whose own log says otherwise is given back
//! what it signed: numbers that it lacks go to their places, and where both have another entry of one
//! number, both are written once more under numbers that nobody has, so that everybody hears of each.
//! Nothing is believed of a gateway here: only the cloud's own signature counts.

use holdfast_protocol::crypto::{HashAlg, VerifyingKey, hash};
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::record::{Change, EntryId, SignedEntry};
use holdfast_protocol::succession::KeyRole;
use holdfast_store::{StoreError, WriteError, Written};
use serde::{Deserialize, Serialize};

use super::Sync;
use crate::registry::{Draft, RegistryError, Writing, epoch_in};
use crate::tables::{Source, Tables};

/// Most marks that are looked at: the powers of two below the longest log, and both ends.
const MOST_MARKS: usize = 66;
/// Why entries of ours are not taken back, for the counters.
const LOST_KEY: &str = "signing key lost";

/// One entry of the cloud that a gateway holds: its number, and the SHA-256 of its bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    epoch: u32,
    seq: u64,
    #[serde(with = "crate::tables::base64")]
    hash: Vec<u8>,
}

impl Mark {
    fn of(entry: &SignedEntry) -> Self {
        let id = &entry.entry().id;
        Self {
            epoch: id.epoch,
            seq: id.seq,
            hash: digest(entry).to_vec(),
        }
    }
}

fn digest(entry: &SignedEntry) -> [u8; 32] {
    let digest = hash(HashAlg::Sha256, entry.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.value());
    bytes
}

/// What the cloud asks for next.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Its entries from this number on; none: it has all.
    pub(crate) first: Option<u64>,
    /// Whether it compares numbers that both have, after it filled up those that it lacked.
    pub(crate) comparing: bool,
}

/// What a gateway gives back.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) marks: Vec<Mark>,
    pub(crate) entries: Vec<Vec<u8>>,
    /// As it was asked.
    pub(crate) comparing: bool,
}

impl Sync {
    /// At a gateway: the newest entry that it holds of the cloud.
    pub(super) fn mark(&self, site: &SiteId) -> Result<Option<Mark>, StoreError> {
        let Some(newest) = self.newest_of_cloud(site)? else {
            return Ok(None);
        };
        let found = self.core.registry.read(|view| view.entry(site, &newest))?;
        Ok(found.as_ref().map(Mark::of))
    }

    /// The same, and before it ever fewer of the older ones, by their numbers.
    pub(crate) fn marks(&self, site: &SiteId) -> Result<Vec<Mark>, StoreError> {
        let Some(newest) = self.newest_of_cloud(site)? else {
            return Ok(Vec::new());
        };
        let back = (0..u64::BITS).map_while(|bit| newest.seq.checked_sub(1 << bit));
        let mut numbers: Vec<u64> = back.filter(|seq| *seq > 0).collect();
        numbers.extend([1, newest.seq]);
        numbers.sort_unstable();
        numbers.dedup();
        self.core.registry.read(|view| {
            let mut marks = Vec::with_capacity(numbers.len());
            for seq in numbers {
                let id = EntryId {
                    seq,
                    ..newest.clone()
                };
                marks.extend(view.entry(site, &id)?.as_ref().map(Mark::of));
            }
            Ok(marks)
        })
    }

    /// The cloud's entries of one site from `first` on, one delivery of them.
    pub(crate) fn of_cloud_from(
        &self,
        site: &SiteId,
        first: u64,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        match self.newest_of_cloud(site)? {
            Some(newest) => self.from(site, (&newest.origin, newest.epoch), first),
            None => Ok(Vec::new()),
        }
    }

    fn newest_of_cloud(&self, site: &SiteId) -> Result<Option<EntryId>, StoreError> {
        let Some(cloud) = self.core.cloud.as_ref().map(crate::enrol::Cloud::server) else {
            return Ok(None);
        };
        let cursor = self.cursor(site)?;
        let of_cloud = cursor.iter().filter(|(origin, ..)| **origin == cloud);
        Ok(of_cloud.last().map(|(origin, epoch, seq)| EntryId {
            origin: origin.clone(),
            epoch,
            seq,
        }))
    }

    /// At the cloud: whether a gateway holds an entry of ours that we do not know, so that its cursor
    /// says nothing of what it lacks.
    pub(crate) fn has_forgotten(&self, site: &SiteId, mark: &Mark) -> Result<bool, StoreError> {
        self.core.registry.read(|view| {
            let same = mark.epoch != epoch_in(view)? || self.agrees(view, site, mark)?;
            let settled = <[u8; 32]>::try_from(mark.hash.as_slice());
            // One of two of a number, both of which were written anew, is as good as ours.
            let settled = settled.map_or(Ok(false), |digest| view.is_settled(&digest));
            Ok(!same && !settled?)
        })
    }

    /// At the cloud: whether numbers that both had are still to be compared, since a return was cut.
    pub(crate) fn is_comparing(&self, site: &SiteId) -> Result<bool, StoreError> {
        let kept = self
            .core
            .registry
            .read(|view| view.meta(&comparing(site)))?;
        Ok(kept.is_some_and(|first| first > 0))
    }

    fn agrees<S: Source>(
        &self,
        view: Tables<S>,
        site: &SiteId,
        mark: &Mark,
    ) -> Result<bool, StoreError> {
        let id = EntryId {
            origin: self.core.config.server.clone(),
            epoch: mark.epoch,
            seq: mark.seq,
        };
        let held = view.entry(site, &id)?;
        Ok(held.is_some_and(|entry| Mark::of(&entry) == *mark))
    }

    /// At the cloud: takes back what it signed and forgot; what it wants next.
    pub(crate) async fn take_back(
        &self,
        site: &SiteId,
        from: &ServerId,
        given: Given,
    ) -> Result<Wanted, StoreError> {
        let mut marks = given.marks;
        marks.truncate(MOST_MARKS);
        let entries = self.own(site, &given.entries)?;
        let epoch = self.core.registry.epoch()?;
        let Some(last) = marks.last().filter(|last| last.epoch == epoch) else {
            return Ok(Wanted::default());
        };
        let last = last.seq;
        let (sync, at) = (self.clone(), site.clone());
        let done: Written<(Wanted, Tally), RegistryError> = self
            .core
            .registry
            .write(move |it| {
                let mut one = Taking {
                    sync: &sync,
                    site: &at,
                    epoch,
                    last,
                    tally: Tally::default(),
                };
                let wanted = match given.comparing {
                    false => one.fill_up(it, &marks, &entries)?,
                    true => one.compare(it, &entries)?,
                };
                Ok((wanted, one.tally))
            })
            .await;
        let (wanted, tally) = done.map_err(|error| match error {
            WriteError::Store(error) | WriteError::Job(RegistryError::Store(error)) => error,
            WriteError::Job(RegistryError::Record(fault)) => {
                StoreError::Misuse(fault.to_string().into())
            }
        })?;
        self.tell(site, from, &tally);
        Ok(wanted)
    }

    fn tell(&self, site: &SiteId, from: &ServerId, tally: &Tally) {
        if tally.lost_key {
            self.core.metrics.refused("sync", LOST_KEY);
            if let Some(unsaid) = self.refusals.says(site.to_string(), LOST_KEY) {
                tracing::error!(%site, %from, unsaid,
                    "ALARM: this cloud was set back to a copy from before its last rotation of a key, and lacks that key: \
                     what it wrote since cannot be taken back; restore the key folder as it was after that rotation");
            }
        }
        if tally.taken + tally.anew > 0 {
            tracing::warn!(%site, %from, taken = tally.taken, anew = tally.anew,
                "ALARM: this cloud was set back to an older copy; the gateway gave back what it had written since");
        }
    }

    /// Of what was delivered, what is ours, of this log and enrolment, in the order of its numbers.
    fn own(&self, site: &SiteId, delivered: &[Vec<u8>]) -> Result<Vec<SignedEntry>, StoreError> {
        let (keys, epoch) = self.core.registry.read(|view| {
            let keys = self.own_keys(view, site)?;
            Ok((keys, epoch_in(view)?))
        })?;
        let limit = self.core.config.limits.sync_batch;
        let parsed = delivered.iter().take(limit);
        let parsed = parsed.filter_map(|bytes| SignedEntry::parse(bytes).ok());
        let mut own: Vec<SignedEntry> = parsed
            .filter(|entry| {
                let it = entry.entry();
                let ours = it.id.origin == self.core.config.server && it.id.epoch == epoch;
                ours && it.site == *site && keys.iter().any(|key| entry.verify(key).is_ok())
            })
            .collect();
        own.sort_by_key(|entry| entry.entry().id.seq);
        Ok(own)
    }

    /// Every key by which this server ever signed in that log.
    fn own_keys<S: Source>(
        &self,
        view: Tables<S>,
        site: &SiteId,
    ) -> Result<Vec<VerifyingKey>, StoreError> {
        let mut keys = self.core.keys.all(KeyRole::Signing);
        let whose = (&self.core.config.server, epoch_in(view)?);
        for log in [site, &crate::rotation::home(&self.core)] {
            for step in view.rotations(log, Some(whose))? {
                let said = step.said();
                if said.role == KeyRole::Signing {
                    keys.extend([said.old.clone(), said.new.clone()]);
                }
            }
        }
        Ok(keys)
    }
}

/// Under which name the first number is kept that is still to be compared.
fn comparing(site: &SiteId) -> String {
    format!("returned/{site}")
}

/// What one delivery brought.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    taken: usize,
    anew: usize,
    lost_key: bool,
}

/// One delivery on its way into the log.
struct Taking<'a> {
    sync: &'a Sync,
    site: &'a SiteId,
    epoch: u32,
    /// The newest number of ours at the gateway.
    last: u64,
    tally: Tally,
}

type Job<T> = Result<T, WriteError<RegistryError>>;

impl Taking<'_> {
    fn id(&self, seq: u64) -> EntryId {
        EntryId {
            origin: self.sync.core.config.server.clone(),
            epoch: self.epoch,
            seq,
        }
    }

    /// Numbers that we lack go to their places, before anything else is written under them.
    fn fill_up(
        &mut self,
        it: &mut Writing<'_>,
        marks: &[Mark],
        entries: &[SignedEntry],
    ) -> Job<Wanted> {
        let name = comparing(self.site);
        let kept = it.tables.meta(&name)?.filter(|first| *first > 0);
        let agreed = match kept {
            Some(first) => first,
            None => self.agreed(it, marks)?.saturating_add(1),
        };
        let server = self.sync.core.config.server.clone();
        let mut head = it.tables.head(self.site, &server, self.epoch)?;
        for entry in entries {
            let seq = entry.entry().id.seq;
            if seq <= head || seq > self.last {
                continue;
            }
            if seq != head + 1 || self.lacks_key(entry) {
                break;
            }
            it.take(entry)?;
            head = seq;
            self.tally.taken += 1;
        }
        if self.tally.taken > 0 {
            it.tables.put_meta(&name, agreed)?;
        }
        let first = if self.tally.lost_key {
            None
        } else if head < self.last {
            Some(head + 1)
        } else {
            Some(agreed).filter(|first| *first <= self.last)
        };
        let comparing = head >= self.last;
        if comparing && first.is_none() && kept.is_some() {
            it.tables.put_meta(&name, 0)?;
        }
        Ok(Wanted { first, comparing })
    }

    /// The highest marked number up to which both have the same.
    fn agreed(&self, it: &Writing<'_>, marks: &[Mark]) -> Result<u64, StoreError> {
        let mut agreed = 0;
        for mark in marks {
            if mark.epoch != self.epoch || !self.sync.agrees(it.tables, self.site, mark)? {
                break;
            }
            agreed = mark.seq;
        }
        Ok(agreed)
    }

    /// Of two entries of one number each is written once more, the forgotten ones first: whichever a
    /// gateway holds under that number, it hears of the other.
    fn compare(&mut self, it: &mut Writing<'_>, entries: &[SignedEntry]) -> Job<Wanted> {
        let Some(seen) = entries.last().map(|entry| entry.entry().id.seq) else {
            return Ok(Wanted::default());
        };
        let (mut forgotten, mut present) = (Vec::new(), Vec::new());
        for entry in entries {
            let held = it.tables.entry(self.site, &self.id(entry.entry().id.seq))?;
            if let Some(held) = held.filter(|held| held.as_bytes() != entry.as_bytes()) {
                forgotten.push(entry.clone());
                present.push(held);
            }
        }
        for entry in forgotten.iter().chain(&present) {
            self.write_anew(it, entry)?;
        }
        let first = Some(seen + 1).filter(|first| *first <= self.last);
        it.tables
            .put_meta(&comparing(self.site), first.unwrap_or(0))?;
        let comparing = true;
        Ok(Wanted { first, comparing })
    }

    fn write_anew(&mut self, it: &mut Writing<'_>, entry: &SignedEntry) -> Job<()> {
        if !it.tables.put_settled(&digest(entry))? {
            return Ok(());
        }
        let content = entry.entry();
        // What speaks of numbers, or of keys, holds in its own place only.
        let placed = matches!(
            content.change,
            Change::TimeLearnt { .. } | Change::KeySucceeded(_) | Change::Unknown { .. }
        );
        if placed {
            return Ok(());
        }
        self.tally.anew += 1;
        it.append(Draft {
            site: content.site.clone(),
            device: content.device,
            change: content.change.clone(),
        })
    }

    /// Whether the entry hands our pen to a key that we do not have.
    fn lacks_key(&mut self, entry: &SignedEntry) -> bool {
        let Change::KeySucceeded(step) = &entry.entry().change else {
            return false;
        };
        let said = step.said();
        self.tally.lost_key = self.sync.core.keys.find(said.role, &said.new).is_none();
        self.tally.lost_key
    }
}
