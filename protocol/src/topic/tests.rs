//! The tree both ways, near misses, and filters against the examples of the standard.

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
    (label(), label(), any::<[u8; 16]>(), name, 0..9).prop_map(
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
                8 => Topic::Identity { site, device },
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
