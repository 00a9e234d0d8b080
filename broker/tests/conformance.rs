//! The conformance page against the standards' numbers and against the tests that it names.

// Helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;

/// Sections of MQTT 5.0, appendix B, with the first and last number of each run.
#[rustfmt::skip]
const FIVE: &[(&str, u32, u32)] = &[
    ("1.5.4", 1, 3), ("1.5.5", 1, 1), ("1.5.7", 1, 1), ("2.1.3", 1, 1), ("2.2.1", 2, 6),
    ("2.2.2", 1, 1), ("3.1.0", 1, 2), ("3.1.2", 1, 30), ("3.1.3", 1, 12), ("3.1.4", 1, 6),
    ("3.2.0", 1, 2), ("3.2.2", 1, 22), ("3.3.1", 1, 13), ("3.3.2", 1, 20), ("3.3.4", 1, 10),
    ("3.4.2", 1, 3), ("3.5.2", 1, 3), ("3.6.1", 1, 1), ("3.6.2", 1, 3), ("3.7.2", 1, 3),
    ("3.8.1", 1, 1), ("3.8.3", 1, 5), ("3.8.4", 1, 8), ("3.9.2", 1, 2), ("3.9.3", 1, 2),
    ("3.10.1", 1, 1), ("3.10.3", 1, 2), ("3.10.4", 1, 6), ("3.11.2", 1, 2), ("3.11.3", 1, 2),
    ("3.12.4", 1, 1), ("3.14.0", 1, 1), ("3.14.1", 1, 1), ("3.14.2", 1, 4), ("3.14.4", 1, 3),
    ("3.15.1", 1, 1), ("3.15.2", 1, 3), ("4.1.0", 1, 2), ("4.2.0", 1, 1), ("4.3.1", 1, 1),
    ("4.3.2", 1, 5), ("4.3.3", 1, 13), ("4.4.0", 1, 2), ("4.5.0", 1, 2), ("4.6.0", 1, 6),
    ("4.7.0", 1, 1), ("4.7.1", 1, 2), ("4.7.2", 1, 1), ("4.7.3", 1, 4), ("4.8.2", 1, 6),
    ("4.9.0", 1, 3), ("4.12.0", 1, 7), ("4.12.1", 1, 2), ("4.13.1", 1, 1), ("4.13.2", 1, 1),
    ("6.0.0", 1, 4),
];

/// The same of MQTT 3.1.1. Two numbers are misprinted there: 3.1.2.7 and 3-8.3-4.
#[rustfmt::skip]
const THREE: &[(&str, u32, u32)] = &[
    ("1.5.3", 1, 3), ("2.2.2", 1, 2), ("2.3.1", 1, 7), ("3.1.0", 1, 2), ("3.1.2", 1, 24),
    ("3.1.3", 1, 11), ("3.1.4", 1, 5), ("3.2.0", 1, 1), ("3.2.2", 1, 6), ("3.3.1", 1, 12),
    ("3.3.2", 1, 3), ("3.3.4", 1, 1), ("3.3.5", 1, 2), ("3.6.1", 1, 1), ("3.8.1", 1, 1),
    ("3.8.3", 1, 4), ("3.8.4", 1, 6), ("3.9.3", 1, 2), ("3.10.1", 1, 1), ("3.10.3", 1, 2),
    ("3.10.4", 1, 6), ("3.12.4", 1, 1), ("3.14.1", 1, 1), ("3.14.4", 1, 3), ("4.1.0", 1, 2),
    ("4.3.1", 1, 1), ("4.3.2", 1, 2), ("4.3.3", 1, 2), ("4.4.0", 1, 1), ("4.5.0", 1, 2),
    ("4.6.0", 1, 6), ("4.7.1", 1, 3), ("4.7.2", 1, 1), ("4.7.3", 1, 4), ("4.8.0", 1, 2),
    ("6.0.0", 1, 4), ("7.0.0", 1, 2), ("7.1.1", 1, 1), ("7.1.2", 1, 1),
];

fn numbers(runs: &[(&str, u32, u32)]) -> BTreeSet<String> {
    let all = runs.iter().flat_map(|(section, first, last)| {
        (*first..=*last).map(move |number| format!("MQTT-{section}-{number}"))
    });
    all.collect()
}

/// A row of the page.
struct Row {
    statement: String,
    what: String,
    held_by: String,
}

/// The rows below a heading, up to the next one.
fn rows(page: &str, heading: &str) -> Vec<Row> {
    let after = page.split_once(&format!("\n## {heading}\n")).unwrap().1;
    let part = after.split("\n## ").next().unwrap();
    let lines = part.lines().filter(|line| line.starts_with("| MQTT-"));
    lines
        .map(|line| {
            let mut cells = line.trim().split('|').skip(1).map(str::trim);
            let mut cell = || cells.next().unwrap_or_default().to_owned();
            Row {
                // As the others are written.
                statement: cell()
                    .replace("MQTT-3.1.2.7", "MQTT-3.1.2-7")
                    .replace("MQTT-3-8.3-4", "MQTT-3.8.3-4"),
                what: cell(),
                held_by: cell(),
            }
        })
        .collect()
}

/// Every test function of the crate.
fn tests() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["src", "tests"] {
        collect(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join(folder),
            &mut found,
        );
    }
    found
}

fn collect(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let mut marked = false;
            for line in text.lines().map(str::trim) {
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    marked = true;
                } else if let Some((_, after)) = line.split_once("fn ")
                    && marked
                {
                    let name = after.split('(').next().unwrap();
                    found.insert(name.to_owned());
                    marked = false;
                }
            }
        }
    }
}

/// What is wrong with a page; empty when it is right.
fn faults(page: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut faults = Vec::new();
    for (heading, runs) in [("MQTT 5.0", FIVE), ("MQTT 3.1.1", THREE)] {
        let mut left = numbers(runs);
        for row in rows(page, heading) {
            let Row {
                statement,
                what,
                held_by,
            } = row;
            if !left.remove(&statement) {
                faults.push(format!(
                    "{heading}: {statement} is no statement, or there twice"
                ));
            }
            let quoted =
                held_by.starts_with("not applicable: \"") && held_by.matches('"').count() == 2;
            // One test, or several that hold it together.
            let tested = held_by.split(", ").all(|one| {
                let name = one
                    .strip_prefix('`')
                    .and_then(|rest| rest.strip_suffix('`'));
                name.is_some_and(|name| tests.contains(name))
            });
            if what.is_empty() || !(held_by == "binds the client" || quoted || tested) {
                faults.push(format!("{heading}: {statement}: no such test: {held_by}"));
            }
        }
        faults.extend(left.iter().map(|id| format!("{heading}: {id} is missing")));
    }
    faults
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/mqtt-conformance.md");
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn every_statement_of_both_standards_has_its_test() {
    let faults = faults(&page(), &tests());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert_eq!((numbers(FIVE).len(), numbers(THREE).len()), (251, 141));
}

#[test]
fn control_a_missing_row_a_made_up_test_and_an_unmarked_row_are_found() {
    let (page, tests) = (page(), tests());
    let row = page
        .lines()
        .find(|line| line.starts_with("| MQTT-3.3.1-5 "))
        .unwrap();
    let without = page.replacen(row, "", 1);
    assert_eq!(
        faults(&without, &tests),
        ["MQTT 5.0: MQTT-3.3.1-5 is missing"]
    );
    for held_by in [
        "`no_such_test`",
        "`every_statement_of_both_standards_has_its_test`, `no_such_test`",
        "",
        "not applicable",
        "yes",
    ] {
        let other = page.replacen(row, &format!("| MQTT-3.3.1-5 | what | {held_by} |"), 1);
        assert_eq!(faults(&other, &tests).len(), 1, "{held_by:?}");
    }
    let twice = page.replacen(row, &format!("{row}\n{row}"), 1);
    assert_eq!(faults(&twice, &tests).len(), 1);
}
