//! Rights against an independently written model, and the list of known escapes.

use super::*;
use crate::{
    fixture::Dice,
    id::{DeviceId, Guid},
};

/// The model: a list of rules as segment lists, matched by recursion over whole topics. It decides
/// a subscription by trying every topic of a small world that could tell two filters apart.
mod model {
    pub(super) fn matches(rule: &[&str], topic: &[&str], first: bool) -> bool {
        let hidden = first && topic.first().is_some_and(|level| level.starts_with('$'));
        match (rule, topic) {
            (["#"], _) => !hidden,
            ([], []) => true,
            (["+", rule @ ..], [_, topic @ ..]) => !hidden && matches(rule, topic, false),
            ([wanted, rule @ ..], [found, topic @ ..]) => {
                wanted == found && matches(rule, topic, false)
            }
            _ => false,
        }
    }

    /// All topics of up to `depth` levels out of `levels`.
    pub(super) fn world<'a>(levels: &[&'a str], depth: usize) -> Vec<Vec<&'a str>> {
        let mut all: Vec<Vec<&str>> = vec![vec![]];
        let mut last = all.clone();
        for _ in 0..depth {
            let longer = |topic: &Vec<&'a str>| -> Vec<Vec<&'a str>> {
                levels
                    .iter()
                    .map(|level| [topic.clone(), vec![*level]].concat())
                    .collect()
            };
            last = last.iter().flat_map(longer).collect();
            all.extend(last.clone());
        }
        all.into_iter().filter(|topic| !topic.is_empty()).collect()
    }

    pub(super) fn contains(rule: &[&str], asked: &[&str], world: &[Vec<&str>]) -> bool {
        world
            .iter()
            .all(|topic| !matches(asked, topic, true) || matches(rule, topic, true))
    }
}

fn split(text: &str) -> Vec<&str> {
    text.split('/').collect()
}

#[test]
fn containment_equals_the_model_on_20_000_pairs() {
    // `z` is in no filter: it stands for everything that no filter names.
    let world = model::world(&["a", "b", "$s", "z"], 5);
    let levels = ["a", "b", "+", "$s", "+", "a"];
    let mut dice = Dice::new(1);
    let draw = |dice: &mut Dice| {
        let depth = dice.below(4);
        let mut filter: Vec<&str> = (0..depth).map(|_| *dice.pick(&levels)).collect();
        if filter.is_empty() || dice.chance(40) {
            filter.push("#");
        }
        filter.join("/")
    };
    let (mut yes, mut no) = (0, 0);
    for _ in 0..20_000 {
        let (rule, asked) = (draw(&mut dice), draw(&mut dice));
        let ours = rule
            .parse::<Filter>()
            .unwrap()
            .contains(&asked.parse().unwrap());
        let theirs = model::contains(&split(&rule), &split(&asked), &world);
        assert_eq!(ours, theirs, "does {rule} contain {asked}?");
        if ours { yes += 1 } else { no += 1 }
    }
    assert!(
        yes > 1_000 && no > 1_000,
        "the draw must try both answers: {yes} and {no}"
    );
}

/// Who may what, written down once more from the design's table, as plain text.
struct Oracle {
    party: Party,
    place: Place,
    publish: Vec<String>,
    subscribe: Vec<String>,
    /// What an operator granted, for clients.
    granted: Option<Patterns>,
}

const A: &str = "000102030405060708090a0b0c0d0e0f";
const B: &str = "ffeeddccbbaa99887766554433221100";

fn parties() -> Vec<Oracle> {
    let id = |text: &str| text.parse::<DeviceId>().unwrap();
    let site = |text: &str| text.parse::<SiteId>().unwrap();
    let mut all = Vec::new();
    let mut add = |party: &Party, publish: &[String], subscribe: &[String]| {
        for place in [
            Place::Site(site("plant")),
            Place::Site(site("dock")),
            Place::Cloud,
        ] {
            let here = match (&place, party.site()) {
                (Place::Site(place), Some(home)) => place == home,
                (Place::Site(_), None) => false,
                (Place::Cloud, _) => true,
            };
            // Rules in `ext` hold at the cloud alone.
            let holds = |rule: &&String| place == Place::Cloud || !rule.starts_with("ext/");
            let list = |rules: &[String]| match here {
                true => rules.iter().filter(holds).cloned().collect(),
                false => Vec::new(),
            };
            let (publish, subscribe) = (list(publish), list(subscribe));
            all.push(Oracle {
                party: party.clone(),
                place,
                publish,
                subscribe,
                granted: None,
            });
        }
    };
    for (device, home) in [(A, "plant"), (B, "plant"), (B, "dock")] {
        let party = Party::Device {
            device: id(device),
            site: site(home),
        };
        let own = format!("hf/v1/{home}/{device}");
        add(
            &party,
            &[format!("{own}/up/#"), format!("{own}/service/reported")],
            &[own + "/#"],
        );
        let party = Party::Service {
            device: id(device),
            service: "weather".parse().unwrap(),
            site: site(home),
        };
        let own = format!("svc/v1/{home}/weather/{device}");
        add(&party, &[own.clone() + "/telemetry"], &[own + "/command"]);
    }
    for home in ["plant", "dock"] {
        let party = Party::Gateway {
            server: "gw".parse().unwrap(),
            site: site(home),
        };
        let all = ["hf", "svc", "ext"].map(|tree| format!("{tree}/v1/{home}/#"));
        add(&party, &all, &all);
    }
    let everything = ["hf/v1/#", "svc/v1/#", "ext/v1/#"].map(str::to_owned);
    add(
        &Party::Cloud {
            server: "cloud".parse().unwrap(),
        },
        &everything,
        &everything,
    );
    all.extend(clients());
    all
}

/// Ordinary clients with patterns. At a site its own clients have what was granted; at the cloud they
/// have what of it lies in the site's branches, and the cloud's own clients have what was granted.
fn clients() -> Vec<Oracle> {
    let site = |text: &str| text.parse::<SiteId>().unwrap();
    let mut all = Vec::new();
    for (home, publish, subscribe) in [
        (
            Some("plant"),
            &["line/+/set", "line/7/#", "hf/v1/plant/+/down/#"][..],
            &["line/#", "hf/v1/plant/+/up/#", "ext/v1/plant/line/#"][..],
        ),
        (
            Some("dock"),
            &["ext/v1/dock/x", "ext/v1/plant/line/#"],
            &["+/v1/dock/x", "line/+"],
        ),
        (
            None,
            &["ext/v1/+/line/#", "line"],
            &["svc/v1/plant/#", "line/7/+"],
        ),
    ] {
        let filters = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        let granted = Patterns {
            publish: filters(publish),
            subscribe: filters(subscribe),
            shared: false,
        };
        let places = [
            Place::Site(site("plant")),
            Place::Site(site("dock")),
            Place::Cloud,
        ];
        for place in places {
            let holds = |rule: &&str| match (&place, home) {
                (Place::Site(here), home) => Some(here.as_str()) == home,
                (Place::Cloud, None) => true,
                (Place::Cloud, Some(home)) => ["hf", "svc", "ext"]
                    .iter()
                    .any(|root| rule.starts_with(&format!("{root}/v1/{home}/"))),
            };
            let list = |rules: &[&str]| {
                let rules = rules.iter().copied().filter(|rule| holds(rule));
                rules.map(str::to_owned).collect()
            };
            let (publish, subscribe) = (list(publish), list(subscribe));
            all.push(Oracle {
                party: Party::Client {
                    name: "scada".parse().unwrap(),
                    site: home.map(site),
                },
                place,
                publish,
                subscribe,
                granted: Some(granted.clone()),
            });
        }
    }
    all
}

/// Whether a topic inside `hf` or `svc` has one of the forms of the tree, by its shape alone; in
/// other trees every name is free.
fn has_a_form(topic: &str) -> bool {
    let levels = split(topic);
    if !["hf", "svc"].contains(&levels[0]) {
        return true;
    }
    let device = |text: &str| text == A || text == B;
    let name = |rest: &[&str]| {
        let odd = |level: &&str| level.is_empty() || level.contains(['+', '#', '$']);
        (1..=4).contains(&rest.len()) && !rest.iter().any(odd)
    };
    let label = |text: &str| {
        !text.is_empty()
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
    };
    match levels[..] {
        ["hf", "v1", site, "gateway", "health"] => label(site),
        ["hf", "v1", site, who, "up" | "down", ref rest @ ..] => {
            label(site) && device(who) && name(rest)
        }
        ["hf", "v1", site, who, "service", "desired" | "reported"] => label(site) && device(who),
        ["hf", "v1", site, who, "alternate"] => label(site) && device(who),
        ["svc", "v1", site, service, who, "telemetry" | "command"] => {
            label(site) && label(service) && device(who)
        }
        _ => false,
    }
}

/// Whether a party may publish, receive and subscribe, with the rules that the model goes by.
type Decide = fn(&Rights, &[String], &[String], &str) -> [bool; 3];

fn ours(rights: &Rights, _: &[String], _: &[String], text: &str) -> [bool; 3] {
    [
        rights.may_publish(text),
        rights.may_receive(text),
        rights.may_subscribe(text),
    ]
}

/// The decisions that differ from the model's, of 20,000 parties and texts; and how many it allows.
fn mismatches(decide: Decide) -> (Vec<String>, [u32; 3]) {
    let parts = [
        "hf",
        "svc",
        "ext",
        "v1",
        "plant",
        "dock",
        A,
        B,
        "up",
        "down",
        "service",
        "desired",
        "reported",
        "alternate",
        "gateway",
        "health",
        "weather",
        "light",
        "telemetry",
        "command",
        "x",
        "line",
        "7",
        "",
        "+",
        "#",
        "$share",
        "$SYS",
        "v2",
    ];
    let whole = [
        format!("hf/v1/plant/{A}/up/x"),
        format!("hf/v1/plant/{A}/service/reported"),
        format!("hf/v1/plant/{A}/alternate"),
        format!("hf/v1/plant/{B}/down/x"),
        format!("hf/v1/dock/{B}/up/x/x"),
        format!("svc/v1/plant/weather/{A}/telemetry"),
        format!("svc/v1/dock/weather/{B}/command"),
        "hf/v1/plant/gateway/health".to_owned(),
        "ext/v1/plant/line/7/state".to_owned(),
        "ext/v1/dock/x".to_owned(),
        "line/7/set".to_owned(),
        "line/7".to_owned(),
    ];
    let parties = parties();
    let mut dice = Dice::new(2);
    let mut allowed = [0u32; 3];
    let mut wrong = Vec::new();
    for _ in 0..20_000 {
        let oracle = dice.pick(&parties).clone_rules();
        let text = draw(&mut dice, &parts, &whole);
        let rights = Rights::compile(&oracle.0, oracle.4.as_ref(), &oracle.1);
        let name = !text.is_empty() && !text.contains(['+', '#']);
        let hit = |rules: &[String], topic: &str| {
            rules
                .iter()
                .any(|rule| model::matches(&split(rule), &split(topic), true))
        };
        let expected = [
            name && has_a_form(&text) && hit(&oracle.2, &text),
            name && hit(&oracle.3, &text),
            may_subscribe_by_model(&text, &oracle.3),
        ];
        let mut found = decide(&rights, &oracle.2, &oracle.3, &text);
        // Only a name is ever asked about here.
        found[1] &= name;
        if found != expected {
            wrong.push(format!(
                "{:?} {text}: {found:?}, not {expected:?}",
                oracle.0
            ));
        }
        for (count, decision) in allowed.iter_mut().zip(expected) {
            *count += u32::from(decision);
        }
    }
    (wrong, allowed)
}

#[test]
fn decisions_equal_the_oracle_on_60_000_triples() {
    let (wrong, allowed) = mismatches(ours);
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(
        allowed.iter().all(|count| *count > 300),
        "both answers must be tried: {allowed:?}"
    );
}

#[test]
fn control_the_oracle_finds_rights_that_compare_texts_or_forget_a_question() {
    let pasted: Decide = |rights, publish, _, text| {
        let under = |rule: &String| text.starts_with(rule.trim_end_matches(['#', '+']));
        let [_, receive, subscribe] = ours(rights, &[], &[], text);
        [publish.iter().any(under), receive, subscribe]
    };
    let forgetful: Decide = |rights, _, _, text| {
        let [publish, receive, _] = ours(rights, &[], &[], text);
        [publish, receive, receive]
    };
    let narrow: Decide = |rights, _, _, text| {
        let [publish, _, subscribe] = ours(rights, &[], &[], text);
        [publish, false, subscribe]
    };
    for defect in [pasted, forgetful, narrow] {
        assert!(!mismatches(defect).0.is_empty(), "the oracle is blind");
    }
}

impl Oracle {
    fn clone_rules(&self) -> (Party, Place, Vec<String>, Vec<String>, Option<Patterns>) {
        (
            self.party.clone(),
            self.place.clone(),
            self.publish.clone(),
            self.subscribe.clone(),
            self.granted.clone(),
        )
    }
}

/// A topic or filter near the tree: a true one with some levels changed, dropped or added.
fn draw(dice: &mut Dice, parts: &[&str], whole: &[String]) -> String {
    let mut levels: Vec<String> = split(dice.pick::<String>(whole))
        .iter()
        .map(|l| (*l).to_owned())
        .collect();
    for _ in 0..dice.below(3) {
        let at = usize::try_from(dice.below(levels.len() as u64)).unwrap();
        match dice.below(4) {
            0 | 1 => levels[at] = (*dice.pick(parts)).to_owned(),
            2 => levels.truncate(at + 1),
            _ => levels.insert(at, (*dice.pick(parts)).to_owned()),
        }
    }
    if dice.chance(20) {
        levels.push("#".to_owned());
    }
    levels.join("/")
}

/// A filter is allowed if it is one and each way to fill its wildcards is allowed.
fn may_subscribe_by_model(text: &str, rules: &[String]) -> bool {
    let levels = split(text);
    let (last, before) = levels.split_last().unwrap();
    let stray = |level: &&str| level.len() > 1 && level.contains(['+', '#']);
    if text.is_empty() || levels[0] == "$share" || before.contains(&"#") {
        return false;
    }
    if levels.iter().any(stray) {
        return false;
    }
    let odd = |level: &&str| level.is_empty() || level.contains('$');
    if ["hf", "svc"].contains(&levels[0]) && levels.iter().any(odd) {
        return false;
    }
    // Fillings that no rule names, and one that every rule with a wildcard at the end might miss.
    let (head, open) = if *last == "#" {
        (before, true)
    } else {
        (&levels[..], false)
    };
    let tails: Vec<Vec<&str>> = match open {
        false => vec![vec![]],
        true => vec![vec![], vec!["zz"], vec!["zz", "zz"], vec![""], vec!["$z"]],
    };
    tails.iter().all(|tail| {
        let filled: Vec<&str> = head
            .iter()
            .map(|l| if *l == "+" { "zz" } else { l })
            .chain(tail.iter().copied())
            .collect();
        // The topic above the first level does not exist; a `$` there is not what `#` reaches.
        let none = filled.is_empty() || head.is_empty() && tail.first() == Some(&"$z");
        none || rules
            .iter()
            .any(|rule| model::matches(&split(rule), &filled, true))
    })
}

#[test]
fn escapes_reach_nothing() {
    let device = |text: &str| Party::Device {
        device: text.parse().unwrap(),
        site: "plant".parse().unwrap(),
    };
    let here = Place::Site("plant".parse().unwrap());
    let rights = Rights::compile(&device(A), None, &here);
    let upper = A.to_uppercase();
    let long = format!("hf/v1/plant/{A}/{}", "x".repeat(65_536));
    for filter in [
        "#",
        "+/#",
        "+",
        "+/+/+/+/#",
        "$SYS/#",
        "$share/g/#",
        "$queue/a",
        "$CONTROL/a",
        "//",
        "/",
        "",
        "hf/#",
        "hf/v1/#",
        "hf/v1/plant/#",
        "hf/v1/plant/+/up/#",
        "hf/v1/+/+/#",
        "/hf/v1/plant/#",
        &format!("$share/g/hf/v1/plant/{B}/#"),
        &format!("$share/g/hf/v1/plant/{A}/#"),
        &format!("hf/v1/plant/{A}/../{B}/#"),
        &format!("hf/v1/plant/{B}/#"),
        &format!("hf/v1/dock/{A}/#"),
        &format!("hf/v1/plant/{A}"),
        &format!("hf/v1/plant/{upper}/#"),
        &format!("HF/v1/plant/{A}/#"),
        &format!("hf/v1/plant/{A}\u{feff}/#"),
        &format!("hf/v1/plant/{A}\u{200b}/#"),
        &format!("hf/v1/pla\u{301}nt/{A}/#"),
        &format!("hf/v1/plant/+{A}/#"),
        &format!("hf/v1/plant/{A}/#/x"),
        &format!("hf/v1/plant/{A}/up\0/#"),
        &long,
    ] {
        let own = filter == format!("hf/v1/plant/{A}");
        // The parent level of `<A>/#` is the device's own and nobody's topic.
        assert_eq!(rights.may_subscribe(filter), own, "{filter:?}");
    }
    for topic in [
        "$SYS/x",
        "hf",
        "",
        "/",
        "hf/v1/plant/gateway/health",
        &format!("hf/v1/plant/{A}"),
        &format!("hf/v1/plant/{A}/up"),
        &format!("hf/v1/plant/{A}/up/"),
        &format!("hf/v1/plant/{A}/up//x"),
        &format!("hf/v1/plant/{A}/up/+"),
        &format!("hf/v1/plant/{A}/up/#"),
        &format!("hf/v1/plant/{A}/up/a\u{200b}"),
        &format!("hf/v1/plant/{A}/down/x"),
        &format!("hf/v1/plant/{A}/service/desired"),
        &format!("hf/v1/plant/{A}/alternate"),
        &format!("hf/v1/plant/{B}/up/x"),
        &format!("hf/v1/plant/{upper}/up/x"),
        &format!("svc/v1/plant/weather/{A}/telemetry"),
        &long,
    ] {
        assert!(!rights.may_publish(topic), "{topic:?}");
    }
    assert!(rights.may_publish(&format!("hf/v1/plant/{A}/up/weather")));
    // What reaches A of 10,000 messages of others: nothing.
    let mut dice = Dice::new(3);
    for _ in 0..10_000 {
        let guid = Guid(std::array::from_fn(|_| {
            u8::try_from(dice.below(256)).unwrap()
        }));
        let other = DeviceId::from_guid(guid);
        assert!(!rights.may_receive(&format!("hf/v1/plant/{other}/up/x")));
    }
}

#[test]
fn clients_get_what_was_granted_and_no_more() {
    let filters = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
    let granted = Patterns {
        publish: filters(&["plant/line1/#", "hf/v1/plant/+/down/#"]),
        subscribe: filters(&["#", "hf/v1/plant/+/up/#"]),
        shared: true,
    };
    let client = Party::Client {
        name: "scada".parse().unwrap(),
        site: Some("plant".parse().unwrap()),
    };
    let at = |place: &Place| Rights::compile(&client, Some(&granted), place);
    let home = at(&Place::Site("plant".parse().unwrap()));
    assert!(home.may_publish("plant/line1/x") && home.may_subscribe("#"));
    assert!(home.may_subscribe("$share/g/a/#") && !home.may_subscribe("$SYS/#"));
    assert!(home.may_publish(&format!("hf/v1/plant/{A}/down/stop")));
    assert!(
        !home.may_publish(&format!("hf/v1/plant/{A}/down/")),
        "not a topic of the tree"
    );
    // The cloud believes a site's grants for that site alone.
    let cloud = at(&Place::Cloud);
    assert!(!cloud.may_publish("plant/line1/x") && !cloud.may_subscribe("#"));
    assert!(cloud.may_subscribe("hf/v1/plant/+/up/weather"));
    assert!(!cloud.may_subscribe("hf/v1/+/+/up/weather"));
    assert_eq!(at(&Place::Site("dock".parse().unwrap())), Rights::none());
    assert_eq!(
        Rights::compile(&client, None, &Place::Cloud),
        Rights::none()
    );
    // Patterns are no way for anything but a client.
    let device = Party::Device {
        device: A.parse().unwrap(),
        site: "plant".parse().unwrap(),
    };
    assert_eq!(
        Rights::compile(&device, Some(&granted), &Place::Cloud),
        Rights::compile(&device, None, &Place::Cloud),
    );
}
