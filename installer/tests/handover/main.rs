//! Handing a voucher in (flow S37), the real program before a gateway that refuses, breaks off or is somebody else: every
//! refusal says what to do, and whatever is cut or killed, the next try ends right with one owner.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

mod gateway;
mod person;

use std::time::Duration;

use gateway::{Fault, Gateway, Mood};
use person::Person;

const NEVER: Option<Fault> = None;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voucher_goes_in_once_and_again_without_harm() {
    let gateway = Gateway::start("harbour").await;
    let anna = Person::new();
    anna.trusts(&gateway);
    let (file, guid) = anna.voucher();
    let took = anna.extends(&file, &gateway, &["--site", "harbour"]);
    assert!(
        took.out.contains("the device can be powered on"),
        "{took:?}"
    );
    assert!(took.err.contains("its chain holds"), "{took:?}");
    for _ in 0..2 {
        let again = anna.extends(&file, &gateway, &[]);
        assert_eq!(
            (again.code, again.out.contains("already")),
            (0, true),
            "{again:?}"
        );
    }
    assert!(gateway.owns(&guid));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_refusal_says_what_to_do_and_nothing_is_handed_over() {
    let gateway = Gateway::start("harbour").await;
    let anna = Person::new();
    let (file, guid) = anna.voucher();
    let refused = |what: &str, more: &[&str], words: &[&str]| {
        let told = anna.extends(&file, &gateway, more);
        assert_ne!(told.code, 0, "{what}: {told:?}");
        for word in words {
            assert!(
                told.last().contains(word),
                "{what}: {word:?} is not in {:?}",
                told.last()
            );
        }
        assert!(!gateway.owns(&guid), "{what}");
    };
    refused(
        "no root",
        &[],
        &["no root certificate is trusted", "holdfast-installer trust"],
    );
    let other = Gateway::start("harbour").await;
    refused(
        "wrong root",
        &["--root", &other.root_file],
        &["cannot prove to be", "nothing was sent", "--root FILE"],
    );
    anna.trusts(&gateway);
    refused(
        "wrong site",
        &["--site", "quay"],
        &["is of site harbour, not of quay", "--site"],
    );
    for (mood, words) in [
        (
            Mood::Unlisted,
            &["refuses the voucher (HTTP 403)", "installers add"][..],
        ),
        (
            Mood::Fork,
            &["refuses the voucher (HTTP 409)", "sold twice"],
        ),
        (
            Mood::OtherSite,
            &["refuses the voucher (HTTP 409)", "belongs to site"],
        ),
        (
            Mood::Failing,
            &["could not take the voucher (HTTP 500)", "try again"],
        ),
        (Mood::Silly, &["no gateway of this version"]),
    ] {
        gateway.becomes(mood);
        refused(&format!("{mood:?}"), &[], words);
    }
    gateway.becomes(Mood::Good);
    let bert = Person::new();
    bert.trusts(&gateway);
    let not_his = bert.extends(&file, &gateway, &[]);
    assert!(
        not_his.last().contains("not for this installer"),
        "{not_his:?}"
    );
    assert!(not_his.last().contains("key show"), "{not_his:?}");
    gateway.stop();
    refused("gone", &[], &["was not reached", "check the address"]);
}

/// Who was refused for good by one gateway may go to another; who was not answered may not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_device_never_gets_two_owners_by_one_hand() {
    let (first, second) = Gateway::pair_of("harbour").await;
    let anna = Person::new();
    anna.trusts(&first);
    let (file, guid) = anna.voucher();
    first.becomes(Mood::OtherSite);
    assert_ne!(anna.extends(&file, &first, &[]).code, 0);
    assert_eq!(
        anna.extends(&file, &second, &[]).code,
        0,
        "refused there for good"
    );
    let (file, other) = anna.voucher();
    first.becomes(Mood::Good);
    // The answer is lost: it may have the voucher.
    first.breaks(Fault {
        at: 2,
        heard: true,
        hang: false,
    });
    assert_eq!(anna.extends(&file, &first, &[]).code, 69);
    let twice = anna.extends(&file, &second, &[]);
    assert!(
        twice.last().contains("two owners") && twice.last().contains("--anew"),
        "{twice:?}"
    );
    assert!(!second.owns(&other));
    assert!(first.owns(&other) && second.owns(&guid));
    // The person says that the first is lost for good.
    assert_eq!(anna.extends(&file, &second, &["--anew"]).code, 0);
    assert!(second.owns(&other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_at_any_request_the_next_try_ends_right() {
    let gateway = Gateway::start("harbour").await;
    let anna = Person::new();
    anna.trusts(&gateway);
    for at in 0..3 {
        for heard in [false, true] {
            let (file, guid) = anna.voucher();
            gateway.breaks(Fault {
                at,
                heard,
                hang: false,
            });
            let cut = anna.extends(&file, &gateway, &[]);
            assert_eq!(cut.code, 69, "{at} {heard}: {cut:?}");
            assert!(cut.last().contains("was not reached"), "{cut:?}");
            assert_eq!(
                gateway.owns(&guid),
                at == 2 && heard,
                "the control: it was cut there"
            );
            let again = anna.extends(&file, &gateway, &[]);
            assert_eq!(again.code, 0, "{again:?}");
            assert_eq!(again.out.contains("already"), at == 2 && heard, "{again:?}");
            assert!(gateway.owns(&guid));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_request_the_next_try_ends_right() {
    let gateway = Gateway::start("harbour").await;
    let anna = Person::new();
    anna.trusts(&gateway);
    let mut kills = 0;
    for at in 0..3 {
        for heard in [false, true] {
            let (file, guid) = anna.voucher();
            gateway.breaks(Fault {
                at,
                heard,
                hang: true,
            });
            let mut process = anna.starts(&["extend", &file, "--gateway", &gateway.at()]);
            tokio::time::timeout(Duration::from_secs(20), gateway.hung())
                .await
                .unwrap();
            process.kill().unwrap();
            process.wait().unwrap();
            kills += 1;
            gateway.becomes_whole(NEVER);
            let again = anna.extends(&file, &gateway, &[]);
            assert_eq!(again.code, 0, "{again:?}");
            assert!(gateway.owns(&guid));
            assert_eq!(anna.notes(), kills, "one note for each voucher");
        }
    }
}

/// The program is killed at no request in particular: whatever it has written is whole.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_leaves_whole_files() {
    let gateway = Gateway::start("harbour").await;
    let anna = Person::new();
    anna.trusts(&gateway);
    for moment in 0..12 {
        let (file, guid) = anna.voucher();
        let mut process = anna.starts(&["extend", &file, "--gateway", &gateway.at()]);
        tokio::time::sleep(Duration::from_millis(moment * 3)).await;
        process.kill().unwrap();
        process.wait().unwrap();
        let again = anna.extends(&file, &gateway, &[]);
        assert_eq!(again.code, 0, "{again:?}");
        assert!(gateway.owns(&guid));
    }
}
