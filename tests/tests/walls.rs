//! The house stands: imports only through the doors of the design, one crypto provider, every file says what it is and stays small.
//! Reads `cargo metadata` and the tree; changes nothing.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A file above this many lines has more than one room in it.
const MOST_LINES: usize = 600;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests lies in the workspace")
        .to_owned()
}

#[test]
fn imports_go_through_doors_only() {
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--filter-platform",
        ])
        .arg("x86_64-unknown-linux-gnu")
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let breaches = holdfast_tests::walls::breaches(&metadata);
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_stays_small() {
    let mut faults = Vec::new();
    let mut seen = 0;
    for file in rust_files(&root()) {
        seen += 1;
        let text = std::fs::read_to_string(&file).expect("a source file is readable text");
        faults.extend(faults_of(&file.display().to_string(), &text));
    }
    assert!(
        seen > 20,
        "only {seen} source files found: the walk is broken"
    );
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn control_a_nameless_or_huge_file_is_found() {
    assert_eq!(faults_of("a.rs", "use std::fmt;\n").len(), 1);
    assert_eq!(
        faults_of("b.rs", &format!("//! b\n{}", "\n".repeat(MOST_LINES))).len(),
        1
    );
    assert!(faults_of("c.rs", "//! c\n").is_empty());
}

fn faults_of(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    if !text.starts_with("//!") {
        faults.push(format!("{name} does not open with //!"));
    }
    let lines = text.lines().count();
    if lines > MOST_LINES {
        faults.push(format!("{name} has {lines} lines, more than {MOST_LINES}"));
    }
    faults
}

/// All `.rs` files of the tree, build folders and hidden ones left out.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a folder of the tree is readable") {
        let path = entry.expect("a folder entry is readable").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with('.') || name == "target" {
            continue;
        }
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|end| end == "rs") {
            files.push(path);
        }
    }
    files
}
