//! Private keys on disk, in environments, command lines and logs: sealed by the service's credential they are nowhere,
//! without it they lie in files that only their owner may read.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_agent::vault::Vault;
use holdfast_protocol::crypto::Seal;
use holdfast_protocol::wire::cbor::Reader;
use holdfast_tests::process::Process;
use holdfast_tests::world::{Part, Plan, SITE, Server, World, fetch};
use tokio::time::{Instant, sleep};

use crate::finder::{Known, files, hits, hits_in, scalar};

/// How long a daemon may take to be well, or to refuse.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn no_private_key_is_found_where_it_is_sealed() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    world.manufacture("thermometer-1").await.unwrap();
    for part in [&world.cloud, &world.gateway] {
        let status = part.status().await.unwrap();
        assert_eq!(status["keys"], "not sealed", "{status}");
    }
    world.stop().await.unwrap();

    // The control: unsealed, each lies on the disk, and nowhere else.
    let parts = [(&world.cloud, "cloud"), (&world.gateway, "gateway")];
    let mut secrets = Vec::new();
    for (part, name) in parts {
        let keys = key_files(part);
        assert!(keys.len() >= 4, "{name} has only {keys:?}");
        let known: Vec<Known> = keys.iter().map(|path| plain(path)).collect();
        let found = hits(&part.state, &known);
        for (path, known) in keys.iter().zip(&known) {
            let line = format!("{} in {}", known.name, path.display());
            assert!(found.contains(&line), "{name}, not sealed: {found:?}");
            only_its_owner_may_read(path);
        }
        assert_eq!(found.len(), keys.len(), "{name}, not sealed: {found:?}");
        secrets.extend(known);
        no_one_else_may_write(&part.state);
    }

    let credentials = [
        Credential::new(world.folder(), "cloud"),
        Credential::new(world.folder(), "gateway"),
    ];
    let doors = [world.cloud_doors.metrics, world.gateway_doors.metrics];
    for (((part, name), credential), health) in parts.into_iter().zip(&credentials).zip(doors) {
        let mut daemon = credential.start(part, name, world.folder());
        well(part, health, &daemon).await;
        let status = part.status().await.unwrap();
        assert_eq!(status["keys"], "sealed", "{status}");
        let id = daemon.id().unwrap();
        for file in ["environ", "cmdline"] {
            let content = std::fs::read(format!("/proc/{id}/{file}")).unwrap();
            assert_eq!(hits_in(file, &content, &secrets), Vec::<String>::new());
        }
        if name == "gateway" {
            // Work with the sealed authority: it issues as before.
            world
                .admit(Server::Gateway, "pump", &["plant/#"], &[])
                .await
                .unwrap();
        }
        daemon.stop().await.unwrap();
    }
    for (part, credential) in [
        (&world.cloud, &credentials[0]),
        (&world.gateway, &credentials[1]),
    ] {
        for path in key_files(part) {
            let content = std::fs::read(&path).unwrap();
            assert!(
                Seal::is_sealed(&content),
                "{} is not sealed",
                path.display()
            );
            let opened = credential.seal.open(&content).unwrap();
            secrets.push(Known::new(
                path.display().to_string(),
                &scalar(&opened).unwrap(),
            ));
            only_its_owner_may_read(&path);
        }
    }
    // State folders, logs, and whatever else the world left.
    assert_eq!(hits(world.folder(), &secrets), Vec::<String>::new());
    without_its_credential_it_does_not_start(&world.cloud).await;
    with_another_credential_it_does_not_start(&world.gateway, world.folder()).await;
}

/// The secrets in a device's vault, by what they are.
fn of_the_vault(part: &Part) -> Vec<Known> {
    let held = Vault::new(&part.state).load().unwrap().credential;
    let key = scalar(&held.key.to_pkcs8_der()).unwrap();
    let hmac = held.encode();
    let mut r = Reader::new(&hmac).unwrap();
    r.array(7).unwrap();
    for _ in 0..3 {
        r.raw().unwrap();
    }
    let hmac = r.bytes(64).unwrap();
    assert!(hmac.len() >= 32, "the fourth element is the HMAC secret");
    vec![
        Known::new("device key", &key),
        Known::new("HMAC secret", hmac),
    ]
}

#[tokio::test]
async fn a_device_and_an_installer_seal_their_keys_too() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.cloud.ask(&["sites", "add", SITE]).await.unwrap();
    world.manufacture("thermometer-1").await.unwrap();
    let (installer, _) = world.installer("anna").await.unwrap();
    world.cloud.stop().await.unwrap();
    let key_file = installer.state.join("installer.key");
    let vault = world.agent.state.join("vault");
    let mut secrets = of_the_vault(&world.agent);
    // The control: unsealed, each lies in its file.
    let content = std::fs::read(&vault).unwrap();
    assert!(secrets.iter().all(|one| one.is_in(&content)));
    secrets.push(plain(&key_file));
    for path in [&vault, &key_file] {
        only_its_owner_may_read(path);
    }
    assert_eq!(hits(world.folder(), &secrets).len(), 3);

    let credential = Credential::new(world.folder(), "laptop");
    let shell = async |command: String| {
        let words = ["-c", &command];
        let done = holdfast_tests::process::run(Path::new("/bin/sh"), &words, "");
        done.await.unwrap()
    };
    let shown = shell(credential.command(&installer, "key show")).await;
    assert_eq!(shown.code, Some(0), "{}", shown.err);
    let mut agent = credential.start(&world.agent, "agent", world.folder());
    let end = Instant::now() + PATIENCE;
    while !Seal::is_sealed(&std::fs::read(&vault).unwrap()) {
        assert!(Instant::now() < end, "{}", agent.log_end());
        sleep(Duration::from_millis(20)).await;
    }
    let id = agent.id().unwrap();
    for file in ["environ", "cmdline"] {
        let content = std::fs::read(format!("/proc/{id}/{file}")).unwrap();
        assert_eq!(hits_in(file, &content, &secrets), Vec::<String>::new());
    }
    agent.stop().await.unwrap();
    for path in [&vault, &key_file] {
        let content = std::fs::read(path).unwrap();
        assert!(credential.seal.open(&content).is_ok(), "{}", path.display());
        only_its_owner_may_read(path);
    }
    assert_eq!(hits(world.folder(), &secrets), Vec::<String>::new());

    let other = Credential::new(world.folder(), "another");
    for (part, words) in [(&installer, "key show"), (&world.agent, "run")] {
        let told = part
            .command(&words.split(' ').collect::<Vec<_>>(), "")
            .await
            .unwrap();
        assert_ne!(told.code, Some(0));
        assert!(told.err.contains("LoadCredentialEncrypted"), "{}", told.err);
        let told = shell(other.command(part, words)).await;
        assert_ne!(told.code, Some(0));
        assert!(told.err.contains("does not open"), "{}", told.err);
    }
    world.stop().await.unwrap();
}

/// A credential as systemd would hand it to a service.
struct Credential {
    folder: PathBuf,
    seal: Seal,
}

impl Credential {
    fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(format!("{name}.credentials"));
        std::fs::create_dir(&folder).unwrap();
        let secret: Vec<u8> = name.bytes().cycle().take(32).collect();
        std::fs::write(folder.join("holdfast-seal"), &secret).unwrap();
        let seal = Seal::from_secret(&secret).unwrap();
        Self { folder, seal }
    }

    fn start(&self, part: &Part, name: &str, log: &Path) -> Process {
        let log = log.join(format!("{name}.sealed.log"));
        Process::start(
            name,
            Path::new("/bin/sh"),
            &["-c", &self.command(part, "run")],
            &log,
        )
        .unwrap()
    }

    /// The shell gives its process to the daemon.
    fn command(&self, part: &Part, words: &str) -> String {
        format!(
            "exec env CREDENTIALS_DIRECTORY={} {}",
            self.folder.display(),
            part.command_line(words)
        )
    }
}

async fn well(part: &Part, health: std::net::SocketAddr, daemon: &Process) {
    let end = Instant::now() + PATIENCE;
    while fetch(health, "/health").await.is_err() || part.status().await.is_err() {
        assert!(Instant::now() < end, "{}", daemon.log_end());
        sleep(Duration::from_millis(20)).await;
    }
}

/// A stolen disk without the machine's secret: no authority comes up.
async fn without_its_credential_it_does_not_start(part: &Part) {
    let told = part.command(&["run"], "").await.unwrap();
    assert_ne!(told.code, Some(0));
    assert!(
        told.err.contains("is sealed") && told.err.contains("LoadCredentialEncrypted"),
        "{}",
        told.err
    );
}

async fn with_another_credential_it_does_not_start(part: &Part, folder: &Path) {
    let other = Credential::new(folder, "another");
    let command = other.command(part, "run");
    let told = holdfast_tests::process::run(Path::new("/bin/sh"), &["-c", &command], "")
        .await
        .unwrap();
    assert_ne!(told.code, Some(0));
    assert!(told.err.contains("does not open"), "{}", told.err);
}

fn plain(path: &Path) -> Known {
    let secret = scalar(&std::fs::read(path).unwrap()).unwrap();
    Known::new(path.display().to_string(), &secret)
}

fn key_files(part: &Part) -> Vec<PathBuf> {
    let all = files(&part.state).into_iter();
    all.filter(|path| path.extension().is_some_and(|end| end == "key"))
        .collect()
}

fn only_its_owner_may_read(path: &Path) {
    let found = std::fs::metadata(path).unwrap();
    assert_eq!(
        found.permissions().mode() & 0o777,
        0o600,
        "{}",
        path.display()
    );
    let ours = std::fs::metadata("/proc/self").unwrap().uid();
    assert_eq!(
        found.uid(),
        ours,
        "{} belongs to somebody else",
        path.display()
    );
}

fn no_one_else_may_write(state: &Path) {
    let mode = std::fs::metadata(state).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{} is open to others", state.display());
    for path in files(state) {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o022, 0, "others may write {}", path.display());
    }
}
