//! The ServiceInfo module `holdfast.lan` (both sides' shapes): an owner that pairs with a device hands
//! it the credentials of the site's LAN (flow S41), inside TO2 and so after both have proved
//! themselves.
//!
//! ```text
//! o->d  active   bool   the module is wanted; the device answers the same
//! o->d  network  bstr(CBOR)  [ssid tstr, passphrase tstr / null]
//! d->o  applied  bool   the credentials are kept
//! ```
//! Nothing here sends or stores.

use zeroize::Zeroizing;

use crate::wire::cbor::{self, CborError, Reader};

/// Name of the module in ServiceInfo.
pub const MODULE: &str = "holdfast.lan";
/// Longest SSID, bytes (IEEE 802.11).
pub const MAX_SSID: usize = 32;
/// Length of a WPA passphrase, characters.
pub const PASSPHRASE: std::ops::RangeInclusive<usize> = 8..=63;
/// Longest value read, bytes.
const MAX_VALUE: usize = 256;

/// Credentials of a LAN.
#[derive(Clone, PartialEq, Eq)]
pub struct Network {
    ssid: String,
    passphrase: Option<Zeroizing<String>>,
}

/// Why a network is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NetworkFault {
    /// Not the shape above.
    #[error("the network's credentials cannot be read: {0}")]
    Malformed(#[from] CborError),
    /// Empty or too long.
    #[error("a network's name has 1 to {MAX_SSID} bytes")]
    Ssid,
    /// Of no such length, or not printable ASCII.
    #[error("a network's passphrase has 8 to 63 printable ASCII characters")]
    Passphrase,
}

impl Network {
    /// Checks and takes the credentials; no passphrase means an open network.
    ///
    /// # Errors
    /// The name or the passphrase is none.
    pub fn new(ssid: String, passphrase: Option<Zeroizing<String>>) -> Result<Self, NetworkFault> {
        if !(1..=MAX_SSID).contains(&ssid.len()) {
            return Err(NetworkFault::Ssid);
        }
        let printable = |text: &str| text.bytes().all(|byte| (0x20..0x7f).contains(&byte));
        match &passphrase {
            Some(text) if !PASSPHRASE.contains(&text.len()) || !printable(text) => {
                Err(NetworkFault::Passphrase)
            }
            _ => Ok(Self { ssid, passphrase }),
        }
    }

    /// The network's name.
    #[must_use]
    pub fn ssid(&self) -> &str {
        &self.ssid
    }

    /// Its passphrase; none for an open network.
    #[must_use]
    pub fn passphrase(&self) -> Option<&str> {
        self.passphrase.as_ref().map(|text| text.as_str())
    }

    /// The value of `network`.
    #[must_use]
    pub fn to_value(&self) -> Vec<u8> {
        let inner = Zeroizing::new(cbor::encode(|w| {
            w.array(2).text(&self.ssid);
            match self.passphrase() {
                Some(text) => w.text(text),
                None => w.null(),
            };
        }));
        cbor::encode(|w| _ = w.bytes(&inner))
    }

    /// Reads the value of `network`.
    ///
    /// # Errors
    /// It is not of that shape, or holds no network.
    pub fn from_value(value: &[u8]) -> Result<Self, NetworkFault> {
        let mut r = Reader::new(value)?;
        let inner = r.bytes(MAX_VALUE)?;
        r.end()?;
        let mut r = Reader::new(inner)?;
        r.array(2)?;
        let ssid = r.text(MAX_SSID)?.to_owned();
        let passphrase = match r.null() {
            true => None,
            false => Some(Zeroizing::new(r.text(*PASSPHRASE.end())?.to_owned())),
        };
        r.end()?;
        Self::new(ssid, passphrase)
    }
}

impl std::fmt::Debug for Network {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Network({:?}, ..)", self.ssid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(ssid: &str, passphrase: Option<&str>) -> Result<Network, NetworkFault> {
        let passphrase = passphrase.map(|text| Zeroizing::new(text.to_owned()));
        Network::new(ssid.to_owned(), passphrase)
    }

    #[test]
    fn networks_survive_the_wire_and_are_not_printed() {
        for passphrase in [None, Some("eight888"), Some(&*"x".repeat(63))] {
            let one = network("harbour", passphrase).expect("a network");
            assert_eq!(Network::from_value(&one.to_value()), Ok(one.clone()));
            let shown = format!("{one:?}");
            assert!(!shown.contains(passphrase.unwrap_or("eight")), "{shown}");
        }
    }

    #[test]
    fn what_is_no_network_is_refused() {
        assert_eq!(network("", None), Err(NetworkFault::Ssid));
        assert_eq!(network(&"x".repeat(33), None), Err(NetworkFault::Ssid));
        for bad in ["seven77", &"x".repeat(64), "eight\n888"] {
            let refused = network("a", Some(bad));
            assert_eq!(refused, Err(NetworkFault::Passphrase), "{bad:?}");
        }
        let good = network("harbour", Some("eight888"))
            .expect("a network")
            .to_value();
        for end in 0..good.len() {
            Network::from_value(&good[..end]).expect_err("cut");
        }
        for at in 0..good.len() {
            let mut other = good.clone();
            other[at] ^= 0x80;
            // It may be another network, but never a panic, and never the same.
            assert_ne!(
                Network::from_value(&other),
                Network::from_value(&good),
                "{at}"
            );
        }
    }
}
