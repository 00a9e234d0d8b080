//! Every fault is found in one pass, with its line; good files read; stand-ins never escape.

use std::net::SocketAddr;
use std::time::Duration;

use super::*;

#[derive(Debug, PartialEq)]
struct Sample {
    listen: Listen,
    rules: Vec<Rule>,
    probe: Duration,
    name: String,
}

#[derive(Debug, PartialEq)]
struct Listen {
    mqtt: SocketAddr,
    backlog: u16,
}

#[derive(Debug, PartialEq)]
struct Rule {
    filter: String,
    file: Option<PathBuf>,
}

impl Settings for Sample {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            listen: section.section("listen"),
            rules: section.sections("rule"),
            probe: section.get_checked("probe", Duration::from_secs(1), |probe| {
                if probe.is_zero() {
                    return Err(("is zero".to_owned(), "write at least \"100ms\"".to_owned()));
                }
                Ok(())
            }),
            name: section.required("name", String::new()),
        }
    }
}

impl Settings for Listen {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            mqtt: section.get("mqtt", ([0, 0, 0, 0], 8883).into()),
            backlog: section.get("backlog", 128),
        }
    }
}

impl Settings for Rule {
    fn read(section: &mut Section<'_>) -> Self {
        Self {
            filter: section.required("filter", String::new()),
            file: section.path("file"),
        }
    }
}

fn faults_of(text: &str) -> Vec<(Option<usize>, String)> {
    let faults = parse::<Sample>(Path::new("/etc/x.toml"), text).expect_err("must be refused");
    faults
        .list()
        .iter()
        .map(|fault| (fault.line, fault.key.clone()))
        .collect()
}

#[test]
fn a_good_file_reads_and_relative_paths_start_at_its_folder() {
    let text = "name = \"a\"\nprobe = \"250ms\"\n[listen]\nbacklog = 0x10\n[[rule]]\nfilter = \"#\"\nfile = \"r.csv\"\n";
    let read: Sample = parse(Path::new("/etc/x.toml"), text).expect("a good file");
    assert_eq!(
        read.listen,
        Listen {
            mqtt: "0.0.0.0:8883".parse().expect("address"),
            backlog: 16
        }
    );
    assert_eq!(
        read.rules,
        [Rule {
            filter: "#".into(),
            file: Some("/etc/r.csv".into())
        }]
    );
    assert_eq!(read.probe, Duration::from_millis(250));
}

#[test]
fn all_faults_are_reported_at_once_with_their_lines() {
    let text = "probe = \"0s\"\n[listen]\nmqtt = \"here\"\nbacklog = 70000\nbaklog = 1\n[[rule]]\nfile = 3\n[extra]\n";
    let expected = [
        (None, "name".to_owned()),
        (Some(1), "probe".to_owned()),
        (Some(3), "listen.mqtt".to_owned()),
        (Some(4), "listen.backlog".to_owned()),
        (Some(5), "listen.baklog".to_owned()),
        (Some(6), "rule[1].filter".to_owned()),
        (Some(7), "rule[1].file".to_owned()),
        (Some(8), "extra".to_owned()),
    ];
    assert_eq!(faults_of(text), expected);
}

#[test]
fn the_text_names_file_line_key_and_remedy() {
    let faults = parse::<Sample>(
        Path::new("/etc/x.toml"),
        "name = \"a\"\n[listen]\nbaklog = 1\n",
    );
    assert_eq!(
        faults.expect_err("unknown key").to_string(),
        "/etc/x.toml:3: listen.baklog: is not a known key; did you mean backlog?"
    );
}

#[test]
fn broken_syntax_is_reported_without_follow_up_faults() {
    let faults = faults_of("[listen\nmqtt = \n");
    assert!(
        !faults.is_empty() && faults.iter().all(|(_, key)| key.is_empty()),
        "{faults:?}"
    );
}

#[test]
fn kinds_that_do_not_fit_are_faults_not_panics() {
    for text in [
        "name = 1",
        "name = \"a\"\nlisten = 3",
        "name = \"a\"\nrule = [1]",
        "name = \"a\"\nrule = 1",
    ] {
        assert_eq!(faults_of(text).len(), 1, "{text}");
    }
}

#[test]
fn a_missing_file_says_what_to_do() {
    let faults = read::<Sample>(Some(Path::new("/nonexistent/x.toml"))).expect_err("no such file");
    assert!(
        faults.to_string().contains("leave --config out"),
        "{faults}"
    );
}
