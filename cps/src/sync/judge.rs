//! Whether an entry is believed: by whose key it must be signed, who may say such a thing, and
//! whether the evidence proves it. Asked by `sync`; changes nothing.

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{DeviceId, Guid, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::{
    Change, DeviceRecord, Entry, EntryId, EvidenceFault, Expected, Onboarded, RecordFault,
    SignedEntry, verify_evidence,
};
use holdfast_protocol::succession::{KeyRole, SignedSuccession, Succession};
use holdfast_protocol::voucher::{Policy, Relation, Voucher, VoucherError};
use holdfast_store::{StoreError, WriteError};

use crate::Core;
use crate::enrol::Cloud;
use crate::registry::{Writing, record_of};
use crate::rotation::known::{self, Era};

/// Why an entry is refused. Blame: its origin, or whoever delivered it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Distrust {
    /// It cannot be read.
    #[error("the entry cannot be read: {0}; look at the link between the servers")]
    Malformed(RecordFault),
    /// It is of another site's log.
    #[error(
        "the entry is for site {0}, which this server does not deliver for; look at that server"
    )]
    OtherSite(SiteId),
    /// Nobody of this site wrote it.
    #[error("the entry is by {0} (enrolment {1}), which is not enrolled at this site")]
    UnknownOrigin(ServerId, u32),
    /// A gateway that was replaced or re-enrolled.
    #[error(
        "the entry is by enrolment {1} of gateway {0}, which a later one replaced; that machine is locked out"
    )]
    LockedOut(ServerId, u32),
    /// It was changed on the way.
    #[error("the entry is not what its origin signed: {0}; it was tampered with on the way")]
    Signature(RecordFault),
    /// A gateway says what only the cloud may say.
    #[error("a gateway may not record '{0}'")]
    NotItsBusiness(&'static str),
    /// A voucher in it does not hold.
    #[error("the voucher in the entry does not hold: {0}")]
    Voucher(#[from] VoucherError),
    /// The proof of an onboarding does not hold.
    #[error("the onboarding is not proved: {0}")]
    Evidence(#[from] EvidenceFault),
    /// It names another device than its content.
    #[error("the entry speaks of device {0} but proves something about {1}")]
    OtherDevice(DeviceId, DeviceId),
    /// It certifies somebody of another site.
    #[error("the entry records a certificate for '{0}', who is not of this site")]
    ForeignSubject(String),
    /// It is about a certificate of another site, or of the cloud.
    #[error(
        "the entry is about the certificate {0}, which is not of this site; look at the gateway that wrote it"
    )]
    ForeignSerial(String),
    /// It is about a device of another site.
    #[error(
        "the entry is about device {0}, which belongs to site {1}; look at the gateway that wrote it"
    )]
    ForeignDevice(DeviceId, SiteId),
    /// Its voucher contradicts the one held.
    #[error(
        "the voucher in the entry contradicts the one held of device {0}: it was sold twice, or made up"
    )]
    SecondChain(DeviceId),
    /// A server says that its key gave way to another, and it does not hold.
    #[error("the rotation of a key is not believed: {0}; look at the server that wrote it")]
    Succession(String),
    /// It states its key each time, if it ever did.
    #[error(
        "the onboarding of device {0} comes without the device's own statement, which it made before; the gateway made it up, or the device lost its program"
    )]
    NoStatement(DeviceId),
}

impl Distrust {
    /// One word for the counters.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(_) => "malformed",
            Self::OtherSite(_) => "other site",
            Self::UnknownOrigin(..) => "unknown origin",
            Self::LockedOut(..) => "locked out",
            Self::Signature(_) => "tampered",
            Self::NotItsBusiness(_) => "not its business",
            Self::Voucher(_) => "voucher",
            Self::Evidence(_) => "evidence",
            Self::OtherDevice(..) => "other device",
            Self::ForeignSubject(_) => "foreign subject",
            Self::ForeignSerial(_) => "foreign serial",
            Self::ForeignDevice(..) => "foreign device",
            Self::SecondChain(_) => "voucher fork",
            Self::Succession(_) => "succession",
            Self::NoStatement(_) => "no statement",
        }
    }
}

/// The key that must have signed an entry. At a gateway the cloud's own is known from enrolment;
/// all others from the enrolments in the log, including those that the cloud delivered just before.
/// Of a server that rotated its key it depends on the number.
pub(super) fn key_of(
    core: &Core,
    site: &SiteId,
    from: &ServerId,
    id: &EntryId,
    before: &[SignedEntry],
) -> Result<VerifyingKey, Distrust> {
    let unknown = || Distrust::UnknownOrigin(id.origin.clone(), id.epoch);
    let whose = (&id.origin, id.epoch);
    let (mut eras, rotations, highest) = core
        .registry
        .read(|view| {
            let rotations = view.rotations(site, Some(whose))?;
            let highest = view.gateway(&id.origin)?;
            Ok((known::eras(core, view, site, whose)?, rotations, highest))
        })
        .map_err(|_| unknown())?;
    if core.cloud.is_none() {
        // A gateway delivers its own entries alone, and only the latest enrolment may write.
        if id.origin != *from {
            return Err(unknown());
        }
        if highest.is_some_and(|row| row.epoch > id.epoch) {
            return Err(Distrust::LockedOut(id.origin.clone(), id.epoch));
        }
    }
    if eras.is_empty() {
        let key = enrolled_before(core, id, before).ok_or_else(unknown)?;
        eras.push(Era { from: 1, key });
    }
    let mut steps = known::steps(&rotations, KeyRole::Signing);
    steps.extend(before.iter().filter_map(|entry| step_of(entry, id)));
    steps.sort_by_key(|(seq, _)| *seq);
    known::signer_at(&eras, &steps, id.seq).ok_or_else(unknown)
}

/// The succession of a signing key that was delivered just before, by the same server.
fn step_of(entry: &SignedEntry, id: &EntryId) -> Option<(u64, Succession)> {
    let entry = entry.entry();
    let same = (&entry.id.origin, entry.id.epoch) == (&id.origin, id.epoch);
    match &entry.change {
        Change::KeySucceeded(step) if same && step.verify().is_ok() => {
            let said = step.said();
            let counts = said.role == KeyRole::Signing && said.server == id.origin;
            counts.then(|| (entry.id.seq, said.clone()))
        }
        _ => None,
    }
}

/// Enrolling is the cloud's business: what anyone else says of it gives nobody a key.
fn enrolled_before(core: &Core, id: &EntryId, before: &[SignedEntry]) -> Option<VerifyingKey> {
    let cloud = core.cloud.as_ref()?.server();
    let mut by_cloud = before
        .iter()
        .filter(|entry| entry.entry().id.origin == cloud);
    by_cloud.find_map(|entry| match &entry.entry().change {
        Change::GatewayEnrolled {
            gateway,
            epoch,
            record_key,
            ..
        } if *gateway == id.origin && *epoch == id.epoch => Some(record_key.clone()),
        _ => None,
    })
}

/// A server speaks of its own keys alone, and the one that gives way must be the one that holds.
fn judge_succession(
    core: &Core,
    it: &Writing<'_>,
    entry: &SignedEntry,
    step: &SignedSuccession,
) -> Result<Verdict, StoreError> {
    let (content, said) = (entry.entry(), step.said());
    if said.server != content.id.origin {
        return Ok(Err(Distrust::NotItsBusiness(content.change.word())));
    }
    if let Err(fault) = step.verify() {
        return Ok(Err(Distrust::Succession(fault.to_string())));
    }
    let holds = match said.role {
        // Whoever signed this entry is the one that gives way.
        KeyRole::Signing => entry.verify(&said.old).is_ok(),
        KeyRole::Owner => owner_keys(core, it, content)?.contains(&said.old),
    };
    Ok(match holds {
        true => Ok(()),
        false => Err(Distrust::Succession(
            "the key that gives way is not the one in use".to_owned(),
        )),
    })
}

type Verdict = Result<(), Distrust>;

/// Whether an authentic entry is believed.
pub(super) fn judge(
    core: &Core,
    it: &Writing<'_>,
    entry: &SignedEntry,
) -> Result<Verdict, WriteError> {
    let content = entry.entry();
    let by_cloud = core
        .cloud
        .as_ref()
        .is_some_and(|cloud| cloud.server() == content.id.origin);
    if !by_cloud && let Err(distrust) = judge_reach(core, it, content)? {
        return Ok(Err(distrust));
    }
    Ok(match &content.change {
        Change::VoucherAccepted { guid, voucher } => {
            // The cloud names the device of a GUID whose onboarding elsewhere it has judged before;
            // that entry, of another origin, may come after this one.
            let unheard =
                by_cloud && content.device.is_some() && it.tables.device_of(*guid)?.is_none();
            let device = match unheard {
                true => Ok(()),
                false => judge_device(it, content.device, *guid)?,
            };
            match device {
                Ok(()) => judge_voucher(core, *guid, voucher),
                distrust => distrust,
            }
        }
        Change::Onboarded(onboarded) => {
            let keys = owner_keys(core, it, content)?;
            let known = known_voucher(core, it, onboarded, &keys)?;
            let expected = Expected {
                origin: &content.id.origin,
                owner_keys: &keys,
                known: known.as_ref(),
                policy: Policy {
                    now: core.clock.certain(),
                    ..Policy::default()
                },
            };
            let named = judge_device(it, content.device, onboarded.old_guid)?;
            let silence = match by_cloud {
                true => Ok(()),
                false => judge_silence(it, content, onboarded)?,
            };
            match named.and(silence) {
                Ok(()) => verify_evidence(onboarded, &expected)
                    .map(|_| ())
                    .map_err(Into::into),
                distrust => distrust,
            }
        }
        Change::CertificateIssued { subject, .. } if !by_cloud => {
            judge_subject(core, &content.site, subject)
        }
        Change::KeySucceeded(step) => judge_succession(core, it, entry, step)?,
        Change::GatewayEnrolled { .. } if !by_cloud => {
            Err(Distrust::NotItsBusiness(content.change.word()))
        }
        // Rights of clients are a gateway's to give, within its own site; revoking too.
        _ => Ok(()),
    })
}

/// What a gateway writes reaches nothing beyond its site: no device, certificate or GUID that
/// another site or the cloud has, and no voucher of ours in place of the one we hold.
fn judge_reach(core: &Core, it: &Writing<'_>, content: &Entry) -> Result<Verdict, StoreError> {
    if let Some(device) = content.device
        && let Some(site) = it.tables.site_of(device)?
        && site != content.site
    {
        return Ok(Err(Distrust::ForeignDevice(device, site)));
    }
    match &content.change {
        Change::CertificateIssued { serial, .. }
        | Change::CertificateRevoked { serial }
        | Change::RenewalOrdered { serial } => {
            let held = it.tables.certificate(serial)?;
            Ok(match held.filter(|row| row.site != content.site) {
                Some(row) => Err(Distrust::ForeignSerial(row.serial)),
                None => Ok(()),
            })
        }
        Change::VoucherAccepted { guid, voucher } => judge_second(core, it, *guid, voucher),
        Change::Onboarded(onboarded) => judge_new_guid(it, content.device, onboarded.new_guid),
        _ => Ok(Ok(())),
    }
}

/// Only what makes us the owner could take the place of what we hold.
fn judge_second(
    core: &Core,
    it: &Writing<'_>,
    guid: Guid,
    bytes: &[u8],
) -> Result<Verdict, StoreError> {
    let held = it.tables.voucher(guid)?;
    let held = held.and_then(|row| Voucher::parse(&row.voucher).ok());
    let (Some(held), Ok(presented)) = (held, Voucher::parse(bytes)) else {
        return Ok(Ok(()));
    };
    let ours = core.keys.owns(&presented);
    Ok(match presented.relation_to(&held) {
        Relation::Fork | Relation::Unrelated if ours => {
            Err(Distrust::SecondChain(DeviceId::from_guid(guid)))
        }
        _ => Ok(()),
    })
}

/// A new GUID is new: no other device may lose its own to it.
fn judge_new_guid(
    it: &Writing<'_>,
    named: Option<DeviceId>,
    guid: Guid,
) -> Result<Verdict, StoreError> {
    let first = DeviceId::from_guid(guid);
    let holder = match it.tables.device_of(guid)? {
        None => it.tables.site_of(first)?.map(|_| first),
        holder => holder,
    };
    Ok(match holder {
        Some(holder) if named != Some(holder) => {
            Err(Distrust::OtherDevice(named.unwrap_or(first), holder))
        }
        _ => Ok(()),
    })
}

/// The owner keys that the origin may have shown in TO2, in that enrolment of it.
fn owner_keys(
    core: &Core,
    it: &Writing<'_>,
    entry: &Entry,
) -> Result<Vec<VerifyingKey>, StoreError> {
    let whose = (&entry.id.origin, entry.id.epoch);
    known::owner_keys(core, it.tables, &entry.site, whose)
}

/// The voucher held here that the presented one must agree with. A server that extended its own
/// voucher to us in advance goes on using the shorter one itself; that is no contradiction.
fn known_voucher(
    core: &Core,
    it: &Writing<'_>,
    onboarded: &Onboarded,
    origin: &[VerifyingKey],
) -> Result<Option<Voucher>, StoreError> {
    // Who may have extended one voucher twice: we, the cloud, and the server that reports.
    let mut signers = core.keys.all(KeyRole::Owner);
    signers.extend(core.cloud.iter().flat_map(Cloud::all_owner_keys));
    signers.extend(origin.iter().cloned());
    let known = it.tables.voucher(onboarded.old_guid)?;
    let known = known.and_then(|row| Voucher::parse(&row.voucher).ok());
    let known = match known {
        None => replacement(it, onboarded.old_guid)?,
        known => known,
    };
    let presented = Voucher::parse(&onboarded.evidence.voucher).ok();
    Ok(known.filter(|known| {
        let Some(presented) = &presented else {
            return true;
        };
        match presented.relation_to(known) {
            Relation::Ancestor => false,
            Relation::Fork => !known::are_siblings(presented, known, &signers),
            _ => true,
        }
    }))
}

/// The voucher that an earlier onboarding on record gave the device under that GUID.
fn replacement(it: &Writing<'_>, guid: Guid) -> Result<Option<Voucher>, StoreError> {
    let Some(device) = it.tables.device_of(guid)? else {
        return Ok(None);
    };
    let record = record_of(it.tables, device)?;
    let mut claims = record.iter().flat_map(DeviceRecord::claims);
    let made = claims.find(|claim| claim.new_guid == guid);
    Ok(made.and_then(|claim| Voucher::parse(&claim.voucher).ok()))
}

/// Some devices never make a statement; one that did makes one in each onboarding.
fn judge_silence(
    it: &Writing<'_>,
    content: &Entry,
    onboarded: &Onboarded,
) -> Result<Verdict, StoreError> {
    let Some(device) = content.device else {
        return Ok(Ok(()));
    };
    if onboarded.evidence.statement.is_some() {
        return Ok(Ok(()));
    }
    let spoke = it.tables.device_entries(device)?.iter().any(|entry| {
        matches!(&entry.entry().change, Change::Onboarded(it) if it.evidence.statement.is_some())
    });
    Ok(match spoke {
        true => Err(Distrust::NoStatement(device)),
        false => Ok(()),
    })
}

/// An entry's device is the one that first came with that GUID, or the one that had it since.
fn judge_device(
    it: &Writing<'_>,
    named: Option<DeviceId>,
    guid: Guid,
) -> Result<Verdict, StoreError> {
    let known = it
        .tables
        .device_of(guid)?
        .unwrap_or_else(|| DeviceId::from_guid(guid));
    Ok(match named {
        Some(named) if named == known => Ok(()),
        named => Err(Distrust::OtherDevice(named.unwrap_or(known), known)),
    })
}

fn judge_voucher(core: &Core, guid: Guid, bytes: &[u8]) -> Verdict {
    let voucher = Voucher::parse(bytes)?;
    voucher.verify(&Policy {
        now: core.clock.certain(),
        ..Policy::default()
    })?;
    let named = voucher.guid();
    match named == guid {
        true => Ok(()),
        false => Err(Distrust::OtherDevice(
            DeviceId::from_guid(guid),
            DeviceId::from_guid(named),
        )),
    }
}

/// A site's authority certifies its own site's parties.
fn judge_subject(core: &Core, site: &SiteId, subject: &str) -> Verdict {
    match Party::parse(subject, &core.config.domain) {
        Ok(party) if party.site() == Some(site) => Ok(()),
        _ => Err(Distrust::ForeignSubject(
            subject.chars().take(253).collect(),
        )),
    }
}
