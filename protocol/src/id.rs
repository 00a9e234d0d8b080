//! The ids of the house: each one DNS label, parsed once, then carried as a type.
//!
//! Everybody uses these. They hold no key, no right and no address; what a name in a certificate
//! means is `name`'s business, what a topic means is `topic`'s.

use std::{fmt, str::FromStr, sync::Arc};

/// Longest DNS label, in bytes.
pub const MAX_LABEL: usize = 63;
/// Longest domain that we accept, in bytes: the longest name of a party (a device's service name,
/// 170 bytes before the domain) then still fits DNS's 253.
pub const MAX_DOMAIN: usize = 80;
/// Site labels that certificate names need for themselves (`<server>.servers.<domain>`,
/// `<name>.clients.<domain>`): a site of that name could be taken for them.
pub const RESERVED_SITES: [&str; 2] = ["clients", "servers"];

/// A text that is not the id it should be. Blame: whoever wrote the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a {kind}: {fault}")]
pub struct InvalidId {
    /// What it should have been, for the reader ("site id").
    pub kind: &'static str,
    /// What is wrong with it.
    pub fault: LabelFault,
}

/// Why a text is not a label or a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LabelFault {
    /// Nothing there.
    #[error("it is empty")]
    Empty,
    /// More bytes than allowed.
    #[error("it is longer than {0} characters")]
    TooLong(usize),
    /// A character outside the alphabet.
    #[error("it may hold only lower-case letters, digits and inner hyphens")]
    Alphabet,
    /// A name that we need for ourselves.
    #[error("this name is reserved; choose another")]
    Reserved,
    /// A device id or GUID that is not 32 lower-case hex digits.
    #[error("it must be 32 lower-case hexadecimal digits")]
    NotHex,
}

/// Checks `[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?`.
fn check_label(text: &str) -> Result<(), LabelFault> {
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return Err(LabelFault::Empty);
    };
    if bytes.len() > MAX_LABEL {
        return Err(LabelFault::TooLong(MAX_LABEL));
    }
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    if *first == b'-' || *last == b'-' || !bytes.iter().all(inner) {
        return Err(LabelFault::Alphabet);
    }
    Ok(())
}

macro_rules! label {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The label itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                let fault = |fault| InvalidId { kind: $kind, fault };
                check_label(text).map_err(fault)?;
                Self::check_reserved(text).map_err(fault)?;
                Ok(Self(text.into()))
            }
        }
    };
}

label!(
    /// A site: one LAN with its gateway, one tenant's place.
    SiteId,
    "site id"
);
label!(
    /// A service that a device works for.
    ServiceId,
    "service id"
);
label!(
    /// An application program of a device.
    Application,
    "application name"
);
label!(
    /// A server of ours: a gateway (30, 50) or a cloud server (40).
    ServerId,
    "server id"
);
label!(
    /// An ordinary MQTT client: a program with a certificate, not a device.
    ClientName,
    "client name"
);

impl SiteId {
    fn check_reserved(text: &str) -> Result<(), LabelFault> {
        if RESERVED_SITES.contains(&text) {
            return Err(LabelFault::Reserved);
        }
        Ok(())
    }

    /// The reserved label under which the cloud logs entries that belong to no site
    /// (`servers`). No operator can create a site of that name, and such entries never leave the
    /// cloud.
    #[must_use]
    pub fn of_cloud() -> Self {
        Self("servers".into())
    }

    /// Whether this is [`SiteId::of_cloud`] and so no place at all.
    #[must_use]
    pub fn is_cloud(&self) -> bool {
        &*self.0 == "servers"
    }

    /// Reads a site label out of a record, where the cloud's reserved one may stand too.
    ///
    /// # Errors
    /// As [`FromStr`], but `servers` passes.
    pub fn from_record(text: &str) -> Result<Self, InvalidId> {
        if text == "servers" {
            Ok(Self::of_cloud())
        } else {
            text.parse()
        }
    }
}

macro_rules! nothing_reserved {
    ($($name:ident),*) => {
        $(impl $name {
            // The same signature as `SiteId`'s, so that one macro serves all labels.
            #[allow(clippy::unnecessary_wraps)]
            fn check_reserved(_: &str) -> Result<(), LabelFault> {
                Ok(())
            }
        })*
    };
}
nothing_reserved!(ServiceId, Application, ServerId, ClientName);

/// FDO's identifier of a device's present credential (16 bytes). TO2 replaces it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Guid(pub [u8; 16]);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Guid({self})")
    }
}

impl FromStr for Guid {
    type Err = InvalidId;

    /// 32 hexadecimal digits; hyphens as in a UUID are taken too, upper case as well.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let wrong = InvalidId {
            kind: "GUID",
            fault: LabelFault::NotHex,
        };
        let mut guid = [0u8; 16];
        let mut digits = text.chars().filter(|c| *c != '-');
        for byte in &mut guid {
            let mut digit = || {
                digits
                    .next()
                    .and_then(|c| c.to_digit(16))
                    .ok_or(wrong.clone())
            };
            let value = digit()? << 4 | digit()?;
            *byte = u8::try_from(value).expect("two hex digits fit a byte");
        }
        if digits.next().is_some() {
            Err(wrong)
        } else {
            Ok(Self(guid))
        }
    }
}

/// A device for as long as we own it: the GUID of the voucher by which it first came to this
/// owner, as 32 lower-case hex digits. It never changes, though the GUID does with each TO2.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId([u8; 32]);

impl DeviceId {
    /// The id that a device with this first GUID bears.
    #[must_use]
    pub fn from_guid(guid: Guid) -> Self {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0u8; 32];
        for (pair, byte) in text.chunks_exact_mut(2).zip(guid.0) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        Self(text)
    }

    /// The GUID that the id was made from (not the device's present one).
    #[must_use]
    pub fn guid(&self) -> Guid {
        self.as_str()
            .parse()
            .expect("a device id is 32 hex digits by construction")
    }

    /// The 32 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hex digits are ASCII by construction")
    }
}

impl AsRef<str> for DeviceId {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceId({self})")
    }
}

impl FromStr for DeviceId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let hex = |b: &u8| b.is_ascii_digit() || (b'a'..=b'f').contains(b);
        match <[u8; 32]>::try_from(text.as_bytes()) {
            Ok(bytes) if bytes.iter().all(hex) => Ok(Self(bytes)),
            _ => Err(InvalidId {
                kind: "device id",
                fault: LabelFault::NotHex,
            }),
        }
    }
}

/// The dotted DNS name under which all parties of one owner are named; at most 80 characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domain(Arc<str>);

impl Domain {
    /// The name without a leading or trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Domain {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Domain({})", self.0)
    }
}

impl FromStr for Domain {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let fault = |fault| InvalidId {
            kind: "domain",
            fault,
        };
        if text.len() > MAX_DOMAIN {
            return Err(fault(LabelFault::TooLong(MAX_DOMAIN)));
        }
        text.split('.').try_for_each(check_label).map_err(fault)?;
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn labels_hold_the_alphabet() {
        for good in ["a", "0", "a-b", "x".repeat(63).as_str()] {
            assert_eq!(good.parse::<ServiceId>().unwrap().as_str(), good);
        }
        let long = "x".repeat(64);
        for bad in [
            "", "-", "a-", "-a", "A", "a.b", "a_b", "ä", "a/b", "+", "#", "$a", " a", &long,
        ] {
            assert!(bad.parse::<ServiceId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn two_sites_are_reserved() {
        for bad in RESERVED_SITES {
            assert_eq!(
                bad.parse::<SiteId>().unwrap_err().fault,
                LabelFault::Reserved
            );
            assert!(bad.parse::<ServerId>().is_ok());
        }
        assert!(SiteId::from_record("servers").unwrap().is_cloud());
        assert!(SiteId::from_record("clients").is_err());
    }

    #[test]
    fn guids_come_in_both_written_forms() {
        let plain: Guid = "00112233445566778899aabbccddeeff".parse().unwrap();
        assert_eq!(
            "00112233-4455-6677-8899-AABBCCDDEEFF"
                .parse::<Guid>()
                .unwrap(),
            plain
        );
        assert!("00112233445566778899aabbccddeef".parse::<Guid>().is_err());
        assert!("00112233445566778899aabbccddeeff0".parse::<Guid>().is_err());
        // A device id has one form only: it is compared as text in topics and certificates.
        assert!(
            "00112233445566778899AABBCCDDEEFF"
                .parse::<DeviceId>()
                .is_err()
        );
    }

    #[test]
    fn domains_are_bounded() {
        assert!("holdfast.internal".parse::<Domain>().is_ok());
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            &"abc.".repeat(20),
            &"a".repeat(81),
        ] {
            assert!(bad.parse::<Domain>().is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn device_ids_round_trip(bytes: [u8; 16]) {
            let id = DeviceId::from_guid(Guid(bytes));
            prop_assert_eq!(id.guid(), Guid(bytes));
            prop_assert_eq!(id.as_str().parse::<DeviceId>().unwrap(), id);
            prop_assert!(check_label(id.as_str()).is_ok());
        }
    }
}
