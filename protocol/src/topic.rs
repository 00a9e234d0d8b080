//! The topic tree of the house, parsed and printed, and topic filters compared by segments.
//!
//! ```text
//! hf/v1/<site>/<device>/up/<name>             device -> site and cloud
//! hf/v1/<site>/<device>/down/<name>           commands to the device
//! hf/v1/<site>/<device>/service/desired       retained signed notice of the service
//! hf/v1/<site>/<device>/service/reported      what runs
//! hf/v1/<site>/<device>/alternate             retained signed notice of the other CPS server
//! hf/v1/<site>/gateway/health                 mode, reason, since; retained, last will
//! svc/v1/<site>/<service>/<device>/telemetry  device -> service-providing server
//! svc/v1/<site>/<service>/<device>/command    service-providing server -> device
//! ```
//! A device id is 32 hex digits, so `gateway` cannot be one. Nothing here decides who may do what
//! (`rights` does), and nothing ever pastes text into a filter: ids come in as types.

use std::{fmt, str::FromStr, sync::Arc};

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

/// A topic filter, checked once; `$share/...` is not one (see [`SharedFilter`]).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter(Arc<str>);

impl Filter {
    /// The text as MQTT carries it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The filter that matches this topic and no other.
    #[must_use]
    pub fn exactly(topic: &Topic) -> Self {
        Self(topic.to_string().into())
    }

    /// Everything of one device: `hf/v1/<site>/<device>/#`.
    #[must_use]
    pub fn of_device(site: &SiteId, device: DeviceId) -> Self {
        Self(format!("hf/v1/{site}/{device}/#").into())
    }

    /// Everything that a device says: `hf/v1/<site>/<device>/up/#`.
    #[must_use]
    pub fn up_of(site: &SiteId, device: DeviceId) -> Self {
        Self(format!("hf/v1/{site}/{device}/up/#").into())
    }

    /// What all devices of a site say: `hf/v1/<site>/+/up/#`.
    #[must_use]
    pub fn up_of_site(site: &SiteId) -> Self {
        Self(format!("hf/v1/{site}/+/up/#").into())
    }

    /// All of a site: `hf/v1/<site>/#`.
    #[must_use]
    pub fn of_site(site: &SiteId) -> Self {
        Self(format!("hf/v1/{site}/#").into())
    }

    /// All services of a site: `svc/v1/<site>/#`.
    #[must_use]
    pub fn services_of(site: &SiteId) -> Self {
        Self(format!("svc/v1/{site}/#").into())
    }

    /// Both trees whole: `hf/v1/#`, `svc/v1/#`.
    #[must_use]
    pub fn everything() -> [Self; 2] {
        [Self("hf/v1/#".into()), Self("svc/v1/#".into())]
    }

    /// Whether every level is a wildcard or could be one of the tree's topics: no empty level, no
    /// `..`, no character outside the alphabet.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.0
            .split('/')
            .all(|level| is_wildcard(level) || is_name_segment(level))
    }

    /// Whether a topic of that name is meant. `topic` must be a name (see [`check_name`]).
    ///
    /// A leading wildcard never reaches topics that begin with `$` [MQTT-4.7.2-1].
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        let mut rule = self.0.split('/');
        let mut name = topic.split('/');
        let mut leading = true;
        loop {
            match (rule.next(), name.next()) {
                (Some("#"), segment) => return !(leading && is_special(segment)),
                (Some("+"), segment @ Some(_)) if !(leading && is_special(segment)) => {}
                (Some(wanted), Some(found)) if wanted == found => {}
                (None, None) => return true,
                _ => return false,
            }
            leading = false;
        }
    }

    /// Whether every topic that `other` could match is matched by this filter, segment by segment.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        let mut rule = self.0.split('/').peekable();
        let mut asked = other.0.split('/');
        let mut leading = true;
        loop {
            match (rule.next(), asked.next()) {
                // The parent level is meant too: `a/#` contains `a`.
                (Some("#"), segment) => return !(leading && is_special(segment)),
                // No topic lies above the first level, so `+/#` reaches all that `#` does.
                (Some("+"), Some("#")) => return leading && rule.peek() == Some(&"#"),
                (Some("+"), segment @ Some(_)) if !(leading && is_special(segment)) => {}
                // A wildcard in `asked` equals only the same wildcard, which the arms above took.
                (Some(wanted), Some(found)) if wanted == found && !is_wildcard(found) => {}
                (None, None) => return true,
                _ => return false,
            }
            leading = false;
        }
    }
}

/// Whether a first segment marks a topic of the server itself (`$SYS`, `$share`...).
fn is_special(segment: Option<&str>) -> bool {
    segment.is_some_and(|s| s.starts_with('$'))
}

fn is_wildcard(segment: &str) -> bool {
    segment == "+" || segment == "#"
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Filter({})", self.0)
    }
}

impl FromStr for Filter {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, InvalidTopic> {
        check_text(text)?;
        let mut segments = text.split('/').peekable();
        if segments.peek() == Some(&SHARE) {
            return Err(InvalidTopic::Form);
        }
        while let Some(segment) = segments.next() {
            let last = segments.peek().is_none();
            let stray = segment.contains(['+', '#']) && !is_wildcard(segment);
            if stray || segment == "#" && !last {
                return Err(InvalidTopic::Wildcard);
            }
        }
        Ok(Self(text.into()))
    }
}

/// First segment of a shared subscription.
pub const SHARE: &str = "$share";

/// What a client may ask for in SUBSCRIBE: a filter, perhaps by a share group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFilter {
    /// The group, when it was `$share/<group>/<filter>`.
    pub group: Option<Box<str>>,
    /// The filter itself.
    pub filter: Filter,
}

impl FromStr for SharedFilter {
    type Err = InvalidTopic;

    fn from_str(text: &str) -> Result<Self, InvalidTopic> {
        let Some(rest) = text
            .strip_prefix(SHARE)
            .and_then(|rest| rest.strip_prefix('/'))
        else {
            return Ok(Self {
                group: None,
                filter: text.parse()?,
            });
        };
        let (group, filter) = rest.split_once('/').ok_or(InvalidTopic::Form)?;
        check_text(group)?;
        if group.contains(['+', '#']) {
            return Err(InvalidTopic::Wildcard);
        }
        Ok(Self {
            group: Some(group.into()),
            filter: filter.parse()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Guid;
    use proptest::prelude::*;

    fn label() -> impl Strategy<Value = String> {
        "[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?"
            .prop_filter("reserved", |text| text.parse::<SiteId>().is_ok())
    }

    fn topic() -> impl Strategy<Value = Topic> {
        let name = prop::collection::vec("[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", 1..=4)
            .prop_map(|parts| parts.join("/").parse::<TopicName>().unwrap());
        (label(), label(), any::<[u8; 16]>(), name, 0..8).prop_map(
            |(site, service, guid, name, kind)| {
                let (site, service) = (site.parse().unwrap(), service.parse().unwrap());
                let device = DeviceId::from_guid(Guid(guid));
                match kind {
                    0 => Topic::Up { site, device, name },
                    1 => Topic::Down { site, device, name },
                    2 => Topic::ServiceDesired { site, device },
                    3 => Topic::ServiceReported { site, device },
                    4 => Topic::Alternate { site, device },
                    5 => Topic::Health { site },
                    6 => Topic::Telemetry {
                        site,
                        service,
                        device,
                    },
                    _ => Topic::Command {
                        site,
                        service,
                        device,
                    },
                }
            },
        )
    }

    proptest! {
        #[test]
        fn topics_round_trip(topic in topic()) {
            let text = topic.to_string();
            prop_assert_eq!(&text.parse::<Topic>().unwrap(), &topic);
            prop_assert!(check_name(&text).is_ok() && Topic::claims(&text));
            prop_assert!(Filter::exactly(&topic).matches(&text));
            prop_assert!(Filter::everything().iter().any(|all| all.matches(&text)));
        }

        #[test]
        fn what_parses_prints_the_same(text in "(hf|svc)/v1/[a-z0-9/+#$.A-]{0,80}") {
            if let Ok(topic) = text.parse::<Topic>() {
                prop_assert_eq!(topic.to_string(), text);
            }
        }

        #[test]
        fn any_text_is_handled(text in "\\PC{0,60}") {
            let _ = (text.parse::<Topic>(), text.parse::<SharedFilter>(), check_name(&text));
        }
    }

    #[test]
    fn refuses_near_misses() {
        let device = "0".repeat(32);
        for bad in [
            format!("hf/v1/plant/{device}/up"),
            format!("hf/v1/plant/{device}/up/"),
            format!("hf/v1/plant/{device}/up//x"),
            format!("hf/v1/plant/{device}/up/a/b/c/d/e"),
            format!("hf/v1/plant/{device}/up/../x+"),
            format!("hf/v1/plant/{device}/alternate/"),
            format!("hf/v1/plant/{device}/service/other"),
            format!("hf/v2/plant/{device}/up/x"),
            format!("HF/v1/plant/{device}/up/x"),
            format!("/hf/v1/plant/{device}/up/x"),
            format!("hf/v1/clients/{device}/up/x"),
            "hf/v1/plant/gateway/up/x".to_owned(),
            "hf/v1/plant/gateway/health/x".to_owned(),
            format!("svc/v1/plant/weather/{device}/telemetry/x"),
            format!("svc/v1/plant/weather/{device}/other"),
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
    }

    #[test]
    fn filters_are_checked() {
        for good in [
            "#", "+", "+/#", "a//b", "/", "a/+/b/#", "$SYS/#", "$queue/a",
        ] {
            assert!(good.parse::<Filter>().is_ok(), "{good}");
        }
        let long = "a".repeat(MAX_TOPIC + 1);
        for bad in [
            "",
            "a#",
            "#/a",
            "a+",
            "+a/b",
            "a/#/b",
            "a\0b",
            "a\u{1}",
            "$share/g/a",
            &long,
        ] {
            assert!(bad.parse::<Filter>().is_err(), "{bad}");
        }
        let shared: SharedFilter = "$share/g/a/#".parse().unwrap();
        assert_eq!(
            (shared.group.as_deref(), shared.filter.as_str()),
            (Some("g"), "a/#")
        );
        for bad in [
            "$share",
            "$share/",
            "$share/g",
            "$share/g/",
            "$share//a",
            "$share/+/a",
        ] {
            assert!(bad.parse::<SharedFilter>().is_err(), "{bad}");
        }
    }

    #[test]
    fn matching_follows_the_standard() {
        let hit = |filter: &str, topic: &str| filter.parse::<Filter>().unwrap().matches(topic);
        assert!(hit("sport/tennis/player1/#", "sport/tennis/player1"));
        assert!(hit(
            "sport/tennis/player1/#",
            "sport/tennis/player1/score/wimbledon"
        ));
        assert!(hit("sport/#", "sport") && hit("#", "sport"));
        assert!(hit("sport/+", "sport/") && !hit("sport/+", "sport"));
        assert!(hit("+/+", "/finance") && hit("/+", "/finance") && !hit("+", "/finance"));
        assert!(!hit("#", "$SYS/a") && !hit("+/a", "$SYS/a") && !hit("+/#", "$SYS/a"));
        assert!(hit("$SYS/#", "$SYS/a") && hit("a/+", "a/$b"));
    }
}
