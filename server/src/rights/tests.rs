//! The adapter against a model of its own: 10,000 random questions put to it as the broker does, for
//! clients with certificates and with passwords, before and after some of them lost their place.

use std::path::Path;
use std::sync::Arc;

use holdfast_broker::Passwords;
use holdfast_cps::{CpsConfig, Keys, Role};
use holdfast_link::time::{SystemClock, SystemTrust};
use holdfast_protocol::id::SiteId;
use holdfast_protocol::rights::{Patterns, Place};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::*;
use crate::config::users::{self as listed, User};

const DEVICE: &str = "00000000000000000000000000000001";

/// Somebody with a session, and what it should be able to do, as plain text.
struct Somebody {
    rights: Arc<ServerRights>,
    who: Identity,
    publish: Vec<&'static str>,
    subscribe: Vec<&'static str>,
    shared: bool,
}

/// Rules by recursion over levels.
fn hit(rules: &[&str], topic: &[&str]) -> bool {
    fn matches(rule: &[&str], topic: &[&str], first: bool) -> bool {
        let hidden = first && topic.first().is_some_and(|level| level.starts_with('$'));
        match (rule, topic) {
            (["#"], _) => !hidden,
            ([], []) => true,
            (["+", rule @ ..], [_, topic @ ..]) => !hidden && matches(rule, topic, false),
            ([a, rule @ ..], [b, topic @ ..]) => a == b && matches(rule, topic, false),
            _ => false,
        }
    }
    rules
        .iter()
        .any(|rule| matches(&rule.split('/').collect::<Vec<_>>(), topic, true))
}

fn in_the_trees(levels: &[&str]) -> bool {
    ["hf", "svc"].contains(&levels[0])
}

fn may_publish(rules: &[&str], topic: &str) -> bool {
    let levels: Vec<&str> = topic.split('/').collect();
    let odd = |level: &&str| level.is_empty() || level.contains(['$', '+', '#']);
    let is_label = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
    };
    let has_a_form = match levels[..] {
        ["hf", "v1", site, device, "up" | "down", ref rest @ ..] => {
            is_label(site) && device == DEVICE && !rest.is_empty() && !rest.iter().any(odd)
        }
        _ => !in_the_trees(&levels),
    };
    !topic.is_empty() && !topic.contains(['+', '#']) && has_a_form && hit(rules, &levels)
}

/// A filter is allowed if each way to fill its wildcards is.
fn may_subscribe(rules: &[&str], filter: &str) -> bool {
    let levels: Vec<&str> = filter.split('/').collect();
    let (last, before) = levels.split_last().expect("one level at least");
    if filter.is_empty() || before.contains(&"#") || levels[0] == "$share" {
        return false;
    }
    let odd = |level: &&str| level.is_empty() || level.contains('$');
    if in_the_trees(&levels) && levels.iter().any(odd) {
        return false;
    }
    let (head, tails) = match *last {
        "#" => (before, &[&[][..], &["zz"], &["zz", "zz"], &[""]][..]),
        _ => (&levels[..], &[&[][..]][..]),
    };
    tails.iter().all(|tail| {
        let filled = head
            .iter()
            .map(|level| if *level == "+" { "zz" } else { level });
        let filled: Vec<&str> = filled.chain(tail.iter().copied()).collect();
        filled.is_empty() || hit(rules, &filled)
    })
}

/// A generator that draws the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("below")
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        list[self.below(list.len())]
    }

    /// A topic or filter near those that somebody may have.
    fn text(&mut self) -> String {
        let whole = [
            "plant/meter/set",
            "plant/meter/a/b",
            "plant/pump/x",
            "hf/v1/bern/DEVICE/up/x",
            "hf/v1/bern/DEVICE/down/set",
            "hf/v1/bern/DEVICE/service/desired",
            "ext/v1/bern/line",
            "ext/v1/basel/line",
        ];
        let parts = [
            "plant", "meter", "pump", "set", "hf", "svc", "ext", "v1", "bern", "basel", DEVICE,
            "up", "down", "line", "x", "", "+", "+", "#", "$SYS",
        ];
        let text = self.pick(&whole).replace("DEVICE", DEVICE);
        let mut levels: Vec<&str> = text.split('/').collect();
        for _ in 0..self.below(3) {
            let at = self.below(levels.len());
            match self.below(4) {
                0 | 1 => levels[at] = self.pick(&parts),
                2 => levels.truncate(at + 1),
                _ => levels.insert(at, self.pick(&parts)),
            }
        }
        if self.below(5) == 0 {
            levels.push("#");
        }
        levels.join("/")
    }
}

async fn cloud(state: &Path) -> Cps {
    let clock = SystemClock::open(&state.join("time"), SystemTrust::Vouched).expect("clock");
    let domain = "holdfast.internal".parse().expect("domain");
    let config = CpsConfig::new("cloud".parse().expect("name"), domain, Role::Cloud);
    let keys = Keys::open(&state.join("keys")).expect("keys");
    let stores = crate::opening::stores(state).expect("stores");
    let cps = Cps::open(config, stores, keys, Arc::new(clock)).await;
    cps.expect("opens")
}

fn user(name: &str, hash: &str, publish: &[&str], subscribe: &[&str]) -> User {
    let filters = |list: &[&str]| {
        list.iter()
            .map(|text| text.parse().expect("filter"))
            .collect()
    };
    User {
        name: name.parse().expect("name"),
        password: hash.to_owned(),
        client_id: None,
        patterns: Patterns {
            publish: filters(publish),
            subscribe: filters(subscribe),
            shared: name == "pump",
        },
    }
}

fn peer(user: Option<&str>, certificates: Vec<Vec<u8>>) -> Peer {
    Peer {
        address: ([127, 0, 0, 1], 1).into(),
        certificates,
        door: "a door".into(),
        user: user.map(Into::into),
    }
}

fn said(client_id: &str) -> Connect<'_> {
    Connect {
        client_id,
        user_name: None,
        password: None,
        v5: true,
    }
}

const METER: ([&str; 2], [&str; 2]) = (
    ["plant/meter/#", "hf/v1/+/+/down/#"],
    ["plant/+/set", "hf/v1/bern/+/up/#"],
);
const PUMP: ([&str; 1], [&str; 1]) = (["plant/pump/#"], ["plant/pump/#"]);

async fn by_certificate(cps: &Cps, site: Option<&str>) -> Vec<Vec<u8>> {
    let filters = |list: &[&str]| {
        list.iter()
            .map(|text| text.parse().expect("filter"))
            .collect()
    };
    let site: Option<SiteId> = site.map(|site| site.parse().expect("site"));
    let publish = filters(&["plant/x", "ext/v1/bern/#"]);
    let subscribe = filters(&["plant/#", "ext/v1/bern/line"]);
    let name = "panel".parse().expect("name");
    let files = cps.clients().issue(name, site, publish, subscribe).await;
    CertificateDer::pem_slice_iter(files.expect("issued").cert.as_bytes())
        .map(|found| found.expect("PEM").to_vec())
        .collect()
}

#[tokio::test]
async fn ten_thousand_answers_equal_those_of_the_model() {
    let folder = tempfile::tempdir().expect("folder");
    let cps = cloud(folder.path()).await;
    let bern: SiteId = "bern".parse().expect("site");
    cps.add_site(&bern).await.expect("site");
    let hash = Passwords::hash(b"its own word").expect("hash");
    let all = || {
        listed::Users(vec![
            user("meter", &hash, &METER.0, &METER.1),
            user("pump", &hash, &PUMP.0, &PUMP.1),
        ])
    };
    let at = |place| Users::new(all(), place, 10).expect("users");
    let (here, there) = (at(Place::Cloud), at(Place::Site(bern)));
    let rights = |users: &Users| {
        let domain = cps.config().domain.clone();
        let metrics = cps.metrics().clone();
        Arc::new(ServerRights::new(
            cps.roster().clone(),
            users.clone(),
            domain,
            metrics,
        ))
    };
    let mut people = Vec::new();
    for users in [&here, &there] {
        for (name, publish, subscribe) in [
            ("meter", METER.0.to_vec(), METER.1.to_vec()),
            ("pump", PUMP.0.to_vec(), PUMP.1.to_vec()),
        ] {
            let rights = rights(users);
            let who = rights.identify(&peer(Some(name), Vec::new()), &said(name));
            let shared = name == "pump";
            let who = who.expect("let in");
            people.push(Somebody {
                rights,
                who,
                publish,
                subscribe,
                shared,
            });
        }
    }
    let cloud_only = (
        vec!["plant/x", "ext/v1/bern/#"],
        vec!["plant/#", "ext/v1/bern/line"],
    );
    let of_the_site = (vec!["ext/v1/bern/#"], vec!["ext/v1/bern/line"]);
    for (site, (publish, subscribe)) in [(None, cloud_only), (Some("bern"), of_the_site)] {
        let rights = rights(&here);
        let shown = peer(None, by_certificate(&cps, site).await);
        let who = rights.identify(&shown, &said("panel")).expect("let in");
        people.push(Somebody {
            rights,
            who,
            publish,
            subscribe,
            shared: false,
        });
    }

    let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
    let mut allowed = [0_u32; 4];
    assert_eq!(ask(&people, &mut dice, 7_000, &mut allowed), Ok(()));
    assert!(
        allowed.iter().all(|count| *count > 20),
        "both answers must be tried: {allowed:?}"
    );

    // The meter leaves the file at both places, the site's panel is revoked, and the model forgets them.
    for users in [&here, &there] {
        let rest = listed::Users(vec![user("pump", &hash, &PUMP.0, &PUMP.1)]);
        let ended = users.replace(rest).expect("replaced");
        assert_eq!(ended.into_iter().collect::<Vec<_>>(), ["meter"]);
    }
    let (serial, _) = parse(&people[5].who.subject).expect("a certificate's");
    cps.authority().revoke(serial).await.expect("revoked");
    for gone in [0, 2, 5] {
        people[gone].publish.clear();
        people[gone].subscribe.clear();
    }
    assert!(is_revoked(cps.roster(), &people[5].who) && !is_revoked(cps.roster(), &people[4].who));
    assert_eq!(ask(&people, &mut dice, 3_000, &mut allowed), Ok(()));

    // Control: who keeps a right in the model that is gone is found out.
    people[0].subscribe = METER.1.to_vec();
    assert!(ask(&people, &mut dice, 3_000, &mut allowed).is_err());
}

/// Puts so many questions; the first answer that is not the model's.
fn ask(
    people: &[Somebody],
    dice: &mut Dice,
    times: usize,
    allowed: &mut [u32; 4],
) -> Result<(), String> {
    for _ in 0..times {
        let one = &people[dice.below(people.len())];
        let text = dice.text();
        let name = !text.is_empty() && !text.contains(['+', '#']);
        let subscribe = may_subscribe(&one.subscribe, &text);
        let levels: Vec<&str> = text.split('/').collect();
        let (rights, who) = (&one.rights, &one.who);
        let (action, ours, model) = match dice.below(4) {
            0 => (
                0,
                rights.may_publish(who, &text),
                may_publish(&one.publish, &text),
            ),
            1 => (1, rights.may_subscribe(who, &text), subscribe),
            2 => (
                2,
                rights.may_share(who, "g", &text),
                subscribe && one.shared,
            ),
            _ if !name => continue,
            _ => (
                3,
                rights.may_receive(who, &text),
                hit(&one.subscribe, &levels),
            ),
        };
        if ours != model {
            return Err(format!("{:?}, action {action}, {text}: {ours}", one.who));
        }
        allowed[action] += u32::from(ours);
    }
    Ok(())
}

#[tokio::test]
async fn a_user_is_nobody_elses_session_and_a_stranger_nobody() {
    let folder = tempfile::tempdir().expect("folder");
    let cps = cloud(folder.path()).await;
    let hash = Passwords::hash(b"its own word").expect("hash");
    let list = listed::Users(vec![user("panel", &hash, &PUMP.0, &PUMP.1)]);
    let users = Users::new(list, Place::Cloud, 10).expect("users");
    let (roster, metrics) = (cps.roster().clone(), cps.metrics().clone());
    let rights = ServerRights::new(roster, users, cps.config().domain.clone(), metrics.clone());
    let by_certificate = peer(None, by_certificate(&cps, None).await);
    let certified = rights.identify(&by_certificate, &said("")).expect("let in");
    let by_password = peer(Some("panel"), Vec::new());
    let user = rights.identify(&by_password, &said("")).expect("let in");
    assert_ne!(certified.client_id, user.client_id, "one name, two parties");
    for foreign in [
        &*certified.client_id,
        "panel.clients",
        "x",
        "PANEL",
        "user:other",
    ] {
        let refused = rights.identify(&by_password, &said(foreign));
        assert_eq!(refused, Err(Refusal::ClientId), "{foreign}");
    }
    let gone = rights.identify(&peer(Some("gone"), Vec::new()), &said(""));
    assert_eq!(gone, Err(Refusal::NotAuthorized));
    let nobody = rights.identify(&peer(None, Vec::new()), &said(""));
    assert_eq!(nobody, Err(Refusal::NotAuthorized));
    rights.turned_away(&peer(None, Vec::new()), &said(""), Refusal::BadCredentials);
    for (reason, count) in [("client id", 5), ("unknown", 1), ("no password", 1)] {
        assert_eq!(metrics.refusals(LOGINS, reason), count, "{reason}");
    }
    // A subject of a user is read as no certificate's, nor the other way round.
    assert!(parse(&user.subject).is_none() && users::named_by(&certified.subject).is_none());
}

#[test]
fn the_client_id_is_the_certificates() {
    let domain = "holdfast.internal".parse().expect("domain");
    let id = client_id("thermo.clients.bern.holdfast.internal", &domain);
    assert_eq!(id, "thermo.clients.bern");
    for good in ["", "thermo", "thermo.clients.bern"] {
        assert!(agrees(good, id), "{good}");
    }
    for bad in [
        "thermo.clients",
        "other",
        "thermo.clients.basel",
        "THERMO",
        " ",
    ] {
        assert!(!agrees(bad, id), "{bad}");
    }
}

#[test]
fn subjects_are_read_back() {
    let (serial, dns) = parse("0a1b2c a.b").expect("parses");
    assert_eq!((serial.to_string().as_str(), dns), ("0a1b2c", "a.b"));
    for bad in ["", "0a1b2c", "zz a.b", " a.b"] {
        assert!(parse(bad).is_none(), "{bad:?}");
    }
}
