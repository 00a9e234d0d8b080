//! Wrong and missing configuration: every fault at once, with file and line, and exit code 64.

use std::path::Path;

use holdfast_tests::process::{Finished, binary, run};

const DAEMONS: [&str; 3] = ["holdfast-cloud", "holdfast-gateway", "holdfast-agent"];

async fn ask(daemon: &str, folder: &Path, config: &Path, word: &str) -> Finished {
    let state = folder.join("state").display().to_string();
    let config = config.display().to_string();
    run(
        &binary(daemon).unwrap(),
        &["--config", &config, "--state", &state, word],
        "",
    )
    .await
    .unwrap()
}

#[tokio::test]
async fn a_wrong_file_is_refused_with_all_its_faults() {
    for daemon in DAEMONS {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("wrong.toml");
        std::fs::write(
            &config,
            "colour = \"blue\"\n[listen]\nmqtt = \"nowhere\"\n[discovery]\ninterfaces = 3\n",
        )
        .unwrap();
        for word in ["check-config", "run"] {
            let told = ask(daemon, folder.path(), &config, word).await;
            assert_eq!(told.code, Some(64), "{daemon} {word}: {}", told.err);
            assert!(
                told.err.contains("wrong.toml:1"),
                "{daemon} {word} names no file and line: {}",
                told.err
            );
            assert!(told.err.contains("colour"), "{daemon} {word}: {}", told.err);
            assert!(
                told.err.lines().count() > 1,
                "{daemon} {word} tells one fault only: {}",
                told.err
            );
        }
        assert!(
            !folder.path().join("state").exists(),
            "{daemon} wrote state on a wrong configuration"
        );
    }
}

#[tokio::test]
async fn a_file_that_is_no_toml_is_refused() {
    for daemon in DAEMONS {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("broken.toml");
        std::fs::write(&config, "[listen\n").unwrap();
        let told = ask(daemon, folder.path(), &config, "run").await;
        assert_eq!(told.code, Some(64), "{daemon}: {}", told.err);
        assert!(told.err.contains("broken.toml:1"), "{daemon}: {}", told.err);
    }
}

#[tokio::test]
async fn a_missing_file_is_refused() {
    for daemon in DAEMONS {
        let folder = tempfile::tempdir().unwrap();
        let told = ask(
            daemon,
            folder.path(),
            &folder.path().join("none.toml"),
            "run",
        )
        .await;
        assert_eq!(told.code, Some(64), "{daemon}: {}", told.err);
        assert!(told.err.contains("none.toml"), "{daemon}: {}", told.err);
    }
}

/// Control: the checks above would pass on any daemon that refuses everything.
#[tokio::test]
async fn control_a_right_file_is_accepted() {
    for daemon in DAEMONS {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("right.toml");
        std::fs::write(&config, "").unwrap();
        let told = ask(daemon, folder.path(), &config, "check-config").await;
        assert_eq!(told.code, Some(0), "{daemon}: {}", told.err);
    }
}
