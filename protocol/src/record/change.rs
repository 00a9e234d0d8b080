//! The kinds of change and their CBOR: `[kind, body]`.
//!
//! A body of a known kind may grow: elements after those known here are left alone. Unknown kinds
//! are kept whole. So an old server forwards what a new one wrote, byte for byte.

use std::fmt;

use super::{
    entry::RecordFault,
    learnt::{self, LearntSpan},
    listing::{ListedAs, Listing},
    services::Assignment,
};
use crate::{
    crypto::VerifyingKey,
    id::{ClientName, Guid, ServerId},
    succession::{KeyRole, MAX_SUCCESSION, SignedSuccession},
    topic::Filter,
    voucher::MAX_VOUCHER,
    wire::cbor::{self, Reader, Writer},
};

/// Longest certificate serial number, in bytes (RFC 5280: 20).
pub const MAX_SERIAL: usize = 20;
/// Longest certificate name.
const MAX_NAME: usize = 253;
/// Largest statement, in bytes.
const MAX_STATEMENT: usize = 1024;
/// Most filters of one kind for one client.
const MAX_FILTERS: usize = 64;
/// Longest filter of a client, in bytes.
const MAX_FILTER: usize = 512;
/// Most elements that a body may have, known and unknown.
const MAX_BODY: usize = 64;
/// Longest id as text.
const MAX_ID: usize = 80;
/// Largest public key.
const MAX_SPKI: usize = 256;

/// A certificate's serial number: the content bytes of its INTEGER, without leading zero bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Box<[u8]>);

impl Serial {
    /// From big-endian bytes; leading zero bytes do not count. `None` when over 20 bytes or zero.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let start = bytes.iter().position(|b| *b != 0)?;
        let rest = &bytes[start..];
        (rest.len() <= MAX_SERIAL).then(|| Self(rest.into()))
    }

    /// The bytes, big-endian.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

/// What a third party needs to check an onboarding for itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Evidence {
    /// The ownership voucher by which the server proved ownership in TO2 (CBOR).
    pub voucher: Vec<u8>,
    /// The device's statement (COSE_Sign1, see `site_module::Statement`); foreign devices have none.
    pub statement: Option<Vec<u8>>,
}

/// A device came to this owner by TO2.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Onboarded {
    /// The GUID under which TO2 ran.
    pub old_guid: Guid,
    /// The GUID that the device bears since.
    pub new_guid: Guid,
    /// The replacement voucher (CBOR); empty when the device computed no HMAC for one, and so cannot
    /// be passed on.
    pub voucher: Vec<u8>,
    /// The key that authenticates the device from now on.
    pub cps_key: VerifyingKey,
    /// What proves it.
    pub evidence: Evidence,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A voucher came in that makes us the owner.
    VoucherAccepted {
        /// The GUID in it.
        guid: Guid,
        /// The voucher, CBOR.
        voucher: Vec<u8>,
    },
    /// A device came to this owner by TO2.
    Onboarded(Box<Onboarded>),
    /// A certificate was issued.
    CertificateIssued {
        /// Its serial number.
        serial: Serial,
        /// The DNS name that it bears.
        subject: String,
        /// Unix seconds.
        not_before: u64,
        /// Unix seconds.
        not_after: u64,
        /// The key that it certifies.
        key: VerifyingKey,
    },
    /// A certificate is void from now on, for good.
    CertificateRevoked {
        /// Its serial number.
        serial: Serial,
    },
    /// A gateway came to its site.
    GatewayEnrolled {
        /// Which one.
        gateway: ServerId,
        /// Its enrolment; a higher one locks the lower out.
        epoch: u32,
        /// The key that signs its entries and notices.
        record_key: VerifyingKey,
        /// The key to which vouchers are extended for its CPS server (50).
        owner_key: VerifyingKey,
    },
    /// An ordinary client was admitted, or its rights were changed.
    ClientAdmitted {
        /// Its name.
        name: ClientName,
        /// Filters within which it may publish.
        publish: Vec<Filter>,
        /// Filters within which it may subscribe.
        subscribe: Vec<Filter>,
    },
    /// A device was told of another server.
    AlternateTold {
        /// Of which one.
        server: ServerId,
    },
    /// A device was given a credential for its services.
    ServiceActivated {
        /// SHA-256 of it; the log never holds the credential itself.
        credential: [u8; 32],
    },
    /// A device shall work for a service.
    ServiceOrdered(Box<Assignment>),
    /// A device was given its certificate for a service: what ran before ends with this.
    ServiceStarted {
        /// Service, server, application.
        assignment: Box<Assignment>,
        /// The certificate that it takes it by.
        serial: Serial,
    },
    /// A device works for no service any more.
    ServiceEnded,
    /// A device shall work for no service any more; it has ended when the device has said so.
    ServiceEndOrdered,
    /// An installer's or a manufacturer's key is listed, or struck off.
    KeyListing(Box<Listing>),
    /// An operator gave his word for the device of this voucher, whoever made it.
    DeviceVouched {
        /// The GUID in the voucher.
        guid: Guid,
    },
    /// The real time of earlier entries by the same author became known.
    TimeLearnt {
        /// Of which, and by how much they are off.
        spans: Vec<LearntSpan>,
    },
    /// One of the origin's own keys gave way to another. Of signing keys: this entry is the last one
    /// by the old key in this log, and all after it are by the new one.
    KeySucceeded(Box<SignedSuccession>),
    /// A device shall renew its certificate with a fresh key.
    RenewalOrdered {
        /// Of the certificate that shall go.
        serial: Serial,
    },
    /// A kind from the future: kept and forwarded, changes nothing here.
    Unknown {
        /// Its number.
        kind: u64,
        /// Its body, one CBOR item.
        body: Vec<u8>,
    },
}

const VOUCHER_ACCEPTED: u64 = 1;
const ONBOARDED: u64 = 2;
const CERTIFICATE_ISSUED: u64 = 3;
const CERTIFICATE_REVOKED: u64 = 4;
const GATEWAY_ENROLLED: u64 = 5;
const CLIENT_ADMITTED: u64 = 6;
const ALTERNATE_TOLD: u64 = 7;
const SERVICE_ACTIVATED: u64 = 8;
const SERVICE_ORDERED: u64 = 9;
const SERVICE_STARTED: u64 = 10;
const SERVICE_ENDED: u64 = 11;
const INSTALLER_LISTED: u64 = 12;
const INSTALLER_STRUCK: u64 = 13;
const MANUFACTURER_LISTED: u64 = 14;
const MANUFACTURER_STRUCK: u64 = 15;
const DEVICE_VOUCHED: u64 = 16;
const SERVICE_END_ORDERED: u64 = 17;
const TIME_LEARNT: u64 = 20;
const KEY_SUCCEEDED: u64 = 18;
const RENEWAL_ORDERED: u64 = 19;

impl Change {
    /// A word for logs and listings.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::VoucherAccepted { .. } => "voucher accepted",
            Self::Onboarded(_) => "onboarded",
            Self::CertificateIssued { .. } => "certificate issued",
            Self::CertificateRevoked { .. } => "certificate revoked",
            Self::GatewayEnrolled { .. } => "gateway enrolled",
            Self::ClientAdmitted { .. } => "client admitted",
            Self::AlternateTold { .. } => "alternate told",
            Self::ServiceActivated { .. } => "service activated",
            Self::ServiceOrdered(_) => "service ordered",
            Self::ServiceStarted { .. } => "service started",
            Self::ServiceEnded => "service ended",
            Self::ServiceEndOrdered => "end of service ordered",
            Self::KeyListing(listing) => listing.word(),
            Self::DeviceVouched { .. } => "device vouched for",
            Self::TimeLearnt { .. } => "time learnt",
            Self::KeySucceeded(step) => match step.said().role {
                KeyRole::Owner => "owner key rotated",
                KeyRole::Signing => "signing key rotated",
            },
            Self::RenewalOrdered { .. } => "renewal ordered",
            Self::Unknown { .. } => "unknown change",
        }
    }

    pub(super) fn encode(&self, w: &mut Writer) {
        let (kind, body) = match self {
            Self::VoucherAccepted { guid, voucher } => (
                VOUCHER_ACCEPTED,
                cbor::encode(|w| _ = w.array(2).bytes(&guid.0).bytes(voucher)),
            ),
            Self::Onboarded(onboarded) => (ONBOARDED, cbor::encode(|w| onboarded.encode(w))),
            Self::CertificateIssued {
                serial,
                subject,
                not_before,
                not_after,
                key,
            } => {
                let body = cbor::encode(|w| {
                    w.array(5).bytes(serial.as_bytes()).text(subject);
                    w.uint(*not_before)
                        .uint(*not_after)
                        .bytes(&key.to_spki_der());
                });
                (CERTIFICATE_ISSUED, body)
            }
            Self::CertificateRevoked { serial } => (
                CERTIFICATE_REVOKED,
                cbor::encode(|w| _ = w.array(1).bytes(serial.as_bytes())),
            ),
            Self::GatewayEnrolled {
                gateway,
                epoch,
                record_key,
                owner_key,
            } => {
                let body = cbor::encode(|w| {
                    w.array(4).text(gateway.as_str()).uint((*epoch).into());
                    w.bytes(&record_key.to_spki_der())
                        .bytes(&owner_key.to_spki_der());
                });
                (GATEWAY_ENROLLED, body)
            }
            Self::ClientAdmitted {
                name,
                publish,
                subscribe,
            } => {
                let body = cbor::encode(|w| {
                    w.array(3).text(name.as_str());
                    for list in [publish, subscribe] {
                        w.array(list.len());
                        list.iter().for_each(|filter| _ = w.text(filter.as_str()));
                    }
                });
                (CLIENT_ADMITTED, body)
            }
            Self::AlternateTold { server } => (
                ALTERNATE_TOLD,
                cbor::encode(|w| _ = w.array(1).text(server.as_str())),
            ),
            Self::ServiceActivated { credential } => (
                SERVICE_ACTIVATED,
                cbor::encode(|w| _ = w.array(1).bytes(credential)),
            ),
            Self::ServiceOrdered(assignment) => (
                SERVICE_ORDERED,
                cbor::encode(|w| {
                    w.array(1);
                    assignment.encode(w);
                }),
            ),
            Self::ServiceStarted { assignment, serial } => {
                let body = cbor::encode(|w| {
                    w.array(2);
                    assignment.encode(w);
                    w.bytes(serial.as_bytes());
                });
                (SERVICE_STARTED, body)
            }
            Self::ServiceEnded => (SERVICE_ENDED, cbor::encode(|w| _ = w.array(0))),
            Self::ServiceEndOrdered => (SERVICE_END_ORDERED, cbor::encode(|w| _ = w.array(0))),
            Self::KeyListing(listing) => (listing.kind(), cbor::encode(|w| listing.encode(w))),
            Self::DeviceVouched { guid } => (
                DEVICE_VOUCHED,
                cbor::encode(|w| _ = w.array(1).bytes(&guid.0)),
            ),
            Self::TimeLearnt { spans } => (TIME_LEARNT, cbor::encode(|w| learnt::encode(spans, w))),
            Self::KeySucceeded(step) => (
                KEY_SUCCEEDED,
                cbor::encode(|w| _ = w.array(1).bytes(step.as_bytes())),
            ),
            Self::RenewalOrdered { serial } => (
                RENEWAL_ORDERED,
                cbor::encode(|w| _ = w.array(1).bytes(serial.as_bytes())),
            ),
            Self::Unknown { kind, body } => (*kind, body.clone()),
        };
        w.array(2).uint(kind).raw(&body);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, RecordFault> {
        r.array(2)?;
        let kind = r.uint()?;
        let raw = r.raw()?;
        let body = &mut Reader::new(raw)?;
        Ok(match kind {
            VOUCHER_ACCEPTED => {
                at_least(body, 2)?;
                let guid = Guid(body.bytes_exact()?);
                Self::VoucherAccepted {
                    guid,
                    voucher: body.bytes(MAX_VOUCHER)?.to_vec(),
                }
            }
            ONBOARDED => Self::Onboarded(Box::new(Onboarded::decode(body)?)),
            CERTIFICATE_ISSUED => {
                at_least(body, 5)?;
                Self::CertificateIssued {
                    serial: read_serial(body)?,
                    subject: body.text(MAX_NAME)?.to_owned(),
                    not_before: body.uint()?,
                    not_after: body.uint()?,
                    key: read_key(body)?,
                }
            }
            CERTIFICATE_REVOKED => {
                at_least(body, 1)?;
                Self::CertificateRevoked {
                    serial: read_serial(body)?,
                }
            }
            GATEWAY_ENROLLED => {
                at_least(body, 4)?;
                Self::GatewayEnrolled {
                    gateway: body.text(MAX_ID)?.parse()?,
                    epoch: body.small()?,
                    record_key: read_key(body)?,
                    owner_key: read_key(body)?,
                }
            }
            CLIENT_ADMITTED => {
                at_least(body, 3)?;
                Self::ClientAdmitted {
                    name: body.text(MAX_ID)?.parse()?,
                    publish: read_filters(body)?,
                    subscribe: read_filters(body)?,
                }
            }
            ALTERNATE_TOLD => {
                at_least(body, 1)?;
                Self::AlternateTold {
                    server: body.text(MAX_ID)?.parse()?,
                }
            }
            SERVICE_ACTIVATED => {
                at_least(body, 1)?;
                Self::ServiceActivated {
                    credential: body.bytes_exact()?,
                }
            }
            SERVICE_ORDERED => {
                at_least(body, 1)?;
                Self::ServiceOrdered(Box::new(Assignment::decode(body)?))
            }
            SERVICE_STARTED => {
                at_least(body, 2)?;
                Self::ServiceStarted {
                    assignment: Box::new(Assignment::decode(body)?),
                    serial: read_serial(body)?,
                }
            }
            SERVICE_ENDED => {
                at_least(body, 0)?;
                Self::ServiceEnded
            }
            SERVICE_END_ORDERED => {
                at_least(body, 0)?;
                Self::ServiceEndOrdered
            }
            INSTALLER_LISTED | INSTALLER_STRUCK | MANUFACTURER_LISTED | MANUFACTURER_STRUCK => {
                Self::KeyListing(Box::new(Listing::decode(kind, body)?))
            }
            DEVICE_VOUCHED => {
                at_least(body, 1)?;
                Self::DeviceVouched {
                    guid: Guid(body.bytes_exact()?),
                }
            }
            TIME_LEARNT => {
                at_least(body, 1)?;
                Self::TimeLearnt {
                    spans: learnt::decode(body)?,
                }
            }
            KEY_SUCCEEDED => {
                at_least(body, 1)?;
                let step = SignedSuccession::parse(body.bytes(MAX_SUCCESSION)?);
                Self::KeySucceeded(Box::new(step.map_err(|_| RecordFault::Succession)?))
            }
            RENEWAL_ORDERED => {
                at_least(body, 1)?;
                Self::RenewalOrdered {
                    serial: read_serial(body)?,
                }
            }
            kind => Self::Unknown {
                kind,
                body: raw.to_vec(),
            },
        })
    }
}

impl Onboarded {
    fn encode(&self, w: &mut Writer) {
        w.array(6)
            .bytes(&self.old_guid.0)
            .bytes(&self.new_guid.0)
            .bytes(&self.voucher);
        w.bytes(&self.cps_key.to_spki_der())
            .bytes(&self.evidence.voucher);
        match &self.evidence.statement {
            Some(statement) => w.bytes(statement),
            None => w.null(),
        };
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, RecordFault> {
        at_least(r, 6)?;
        Ok(Self {
            old_guid: Guid(r.bytes_exact()?),
            new_guid: Guid(r.bytes_exact()?),
            voucher: r.bytes(MAX_VOUCHER)?.to_vec(),
            cps_key: read_key(r)?,
            evidence: Evidence {
                voucher: r.bytes(MAX_VOUCHER)?.to_vec(),
                statement: match r.null() {
                    true => None,
                    false => Some(r.bytes(MAX_STATEMENT)?.to_vec()),
                },
            },
        })
    }
}

impl Listing {
    fn kind(&self) -> u64 {
        match (self.role, self.name.is_some()) {
            (ListedAs::Installer, true) => INSTALLER_LISTED,
            (ListedAs::Installer, false) => INSTALLER_STRUCK,
            (ListedAs::Manufacturer, true) => MANUFACTURER_LISTED,
            (ListedAs::Manufacturer, false) => MANUFACTURER_STRUCK,
        }
    }

    fn word(&self) -> &'static str {
        match (self.role, self.name.is_some()) {
            (ListedAs::Installer, true) => "installer listed",
            (ListedAs::Installer, false) => "installer struck off",
            (ListedAs::Manufacturer, true) => "manufacturer believed",
            (ListedAs::Manufacturer, false) => "manufacturer struck off",
        }
    }

    fn encode(&self, w: &mut Writer) {
        w.array(2 + usize::from(self.name.is_some()));
        w.bytes(&self.key.to_spki_der()).uint(self.round.into());
        if let Some(name) = &self.name {
            w.text(name.as_str());
        }
    }

    fn decode(kind: u64, r: &mut Reader<'_>) -> Result<Self, RecordFault> {
        let role = match kind {
            INSTALLER_LISTED | INSTALLER_STRUCK => ListedAs::Installer,
            _ => ListedAs::Manufacturer,
        };
        let listed = matches!(kind, INSTALLER_LISTED | MANUFACTURER_LISTED);
        at_least(r, 2 + usize::from(listed))?;
        Ok(Self {
            role,
            key: read_key(r)?,
            round: r.small()?,
            name: match listed {
                true => Some(r.text(MAX_ID)?.parse()?),
                false => None,
            },
        })
    }
}

/// Enters a body of at least that many elements; what comes after them is from the future.
fn at_least(r: &mut Reader<'_>, known: usize) -> Result<(), RecordFault> {
    if r.array_len(MAX_BODY)? < known {
        return Err(cbor::CborError::Expected("more elements in a change").into());
    }
    Ok(())
}

fn read_serial(r: &mut Reader<'_>) -> Result<Serial, RecordFault> {
    let bytes = r.bytes(MAX_SERIAL)?;
    Ok(Serial::new(bytes).ok_or(cbor::CborError::Value("serial number"))?)
}

fn read_key(r: &mut Reader<'_>) -> Result<VerifyingKey, RecordFault> {
    VerifyingKey::from_spki_der(r.bytes(MAX_SPKI)?).map_err(|_| RecordFault::Key)
}

fn read_filters(r: &mut Reader<'_>) -> Result<Vec<Filter>, RecordFault> {
    let len = r.array_len(MAX_FILTERS)?;
    (0..len).map(|_| Ok(r.text(MAX_FILTER)?.parse()?)).collect()
}
