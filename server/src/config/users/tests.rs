//! The file of clients: what may be granted and what may not.

use std::path::Path;

use super::*;

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$kt5hCTmh5cXlKNKtuoVbuw$EaVTHzq+PoHtQCZbT5uB4ciOvrmkVQe5Usz4cPpwnno";

fn parse(text: &str) -> Result<Users, Faults> {
    holdfast_config::parse(Path::new("clients.toml"), text)
}

fn granted(kind: &str, filter: &str) -> bool {
    let text = format!(
        "[[client]]\nname = \"a\"\npassword = \"{HASH}\"\n{kind} = [{}]\n",
        serde_json::json!(filter)
    );
    parse(&text).is_ok()
}

#[test]
fn the_sample_with_all_comments_removed_is_valid() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/clients.toml");
    let sample = std::fs::read_to_string(path).expect("the sample is there");
    assert_eq!(parse(&sample), Ok(Users(Vec::new())));
    let uncommented = |line: &str| match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => {
            rest.to_owned() + "\n"
        }
        _ => line.to_owned() + "\n",
    };
    let open: String = sample.lines().map(uncommented).collect();
    let Users(users) = parse(&open).expect("valid");
    assert_eq!(users.len(), 1);
    assert!(users[0].client_id.is_some());
}

#[test]
fn the_trees_of_the_house_are_closed_but_for_what_is_written_out() {
    for both in ["plant/#", "plant/+/x", "ext/v1/bern/a", "hff/#", "a"] {
        assert!(
            granted("publish", both) && granted("subscribe", both),
            "{both}"
        );
    }
    for to_devices in [
        "hf/v1/bern/+/down/#",
        "hf/v1/+/+/down/set",
        "svc/v1/b/s/+/command",
    ] {
        assert!(granted("publish", to_devices), "{to_devices}");
        assert!(granted("subscribe", to_devices), "{to_devices}");
    }
    for read_only in [
        "hf/v1/bern/+/up/#",
        "hf/v1/bern/+/service/reported",
        "svc/v1/bern/+/+/telemetry",
        "hf/v1/bern/gateway/health",
    ] {
        assert!(granted("subscribe", read_only), "{read_only}");
        assert!(!granted("publish", read_only), "{read_only}");
    }
    for closed in [
        "#",
        "+/#",
        "+/v1/#",
        "+",
        "hf/#",
        "hf",
        "hf/v1/#",
        "hf/v1/bern/#",
        "hf/v1/bern/+/#",
        "hf/v1/bern/+/+",
        "hf/v1/bern/+/service/desired",
        "hf/v1/bern/+/service/+",
        "hf/v1/bern/+/alternate",
        "hf/v1/bern/+/identity",
        "hf/v2/bern/x/up/#",
        "svc/#",
        "svc/v1/bern/#",
        "$SYS/#",
        "$share/g/a",
        "$other",
        "",
        "a#",
        "a/#/b",
        "a\u{0}b",
        "hf/v1/bern/../down/x",
    ] {
        assert!(!granted("publish", closed), "{closed:?}");
        assert!(!granted("subscribe", closed), "{closed:?}");
    }
}

#[test]
fn names_are_given_once_and_nothing_is_left_out() {
    let one = |name: &str| {
        format!("[[client]]\nname = \"{name}\"\npassword = \"{HASH}\"\npublish = [\"x\"]\n")
    };
    assert!(parse(&(one("a") + &one("b"))).is_ok());
    let twice = parse(&(one("a") + &one("b") + &one("a"))).expect_err("twice");
    assert!(twice.to_string().contains("names a twice"), "{twice}");
    let bare = parse("[[client]]\n").expect_err("bare").to_string();
    for key in ["name", "password", "publish"] {
        assert!(bare.contains(&format!("client[1].{key}")), "{bare}");
    }
    let dear = HASH.replace("m=19456", "m=1048576");
    let dear = one("a").replace(HASH, &dear);
    assert!(parse(&dear).is_err(), "a gibibyte for each guess");
    let shown = format!("{:?}", parse(&one("a")).expect("good"));
    assert!(!shown.contains("argon2id"), "{shown}");
}
