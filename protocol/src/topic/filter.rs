//! Topic filters: checked once, then compared with names and with each other by segments.

use std::{fmt, str::FromStr, sync::Arc};

use super::{InvalidTopic, Topic, check_text, is_name_segment};
use crate::id::{DeviceId, SiteId};

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

    /// What a site's own bridge rules send to the cloud and take from it: `ext/v1/<site>/#`.
    #[must_use]
    pub fn extension_of(site: &SiteId) -> Self {
        Self(format!("ext/v1/{site}/#").into())
    }

    /// All trees whole: `hf/v1/#`, `svc/v1/#`, `ext/v1/#`.
    #[must_use]
    pub fn everything() -> [Self; 3] {
        ["hf/v1/#", "svc/v1/#", "ext/v1/#"].map(|tree| Self(tree.into()))
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
                (Some(wanted), Some(found)) if wanted == found => {}
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
