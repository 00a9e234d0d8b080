//! Core images: the programs leave none when they die, and no other process of the same user may take one. The control is
//! a program that does not forbid it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_tests::process::{Finished, Process, run};
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::world::{Plan, World, fetch};
use tokio::time::{Instant, sleep};

/// How long the dying may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// In the memory of the control.
const MARK: &str = "a secret that lies in the memory of the control";

#[tokio::test]
async fn a_program_that_dies_leaves_no_core_image() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.trim_start().starts_with(['|', '/']) || pattern.trim().is_empty() {
        return skip("secrets::cores", "this machine's core images go elsewhere");
    }
    let mut world = World::new(&Plan::apart()).await.unwrap();
    let (ours, theirs) = (world.folder().join("ours"), world.folder().join("theirs"));
    let health = world.cloud_doors.metrics;
    let command = world.cloud.command_line("run");
    let mut cloud = begin(&ours, &command);
    let end = Instant::now() + PATIENCE;
    while fetch(health, "/health").await.is_err() {
        assert!(Instant::now() < end, "{}", cloud.log_end());
        sleep(Duration::from_millis(20)).await;
    }
    abort(&mut cloud).await;
    assert_eq!(cores(&ours), Vec::<PathBuf>::new());

    let mut control = begin(&theirs, &format!("env MARK='{MARK}' sleep 60"));
    // Until the shell has become the program, it is the shell that would be ended.
    becomes(&control, "sleep").await;
    abort(&mut control).await;
    let [core] = &cores(&theirs)[..] else {
        return skip("secrets::cores", "this machine makes no core images at all");
    };
    let image = std::fs::read(core).unwrap();
    let found = image
        .windows(MARK.len())
        .any(|part| part == MARK.as_bytes());
    assert!(found, "the control's core image lacks its memory");
    world.stop().await.unwrap();
}

/// Without a limit for core images, in a folder of its own.
fn begin(folder: &Path, command: &str) -> Process {
    std::fs::create_dir(folder).unwrap();
    let script = format!(
        "cd {} && ulimit -c unlimited && exec {command}",
        folder.display()
    );
    let log = folder.with_extension("log");
    Process::start("it", Path::new("/bin/sh"), &["-c", &script], &log).unwrap()
}

async fn becomes(process: &Process, name: &str) {
    let end = Instant::now() + PATIENCE;
    let path = format!("/proc/{}/comm", process.id().unwrap());
    while std::fs::read_to_string(&path).unwrap().trim() != name {
        assert!(Instant::now() < end, "the shell did not become {name}");
        sleep(Duration::from_millis(10)).await;
    }
}

async fn abort(process: &mut Process) {
    let id = process.id().unwrap().to_string();
    let told = run(Path::new("kill"), &["-ABRT", &id], "").await.unwrap();
    assert_eq!(told.code, Some(0), "{}", told.err);
    let end = Instant::now() + PATIENCE;
    while process.ended().unwrap().is_none() {
        assert!(Instant::now() < end, "it does not end");
        sleep(Duration::from_millis(10)).await;
    }
}

fn cores(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let is_core = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("core"))
    };
    entries.map(|entry| entry.path()).filter(is_core).collect()
}

/// A user like any other, which this machine has. Nothing of the system's belongs to it.
const NOBODY: &str = "65534";

#[tokio::test]
async fn another_process_of_the_same_user_takes_no_image() {
    if !has_program("gcore") || !has_program("setpriv") || !rustix::process::geteuid().is_root() {
        return skip("secrets::cores gcore", "needs root, gdb and setpriv");
    }
    let mut world = World::new(&Plan::apart()).await.unwrap();
    let folder = world.folder().to_path_buf();
    for path in [&folder, &world.cloud.config] {
        std::os::unix::fs::chown(path, Some(65_534), Some(65_534)).unwrap();
    }
    let (health, command) = (world.cloud_doors.metrics, world.cloud.command_line("run"));
    let log = folder.join("nobody.log");
    let script = as_nobody(&format!("exec {command}"));
    let mut cloud = Process::start("cloud", Path::new("setpriv"), &script, &log).unwrap();
    let end = Instant::now() + PATIENCE;
    while fetch(health, "/health").await.is_err() {
        if cloud.ended().unwrap().is_some() && cloud.log_end().contains("ermission denied") {
            return skip(
                "secrets::cores gcore",
                "the programs lie where nobody may run them",
            );
        }
        assert!(Instant::now() < end, "{}", cloud.log_end());
        sleep(Duration::from_millis(20)).await;
    }
    let told = image(&cloud, &folder.join("taken")).await;
    assert!(
        cores_named(&folder, "taken").is_empty(),
        "an image was taken: {}{}",
        told.out,
        told.err
    );
    assert!(std::fs::read(format!("/proc/{}/mem", cloud.id().unwrap())).is_err());

    let script = as_nobody(&format!("exec env MARK='{MARK}' sleep 60"));
    let mut control = Process::start("sleep", Path::new("setpriv"), &script, &log).unwrap();
    becomes(&control, "sleep").await;
    let told = image(&control, &folder.join("control")).await;
    let taken = cores_named(&folder, "control");
    assert!(
        !taken.is_empty(),
        "the control gave no image: {}{}",
        told.out,
        told.err
    );
    control.stop().await.unwrap();
    cloud.stop().await.unwrap();
    world.stop().await.unwrap();
}

fn as_nobody(script: &str) -> Vec<String> {
    let words = [
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "/bin/sh",
        "-c",
        script,
    ];
    words.map(str::to_owned).to_vec()
}

async fn image(process: &Process, to: &Path) -> Finished {
    let id = process.id().unwrap();
    let words = as_nobody(&format!("exec gcore -o {} {id}", to.display()));
    run(Path::new("setpriv"), &words, "").await.unwrap()
}

fn cores_named(folder: &Path, name: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().flatten();
    let prefix = format!("{name}.");
    let is_it = |path: &PathBuf| {
        path.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
    };
    entries.map(|entry| entry.path()).filter(is_it).collect()
}
