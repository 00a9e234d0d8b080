//! What a device keeps from its factory and from each owner: the FDO credential (wire section 6).
//!
//! Made by DI, replaced by TO2, stored by the device agent in a protected file. The encoding here
//! is our own; it is never sent.

use zeroize::Zeroizing;

use crate::crypto::{Hash, HmacSecret, SigningKey};
use crate::id::Guid;
use crate::rv::RendezvousInfo;
use crate::wire::cbor::{self, CborError, Reader};

/// Number at the head of the encoding.
const FORMAT: u64 = 1;
/// Largest PKCS#8 key.
const MAX_PKCS8: usize = 512;
/// Longest device info text.
pub const MAX_DEVICE_INFO: usize = 256;

/// The device's half of what the voucher says about it.
#[derive(Debug, Clone)]
pub struct DeviceCredential {
    /// Current GUID.
    pub guid: Guid,
    /// Where to look for the owner.
    pub rendezvous: RendezvousInfo,
    /// Secret of the voucher's HMAC.
    pub hmac_secret: HmacSecret,
    /// Hash of the encoding of the key that starts the current voucher (`DCPubKeyHash`).
    pub owner_key_hash: Hash,
    /// `DCDeviceInfo`, part of the voucher header.
    pub device_info: String,
    /// The key that the device certificate attests; stays for the device's life.
    pub key: SigningKey,
}

impl DeviceCredential {
    /// Encodes the credential with its secrets, for a file that only the device reads.
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(cbor::encode(|w| {
            w.array(7)
                .uint(FORMAT)
                .bytes(&self.guid.0)
                .raw(self.rendezvous.as_bytes());
            w.bytes(self.hmac_secret.expose());
            self.owner_key_hash.encode(w);
            w.text(&self.device_info).bytes(&self.key.to_pkcs8_der());
        }))
    }

    /// Reads what [`DeviceCredential::encode`] wrote.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let mut r = Reader::new(bytes)?;
        r.array(7)?;
        if r.uint()? != FORMAT {
            return Err(CborError::Value("credential format"));
        }
        let credential = Self {
            guid: Guid(r.bytes_exact()?),
            rendezvous: RendezvousInfo::decode(&mut r)?,
            hmac_secret: HmacSecret::from_bytes(r.bytes_exact()?),
            owner_key_hash: Hash::decode(&mut r)?,
            device_info: r.text(MAX_DEVICE_INFO)?.to_owned(),
            key: SigningKey::from_pkcs8_der(r.bytes(MAX_PKCS8)?)
                .map_err(|_| CborError::Value("device key"))?,
        };
        r.end()?;
        Ok(credential)
    }
}
