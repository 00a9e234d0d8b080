//! The topic tree of the house, parsed and printed, and topic filters compared by segments.
//!
//! ```text
//! hf/v1/<site>/<device>/up/<name>             device -> site and cloud
//! hf/v1/<site>/<device>/down/<name>           commands to the device
//! hf/v1/<site>/<device>/service/desired       retained signed notice of the service
//! hf/v1/<site>/<device>/service/reported      what runs
//! hf/v1/<site>/<device>/alternate             retained signed notice of the other CPS server
//! hf/v1/<site>/<device>/identity              retained: successions of signing keys, order to renew
//! hf/v1/<site>/gateway/health                 mode, reason, since; retained, last will
//! svc/v1/<site>/<service>/<device>/telemetry  device -> service-providing server
//! svc/v1/<site>/<service>/<device>/command    service-providing server -> device
//! ext/v1/<site>/...                           at the cloud: what a site's own bridge rules carry
//! ```
//! Below `ext/v1/<site>/` every name is free; no device has rights there. A device id is 32 hex digits, so `gateway` cannot be one. Nothing here decides who may do what
//! (`rights` does), and nothing ever pastes text into a filter: ids come in as types.

mod filter;

use std::{fmt, str::FromStr, sync::Arc};

pub use filter::{Filter, SHARE, SharedFilter};

use crate::id::{DeviceId, ServiceId, SiteId};

/// Longest topic name or filter that MQTT can carry, in bytes.
pub const MAX_TOPIC: usize = 65_535;
/// Most segments that the `<name>` of `up` and `down` may have.
pub const MAX_NAME_SEGMENTS: usize = 4;
/// Longest segment of a `<name>`, in bytes.
pub const MAX_NAME_SEGMENT: usize = 64;
/// First segment of the tree between devices, site and cloud.
pub const ROOT: &str = "hf";
/// First segment of the tree between devices and service-providing servers.
pub const SERVICE_ROOT: &str = "svc";
/// Version segment of both trees.
pub const VERSION: &str = "v1";

/// The free part of a device's topic: one to four segments of `[A-Za-z0-9._-]{1,64}`, none of them
/// `.` or `..` (names end up in paths of exports).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicName(Arc<str>);

impl TopicName {
    /// The name, segments parted by `/`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TopicName({})", self.0)
    }
}

impl FromStr for TopicName {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, InvalidTopic> {
        let few = text.split('/').take(MAX_NAME_SEGMENTS + 1).count() <= MAX_NAME_SEGMENTS;
        if few && text.split('/').all(is_name_segment) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidTopic::Name)
        }
    }
}

fn is_name_segment(segment: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    !matches!(segment, "" | "." | "..")
        && segment.len() <= MAX_NAME_SEGMENT
        && segment.bytes().all(allowed)
}

/// A topic of the tree.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// What a device measured or says.
    Up {
        /// Site of the device.
        site: SiteId,
        /// Who speaks.
        device: DeviceId,
        /// About what.
        name: TopicName,
    },
    /// A command to a device.
    Down {
        /// Site of the device.
        site: SiteId,
        /// Who is meant.
        device: DeviceId,
        /// Which command.
        name: TopicName,
    },
    /// The service that the device should work for: a signed notice.
    ServiceDesired {
        /// Site of the device.
        site: SiteId,
        /// Who is meant.
        device: DeviceId,
    },
    /// The service that the device works for, as it says itself.
    ServiceReported {
        /// Site of the device.
        site: SiteId,
        /// Who speaks.
        device: DeviceId,
    },
    /// The other CPS server: a signed notice.
    Alternate {
        /// Site of the device.
        site: SiteId,
        /// Who is meant.
        device: DeviceId,
    },
    /// What the device is told about keys and its certificate: parts that are signed.
    Identity {
        /// Site of the device.
        site: SiteId,
        /// Who is meant.
        device: DeviceId,
    },
    /// The uplink's mode as the gateway sees it.
    Health {
        /// Whose gateway.
        site: SiteId,
    },
    /// A device's message to its service-providing server.
    Telemetry {
        /// Site of the device.
        site: SiteId,
        /// For which service.
        service: ServiceId,
        /// Who speaks.
        device: DeviceId,
    },
    /// A service-providing server's message to its device.
    Command {
        /// Site of the device.
        site: SiteId,
        /// From which service.
        service: ServiceId,
        /// Who is meant.
        device: DeviceId,
    },
}

impl Topic {
    /// The site whose topic it is.
    #[must_use]
    pub fn site(&self) -> &SiteId {
        match self {
            Self::Up { site, .. }
            | Self::Down { site, .. }
            | Self::ServiceDesired { site, .. }
            | Self::ServiceReported { site, .. }
            | Self::Alternate { site, .. }
            | Self::Identity { site, .. }
            | Self::Health { site }
            | Self::Telemetry { site, .. }
            | Self::Command { site, .. } => site,
        }
    }

    /// The device whose topic it is, if one's.
    #[must_use]
    pub fn device(&self) -> Option<DeviceId> {
        match self {
            Self::Up { device, .. }
            | Self::Down { device, .. }
            | Self::ServiceDesired { device, .. }
            | Self::ServiceReported { device, .. }
            | Self::Alternate { device, .. }
            | Self::Identity { device, .. }
            | Self::Telemetry { device, .. }
            | Self::Command { device, .. } => Some(*device),
            Self::Health { .. } => None,
        }
    }

    /// Whether a topic name claims to be of this tree, right or not. Such a name must parse as a
    /// [`Topic`] before anybody may publish to it.
    #[must_use]
    pub fn claims(text: &str) -> bool {
        let root = text.split('/').next();
        root == Some(ROOT) || root == Some(SERVICE_ROOT)
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Up { site, device, name } => write!(f, "hf/v1/{site}/{device}/up/{name}"),
            Self::Down { site, device, name } => write!(f, "hf/v1/{site}/{device}/down/{name}"),
            Self::ServiceDesired { site, device } => {
                write!(f, "hf/v1/{site}/{device}/service/desired")
            }
            Self::ServiceReported { site, device } => {
                write!(f, "hf/v1/{site}/{device}/service/reported")
            }
            Self::Alternate { site, device } => write!(f, "hf/v1/{site}/{device}/alternate"),
            Self::Identity { site, device } => write!(f, "hf/v1/{site}/{device}/identity"),
            Self::Health { site } => write!(f, "hf/v1/{site}/gateway/health"),
            Self::Telemetry {
                site,
                service,
                device,
            } => {
                write!(f, "svc/v1/{site}/{service}/{device}/telemetry")
            }
            Self::Command {
                site,
                service,
                device,
            } => {
                write!(f, "svc/v1/{site}/{service}/{device}/command")
            }
        }
    }
}

impl FromStr for Topic {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, InvalidTopic> {
        let id = |_| InvalidTopic::Id;
        let mut parts = text.splitn(6, '/');
        let mut next = || parts.next().ok_or(InvalidTopic::Form);
        let (root, version) = (next()?, next()?);
        if version != VERSION {
            return Err(InvalidTopic::Form);
        }
        let site: SiteId = next()?.parse().map_err(id)?;
        if root == SERVICE_ROOT {
            let service = next()?.parse().map_err(id)?;
            let device = next()?.parse().map_err(id)?;
            return match next()? {
                "telemetry" => Ok(Self::Telemetry {
                    site,
                    service,
                    device,
                }),
                "command" => Ok(Self::Command {
                    site,
                    service,
                    device,
                }),
                _ => Err(InvalidTopic::Form),
            };
        }
        if root != ROOT {
            return Err(InvalidTopic::Form);
        }
        let (who, what, rest) = (next()?, next()?, parts.next());
        match (who, what, rest) {
            ("gateway", "health", None) => return Ok(Self::Health { site }),
            ("gateway", _, _) => return Err(InvalidTopic::Form),
            _ => {}
        }
        let device = who.parse().map_err(id)?;
        match (what, rest) {
            ("up", Some(name)) => Ok(Self::Up {
                site,
                device,
                name: name.parse()?,
            }),
            ("down", Some(name)) => Ok(Self::Down {
                site,
                device,
                name: name.parse()?,
            }),
            ("service", Some("desired")) => Ok(Self::ServiceDesired { site, device }),
            ("service", Some("reported")) => Ok(Self::ServiceReported { site, device }),
            ("alternate", None) => Ok(Self::Alternate { site, device }),
            ("identity", None) => Ok(Self::Identity { site, device }),
            _ => Err(InvalidTopic::Form),
        }
    }
}

/// Why a text is not a topic of the tree, or not a filter at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTopic {
    /// None of the forms of the tree.
    #[error("not a topic of hf/v1 or svc/v1")]
    Form,
    /// A site, service or device id that is none.
    #[error("a site, service or device in the topic is not a valid id")]
    Id,
    /// The free name breaks its alphabet or bounds.
    #[error(
        "a topic name has 1 to 4 segments of 1 to 64 letters, digits, '.', '_' or '-', none of them '.' or '..'"
    )]
    Name,
    /// Empty, over 65,535 bytes, or with control characters.
    #[error("a topic or filter has 1 to 65535 bytes and no control characters")]
    Text,
    /// A wildcard where none may stand.
    #[error("'+' must fill a whole segment and '#' the last one; a topic name has neither")]
    Wildcard,
}

/// Checks a topic *name* as MQTT sends it: not empty, bounded, no wildcard, no control character.
///
/// # Errors
/// [`InvalidTopic::Text`] or [`InvalidTopic::Wildcard`].
pub fn check_name(topic: &str) -> Result<(), InvalidTopic> {
    check_text(topic)?;
    if topic.bytes().any(|b| b == b'+' || b == b'#') {
        Err(InvalidTopic::Wildcard)
    } else {
        Ok(())
    }
}

fn check_text(text: &str) -> Result<(), InvalidTopic> {
    // Control characters are legal in MQTT but never meant; they would reach logs and terminals.
    if text.is_empty() || text.len() > MAX_TOPIC || text.chars().any(char::is_control) {
        return Err(InvalidTopic::Text);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
