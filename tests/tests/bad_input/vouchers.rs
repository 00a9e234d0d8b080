//! Vouchers that are not for this owner, that are broken, that are no vouchers: refused by their reason, nothing kept.

use std::path::Path;

use holdfast_tests::world::{Plan, World};

use crate::watch::{Watch, is_well};

/// A good voucher of somebody else's device and owner, from the reference set.
const FOREIGN: &str = "data/fdo/vouchers/3192ca1ccaa803fac5b3518ecf743624.ov.pem";

#[tokio::test]
async fn foreign_and_broken_vouchers_are_refused() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    let foreign = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOREIGN);
    import(&world, &foreign, "owner").await;

    let broken = world.folder().join("broken.pem");
    std::fs::write(
        &broken,
        with_a_flipped_bit(&std::fs::read_to_string(&foreign).unwrap()),
    )
    .unwrap();
    import(&world, &broken, "voucher").await;

    let nonsense = world.folder().join("nonsense.pem");
    std::fs::write(
        &nonsense,
        "-----BEGIN OWNERSHIP VOUCHER-----\nAAAA\n-----END OWNERSHIP VOUCHER-----\n",
    )
    .unwrap();
    import(&world, &nonsense, "voucher").await;

    let kept = world
        .cloud
        .ask(&["vouchers", "list", "--json"])
        .await
        .unwrap();
    assert!(
        !kept.contains("3192ca1c"),
        "a refused voucher was kept: {kept}"
    );
    is_well(&world.cloud, world.cloud_doors.metrics).await;
    world.stop().await.unwrap();
}

/// The import must fail, say something about `word`, and be logged once and counted.
async fn import(world: &World, file: &Path, word: &str) {
    let watch = Watch::begin(&world.cloud, world.cloud_doors.metrics).await;
    let told = world
        .cloud
        .command(&["vouchers", "import", &file.display().to_string()], "")
        .await
        .unwrap();
    assert_ne!(told.code, Some(0), "{} was imported", file.display());
    assert!(
        told.err.to_lowercase().contains(word),
        "{} refused with {:?}",
        file.display(),
        told.err
    );
    watch
        .refused_once(&world.cloud, &file.display().to_string())
        .await;
}

/// One bit of the last signature: the last full line of base64 before the end.
fn with_a_flipped_bit(pem: &str) -> String {
    let mut lines: Vec<String> = pem.lines().map(str::to_owned).collect();
    let last = lines
        .iter()
        .rposition(|line| line.len() >= 64 && !line.starts_with('-'))
        .expect("a long line");
    let first = lines[last].remove(0);
    lines[last].insert(0, if first == 'A' { 'B' } else { 'A' });
    lines.join("\n")
}
