//! The kinds of value that a configuration key can hold, each parsed once into its type.
//!
//! Called by [`crate::document::Section`]. A kind says what it expects in words that fit behind
//! "expected ", with an example, because that text is all the operator has at 3 a.m.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use toml::de::DeValue;

/// A type that a configuration value can be read into.
pub trait Value: Sized {
    /// What the value must look like, with an example: `a duration such as "5s"`.
    const EXPECTED: &'static str;

    /// Reads the raw TOML value; `None` when it has another shape.
    fn from_toml(raw: &DeValue<'_>) -> Option<Self>;
}

impl Value for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        raw.as_bool()
    }
}

impl Value for String {
    const EXPECTED: &'static str = "text in double quotes";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        raw.as_str().map(str::to_owned)
    }
}

impl Value for PathBuf {
    const EXPECTED: &'static str = "a path in double quotes such as \"/etc/holdfast/data.csv\"";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        raw.as_str().filter(|text| !text.is_empty()).map(Self::from)
    }
}

macro_rules! whole_numbers {
    ($($kind:ty => $expected:literal),* $(,)?) => {$(
        impl Value for $kind {
            const EXPECTED: &'static str = $expected;

            fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
                let number = raw.as_integer()?;
                Self::from_str_radix(number.as_str(), number.radix()).ok()
            }
        }
    )*};
}

whole_numbers! {
    u8 => "a whole number from 0 to 255",
    u16 => "a whole number from 0 to 65535",
    u32 => "a whole number from 0 to 4294967295",
    u64 => "a whole number, 0 or more",
    usize => "a whole number, 0 or more",
}

impl Value for f64 {
    const EXPECTED: &'static str = "a number such as 0.5";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        let text = raw.as_float().map(|number| number.as_str());
        let text = text.or_else(|| raw.as_integer().map(|number| number.as_str()))?;
        text.parse().ok().filter(|number: &Self| number.is_finite())
    }
}

impl Value for Duration {
    const EXPECTED: &'static str = "a duration such as \"500ms\", \"5s\" or \"2h\"";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        humantime::parse_duration(raw.as_str()?).ok()
    }
}

impl Value for SocketAddr {
    const EXPECTED: &'static str = "an address with a port such as \"0.0.0.0:8883\"";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        raw.as_str()?.parse().ok()
    }
}

impl Value for IpAddr {
    const EXPECTED: &'static str = "an IP address such as \"192.168.1.10\"";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        raw.as_str()?.parse().ok()
    }
}

impl<T: Value> Value for Vec<T> {
    const EXPECTED: &'static str = "a list in square brackets, all of its values of the right kind";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        raw.as_array()?
            .iter()
            .map(|item| T::from_toml(item.get_ref()))
            .collect()
    }
}

/// A number of bytes. Written as `"64MiB"`, `"512 KiB"`, `"2GiB"` or a plain number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(Self::EXPECTED),
        };
        let number: u64 = number.parse().map_err(|_| Self::EXPECTED)?;
        number.checked_mul(factor).map(Self).ok_or(Self::EXPECTED)
    }
}

impl Value for ByteSize {
    const EXPECTED: &'static str = "a size such as \"64MiB\"";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        match raw.as_str() {
            Some(text) => text.parse().ok(),
            None => u64::from_toml(raw).map(Self),
        }
    }
}

/// A host to dial: a DNS name or IP address, and a port. IPv6 addresses stand in brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    /// DNS name or IP address, without brackets.
    pub host: String,
    /// TCP port, never 0.
    pub port: u16,
}

impl fmt::Display for HostPort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(out, "[{}]:{}", self.host, self.port)
        } else {
            write!(out, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for HostPort {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (host, port) = text.rsplit_once(':').ok_or(Self::EXPECTED)?;
        let port: u16 = port.parse().map_err(|_| Self::EXPECTED)?;
        let bare = host
            .strip_prefix('[')
            .and_then(|inner| inner.strip_suffix(']'));
        let valid = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host(host),
        };
        if port == 0 || !valid {
            return Err(Self::EXPECTED);
        }
        Ok(Self {
            host: bare.unwrap_or(host).to_owned(),
            port,
        })
    }
}

impl Value for HostPort {
    const EXPECTED: &'static str = "a host with a port such as \"cloud.example.com:8883\"";

    fn from_toml(raw: &DeValue<'_>) -> Option<Self> {
        raw.as_str()?.parse().ok()
    }
}

/// A DNS name (RFC 1123 letters, digits, hyphens, dots; 253 characters) or an IPv4 address.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.len() <= 253 && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_sizes_with_and_without_units() {
        assert_eq!("64MiB".parse(), Ok(ByteSize(64 << 20)));
        assert_eq!("512 KiB".parse(), Ok(ByteSize(512 << 10)));
        assert_eq!("17".parse(), Ok(ByteSize(17)));
        for bad in ["", "MiB", "1MB", "-1", "99999999999GiB", "1.5GiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn hosts_with_ports() {
        for good in [
            "cloud.example.com:8883",
            "127.0.0.1:1",
            "[::1]:65535",
            "holdfast-rv.local:80",
        ] {
            let parsed: HostPort = good.parse().expect(good);
            assert_eq!(parsed.to_string(), good);
        }
        for bad in [
            "cloud", "cloud:", "cloud:0", ":80", "a b:80", "::1:80", "[zz]:80", "-a:80",
        ] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }
}
