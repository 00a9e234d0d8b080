//! Topic names and filters: what is well formed, and what matches what.
//!
//! Used by every room. Segments are compared, never strings pasted together (MQTT 5, section 4.7).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// A well-formed topic filter, without a `$share` prefix.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Filter(Arc<str>);

impl Filter {
    /// Checks the rules of section 4.7 ([MQTT-4.7.1-1] to [MQTT-4.7.3-1]).
    ///
    /// # Errors
    /// The text itself, when it is no filter.
    pub fn new(text: &str) -> Result<Self, NotAFilter> {
        if is_filter(text) {
            Ok(Self(text.into()))
        } else {
            Err(NotAFilter(text.into()))
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a topic name falls under the filter; wildcards never match a first segment that
    /// begins with `$` [MQTT-4.7.2-1].
    #[must_use]
    pub fn matches(&self, topic: &str) -> bool {
        matches(&self.0, topic)
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Filter {
    type Err = NotAFilter;

    fn from_str(text: &str) -> Result<Self, NotAFilter> {
        Self::new(text)
    }
}

/// The text is no topic filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a topic filter: {0:?}; use `/`-separated levels, `+` for one and a last `#` for the rest"
)]
pub struct NotAFilter(pub Box<str>);

/// A SUBSCRIBE filter taken apart: plain, or `$share/<group>/<filter>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Asked {
    pub(crate) group: Option<Arc<str>>,
    pub(crate) filter: Filter,
}

impl Asked {
    /// `None` when it is no filter, or a share name breaks [MQTT-4.8.2-1] or [MQTT-4.8.2-2].
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let Some(rest) = text.strip_prefix("$share/") else {
            let filter = Filter::new(text).ok()?;
            return Some(Self {
                group: None,
                filter,
            });
        };
        let (group, filter) = rest.split_once('/')?;
        if group.is_empty() || group.contains(['+', '#']) {
            return None;
        }
        Some(Self {
            group: Some(group.into()),
            filter: Filter::new(filter).ok()?,
        })
    }
}

/// Whether the text may be the topic of a PUBLISH: at least one character, no wildcard, no NUL
/// [MQTT-3.3.2-2], [MQTT-4.7.3-1], [MQTT-4.7.3-2].
pub(crate) fn is_topic(text: &str) -> bool {
    !text.is_empty() && text.len() <= 65_535 && !text.contains(['+', '#', '\0'])
}

/// How many levels the name or filter has.
pub(crate) fn levels(text: &str) -> usize {
    text.split('/').count()
}

fn is_filter(text: &str) -> bool {
    if text.is_empty() || text.len() > 65_535 || text.contains('\0') {
        return false;
    }
    let mut levels = text.split('/').peekable();
    while let Some(level) = levels.next() {
        let last = levels.peek().is_none();
        let well = match level {
            "+" => true,
            "#" => last,
            other => !other.contains(['+', '#']),
        };
        if !well {
            return false;
        }
    }
    true
}

/// The plain matcher: also the model the tree is tested against.
pub(crate) fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut wanted = filter.split('/');
    let mut found = topic.split('/');
    loop {
        match (wanted.next(), found.next()) {
            (Some("#"), _) => return true,
            (Some("+"), Some(_)) => {}
            (Some(level), Some(name)) if level == name => {}
            (None, None) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mqtt_4_7_1_1_the_multi_level_wildcard_stands_last_and_alone() {
        for good in [
            "#", "a/#", "/#", "a/+/#", "+", "+/+", "/+", "a/+/b", "a//b", "/", " ",
        ] {
            assert!(Filter::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a#", "a/#/b", "##", "+#", "a/#b", "a\0b"] {
            assert!(Filter::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn mqtt_4_7_1_2_the_single_level_wildcard_takes_a_whole_level() {
        for bad in ["a+", "a/+b", "+a/b", "++"] {
            assert!(Filter::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn matching_follows_the_examples_of_the_standard() {
        let matching = [
            ("sport/tennis/player1/#", "sport/tennis/player1"),
            (
                "sport/tennis/player1/#",
                "sport/tennis/player1/score/wimbledon",
            ),
            ("sport/#", "sport"),
            ("#", "a/b/c"),
            ("sport/+", "sport/"),
            ("+/+", "/finance"),
            ("/+", "/finance"),
            ("$SYS/#", "$SYS/broker"),
            ("$SYS/monitor/+", "$SYS/monitor/Clients"),
        ];
        for (filter, topic) in matching {
            assert!(matches(filter, topic), "{filter} {topic}");
        }
        let different = [
            ("sport/tennis/+", "sport/tennis/player1/ranking"),
            ("sport/+", "sport"),
            ("+", "/finance"),
            ("a/b", "a/B"),
            ("a/b", "a/b/"),
        ];
        for (filter, topic) in different {
            assert!(!matches(filter, topic), "{filter} {topic}");
        }
    }

    #[test]
    fn mqtt_4_7_2_1_wildcards_do_not_reach_dollar_topics() {
        for filter in ["#", "+/x", "+/#"] {
            assert!(!matches(filter, "$SYS/x"), "{filter}");
        }
    }

    #[test]
    fn mqtt_4_8_2_a_share_name_is_one_plain_level() {
        let asked = Asked::parse("$share/group/a/+").unwrap();
        assert_eq!(asked.group.as_deref(), Some("group"));
        assert_eq!(asked.filter.as_str(), "a/+");
        for bad in [
            "$share//a",
            "$share/g",
            "$share/g/",
            "$share/+/a",
            "$share/g#/a",
        ] {
            assert_eq!(Asked::parse(bad), None, "{bad}");
        }
    }
}
