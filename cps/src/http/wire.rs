//! Bodies of the HTTPS API, the same on both sides: JSON with base64 for bytes. Used by `http::api`
//! and `sync::client`; the installer reads [`Owner`] and [`HandedIn`] by their field names.

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::InvalidId;
use holdfast_protocol::record::EntryId;
use serde::{Deserialize, Serialize};

use crate::enrol::Bytes;
use crate::sync::{Mark, Report};
use crate::tables::PeerRow;
use crate::turns::Turn;

/// The number of an entry.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Number {
    origin: String,
    epoch: u32,
    seq: u64,
}

impl From<EntryId> for Number {
    fn from(id: EntryId) -> Self {
        Self {
            origin: id.origin.to_string(),
            epoch: id.epoch,
            seq: id.seq,
        }
    }
}

impl TryFrom<Number> for EntryId {
    type Error = InvalidId;

    fn try_from(number: Number) -> Result<Self, InvalidId> {
        Ok(Self {
            origin: number.origin.parse()?,
            epoch: number.epoch,
            seq: number.seq,
        })
    }
}

/// `POST /api/v1/sync/pull`: what have you after my cursor?
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pull {
    /// CBOR of the asker's cursor.
    #[serde(with = "crate::tables::base64")]
    pub(crate) cursor: Vec<u8>,
    /// Most entries wanted.
    pub(crate) max: usize,
    /// Numbers that the asker passed over, to be sent again.
    #[serde(default)]
    pub(crate) wanted: Vec<Number>,
    /// Where the asker is reached.
    pub(crate) about: PeerRow,
    /// Which turn the asker has.
    #[serde(default)]
    pub(crate) turn: Option<Turn>,
    /// The newest entry of the answering server that the asker holds.
    #[serde(default)]
    pub(crate) mark: Option<Mark>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pulled {
    /// Signed entries.
    pub(crate) entries: Vec<Bytes>,
    /// Whether there is more.
    pub(crate) more: bool,
    /// Numbers that the answering server lacks itself.
    #[serde(default)]
    pub(crate) missing: Vec<Number>,
    /// Where the answering server is reached.
    pub(crate) about: PeerRow,
    /// Whether it has forgotten entries of its own that the asker holds; then the rest says nothing.
    #[serde(default)]
    pub(crate) forgotten: bool,
}

/// `POST /api/v1/sync/return`: here is what you wrote and forgot. With no entries it asks from where on.
/// The answer is a [`Wanted`](crate::sync::Wanted).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Return {
    /// Entries that the sender holds, the oldest first.
    pub(crate) marks: Vec<Mark>,
    /// Signed entries of the receiver.
    pub(crate) entries: Vec<Bytes>,
    /// As the answer before said.
    pub(crate) comparing: bool,
    /// Which turn the sender has.
    #[serde(default)]
    pub(crate) turn: Option<Turn>,
}

/// `POST /api/v1/sync/push`: here is what I wrote. With no entries it asks for the cursor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Push {
    /// Signed entries.
    pub(crate) entries: Vec<Bytes>,
    /// Where the sender is reached.
    pub(crate) about: PeerRow,
    /// Which turn the sender has.
    #[serde(default)]
    pub(crate) turn: Option<Turn>,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pushed {
    /// CBOR of the receiver's cursor after it.
    #[serde(with = "crate::tables::base64")]
    pub(crate) cursor: Vec<u8>,
    /// What became of the entries.
    pub(crate) report: Report,
    /// Numbers that the receiver passed over and still wants.
    #[serde(default)]
    pub(crate) wanted: Vec<Number>,
}

/// An answer that is no success.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Denied {
    /// One sentence.
    #[serde(default)]
    pub(crate) error: String,
    /// To a gateway that was replaced: the statement that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) replaced: Option<Bytes>,
}

/// Answer of `GET /api/v1/owner`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Owner {
    /// The server's name.
    pub(crate) server: String,
    /// Its site; none at the cloud.
    pub(crate) site: Option<String>,
    /// The DNS name of its certificate.
    pub(crate) name: String,
    /// SubjectPublicKeyInfo: vouchers for it are extended to this.
    #[serde(with = "crate::tables::key")]
    pub(crate) owner_key: VerifyingKey,
}

/// Answer of `POST /api/v1/vouchers`, whose body is the voucher file.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct HandedIn {
    /// The voucher's GUID.
    pub(crate) guid: String,
    /// Whether it was here before.
    pub(crate) known: bool,
}

/// `POST /api/v1/renew` and `POST /api/v1/renew/issuer`: a certificate over the key of this request.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewAsk {
    /// PKCS#10 DER.
    #[serde(with = "crate::tables::base64")]
    pub(crate) csr: Vec<u8>,
}

/// Answer of `POST /api/v1/renew`; the agent reads it by its field names.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewGiven {
    /// The new certificate.
    pub(crate) certificate: Bytes,
    /// Intermediates that go with it.
    pub(crate) chain: Vec<Bytes>,
    /// Root certificates to believe from now on.
    pub(crate) anchors: Vec<Bytes>,
    /// This server's time and how good it is.
    pub(crate) time: String,
    /// The keys by which notices are signed now, SubjectPublicKeyInfo.
    #[serde(default)]
    pub(crate) notice_keys: Vec<Bytes>,
}

/// Answer of `POST /api/v1/renew/done`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Renewed {
    /// Who confirmed.
    pub(crate) subject: String,
    /// By which certificate.
    pub(crate) serial: String,
}

/// Answer of `POST /api/v1/renew/issuer`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RenewIssuerGiven {
    /// The new intermediate, cross-certificates, the roots.
    pub(crate) chain: Vec<Bytes>,
}

/// Answer of `GET /api/v1/authority`, which tells whom to believe; the agent and the installer read it
/// by its field names.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RootsGiven {
    /// Root certificates, the present one first.
    pub(crate) roots: Vec<Bytes>,
    /// Cross-certificates: one root's key, signed by the one before it.
    pub(crate) crosses: Vec<Bytes>,
    /// To a gateway: its authority is to be replaced now.
    #[serde(default)]
    pub(crate) rotate: bool,
}
