//! The 24 bad client certificates at every mutual-TLS port, over TLS 1.3 and 1.2; the good ones beside them; and what a
//! verifier from the shelf would have let through.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_tests::proxy::Mode;
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::world::{Plan, SITE, Server, World};
use rcgen::{ExtendedKeyUsagePurpose as Eku, SanType, date_time_ymd};

use crate::doors::{Door, VERSIONS, administer, all, from_the_shelf, open_the_rest};
use crate::makers::{
    DEVICE, DOMAIN, Forge, Shown, Vector, because, device_at, intermediate_of, leaf,
};

#[tokio::test]
async fn no_bad_client_certificate_comes_in_anywhere() {
    if !has_program("openssl") {
        return skip("vectors::clients", "openssl is not installed");
    }
    let mut world = World::new(&Plan::apart()).await.unwrap();
    let web = open_the_rest(&world);
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let mut forge = Forge::of(&world);
    forge.revoked = Some(revoked(&world).await);
    let vectors = forge.bad();
    let numbers: BTreeSet<u8> = vectors.iter().map(|vector| vector.number).collect();
    let wanted: BTreeSet<u8> = (1..=24).filter(|number| *number != 6).collect();
    assert_eq!(numbers, wanted, "a vector is missing");

    let doors = all(&world, web);
    let mut faults = Vec::new();
    for door in &doors {
        the_good_come_in(door, &forge).await;
        for vector in &vectors {
            faults.extend(faults_of(door, vector, &forge).await);
        }
        too_early(door, &forge).await;
        the_good_come_in(door, &forge).await;
    }
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    signed_by_hand_is_not_on_record(&doors, &forge).await;
    a_foreign_site_keeps_to_itself(&doors, &forge).await;
    issued_in_an_outage(&world, &doors[0], &forge).await;
    control_the_shelf_lets_some_in(&vectors, &forge).await;
    world.stop().await.unwrap();
}

/// What is wrong with how the door took this vector; nothing, if it was turned away, logged and counted.
async fn faults_of(door: &Door<'_>, vector: &Vector, forge: &Forge) -> Vec<String> {
    let mut faults = Vec::new();
    for version in VERSIONS {
        let (number, what) = (vector.number, vector.what);
        let mut fault = |text: String| {
            let version = version.version;
            faults.push(format!(
                "{}, {number} {what}, {version:?}: {text}",
                door.name
            ));
        };
        let before = door.counted(vector.reason.counted).await;
        let visit = door
            .visit(vector.shown.as_ref(), version, &forge.root.der)
            .await;
        if visit.let_in {
            fault(format!("let in, {}", visit.saw));
            continue;
        }
        if let Err(text) = door.logged(&visit, vector.reason).await {
            fault(text);
        }
        if door.counted(vector.reason.counted).await <= before {
            fault(format!("not counted as {:?}", vector.reason.counted));
        }
    }
    faults
}

/// Plain; good for both sides; two certificates of one party, as around a renewal.
async fn the_good_come_in(door: &Door<'_>, forge: &Forge) {
    let both = forge.spoilt(|leaf| leaf.extended_key_usages.push(Eku::ServerAuth));
    for (what, shown) in [
        ("plain", forge.good()),
        ("good for both sides", both),
        ("renewed, the old one", forge.good()),
        ("renewed, the new one", forge.good()),
    ] {
        for version in VERSIONS {
            let visit = door.visit(Some(&shown), version, &forge.root.der).await;
            assert!(visit.let_in, "{}, good, {what}: {}", door.name, visit.saw);
        }
    }
}

/// Number 6. A clock that is sure refuses it; one that may be behind forgives it to our own authority, since the
/// certificate itself proves that the time is later.
async fn too_early(door: &Door<'_>, forge: &Forge) {
    let early = forge.spoilt(|leaf| leaf.not_before = date_time_ymd(2040, 1, 1));
    let was_sure = is_sure(door).await;
    let visit = door.visit(Some(&early), VERSIONS[0], &forge.root.der).await;
    // The cloud may have told the gateway the time in between.
    let is_sure = is_sure(door).await;
    let (name, saw) = (door.name, &visit.saw);
    match visit.let_in {
        true => assert!(
            !was_sure,
            "{name}, 6 not valid yet: let in by a clock that is sure"
        ),
        false => {
            assert!(
                is_sure,
                "{name}, 6 not valid yet: refused by a clock that may be behind: {saw}"
            );
            assert!(
                door.counted("not valid yet").await > 0.0,
                "{name}: not counted"
            );
        }
    }
}

async fn is_sure(door: &Door<'_>) -> bool {
    let status = administer(door.part, "GET /v1/registry", "").await;
    status
        .to_lowercase()
        .contains("\"time_quality\":\"authenticated\"")
}

/// Signed with the gateway's own stolen key: the gateway knows what it issued, and this is not of it. The cloud lets it in,
/// since the record may be on its way, and shows it.
async fn signed_by_hand_is_not_on_record(doors: &[Door<'_>], forge: &Forge) {
    let shown = forge.by_hand();
    for door in doors {
        for version in VERSIONS {
            let before = door.counted("unknown serial").await;
            let visit = door.visit(Some(&shown), version, &forge.root.der).await;
            if door.name.starts_with("cloud") {
                assert!(visit.let_in, "{}: {}", door.name, visit.saw);
                let listed = administer(door.part, "GET /v1/certificates/unrecorded", "").await;
                assert!(listed.contains(&device_at(DEVICE, SITE)), "{listed}");
                continue;
            }
            assert!(!visit.let_in, "{}: signed by hand", door.name);
            let reason = because("unknown serial", "is not on record");
            door.logged(&visit, reason).await.unwrap();
            assert!(
                door.counted("unknown serial").await > before,
                "{}",
                door.name
            );
        }
    }
}

/// A true intermediate of another site: what it rightly issues for its own site is nobody at this gateway, and somebody
/// at the cloud. What it issues for other names is number 14.
async fn a_foreign_site_keeps_to_itself(doors: &[Door<'_>], forge: &Forge) {
    let other = forge.root.below(intermediate_of("other"));
    let params = leaf(&device_at(DEVICE, "other"), Eku::ClientAuth);
    let shown = Shown::by(&params, &other, &[&other]);
    for door in doors {
        let visit = door.visit(Some(&shown), VERSIONS[0], &forge.root.der).await;
        let is_cloud = door.name.starts_with("cloud");
        assert_eq!(visit.let_in, is_cloud, "{}: {}", door.name, visit.saw);
        if !is_cloud {
            let counted = door.counted("foreign site").await;
            assert!(counted > 0.0, "{}: not counted", door.name);
        }
    }
}

/// With the link cut the site's own authority admits a client, and the gateway knows it.
async fn issued_in_an_outage(world: &World, door: &Door<'_>, forge: &Forge) {
    world.uplink.set(Mode::Reset).unwrap();
    let folder = world
        .admit(Server::Gateway, "late", &["plant/late"], &["plant/late"])
        .await
        .unwrap();
    let shown = Shown::from_folder(&folder);
    let visit = door.visit(Some(&shown), VERSIONS[0], &forge.root.der).await;
    assert!(visit.let_in, "admitted in an outage: {}", visit.saw);
    world.uplink.set(Mode::Open).unwrap();
}

/// A client that the gateway admitted, and that both servers know to be revoked.
async fn revoked(world: &World) -> Shown {
    let folder = world
        .admit(
            Server::Gateway,
            "struck",
            &["plant/struck"],
            &["plant/struck"],
        )
        .await
        .unwrap();
    let listed = administer(&world.gateway, "GET /v1/certificates", "").await;
    let body = listed.split_once("\r\n\r\n").unwrap().1;
    let rows: serde_json::Value = serde_json::from_str(body).unwrap();
    let of_it = |row: &&serde_json::Value| {
        row["subject"]
            .as_str()
            .is_some_and(|name| name.starts_with("struck."))
    };
    let row = rows.as_array().unwrap().iter().find(of_it).unwrap();
    let serial = row["serial"].as_str().unwrap().to_owned();
    let body = format!("{{\"serial\":\"{serial}\"}}");
    let said = administer(&world.gateway, "POST /v1/certificates/revoke", &body).await;
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    let mut knows = false;
    for _ in 0..200 {
        let listed = administer(&world.cloud, "GET /v1/certificates", "").await;
        let row = listed
            .split('{')
            .find(|row| row.contains(&serial))
            .unwrap_or_default();
        knows = row.contains("\"revoked\":true");
        if knows {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(knows, "the cloud does not know the revocation");
    Shown::from_folder(&folder)
}

/// The planted defect: webpki alone, under the same root. What it lets in is what our own checks are for.
async fn control_the_shelf_lets_some_in(vectors: &[Vector], forge: &Forge) {
    let mut params = leaf(&format!("gw1.gateways.{SITE}.{DOMAIN}"), Eku::ServerAuth);
    let local = std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST);
    params.subject_alt_names.push(SanType::IpAddress(local));
    let server = Shown::by(&params, &forge.site, &[&forge.site]);
    assert!(
        from_the_shelf(Some(&forge.good()), &forge.root.der, &server).await,
        "it refuses the good one"
    );
    let mut let_in = BTreeSet::new();
    for vector in vectors {
        if from_the_shelf(vector.shown.as_ref(), &forge.root.der, &server).await {
            let_in.insert(vector.number);
        }
    }
    for number in [7, 9, 17, 18, 19, 24] {
        assert!(
            let_in.contains(&number),
            "the control refuses {number} too: it lets in {let_in:?}"
        );
    }
    assert!(!let_in.contains(&5), "the control is no verifier at all");
    eprintln!("webpki alone lets in the numbers {let_in:?}");
}
