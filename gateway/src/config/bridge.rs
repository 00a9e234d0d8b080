//! `[[bridge]]`: rules that carry topics to a remote broker or from it, beside the built-in ones.
//!
//! Read by [`super::Config`], used by [`crate::bridge`]. A rule takes topics by a filter, takes
//! `strip` off their front and puts `prefix` before them. What would go round in a circle, or speak
//! in the name of a device, is refused here.

use holdfast_config::{Section, Settings};
use holdfast_protocol::topic::{Filter, SHARE};

use super::loops::{self, Place, Way};
use super::remote::{CLOUD, Remote};

/// Most rules; the bridge counts them in a byte.
const MOST_RULES: usize = 200;
/// What a remote may publish on the LAN in the trees of the house: commands, nothing else.
const MAY_COME_IN: [&str; 2] = ["hf/v1/+/+/down/#", "svc/v1/+/+/+/command"];
/// The trees of the house.
const TREES: [&str; 2] = ["hf/#", "svc/#"];
/// What the built-in rules carry to the Holdfast cloud and back.
const BUILT_IN_OUT: [&str; 3] = [
    "hf/v1/+/+/up/#",
    "hf/v1/+/+/service/reported",
    "svc/v1/+/+/+/telemetry",
];

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names the rule's durable position; never reuse a name for another filter.
    pub name: String,
    /// The broker at the other end, by its name.
    pub remote: String,
    /// Which way.
    pub direction: Direction,
    /// MQTT topic filter on the sending side.
    pub filter: String,
    /// Taken off the front of each topic; the filter begins with it.
    pub strip: String,
    /// Put before what is left, with its closing slash.
    pub prefix: String,
}

/// Which way a bridge rule carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the LAN to the remote.
    Out,
    /// From the remote to the LAN.
    In,
}

impl Rule {
    /// A rule to the Holdfast cloud or from it.
    #[must_use]
    pub fn cloud(name: &str, direction: Direction, filter: &str, prefix: &str) -> Self {
        Self {
            name: name.to_owned(),
            remote: CLOUD.to_owned(),
            direction,
            filter: filter.to_owned(),
            strip: String::new(),
            prefix: prefix.to_owned(),
        }
    }

    /// Which topics its messages have on the receiving side, as a filter.
    #[must_use]
    pub fn lands_on(&self) -> String {
        let left = self.filter.strip_prefix(&self.strip);
        format!("{}{}", self.prefix, left.unwrap_or(&self.filter))
    }

    fn way<'a>(&'a self, remotes: &[Remote]) -> Way<'a> {
        let named = |remote: &Remote| remote.name == self.remote;
        let place = match remotes.iter().position(named) {
            // Two names of one broker are one place.
            Some(at) => Place::Remote(
                1 + remotes
                    .iter()
                    .position(|one| one.is_same_broker(&remotes[at]))
                    .unwrap_or(at),
            ),
            None => Place::Remote(0),
        };
        let (from, to) = match self.direction {
            Direction::Out => (Place::Lan, place),
            Direction::In => (place, Place::Lan),
        };
        Way {
            name: &self.name,
            from: (from, self.filter.clone()),
            to: (to, self.lands_on()),
        }
    }
}

/// A topic with `strip` off its front and `prefix` before it; `None` if nothing would be left of
/// it, or no topic name.
#[must_use]
pub fn moved(topic: &str, strip: &str, prefix: &str) -> Option<String> {
    let left = match topic.strip_prefix(strip) {
        Some(left) => left,
        // `a/#` means `a` too.
        None if strip.strip_suffix('/') == Some(topic) => "",
        None => return None,
    };
    let moved = match left {
        "" => prefix.strip_suffix('/').unwrap_or(prefix).to_owned(),
        left => format!("{prefix}{left}"),
    };
    (!moved.is_empty()).then_some(moved)
}

impl Settings for Rule {
    fn read(section: &mut Section<'_>) -> Self {
        let name: String = section.required("name", String::new());
        if !name.is_empty() && name.parse::<holdfast_protocol::id::ClientName>().is_err() {
            let remedy = "use lower-case letters, digits and hyphens, at most 63";
            section.fault("name", "cannot name a rule", remedy);
        }
        let remote = section.get("remote", CLOUD.to_owned());
        let direction = read_direction(section);
        let filter: String = section.required("filter", "#".to_owned());
        if filter.parse::<Filter>().is_err() {
            let remedy = match filter.split('/').next() == Some(SHARE) {
                true => "leave the share group out: each rule has a session of its own",
                false => "see MQTT 5.0, section 4.7",
            };
            section.fault("filter", "is no MQTT topic filter", remedy);
        }
        let strip = section.get_checked("strip", String::new(), |text| levels(text));
        if !filter.starts_with(&strip) {
            let remedy = "write the plain levels that the filter begins with, or leave it out";
            section.fault("strip", "is not the beginning of the filter", remedy);
        }
        let prefix = section.get_checked("prefix", String::new(), |text| levels(text));
        let rule = Self {
            name,
            remote,
            direction,
            filter,
            strip,
            prefix,
        };
        if direction == Direction::In
            && let Err((what, remedy)) = may_come_in(&rule.lands_on())
        {
            section.fault("filter", &what, remedy);
        }
        rule
    }
}

fn read_direction(section: &mut Section<'_>) -> Direction {
    let direction: String = section.required("direction", "out".to_owned());
    match direction.as_str() {
        "out" => Direction::Out,
        "in" => Direction::In,
        _ => {
            section.fault("direction", "is neither way", "write \"out\" or \"in\"");
            Direction::Out
        }
    }
}

/// Plain levels with a closing slash, or nothing.
fn levels(text: &str) -> Result<(), (String, String)> {
    if text.contains(['+', '#', '\0']) || !(text.is_empty() || text.ends_with('/')) {
        let remedy = "write plain levels with a closing slash, such as \"plant-7/\"";
        return Err((format!("{text:?} is no topic prefix"), remedy.to_owned()));
    }
    Ok(())
}

/// Whether a remote may publish these topics on the LAN.
fn may_come_in(lands_on: &str) -> Result<(), (String, &'static str)> {
    if lands_on.starts_with('$') {
        let remedy = "topics that begin with $ are the broker's own; write a prefix";
        return Err((format!("would land on {lands_on:?}"), remedy));
    }
    let Ok(filter) = lands_on.parse::<Filter>() else {
        return Ok(());
    };
    let allowed = MAY_COME_IN
        .iter()
        .filter_map(|one| one.parse::<Filter>().ok());
    let in_tree = TREES.iter().any(|tree| loops::meet(lands_on, tree));
    if !in_tree || allowed.into_iter().any(|one| one.contains(&filter)) {
        return Ok(());
    }
    let remedy = "in the trees hf/ and svc/ only commands may come in (hf/v1/+/+/down/#, \
                  svc/v1/+/+/+/command); narrow the filter or write a prefix";
    Err((
        format!("would land on {lands_on:?}, where devices and the gateway speak"),
        remedy,
    ))
}

/// What only all rules and remotes together can have wrong.
pub(super) fn check(section: &mut Section<'_>, rules: &[Rule], remotes: &[Remote]) {
    if rules.len() > MOST_RULES {
        let what = format!("has {} rules", rules.len());
        let remedy = "200 are the most; join some by wildcards";
        section.fault("bridge", &what, remedy);
        return;
    }
    if let Some(name) = twice(rules.iter().map(|rule| &rule.name)) {
        let what = format!("has two rules of one name, {name:?}");
        section.fault("bridge", &what, "give each rule its own name");
    }
    if let Some(name) = twice(remotes.iter().map(|remote| &remote.name)) {
        let what = format!("has two remotes of one name, {name:?}");
        section.fault("remote", &what, "give each remote its own name");
    }
    for rule in rules {
        let known = |remote: &Remote| remote.name == rule.remote;
        if rule.remote != CLOUD && !remotes.iter().any(known) {
            let what = format!("rule {:?} names no remote, {:?}", rule.name, rule.remote);
            let remedy = "write the name of a [[remote]], or leave it out for the Holdfast cloud";
            section.fault("bridge", &what, remedy);
        }
    }
    for remote in remotes {
        if !rules.iter().any(|rule| rule.remote == remote.name) {
            let what = format!("{:?} is named by no rule", remote.name);
            let remedy = "add a [[bridge]] rule with that remote, or remove it";
            section.fault("remote", &what, remedy);
        }
    }
    if section.is_faulty("bridge") {
        return;
    }
    let built_in = BUILT_IN_OUT.iter();
    let built_in = built_in.map(|filter| Rule::cloud("built-in", Direction::Out, filter, ""));
    let down = MAY_COME_IN.iter();
    let down = down.map(|filter| Rule::cloud("built-in", Direction::In, filter, ""));
    let built_in: Vec<Rule> = built_in.chain(down).collect();
    let ways = rules.iter().chain(&built_in).map(|rule| rule.way(remotes));
    if let Some(circle) = loops::find(&ways.collect::<Vec<_>>()) {
        let what = format!("carries messages in a circle: {}", circle.join(" -> "));
        let remedy = "give one of these rules a narrower filter or another prefix";
        section.fault("bridge", &what, remedy);
    }
}

fn twice<'a>(names: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    let mut names: Vec<_> = names.collect();
    names.sort();
    let pair = names.windows(2).find(|pair| pair[0] == pair[1]);
    pair.map(|pair| pair[0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_is_moved() {
        assert_eq!(moved("a/b", "", "x/").as_deref(), Some("x/a/b"));
        assert_eq!(moved("a/b", "a/", "").as_deref(), Some("b"));
        assert_eq!(moved("a/b", "a/", "x/y/").as_deref(), Some("x/y/b"));
        // The parent that `a/#` means too.
        assert_eq!(moved("a", "a/", "x/").as_deref(), Some("x"));
        assert_eq!(moved("a", "a/", ""), None);
        assert_eq!(moved("b/a", "a/", "x/"), None);
    }

    #[test]
    fn a_remote_speaks_for_no_device() {
        for good in [
            "plant/#",
            "hf/v1/bern/+/down/set",
            "svc/v1/bern/+/+/command",
            "partner/hf/v1/x",
        ] {
            assert!(may_come_in(good).is_ok(), "{good}");
        }
        for bad in [
            "#",
            "+/x",
            "hf/v1/bern/+/up/t",
            "hf/#",
            "hf/v1/bern/gateway/health",
            "svc/v1/bern/s/d/telemetry",
            "$SYS/x",
        ] {
            assert!(may_come_in(bad).is_err(), "{bad}");
        }
    }
}
