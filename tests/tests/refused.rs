//! What the cloud refuses, with real binaries: an honest gateway, somebody who changes its entries on the way, and the
//! gateway of another site that writes what it may not. Refused, shown, counted, and nothing honest waits for it.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use holdfast_cps::Keys;
use holdfast_protocol::record::{Change, Entry, EntryId, SignedEntry};
use holdfast_protocol::time::{Time, TimeQuality};
use holdfast_tests::proxy::Mode;
use holdfast_tests::rogue::{Entries, Rogue};
use holdfast_tests::world::{GATEWAY, Plan, SITE, Server, World, counter, fetch};
use serde_json::Value;

const OTHER_SITE: &str = "quay";
const OTHER_GATEWAY: &str = "gw2";

async fn world() -> World {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    world
}

/// Rows of `refusals list --json` with this reason.
async fn refusals(world: &World, reason: &str) -> Vec<Value> {
    let rows = world.cloud.ask_json(&["refusals", "list", "--json"]).await;
    let rows = rows.unwrap();
    let rows = rows.as_array().unwrap().iter();
    rows.filter(|row| row["reason"] == reason)
        .cloned()
        .collect()
}

/// Writes entries of the other gateway, signed by its own key, from number 1.
struct Pen<'a> {
    keys: &'a Keys,
    seq: u64,
}

impl Pen<'_> {
    fn write(&mut self, site: &str, change: Change) -> Vec<u8> {
        self.seq += 1;
        let entry = Entry {
            id: EntryId {
                origin: OTHER_GATEWAY.parse().unwrap(),
                epoch: 1,
                seq: self.seq,
            },
            rank: 100 + self.seq,
            site: site.parse().unwrap(),
            at: Time::new(1_800_000_000, TimeQuality::Floor),
            device: None,
            change,
        };
        let signed = SignedEntry::sign(entry, &self.keys.record()).unwrap();
        signed.as_bytes().to_vec()
    }
}

fn told(server: &str) -> Change {
    Change::AlternateTold {
        server: server.parse().unwrap(),
    }
}

#[tokio::test]
async fn the_honest_entries_come_whatever_is_delivered_beside_them() {
    let mut world = world().await;
    let a = world.manufacture("A-0001").await.unwrap();
    world.start_agent().await.unwrap();
    let proved = |row: &Value| row["standing"] == "proved";
    world
        .cloud
        .wait_device(&a, "A is proved", proved)
        .await
        .unwrap();
    // Cut: what the gateway writes now waits.
    world.uplink.set(Mode::Silent).unwrap();
    for name in ["one", "two", "three", "four"] {
        world.admit(Server::Gateway, name, &[], &[]).await.unwrap();
    }
    let near = world.seat_near(Server::Gateway).unwrap();
    let spy = Rogue::with_the_keys_of(&world.gateway.state, GATEWAY, SITE, near);
    let spy = spy.await.unwrap();
    let honest = written(&spy.pull(world.gateway_doors.https).await.unwrap());
    let spy = spy.at(world.seat_near(Server::Cloud).unwrap());
    let door = world.cloud_doors.https;
    let had = spy.pull(door).await.unwrap().len();
    // One entry changed on the way, the others as they are: only the changed one is refused.
    let at = honest.len() - 3;
    let report = spy.push(door, &honest.tampered_at(at)).await.unwrap();
    assert_eq!(report["refused"].as_array().unwrap().len(), 1, "{report}");
    assert_eq!(report["early"], 0, "{report}");
    assert!(report["taken"].as_u64().unwrap() >= 3, "{report}");
    assert!(spy.pull(door).await.unwrap().len() > had);
    let shown = refusals(&world, "tampered").await;
    assert_eq!(shown.len(), 1, "{shown:?}");
    let party = format!("{GATEWAY}.gateways.{SITE}.holdfast.internal");
    assert_eq!(shown[0]["party"], party.as_str());
    assert_eq!(
        (&shown[0]["origin"], &shown[0]["site"]),
        (&GATEWAY.into(), &SITE.into())
    );
    let table = world.cloud.ask(&["refusals", "list"]).await.unwrap();
    assert!(table.contains("tampered with on the way"), "{table}");
    // A power cut of its own does not make the cloud forget what is still wanted.
    world.cloud.process().unwrap().kill_nine().await.unwrap();
    world.cloud.stop().await.unwrap();
    world.start_cloud().await.unwrap();
    world.cloud.wait_status("answers", |_| true).await.unwrap();
    assert_eq!(refusals(&world, "tampered").await, shown);
    world.uplink.set(Mode::Open).unwrap();
    let all = written(&spy.pull(world.gateway_doors.https).await.unwrap());
    let end = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    while !holds(&spy.pull(door).await.unwrap(), &all) {
        assert!(
            tokio::time::Instant::now() < end,
            "the honest entry was lost"
        );
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let metrics = fetch(world.cloud_doors.metrics, "/metrics").await.unwrap();
    assert!(
        counter(&metrics, "holdfast_cps_sync_entries_taken_total") >= 1.0,
        "{metrics}"
    );
    world.stop().await.unwrap();
}

/// Whether every one of `wanted` is among `all`.
fn holds(all: &Entries, wanted: &Entries) -> bool {
    let all = all.bytes().unwrap();
    wanted.bytes().unwrap().iter().all(|one| all.contains(one))
}

/// What the gateway wrote itself.
fn written(entries: &Entries) -> Entries {
    let mut own = entries.bytes().unwrap();
    own.retain(|bytes| {
        let entry = SignedEntry::parse(bytes).unwrap();
        entry.entry().id.origin.as_str() == GATEWAY
    });
    Entries::of(&own)
}

#[tokio::test]
async fn another_sites_gateway_writes_into_its_own_log_alone() {
    let mut world = world().await;
    let disk = world
        .enrol_elsewhere(OTHER_SITE, OTHER_GATEWAY)
        .await
        .unwrap();
    let seat = world.seat_near(Server::Cloud).unwrap();
    let other = Rogue::with_the_keys_of(&disk, OTHER_GATEWAY, OTHER_SITE, seat);
    let other = other.await.unwrap();
    let keys = Keys::open(&disk.join("keys")).unwrap();
    let door = world.cloud_doors.https;
    let mut pen = Pen {
        keys: &keys,
        seq: 0,
    };
    // Into the log of the first site, signed by its own key, and the first site's entries as its own.
    let near = world.seat_near(Server::Gateway).unwrap();
    let spy = Rogue::with_the_keys_of(&world.gateway.state, GATEWAY, SITE, near);
    world.admit(Server::Gateway, "one", &[], &[]).await.unwrap();
    let stolen = spy
        .await
        .unwrap()
        .pull(world.gateway_doors.https)
        .await
        .unwrap();
    let foreign = Entries::of(&[pen.write(SITE, told("gw2")), pen.write(SITE, told("gw3"))]);
    for (entries, count) in [(&stolen, stolen.len()), (&foreign, 2)] {
        for _ in 0..2 {
            let report = other.push(door, entries).await.unwrap();
            assert_eq!(report["taken"], 0, "{report}");
            assert_eq!(
                report["refused"].as_array().unwrap().len(),
                count,
                "{report}"
            );
        }
    }
    // Into its own log, what is not its to say; then something honest.
    pen.seq = 0;
    let record = keys.record().public();
    let own = Entries::of(&[
        pen.write(
            OTHER_SITE,
            Change::GatewayEnrolled {
                gateway: "gw9".parse().unwrap(),
                epoch: 1,
                record_key: record.clone(),
                owner_key: record.clone(),
            },
        ),
        pen.write(
            OTHER_SITE,
            Change::CertificateIssued {
                serial: holdfast_protocol::record::Serial::new(&[7; 16]).unwrap(),
                subject: format!("x.devices.{SITE}.holdfast.internal"),
                not_before: 0,
                not_after: u64::MAX,
                key: record,
            },
        ),
        pen.write(OTHER_SITE, told("cloud")),
    ]);
    let report = other.push(door, &own).await.unwrap();
    assert_eq!(report["refused"].as_array().unwrap().len(), 2, "{report}");
    assert_eq!(report["taken"], 1, "{report}");
    let report = other.push(door, &own).await.unwrap();
    assert_eq!(
        report["repeated"], 3,
        "received, and not judged again: {report}"
    );

    let party = format!("{OTHER_GATEWAY}.gateways.{OTHER_SITE}.holdfast.internal");
    for (reason, rows) in [
        ("other site", stolen.len() + 2),
        ("not its business", 1),
        ("foreign subject", 1),
    ] {
        let shown = refusals(&world, reason).await;
        assert_eq!(shown.len(), rows, "{reason}: {shown:?}");
        assert!(shown.iter().all(|row| row["party"] == party.as_str()));
    }
    assert!(
        refusals(&world, "other site")
            .await
            .iter()
            .all(|row| row["times"] == 2)
    );
    let gateways = world
        .cloud
        .ask_json(&["gateways", "list", "--json"])
        .await
        .unwrap();
    assert_eq!(gateways.as_array().unwrap().len(), 2, "{gateways}");
    // Each counted, said once a minute.
    let metrics = fetch(world.cloud_doors.metrics, "/metrics").await.unwrap();
    let label = r#"area="sync",reason="other site"}"#;
    let count = metrics.lines().find(|line| line.contains(label)).unwrap();
    let count: usize = count.rsplit(' ').next().unwrap().parse().unwrap();
    assert_eq!(count, 2 * (stolen.len() + 2));
    let logged = world.cloud.logged();
    let said = logged
        .lines()
        .filter(|line| line.contains("a change entry was refused"));
    assert_eq!(
        said.filter(|line| line.contains("other site")).count(),
        1,
        "{logged}"
    );
    world.stop().await.unwrap();
}

/// The maker of A is struck off and listed again; the roster of installers goes both ways.
#[tokio::test]
async fn whom_the_operators_list_is_believed_on_both_sides() {
    let mut world = world().await;
    let a = world.manufacture("A-0001").await.unwrap();
    world.start_agent().await.unwrap();
    let standing = async |world: &World, wanted: &'static str| {
        let is = |row: &Value| row["standing"] == wanted;
        for part in [&world.cloud, &world.gateway] {
            part.wait_device(&a, wanted, is).await.unwrap();
        }
    };
    standing(&world, "proved").await;
    let listed = ["manufacturers", "list", "--json"];
    let rows = world.cloud.ask_json(&listed).await.unwrap();
    assert_eq!(
        (&rows[0]["name"], &rows[0]["state"]),
        (&"own-factory".into(), &"listed".into())
    );
    world
        .cloud
        .ask(&["manufacturers", "remove", "own-factory"])
        .await
        .unwrap();
    standing(&world, "unknown manufacturer").await;
    let rows = world.cloud.ask_json(&listed).await.unwrap();
    assert_eq!(
        (&rows[0]["state"], &rows[0]["devices"]),
        (&"unknown".into(), &1.into())
    );
    let unknown = ["manufacturers", "remove", "own-factory"];
    world
        .cloud
        .refuses(&unknown, "nobody of the name")
        .await
        .unwrap();
    // The gateway's operator believes it: at his site.
    let add = ["manufacturers", "add", "--device", &a, "--name", "acme"];
    world.gateway.ask(&add).await.unwrap();
    let proved = |row: &Value| row["standing"] == "proved";
    world
        .gateway
        .wait_device(&a, "at the site", proved)
        .await
        .unwrap();
    let heard = |rows: &Value| rows[0]["state"] == "heard of";
    world
        .cloud
        .wait_json(&listed, "the gateway's word is shown", heard)
        .await
        .unwrap();
    let unproved = |row: &Value| row["standing"] == "unknown manufacturer";
    world
        .cloud
        .wait_device(&a, "not at the cloud", unproved)
        .await
        .unwrap();
    world.cloud.ask(&add).await.unwrap();
    standing(&world, "proved").await;

    let (_, key) = world.installer("anna").await.unwrap();
    let key = key.to_str().unwrap();
    let add = ["installers", "add", key, "--name", "anna", "--site", SITE];
    world.cloud.ask(&add).await.unwrap();
    let here = ["installers", "list", "--json"];
    let anna = |rows: &Value| rows[0]["name"] == "anna" && rows[0]["by"] == "cloud";
    world
        .gateway
        .wait_json(&here, "anna by sync", anna)
        .await
        .unwrap();
    world.uplink.set(Mode::Silent).unwrap();
    world
        .gateway
        .ask(&["installers", "remove", "anna"])
        .await
        .unwrap();
    world.uplink.set(Mode::Open).unwrap();
    let there = ["installers", "list", "--site", SITE, "--json"];
    let nobody = |rows: &Value| rows.as_array().is_some_and(Vec::is_empty);
    world
        .cloud
        .wait_json(&there, "struck off by sync", nobody)
        .await
        .unwrap();
    let nowhere = [
        "installers",
        "add",
        key,
        "--name",
        "anna",
        "--site",
        "nowhere",
    ];
    world
        .cloud
        .refuses(&nowhere, "no site nowhere")
        .await
        .unwrap();
    world.stop().await.unwrap();
}
