//! Whether bridge rules carry a message round in a circle: a property of the configuration, found
//! before anything runs.
//!
//! Called by [`super::bridge`]. Rules are edges between the topics of the LAN and those of each
//! remote. Sets of topics are told by filters, and two filters meet if one topic could match both;
//! so a circle may be seen where none of the messages of the day would go round, but none is missed
//! within the rules written here. What other parties do with the messages cannot be seen.

/// One rule, as far as circles go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way<'a> {
    /// The rule's name.
    pub(super) name: &'a str,
    /// Where its messages come from, and as which topics.
    pub(super) from: (Place, String),
    /// Where they go to, and as which topics.
    pub(super) to: (Place, String),
}

/// A broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The LAN's.
    Lan,
    /// One of the remotes.
    Remote(usize),
}

/// The names of the rules of a circle, if there is one.
pub(super) fn find<'a>(ways: &[Way<'a>]) -> Option<Vec<&'a str>> {
    (0..ways.len()).find_map(|start| {
        let mut path = vec![start];
        let mut seen = vec![false; ways.len()];
        walk(ways, &mut path, &mut seen).then(|| path.iter().map(|at| ways[*at].name).collect())
    })
}

/// Whether the path's first way is reached again from its last; the path then is the circle.
fn walk(ways: &[Way<'_>], path: &mut Vec<usize>, seen: &mut [bool]) -> bool {
    let (first, last) = (path[0], path[path.len() - 1]);
    if leads(&ways[last], &ways[first]) {
        return true;
    }
    for next in 0..ways.len() {
        if seen[next] || !leads(&ways[last], &ways[next]) {
            continue;
        }
        seen[next] = true;
        path.push(next);
        if walk(ways, path, seen) {
            return true;
        }
        path.pop();
    }
    false
}

/// Whether what `one` delivers may be what `other` takes.
fn leads(one: &Way<'_>, other: &Way<'_>) -> bool {
    one.to.0 == other.from.0 && meet(&one.to.1, &other.from.1)
}

/// Whether a topic could match both filters.
pub(super) fn meet(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('/'), other.split('/'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some("#"), _) | (_, Some("#")) => return true,
            (Some(a), Some(b)) if a == b || a == "+" || b == "+" => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_meet_when_a_topic_matches_both() {
        for (one, other) in [
            ("a/b", "a/b"),
            ("a/+", "+/b"),
            ("a/#", "a/b/c"),
            ("a/#", "a"),
            ("#", "x"),
            ("+/b/#", "a/+/c"),
        ] {
            assert!(meet(one, other) && meet(other, one), "{one} {other}");
        }
        for (one, other) in [("a", "b"), ("a/b", "a"), ("a/+", "a"), ("+/x", "a/b/#")] {
            assert!(!meet(one, other) && !meet(other, one), "{one} {other}");
        }
    }

    const LAN: Place = Place::Lan;
    const A: Place = Place::Remote(0);
    const B: Place = Place::Remote(1);

    fn way(name: &'static str, from: (Place, &str), to: (Place, &str)) -> Way<'static> {
        Way {
            name,
            from: (from.0, from.1.to_owned()),
            to: (to.0, to.1.to_owned()),
        }
    }

    #[test]
    fn a_circle_is_found_and_named() {
        let out = way("out", (LAN, "x/#"), (A, "p/x/#"));
        let back = way("back", (A, "p/#"), (LAN, "x/p/#"));
        assert_eq!(find(std::slice::from_ref(&out)), None);
        assert_eq!(
            find(&[out.clone(), back.clone()]),
            Some(vec!["out", "back"])
        );
        // The same topics at another broker are other topics.
        let elsewhere = way("back", (B, "p/#"), (LAN, "x/p/#"));
        assert_eq!(find(&[out.clone(), elsewhere]), None);
        // It comes back, but under a name that goes nowhere: an echo, no circle.
        let echo = way("echo", (A, "p/#"), (LAN, "echo/#"));
        assert_eq!(find(&[out, echo]), None);
    }

    #[test]
    fn a_circle_over_two_remotes_is_found_behind_a_way_in() {
        let ways = [
            way("entry", (A, "start/#"), (LAN, "one/#")),
            way("out-a", (LAN, "two/#"), (A, "three/#")),
            way("in-a", (A, "three/#"), (LAN, "one/#")),
            way("out-b", (LAN, "one/#"), (B, "four/#")),
            way("in-b", (B, "four/+"), (LAN, "two/+")),
        ];
        let circle = find(&ways).expect("a circle");
        assert_eq!(circle.len(), 4, "{circle:?}");
        assert!(!circle.contains(&"entry"), "{circle:?}");
    }
}
