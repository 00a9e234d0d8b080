//! The rows of the registry's tables. Read by the rooms and shown by the CLI as JSON. Byte strings
//! are base64 in them, ids are text and parsed once on reading.

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::{ClientName, DeviceId, Guid, ServerId, SiteId};
use holdfast_protocol::time::Time;
use holdfast_protocol::topic::Filter;
use serde::{Deserialize, Serialize};

/// A voucher by which this server is the owner of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoucherRow {
    /// Its GUID.
    #[serde(with = "guid")]
    pub guid: Guid,
    /// The device, by its first GUID with this owner.
    #[serde(with = "as_text")]
    pub device: DeviceId,
    /// Where it belongs.
    #[serde(with = "site")]
    pub site: SiteId,
    /// CBOR.
    #[serde(with = "base64")]
    pub voucher: Vec<u8>,
    /// Whether TO2 is served for it. An older one of a device stays live until the device was seen
    /// with the newer: a lost last message leaves it with the old credential.
    pub live: bool,
}

/// A voucher that waits for a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InboxRow {
    /// Its GUID.
    #[serde(with = "guid")]
    pub guid: Guid,
    /// CBOR.
    #[serde(with = "base64")]
    pub voucher: Vec<u8>,
    /// When it came, unix seconds.
    pub at: u64,
}

/// What holds of an installer's or a manufacturer's key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyRow {
    /// The public key.
    #[serde(with = "key")]
    pub key: VerifyingKey,
    /// By which people know it; none if it was struck off.
    #[serde(with = "maybe_text")]
    pub name: Option<ClientName>,
    /// The server at which it was listed; none if it was struck off.
    #[serde(with = "maybe_text")]
    pub by: Option<ServerId>,
    /// When it was listed, unix seconds, as the clock showed.
    pub at: u64,
    /// The entry that says so, for what became known of its time since: its origin, epoch and number.
    #[serde(default)]
    pub told: Option<(String, u32, u64)>,
    /// The round in which a new listing stands, if there is one left.
    pub listing_round: Option<u32>,
    /// The round up to which a strike reaches.
    pub striking_round: u32,
}

/// Why a gateway is locked out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LockCause {
    /// It waits for another machine in its place.
    #[default]
    Replace,
    /// It was revoked.
    Revoke,
    /// Two machines spoke as it, or it was set back to a copy: how that was seen.
    Copy(String),
}

/// A gateway whose present enrolment is locked out until another takes its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRow {
    /// Which one.
    #[serde(with = "as_text")]
    pub gateway: ServerId,
    /// The enrolment that is out; a higher one is in.
    pub epoch: u32,
    /// Since when, unix seconds.
    pub at: u64,
    /// Why.
    #[serde(default)]
    pub cause: LockCause,
}

/// A certificate that one of the two servers issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateRow {
    /// Hex.
    pub serial: String,
    /// Whom it names; empty for a revocation that came before its issue.
    pub subject: String,
    /// Whose log it stands in.
    #[serde(with = "site")]
    pub site: SiteId,
    /// The device it is for.
    #[serde(with = "maybe_text")]
    pub device: Option<DeviceId>,
    /// The server that issued it.
    #[serde(with = "as_text")]
    pub issuer: ServerId,
    /// Unix seconds.
    pub not_before: u64,
    /// Unix seconds.
    pub not_after: u64,
    /// Void for good.
    pub revoked: bool,
    /// The entry that records its issue: origin, epoch and number.
    #[serde(default)]
    pub told: Option<(String, u32, u64)>,
}

/// A gateway of a site, in its highest enrolment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayRow {
    /// Which one.
    #[serde(with = "as_text")]
    pub server: ServerId,
    /// Its site.
    #[serde(with = "site")]
    pub site: SiteId,
    /// Its enrolment.
    pub epoch: u32,
    /// Signs its entries and notices.
    #[serde(with = "key")]
    pub record_key: VerifyingKey,
    /// Vouchers for it are extended to this.
    #[serde(with = "key")]
    pub owner_key: VerifyingKey,
    /// When, unix seconds, as the clock showed.
    pub at: u64,
    /// The entry that says so, for what became known of its time since: its origin, epoch and number.
    #[serde(default)]
    pub told: Option<(String, u32, u64)>,
}

/// An ordinary MQTT client and its patterns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientRow {
    /// Its name.
    #[serde(with = "as_text")]
    pub name: ClientName,
    /// Its site; the cloud's reserved label for clients of no site.
    #[serde(with = "site")]
    pub site: SiteId,
    /// Filters within which it may publish.
    #[serde(with = "texts")]
    pub publish: Vec<Filter>,
    /// Filters within which it may subscribe.
    #[serde(with = "texts")]
    pub subscribe: Vec<Filter>,
    /// The rank, origin, epoch and number of the admission that holds.
    pub order: (u64, String, u32, u64),
}

/// A site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteRow {
    /// Its name.
    #[serde(with = "site")]
    pub site: SiteId,
    /// Since when, unix seconds.
    pub at: u64,
}

/// A notice of the other server as it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AlternateRow {
    /// Which server at which addresses it tells of.
    pub(crate) print: String,
    /// This server's enrolment.
    pub(crate) epoch: u32,
    /// Fingerprint of the key that signed it.
    #[serde(default)]
    pub(crate) signer: String,
    /// Signed, CBOR.
    #[serde(with = "base64")]
    pub(crate) notice: Vec<u8>,
}

/// A notice as it is sent, and for which order and under which enrolment it was signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NoticeRow {
    /// Rank, origin, epoch and number of the order.
    pub(crate) order: (u64, String, u32, u64),
    /// This server's enrolment.
    pub(crate) epoch: u32,
    /// Fingerprint of the key that signed it.
    #[serde(default)]
    pub(crate) signer: String,
    /// Signed, CBOR.
    #[serde(with = "base64")]
    pub(crate) notice: Vec<u8>,
}

/// An enrolment token; its secret is stored as a hash only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRow {
    /// The site it opens.
    #[serde(with = "site")]
    pub(crate) site: SiteId,
    /// For which gateway alone.
    #[serde(with = "as_text")]
    pub(crate) gateway: ServerId,
    /// Unix seconds.
    pub(crate) expires: u64,
    /// When it was used last, unix seconds.
    pub(crate) used: Option<u64>,
    /// By whom last, and what was answered.
    #[serde(default)]
    pub(crate) enrolled: Option<Enrolled>,
    /// How often it may be used.
    #[serde(default = "once")]
    pub(crate) uses: u32,
    /// Those who used it before the last, by their keys.
    #[serde(default)]
    pub(crate) former: Vec<String>,
    /// An operator took it back.
    #[serde(default)]
    pub(crate) void: bool,
}

fn once() -> u32 {
    1
}

impl TokenRow {
    /// How often it was used.
    pub(crate) fn times(&self) -> u32 {
        let former = u32::try_from(self.former.len()).unwrap_or(u32::MAX);
        former.saturating_add(u32::from(self.used.is_some()))
    }
}

/// An enrolment as it was answered: who lost the answer gets the same again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Enrolled {
    /// SHA-256 over the public keys that came with the token, hex.
    pub(crate) keys: String,
    /// The number of the enrolment.
    pub(crate) epoch: u32,
    /// The answer, as JSON; it holds nothing secret.
    #[serde(with = "base64")]
    pub(crate) answer: Vec<u8>,
}

/// What TO0 left for a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RendezvousRow {
    /// The device's GUID.
    #[serde(with = "guid")]
    pub(crate) guid: Guid,
    /// The owner's redirect, byte for byte as it came.
    #[serde(with = "base64")]
    pub(crate) to1d: Vec<u8>,
    /// The owner's voucher: successors must extend it.
    #[serde(with = "base64")]
    pub(crate) voucher: Vec<u8>,
    /// Unix seconds.
    pub(crate) expires: u64,
}

impl RendezvousRow {
    /// Whether its time is over. On a clock that cannot be trusted nothing is: better an old
    /// address than none.
    pub(crate) fn has_lapsed(&self, now: Time) -> bool {
        now.is_authenticated() && self.expires <= now.secs
    }
}

/// Where another server said that it can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerRow {
    /// Which one.
    #[serde(with = "as_text")]
    pub server: ServerId,
    /// Its site; the reserved label for a cloud server.
    #[serde(with = "site")]
    pub site: SiteId,
    /// MQTT, `host:port`.
    pub mqtt: Vec<String>,
    /// HTTPS, `host:port`.
    pub https: Vec<String>,
}

/// An entry that was not believed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedRow {
    /// Whose log.
    #[serde(with = "site")]
    pub site: SiteId,
    /// Who wrote it.
    #[serde(with = "as_text")]
    pub origin: ServerId,
    /// Its epoch.
    pub epoch: u32,
    /// Its number.
    pub seq: u64,
    /// Why, one sentence.
    pub why: String,
    /// When, unix seconds.
    pub at: u64,
}

/// One refused entry, for showing: of a party that brings the same again the count goes up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalRow {
    /// When it came first, unix seconds.
    pub at: u64,
    /// What the clock was worth when it came last.
    pub quality: String,
    /// The name in the certificate of whoever delivered it.
    pub party: String,
    /// The log that it was delivered for.
    pub site: String,
    /// Who it says wrote it; none when it cannot be read.
    pub origin: Option<String>,
    /// The enrolment that it says it is of.
    pub epoch: Option<u32>,
    /// The number that it says it has.
    pub seq: Option<u64>,
    /// The device that it says it is about.
    pub device: Option<String>,
    /// One word for counters.
    pub reason: String,
    /// One sentence and what to do.
    pub why: String,
    /// How often it came.
    pub times: u64,
    /// When it came last, unix seconds.
    pub last: u64,
}

impl RefusalRow {
    /// What makes two refusals of one party the same.
    pub(crate) fn what(&self) -> String {
        let origin = self.origin.as_deref().unwrap_or_default();
        let (epoch, seq) = (self.epoch.unwrap_or(0), self.seq.unwrap_or(0));
        format!("{}/{origin}/{epoch}/{seq}/{}", self.site, self.reason)
    }

    /// The row when this comes after `before`.
    pub(crate) fn again(&self, before: &Self) -> Self {
        Self {
            at: before.at,
            times: before.times.saturating_add(self.times),
            ..self.clone()
        }
    }
}

mod as_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(it: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(it)
    }

    pub(super) fn deserialize<'d, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'d>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

mod maybe_text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(
        it: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        it.as_ref().map(ToString::to_string).serialize(to)
    }

    pub(super) fn deserialize<'d, T, D>(from: D) -> Result<Option<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'d>,
    {
        let text = Option::<String>::deserialize(from)?;
        text.map(|text| text.parse().map_err(D::Error::custom))
            .transpose()
    }
}

mod texts {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<T: Display, S: Serializer>(it: &[T], to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(it.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'d, T, D>(from: D) -> Result<Vec<T>, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'d>,
    {
        let texts = Vec::<String>::deserialize(from)?;
        texts
            .iter()
            .map(|text| text.parse().map_err(D::Error::custom))
            .collect()
    }
}

mod site {
    use holdfast_protocol::id::SiteId;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(it: &SiteId, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(it.as_str())
    }

    /// The cloud's reserved label may stand in a row as well.
    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<SiteId, D::Error> {
        SiteId::from_record(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

mod guid {
    use holdfast_protocol::id::{DeviceId, Guid};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(it: &Guid, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(DeviceId::from_guid(*it).as_str())
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Guid, D::Error> {
        let id: DeviceId = String::deserialize(from)?
            .parse()
            .map_err(D::Error::custom)?;
        Ok(id.guid())
    }
}

pub(crate) mod base64 {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(it: &[u8], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&STANDARD.encode(it))
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<Vec<u8>, D::Error> {
        STANDARD
            .decode(String::deserialize(from)?)
            .map_err(D::Error::custom)
    }
}

pub(crate) mod key {
    use holdfast_protocol::crypto::VerifyingKey;
    use serde::{Deserializer, Serializer, de::Error as _};

    pub(crate) fn serialize<S: Serializer>(it: &VerifyingKey, to: S) -> Result<S::Ok, S::Error> {
        super::base64::serialize(&it.to_spki_der(), to)
    }

    pub(crate) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<VerifyingKey, D::Error> {
        let der = super::base64::deserialize(from)?;
        VerifyingKey::from_spki_der(&der).map_err(|_| D::Error::custom("not a public key"))
    }
}
