//! The ServiceInfo module `holdfast.site` (both sides' shapes) and the text forms of `fdo.csr`.
//!
//! ```text
//! o->d  active     bool        the module is wanted; the device answers the same
//! o->d  server     tstr        id of the owner's server, which the statement names
//! o->d  nonce      bstr16      fresh for this TO2
//! d->o  statement  COSE_Sign1  by the device's FDO key over Statement (see [`Statement`])
//! o->d  config     bstr(CBOR)  SiteConfig (see [`SiteConfig`])
//! d->o  done       bool        stored durably
//! ```
//! In between runs `fdo.csr`: the device sends a PKCS#10 request for its CPS key and gets its
//! certificate (wire reference 16.3). TO2 itself (`fdo`) carries the pairs; nothing here sends.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use crate::{
    crypto::{SigningKey, VerifyingKey},
    id::{DeviceId, Domain, Guid, InvalidId, ServerId, SiteId},
    time::{Time, TimeQuality},
    wire::{
        cbor::{self, CborError, Reader, Writer},
        cose::{CoseError, Sign1},
    },
};

/// Name of the module in ServiceInfo.
pub const MODULE: &str = "holdfast.site";
/// Key (with module) of the activation, both ways.
pub const ACTIVE: &str = "holdfast.site:active";
/// Key of the owner's server id.
pub const SERVER: &str = "holdfast.site:server";
/// Key of the owner's nonce.
pub const NONCE: &str = "holdfast.site:nonce";
/// Key of the device's statement.
pub const STATEMENT: &str = "holdfast.site:statement";
/// Key of the site's configuration.
pub const CONFIG: &str = "holdfast.site:config";
/// Key of the device's last word.
pub const DONE: &str = "holdfast.site:done";
/// Name of the certificate module in ServiceInfo.
pub const CSR_MODULE: &str = "fdo.csr";
/// Key of the certificate request, device to owner.
pub const CSR_REQUEST: &str = "fdo.csr:simpleenroll-req";
/// Key of the certificate, owner to device.
pub const CSR_RESPONSE: &str = "fdo.csr:simpleenroll-res";
/// Key of the owner's refusal: an unsigned number.
pub const CSR_ERROR: &str = "fdo.csr:error";
/// Activation of the certificate module.
pub const CSR_ACTIVE: &str = "fdo.csr:active";

/// First element of a statement's payload, so that no other signed text can pass for one.
const STATEMENT_TYPE: &str = "holdfast.site/statement/1";
/// Longest certificate or request that we read, in bytes of DER.
pub const MAX_CERTIFICATE: usize = 8 * 1024;
/// Longest SubjectPublicKeyInfo that we read, in bytes of DER (ours has 91).
const MAX_SPKI: usize = 256;
/// Most certificates, keys, servers or addresses in one list of a [`SiteConfig`].
pub const MAX_LIST: usize = 16;
/// Longest host:port text.
const MAX_ADDRESS: usize = 262;
/// Longest id or domain as text.
const MAX_ID: usize = 80;

/// What the device states to its new owner: who it is, which key will speak for it, towards whom.
///
/// Signed with the device's FDO key it is the proof that a third party (40, for what 50 did) can
/// check without having been there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// The GUID under which this TO2 runs (not the replacement).
    pub guid: Guid,
    /// The CPS key that the device made.
    pub cps_key: VerifyingKey,
    /// The server that it runs TO2 with.
    pub server: ServerId,
    /// The owner's nonce.
    pub nonce: [u8; 16],
}

impl Statement {
    /// The statement signed with the device's FDO key: COSE_Sign1 bytes.
    #[must_use]
    pub fn sign(&self, fdo_key: &SigningKey) -> Vec<u8> {
        let payload = cbor::encode(|w| {
            w.array(5).text(STATEMENT_TYPE).bytes(&self.guid.0);
            w.bytes(&self.cps_key.to_spki_der())
                .text(self.server.as_str())
                .bytes(&self.nonce);
        });
        Sign1::sign(&payload, fdo_key).as_bytes().to_vec()
    }

    /// Reads and verifies a statement with the device's FDO key (from the voucher's device
    /// certificate). The caller compares guid, server and nonce with what it expects.
    ///
    /// # Errors
    /// [`SiteFault`], blame: the peer.
    pub fn verify(bytes: &[u8], fdo_key: &VerifyingKey) -> Result<Self, SiteFault> {
        let signed = Sign1::parse(bytes)?;
        signed.verify(fdo_key)?;
        let mut r = Reader::new(signed.payload())?;
        r.array(5)?;
        if r.text(MAX_ID)? != STATEMENT_TYPE {
            return Err(SiteFault::WrongType);
        }
        let statement = Self {
            guid: Guid(r.bytes_exact()?),
            cps_key: read_key(&mut r)?,
            server: r.text(MAX_ID)?.parse()?,
            nonce: r.bytes_exact()?,
        };
        r.end()?;
        Ok(statement)
    }
}

/// What a server is to a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServerRole {
    /// On the LAN: the gateway with 50.
    Gateway,
    /// In the cloud: 40.
    Cloud,
}

/// Where a server is and what name to verify there.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServerAddress {
    /// Which server.
    pub server: ServerId,
    /// On the LAN or in the cloud.
    pub role: ServerRole,
    /// DNS name to verify, whatever address is dialled.
    pub name: String,
    /// MQTT over TLS: `host:port` each, best first.
    pub mqtt: Vec<String>,
    /// HTTPS: `host:port` each, best first.
    pub https: Vec<String>,
}

impl ServerAddress {
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.array(5)
            .text(self.server.as_str())
            .uint(u64::from(self.role == ServerRole::Cloud));
        w.text(&self.name);
        for list in [&self.mqtt, &self.https] {
            w.array(list.len());
            list.iter().for_each(|address| _ = w.text(address));
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, SiteFault> {
        r.array(5)?;
        let server = r.text(MAX_ID)?.parse()?;
        let role = match r.uint()? {
            0 => ServerRole::Gateway,
            1 => ServerRole::Cloud,
            _ => return Err(CborError::Value("server role").into()),
        };
        let name = r.text(MAX_ADDRESS)?.to_owned();
        Ok(Self {
            server,
            role,
            name,
            mqtt: read_addresses(r)?,
            https: read_addresses(r)?,
        })
    }
}

/// All that a device needs to work at its site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SiteConfig {
    /// The device's id with its owner.
    pub device: DeviceId,
    /// Its site.
    pub site: SiteId,
    /// The domain of all certificate names.
    pub domain: Domain,
    /// The server that onboarded it.
    pub server: ServerId,
    /// Trust anchors: root certificates, DER.
    pub anchors: Vec<Vec<u8>>,
    /// Intermediates that go with the device's own certificate, DER.
    pub chain: Vec<Vec<u8>>,
    /// Keys that sign notices to this device.
    pub notice_keys: Vec<VerifyingKey>,
    /// Servers, the preferred first.
    pub servers: Vec<ServerAddress>,
    /// The owner's time, authenticated by TO2 as well as the owner knows it.
    pub time: Time,
}

impl SiteConfig {
    /// The CBOR text, as it goes into the `config` byte string.
    #[must_use]
    pub fn to_cbor(&self) -> Vec<u8> {
        cbor::encode(|w| {
            w.array(9)
                .text(self.device.as_str())
                .text(self.site.as_str());
            w.text(self.domain.as_str()).text(self.server.as_str());
            for list in [&self.anchors, &self.chain] {
                w.array(list.len());
                list.iter().for_each(|der| _ = w.bytes(der));
            }
            w.array(self.notice_keys.len());
            self.notice_keys
                .iter()
                .for_each(|key| _ = w.bytes(&key.to_spki_der()));
            w.array(self.servers.len());
            self.servers.iter().for_each(|server| server.encode(w));
            w.array(2)
                .uint(self.time.secs)
                .uint(self.time.quality.code().into());
        })
    }

    /// Reads it back, within the bounds of this room.
    ///
    /// # Errors
    /// [`SiteFault`], blame: the owner that sent it.
    pub fn from_cbor(bytes: &[u8]) -> Result<Self, SiteFault> {
        let mut r = Reader::new(bytes)?;
        r.array(9)?;
        let config = Self {
            device: r.text(MAX_ID)?.parse()?,
            site: r.text(MAX_ID)?.parse()?,
            domain: r.text(MAX_ID)?.parse()?,
            server: r.text(MAX_ID)?.parse()?,
            anchors: read_list(&mut r, |r| Ok(r.bytes(MAX_CERTIFICATE)?.to_vec()))?,
            chain: read_list(&mut r, |r| Ok(r.bytes(MAX_CERTIFICATE)?.to_vec()))?,
            notice_keys: read_list(&mut r, read_key)?,
            servers: read_list(&mut r, ServerAddress::decode)?,
            time: read_time(&mut r)?,
        };
        r.end()?;
        Ok(config)
    }
}

pub(crate) fn read_time(r: &mut Reader<'_>) -> Result<Time, CborError> {
    r.array(2)?;
    Ok(Time::new(r.uint()?, TimeQuality::from_code(r.uint()?)))
}

pub(crate) fn read_key(r: &mut Reader<'_>) -> Result<VerifyingKey, SiteFault> {
    VerifyingKey::from_spki_der(r.bytes(MAX_SPKI)?).map_err(|_| SiteFault::Key)
}

fn read_addresses(r: &mut Reader<'_>) -> Result<Vec<String>, SiteFault> {
    read_list(r, |r| Ok(r.text(MAX_ADDRESS)?.to_owned()))
}

fn read_list<T>(
    r: &mut Reader<'_>,
    mut one: impl FnMut(&mut Reader<'_>) -> Result<T, SiteFault>,
) -> Result<Vec<T>, SiteFault> {
    let len = r.array_len(MAX_LIST)?;
    (0..len).map(|_| one(r)).collect()
}

/// Why a statement, a configuration or a certificate text was refused. Blame: the peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SiteFault {
    /// Not the CBOR it should be.
    #[error("malformed site data: {0}")]
    Cbor(#[from] CborError),
    /// Not signed, or not by that key.
    #[error("the statement is not signed by the device's key: {0}")]
    Cose(#[from] CoseError),
    /// Signed, but something else.
    #[error("the signed text is not a statement")]
    WrongType,
    /// An id that is none.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// A public key that we cannot read.
    #[error("not a P-256 or P-384 public key")]
    Key,
    /// `fdo.csr` text that is neither base64, PEM nor DER, or too long.
    #[error("not a certificate or request as base64, PEM or DER of at most 8 KiB")]
    CsrText,
}

/// DER as `fdo.csr` carries it: standard base64 with padding, one line.
#[must_use]
pub fn csr_text(der: &[u8]) -> String {
    STANDARD.encode(der)
}

/// DER out of what a peer sent as `fdo.csr` text or bytes: base64 with or without line breaks, PEM
/// of any label, or the bare DER. Only the outer form is judged here.
///
/// # Errors
/// [`SiteFault::CsrText`].
pub fn csr_der(received: &[u8]) -> Result<Vec<u8>, SiteFault> {
    /// First byte of a DER SEQUENCE of more than 127 bytes; base64 and PEM never hold 0x82.
    const LONG_SEQUENCE: [u8; 2] = [0x30, 0x82];
    if received.starts_with(&LONG_SEQUENCE) {
        let fits = received.len() <= MAX_CERTIFICATE;
        return if fits {
            Ok(received.to_vec())
        } else {
            Err(SiteFault::CsrText)
        };
    }
    let text = std::str::from_utf8(received).map_err(|_| SiteFault::CsrText)?;
    let base64: String = text
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .flat_map(|line| line.chars().filter(|c| !c.is_ascii_whitespace()))
        .take(MAX_CERTIFICATE * 2)
        .collect();
    let der = STANDARD.decode(base64).map_err(|_| SiteFault::CsrText)?;
    if der.is_empty() || der.len() > MAX_CERTIFICATE {
        Err(SiteFault::CsrText)
    } else {
        Ok(der)
    }
}

#[cfg(test)]
mod tests;
