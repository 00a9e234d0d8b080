//! A real power cut: the server on an ext4 file system of its own (a loop file), which is shut down under load by ioctl
//! without writing its log, as when the power goes; then mounted again.
//!
//! `kill -9` proves nothing about syncs, since the page cache survives it; this does. Root only.

use std::io::Write as _;
use std::net::SocketAddr;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::JournalMedium;
use holdfast_store::OpenBackend;
use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::clients::{self, World};
use crate::judge::{Host, Verdict, outside, prepare};
use crate::ledger::{Event, Ledger, Numbers};

/// `EXT4_IOC_SHUTDOWN` with `EXT4_GOING_FLAGS_NOLOGFLUSH`: what is not on the device yet never gets there. Perl is in
/// every Debian, and needs no unsafe code.
const CUT: &str = r#"open(my $f, "<", $ARGV[0]) or die "open: $!"; my $flags = pack("I", 2); ioctl($f, 0x8004587D, $flags) or die "ioctl: $!";"#;

/// More than any run sends before its cut.
const ENOUGH: u32 = 1_000_000;

/// A file system that can lose its power.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// Says why when there can be none here.
    fn new() -> Result<Self, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let disk = Self { folder };
        std::fs::create_dir(disk.mounted()).map_err(|error| error.to_string())?;
        let image = disk.image();
        run("truncate", &["-s", "128M", path(&image)])?;
        run("mkfs.ext4", &["-q", "-F", path(&image)])?;
        disk.mount()?;
        Ok(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("disk.ext4")
    }

    fn mounted(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn journal(&self) -> PathBuf {
        self.mounted().join("journal.redb")
    }

    fn mount(&self) -> Result<(), String> {
        let (image, mounted) = (self.image(), self.mounted());
        run("mount", &["-o", "loop", path(&image), path(&mounted)])
    }

    fn cut(&self) {
        run("perl", &["-e", CUT, path(&self.journal())]).unwrap();
    }

    fn power_on(&self) {
        run("umount", &[path(&self.mounted())]).unwrap();
        self.mount().unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A file may be open for a moment yet: the file system goes with its last one.
        let _ = run("umount", &["-l", path(&self.mounted())]);
    }
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program}: {}", said.trim()))
}

/// A disk, or a skip that is said and counted.
fn disk(test: &str) -> Option<Disk> {
    let why = match Disk::new() {
        Ok(disk) => return Some(disk),
        Err(why) => why,
    };
    eprintln!("SKIPPED {test}: needs root and loop devices: {why}");
    if let Some(file) = std::env::var_os("HOLDFAST_SKIPS") {
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(file)
            .unwrap();
        writeln!(file, "{test}: needs root and loop devices: {why}").unwrap();
    }
    None
}

/// Load on a server until the power goes after that time; the ledger of it.
async fn under_load(address: SocketAddr, disk: &Disk, after: Duration) -> Arc<World> {
    prepare(address).await;
    let world = Arc::new(World {
        address,
        ledger: Ledger::new(|| 0),
        stop: CancellationToken::new(),
        early: false,
    });
    world.ledger.note(Event::Ready);
    let tasks = [
        tokio::spawn(clients::take(Arc::clone(&world))),
        tokio::spawn(clients::give1(Arc::clone(&world), ENOUGH)),
        tokio::spawn(clients::give2(Arc::clone(&world), ENOUGH)),
        tokio::spawn(clients::keep(Arc::clone(&world), ENOUGH / 100)),
        tokio::spawn(clients::come_and_go(Arc::clone(&world), ENOUGH)),
    ];
    tokio::time::sleep(after).await;
    disk.cut();
    // Answers that left before the cut may still be on their way: what arrives counts.
    tokio::time::sleep(Duration::from_millis(50)).await;
    world.stop.cancel();
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
    world
}

async fn judged(disk: &Disk, world: &World) -> Verdict {
    let mut verdict = Verdict {
        images: 1,
        ..Verdict::default()
    };
    match Host::open(JournalMedium::File(disk.journal())).await {
        Ok(host) => {
            let state = world.ledger.now();
            outside(host.address, &state, &mut verdict).await;
            host.end().await;
        }
        Err(_) => verdict.unopenable = 1,
    }
    verdict
}

/// The example server, as a process of its own.
struct Example(Child, SocketAddr);

impl Example {
    fn start(journal: &Path) -> Self {
        // Built by cargo together with the tests.
        let mut program = std::env::current_exe().unwrap();
        program.pop();
        program.pop();
        program.push("examples/server");
        let mut child = Command::new(&program)
            .args(["127.0.0.1:0", path(journal)])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut line = String::new();
        let stdout = child.stdout.take().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
        Self(child, address)
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_loses_nothing_acknowledged() {
    let Some(disk) = disk("a_power_cut_loses_nothing_acknowledged") else {
        return;
    };
    let mut numbers = Numbers(0x0FF);
    let mut acknowledged = 0;
    let mut cycles = 0;
    while cycles < 6 || acknowledged < 200 && cycles < 20 {
        cycles += 1;
        let _ = std::fs::remove_file(disk.journal());
        let server = Example::start(&disk.journal());
        let after = Duration::from_millis(150 + numbers.next() % 350);
        let world = under_load(server.1, &disk, after).await;
        drop(server);
        disk.power_on();
        let verdict = judged(&disk, &world).await;
        let state = world.ledger.now();
        assert!(verdict.is_clean(), "cycle {cycles}: {verdict:?}");
        acknowledged += state.acked1.len() + state.done2.len();
    }
    eprintln!("{acknowledged} acknowledged before {cycles} cuts");
    assert!(
        acknowledged >= 200,
        "too few to mean anything: {acknowledged}"
    );
}

/// The planted defect: a file whose syncs are answered and not done.
#[derive(Debug)]
struct Unsynced(PathBuf);

impl OpenBackend for Unsynced {
    fn open(&self) -> std::io::Result<Box<dyn StorageBackend>> {
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&self.0)?;
        let backend = FileBackend::new(file).map_err(std::io::Error::other)?;
        Ok(Box::new(Lying(backend)))
    }
}

#[derive(Debug)]
struct Lying(FileBackend);

impl StorageBackend for Lying {
    fn len(&self) -> std::io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> std::io::Result<()> {
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.0.write(offset, data)
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.0.try_lock_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.0.unlock_range(start, end)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn control_a_power_cut_of_a_disk_without_syncs_is_caught() {
    let Some(disk) = disk("control_a_power_cut_of_a_disk_without_syncs_is_caught") else {
        return;
    };
    let medium = JournalMedium::Backend(Arc::new(Unsynced(disk.journal())));
    let host = Host::open(medium).await.unwrap();
    // What is there so far is on the disk: only the syncs of the journal's commits are missing.
    run("sync", &["-f", path(&disk.journal())]).unwrap();
    let world = under_load(host.address, &disk, Duration::from_millis(300)).await;
    host.end().await;
    disk.power_on();
    // A judge that comes back to a server without its session may also panic: caught, too.
    let judging = tokio::spawn(async move { judged(&disk, &world).await });
    if let Ok(verdict) = judging.await {
        assert!(!verdict.is_clean(), "a disk without syncs went unnoticed");
    }
}
