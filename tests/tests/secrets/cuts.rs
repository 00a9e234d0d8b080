//! The cloud makes its keys at its first start, and is killed at each rename, one start after the other: every key file is
//! whole or not there, and the next start goes on from it. The control is a file cut short, which is noticed.

use std::path::{Path, PathBuf};

use holdfast_tests::process::run;
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::world::{Part, Plan, World};

use crate::finder::{files, scalar};

/// More renames than a first start has.
const MOST: usize = 60;

/// Seconds after which it has made all its keys.
const SURVIVES: u32 = 3;

#[tokio::test]
async fn killed_at_any_rename_a_key_is_whole_or_not_there() {
    if !has_program("strace") {
        return skip("secrets::cuts", "strace is not installed");
    }
    let mut world = World::new(&Plan::apart()).await.unwrap();
    let mut cuts = 0;
    for rename in 1..=MOST {
        if world.cloud.state.exists() {
            std::fs::remove_dir_all(&world.cloud.state).unwrap();
        }
        if !killed_at(&world.cloud, rename).await {
            break;
        }
        cuts += 1;
        let kept = keys(&world.cloud.state);
        for (path, content) in &kept {
            assert!(scalar(content).is_some(), "{} is not whole", path.display());
        }
        // What stands is what the next start goes on with.
        killed_at(&world.cloud, 1).await;
        for (path, content) in &kept {
            assert_eq!(
                std::fs::read(path).unwrap(),
                *content,
                "{} was made anew",
                path.display()
            );
        }
    }
    assert!((6..MOST).contains(&cuts), "killed {cuts} times");
    world.start_cloud().await.unwrap();
    world.cloud.stop().await.unwrap();
    let (path, content) = &keys(&world.cloud.state)[0];
    std::fs::write(path, &content[..content.len() / 2]).unwrap();
    let told = world.cloud.command(&["run"], "").await.unwrap();
    assert!(
        told.err.contains("holds no P-256 private key"),
        "a key cut short was not noticed: {}",
        told.err
    );
}

/// Starts the daemon and kills it as it enters this rename, counted from its start; whether that came.
async fn killed_at(part: &Part, rename: usize) -> bool {
    let renames = "rename,renameat,renameat2";
    let script = format!(
        "exec strace -f -qq -o /dev/null -e trace={renames} -e inject={renames}:signal=KILL:when={rename} \
         timeout {SURVIVES} {}",
        part.command_line("run")
    );
    let told = run(Path::new("/bin/sh"), &["-c", &script], "")
        .await
        .unwrap();
    // `timeout` says 124 when its time was over, and passes a death by the ninth signal on.
    assert!(matches!(told.code, Some(124 | 137) | None), "{told:?}");
    told.code != Some(124)
}

fn keys(state: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let is_key = |path: &PathBuf| path.extension().is_some_and(|end| end == "key");
    let all = if state.is_dir() {
        files(state)
    } else {
        Vec::new()
    };
    let read = |path: PathBuf| (path.clone(), std::fs::read(path).unwrap());
    all.into_iter().filter(is_key).map(read).collect()
}
