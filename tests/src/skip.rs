//! Skipping in the open: a test that cannot run here says why, and `make test` counts it at the end.
//! Called by tests that need a program or a right the machine may lack; never used to hide a failure.

use std::fs::OpenOptions;
use std::io::Write;

/// Environment variable with the file that collects the reasons (set by `tests/run.sh`).
const COLLECTED_IN: &str = "HOLDFAST_SKIPS";

/// Notes that `test` does not run here and why. The caller returns right after.
pub fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
    let Some(file) = std::env::var_os(COLLECTED_IN) else {
        return;
    };
    let line = format!("{test}: {why}\n");
    let written = OpenOptions::new()
        .append(true)
        .create(true)
        .open(&file)
        .and_then(|mut file| file.write_all(line.as_bytes()));
    if let Err(error) = written {
        eprintln!(
            "cannot count the skipped test in {}: {error}",
            file.to_string_lossy()
        );
    }
}

/// True if the program can be run; looks where Debian keeps daemons as well.
#[must_use]
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([std::path::PathBuf::from("/usr/sbin")])
        .any(|folder| folder.join(name).is_file())
}
