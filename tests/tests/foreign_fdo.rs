//! A device library made by others completes factory initialisation, rendezvous and ownership transfer (FDO DI, TO1,
//! TO2) against the real cloud. The device is the binary of `tests/foreign-fdo`, built by `make test`.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use holdfast_tests::skip::skip;
use holdfast_tests::world::{Plan, SITE, World, counter, fetch};
use tokio::process::Command;
use tokio::time::timeout;

/// Environment variable with the foreign device's binary.
const DEVICE: &str = "HOLDFAST_FOREIGN_DEVICE";
/// TO1 tries the gateway's name first, which nobody answers here, and waits before it goes on.
const PATIENCE: Duration = Duration::from_secs(90);
const SERIAL: &str = "F-0001";

#[tokio::test]
async fn a_foreign_device_is_made_and_onboarded() {
    let Some(device) = foreign_device() else {
        return;
    };
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.cloud.ask(&["sites", "add", SITE]).await.unwrap();
    let folder = world.folder().join("foreign");
    let guid = device.init(&world, &folder).await.expect("DI");
    world
        .cloud
        .ask(&["vouchers", "assign", &guid, "--site", SITE])
        .await
        .unwrap();
    let new = device.onboard(&folder).await.expect("TO1 and TO2");
    assert_ne!(new, guid, "ownership transfer gives a new GUID");
    let known = world
        .cloud
        .ask(&["devices", "list", "--json"])
        .await
        .unwrap();
    let rows: Vec<serde_json::Value> = serde_json::from_str(&known).unwrap();
    let row = rows
        .iter()
        .find(|row| row["device"] == guid.as_str())
        .expect("the cloud knows the device");
    assert_eq!(row["onboarded"], true, "{row}");
    assert_eq!(row["guid"], new.as_str(), "{row}");
    assert_ne!(
        row["standing"], "proved",
        "a foreign device makes no statement of ours: {row}"
    );
    let page = fetch(world.cloud_doors.metrics, "/metrics").await.unwrap();
    assert!(
        counter(&page, "holdfast_cps_devices_onboarded_total") >= 1.0,
        "{page}"
    );
    world.stop().await.unwrap();
}

/// The device really judges: with another secret it cannot know its own voucher, and refuses the owner.
#[tokio::test]
async fn control_a_foreign_device_with_another_secret_refuses_the_owner() {
    let Some(device) = foreign_device() else {
        return;
    };
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.cloud.ask(&["sites", "add", SITE]).await.unwrap();
    let folder = world.folder().join("foreign");
    let guid = device.init(&world, &folder).await.expect("DI");
    world
        .cloud
        .ask(&["vouchers", "assign", &guid, "--site", SITE])
        .await
        .unwrap();
    change_secret(&folder.join("device_creds.cbor"));
    let said = device
        .onboard(&folder)
        .await
        .expect_err("a device with another secret onboarded");
    assert!(
        said.contains("hmac"),
        "it failed for another reason: {said}"
    );
    world.stop().await.unwrap();
}

struct Foreign(PathBuf);

fn foreign_device() -> Option<Foreign> {
    let path = std::env::var_os(DEVICE)
        .map(PathBuf::from)
        .filter(|path| path.is_file());
    if path.is_none() {
        skip(
            "foreign_fdo",
            "the foreign device is not built (tests/foreign-fdo/build.sh)",
        );
    }
    path.map(Foreign)
}

impl Foreign {
    /// DI; the GUID it was given.
    async fn init(&self, world: &World, folder: &Path) -> Result<String, String> {
        let factory = format!("http://{}", world.cloud_doors.manufacturing);
        self.run(&["init", &factory, &folder.display().to_string(), SERIAL])
            .await
    }

    /// TO1 and TO2; its new GUID.
    async fn onboard(&self, folder: &Path) -> Result<String, String> {
        self.run(&["onboard", &folder.display().to_string(), SERIAL])
            .await
    }

    async fn run(&self, words: &[&str]) -> Result<String, String> {
        let child = Command::new(&self.0)
            .args(words)
            .env_clear()
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = timeout(PATIENCE, child)
            .await
            .map_err(|_| format!("{words:?} took too long"))?;
        let output = output.map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(said
            .chars()
            .filter(char::is_ascii_hexdigit)
            .collect::<String>()
            .to_lowercase())
    }
}

/// Flips a bit of the HMAC secret in the credential file.
fn change_secret(file: &Path) {
    const KEY: &[u8] = b"dc_hmac_secret";
    let mut bytes = std::fs::read(file).expect("the credential is there");
    let at = bytes
        .windows(KEY.len())
        .position(|part| part == KEY)
        .expect("the secret is named");
    // After the key: a byte string head of two bytes (0x58 0x20), then the secret.
    bytes[at + KEY.len() + 2] ^= 1;
    std::fs::write(file, bytes).expect("the credential can be written");
}
