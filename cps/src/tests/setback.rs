//! A cloud that was set back to its backup: what it forgot comes back from its gateways, and what it
//! writes from then on reaches them.

use std::collections::BTreeSet;

use holdfast_protocol::record::{Cursor, EntryId};
use holdfast_protocol::succession::KeyRole;
use tempfile::TempDir;

use super::copies::copy_of;
use super::kit::*;
use crate::authority::Whose;
use crate::sync::{Client, Given, Wanted};
use crate::{CpsConfig, Role};

fn config(batch: usize) -> CpsConfig {
    let domain = "holdfast.internal".parse().unwrap();
    let mut config = CpsConfig::new(server("cloud"), domain, Role::Cloud);
    config.limits.sync_batch = batch;
    config
}

/// The same in both lives: only some were in the backup.
struct Lives {
    cloud: Served,
    gateways: Vec<Served>,
}

async fn sync(gateway: &Served, cloud: &Served) -> crate::sync::Exchange {
    let client = https_client(gateway, cloud.api).await;
    Client::new(&gateway.cps, client).once().await.unwrap()
}

/// Two commits' worth of entries: a client admitted, and its certificate.
async fn admit(cloud: &Served, names: &[&str]) {
    for name in names {
        let done = cloud.cps.clients().issue(
            name.parse().unwrap(),
            Some(site("north")),
            Vec::new(),
            Vec::new(),
        );
        done.await.unwrap();
    }
}

fn clients(of: &Served) -> BTreeSet<String> {
    let rows = of.cps.core.registry.read(|view| view.clients()).unwrap();
    rows.into_iter().map(|row| row.name.to_string()).collect()
}

fn revoked(of: &Served) -> BTreeSet<String> {
    let rows = of.cps.core.registry.read(|view| view.certificates());
    let rows = rows.unwrap().into_iter().filter(|row| row.revoked);
    rows.map(|row| row.subject).collect()
}

fn cursor(of: &Served) -> Cursor {
    of.cps.sync().cursor(&site("north")).unwrap()
}

fn names(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|one| (*one).to_owned()).collect()
}

async fn revoke(cloud: &Served, name: &str) {
    let whose = Whose::Client(name.parse().unwrap(), Some(site("north")));
    cloud.cps.authority().revoke_all(&whose).await.unwrap();
}

/// A life of which the backup knows nothing but the client `old`, and then another one from the
/// backup, in which `present` are admitted before any gateway comes.
async fn two_lives(batch: usize, forgotten: &[&str], present: &[&str]) -> Lives {
    let cloud = serve(config(batch), tempfile::tempdir().unwrap()).await;
    let mut gateways = Vec::new();
    for name in ["gw1", "gw2"] {
        gateways.push(gateway(&cloud, "north", name).await);
    }
    admit(&cloud, &["old"]).await;
    for one in &gateways {
        sync(one, &cloud).await;
    }
    let folder = cloud.stop().await;
    let backup: TempDir = copy_of(&folder);
    let cloud = serve(config(batch), folder).await;
    admit(&cloud, forgotten).await;
    revoke(&cloud, "old").await;
    sync(&gateways[0], &cloud).await;
    drop(cloud.stop().await);
    let cloud = serve(config(batch), backup).await;
    admit(&cloud, present).await;
    Lives { cloud, gateways }
}

async fn all_agree(lives: &Lives, wanted: &BTreeSet<String>) {
    let Lives { cloud, gateways } = lives;
    for _ in 0..2 {
        for one in gateways {
            let done = sync(one, cloud).await;
            assert!(done.pulled.refused.is_empty() && done.pushed.refused.is_empty());
        }
    }
    for one in gateways.iter().chain([cloud]) {
        assert_eq!(clients(one), *wanted, "{:?}", one.cps.config().server);
        assert_eq!(cursor(one), cursor(cloud));
        assert!(
            revoked(one).iter().any(|name| name.starts_with("old.")),
            "what was revoked stays so at {:?}",
            one.cps.config().server
        );
    }
    for one in gateways {
        let again = sync(one, cloud).await;
        assert_eq!((again.pulled.taken, again.pushed.taken), (0, 0));
    }
    assert!(!cloud.cps.sync().is_comparing(&site("north")).unwrap());
}

#[tokio::test]
async fn what_a_restored_cloud_forgot_comes_back_and_what_it_writes_reaches_everybody() {
    // Fewer new entries than forgotten ones, as many, and more; in one delivery, and in many.
    for (batch, present) in [
        (500, &["x1"][..]),
        (500, &[]),
        (500, &["x1", "x2", "x3", "x4", "x5"]),
        (2, &["x1"]),
        (1, &["x1", "x2", "x3", "x4", "x5"]),
    ] {
        let lives = two_lives(batch, &["y1", "y2", "y3"], present).await;
        let (cloud, first) = (&lives.cloud, &lives.gateways[0]);
        // The control: by cursors alone the gateway never hears of the new entries.
        let lacks = cloud.cps.sync().pull(&site("north"), &cursor(first), 500);
        let blind = lacks.unwrap().entries.len() < 2 * present.len();
        assert!(blind || present.is_empty(), "{present:?}");
        let mut wanted = names(&["old", "y1", "y2", "y3"]);
        wanted.extend(names(present));
        all_agree(&lives, &wanted).await;
        // And it goes on as if nothing had been.
        admit(&lives.cloud, &["later"]).await;
        wanted.insert("later".to_owned());
        all_agree(&lives, &wanted).await;
    }
}

#[tokio::test]
async fn a_gateway_that_comes_late_with_what_the_first_did_not_have_is_heard_too() {
    let mut lives = two_lives(500, &["y1"], &["x1", "x2"]).await;
    // The second gateway missed the forgotten life, and meets the present one first.
    lives.gateways.reverse();
    all_agree(&lives, &names(&["old", "y1", "x1", "x2"])).await;
}

#[tokio::test]
async fn a_return_that_is_cut_anywhere_is_ended_by_the_next() {
    for cut in 1..7 {
        let lives = two_lives(1, &["y1", "y2"], &["x1"]).await;
        let (cloud, first) = (&lives.cloud, &lives.gateways[0]);
        let (at, mut wanted) = (site("north"), Wanted::default());
        for _ in 0..cut {
            let entries = match wanted.first {
                Some(from) => first.cps.sync().of_cloud_from(&at, from).unwrap(),
                None => Vec::new(),
            };
            let given = Given {
                marks: first.cps.sync().marks(&at).unwrap(),
                entries: entries.into_iter().take(1).collect(),
                comparing: wanted.comparing,
            };
            let sync = cloud.cps.sync();
            wanted = sync.take_back(&at, &server("gw1"), given).await.unwrap();
        }
        all_agree(&lives, &names(&["old", "y1", "y2", "x1"])).await;
    }
}

#[tokio::test]
async fn nothing_is_taken_back_that_this_cloud_did_not_sign() {
    let lives = two_lives(500, &["y1"], &["x1"]).await;
    let (cloud, first, at) = (&lives.cloud, &lives.gateways[0], site("north"));
    let before = cursor(cloud);
    let of = first.cps.core.registry.read(|view| {
        let id = |seq| EntryId {
            origin: server("cloud"),
            epoch: 1,
            seq,
        };
        let head = cursor(first).after(&server("cloud"), 1);
        (1..=head)
            .map(|seq| view.entry(&at, &id(seq)))
            .collect::<Result<Vec<_>, _>>()
    });
    let entries: Vec<_> = of.unwrap().into_iter().flatten().collect();
    // Written by the gateway under the cloud's name, or changed by one byte.
    let own = first.cps.keys().present(KeyRole::Signing);
    let forge = |entry: &holdfast_protocol::record::SignedEntry| {
        let forged = holdfast_protocol::record::SignedEntry::sign(entry.entry().clone(), &own);
        forged.unwrap().as_bytes().to_vec()
    };
    let mut bad: Vec<Vec<u8>> = entries.iter().map(forge).collect();
    bad.extend(entries.iter().map(|entry| {
        let mut bytes = entry.as_bytes().to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        bytes
    }));
    for comparing in [false, true] {
        let given = Given {
            marks: first.cps.sync().marks(&at).unwrap(),
            entries: bad.clone(),
            comparing,
        };
        let sync = cloud.cps.sync();
        sync.take_back(&at, &server("gw1"), given).await.unwrap();
        assert_eq!(cursor(cloud), before);
        assert!(!sync.is_comparing(&at).unwrap());
    }
    all_agree(&lives, &names(&["old", "y1", "x1"])).await;
}
