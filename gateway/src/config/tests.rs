//! The configuration: defaults, the sample, and every fault told at once.

use std::path::Path;

use super::*;

fn sample() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/gateway.toml");
    std::fs::read_to_string(path).expect("the sample is there")
}

/// A folder with the files that the sample's remote names.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let partner = folder.path().join("partner");
    std::fs::create_dir(&partner).expect("folder");
    crate::bridge::credentials::tests::partner(&partner);
    let clients = include_bytes!("../../../config/clients.toml");
    holdfast_config::secret_file::write(&folder.path().join("clients.toml"), clients)
        .expect("file");
    folder
}

#[test]
fn an_empty_file_means_the_defaults() {
    assert_eq!(
        holdfast_config::parse(Path::new("x"), ""),
        Ok(Config::default())
    );
}

#[test]
fn the_sample_shows_the_defaults() {
    let read = holdfast_config::parse(Path::new("gateway.toml"), &sample());
    assert_eq!(read, Ok(Config::default()));
}

/// Every commented line of the sample that looks like a key must be one: a renamed key would
/// otherwise live on in the sample for ever.
#[test]
fn the_sample_with_all_comments_removed_is_valid() {
    let open: String = sample()
        .lines()
        .map(|line| uncommented(line) + "\n")
        .collect();
    let folder = folder();
    let config: Config =
        holdfast_config::parse(&folder.path().join("gateway.toml"), &open).expect("valid");
    assert_eq!(config.bridge.len(), 3);
    assert_eq!(config.remotes.len(), 1);
    assert!(!config.cloud.mqtt.is_empty() && !config.advertise.addresses.is_empty());
}

fn uncommented(line: &str) -> String {
    match line.strip_prefix('#') {
        Some(rest) if rest.starts_with(|c: char| c == '[' || c.is_ascii_lowercase()) => {
            rest.to_owned()
        }
        _ => line.to_owned(),
    }
}

fn faults(path: &Path, text: &str) -> Vec<(String, String)> {
    let faults = holdfast_config::parse::<Config>(path, text).expect_err("faulty");
    let faults = faults.list().iter();
    faults
        .map(|fault| {
            assert!(!fault.remedy.is_empty(), "{fault:?}");
            (fault.key.clone(), fault.what.clone())
        })
        .collect()
}

fn keys(path: &Path, text: &str) -> Vec<String> {
    faults(path, text).into_iter().map(|(key, _)| key).collect()
}

#[test]
fn all_faults_come_at_once() {
    let text = "[advertise]\naddresses = [\"0.0.0.0\"]\n[discovery]\nhost = \"gateway\"\n\
                [uplink]\nfailures = 0\n[[bridge]]\nname = \"a\"\ndirection = \"up\"\nfilter = \"x/#\"\n\
                [[bridge]]\nname = \"a\"\ndirection = \"out\"\nfilter = \"a#\"\nprefix = \"x\"\n";
    assert_eq!(
        keys(Path::new("c"), text),
        [
            "advertise.addresses",
            "discovery.host",
            "uplink.probe_interval",
            "bridge",
            "bridge[1].direction",
            "bridge[2].filter",
            "bridge[2].prefix"
        ]
    );
}

#[test]
fn every_fault_of_a_remote_is_told_with_its_line() {
    let folder = folder();
    let path = folder.path().join("gateway.toml");
    let partner = folder.path().join("partner");
    std::fs::write(partner.join("empty"), "").expect("file");
    std::fs::write(partner.join("open"), "secret").expect("file");
    let text = "[[remote]]\nname = \"cloud\"\naddress = []\nserver_name = \"a b\"\n\
                ca = \"partner/empty\"\ncertificate = \"partner/client.pem\"\nversion = \"4\"\n\
                keep_alive = \"0s\"\nclient_id = \"\"\npassword_file = \"partner/open\"\n\
                [[remote]]\nname = \"b\"\naddress = [\"h:1\"]\nca = \"none\"\nuser = \"u\"\n\
                certificate = \"partner/client.pem\"\nkey = \"partner/open\"\n";
    let found = faults(&path, text);
    let keys: Vec<_> = found.iter().map(|(key, _)| key.as_str()).collect();
    let expected = [
        "remote",
        "remote[1].name",
        "remote[1].address",
        "remote[1].server_name",
        "remote[1].ca",
        "remote[1].certificate",
        "remote[1].version",
        "remote[1].keep_alive",
        "remote[1].client_id",
        "remote[1].password_file",
        "remote[2].ca",
        "remote[2].key",
    ];
    for key in expected {
        assert!(keys.contains(&key), "{key}: {found:#?}");
    }
    let of = |key: &str| {
        let found = found.iter().filter(|(name, _)| name == key);
        found.map(|(_, what)| what.as_str()).collect::<String>()
    };
    assert!(
        of("remote[1].password_file").contains("no user"),
        "{found:?}"
    );
    assert!(
        of("remote[1].password_file").contains("everybody"),
        "{found:?}"
    );
    assert!(of("remote[2].key").contains("everybody"), "{found:?}");
    assert!(of("remote[2].ca").contains("cannot be read"), "{found:?}");
}

#[test]
fn rules_and_remotes_must_fit_together() {
    let folder = folder();
    let path = folder.path().join("gateway.toml");
    let remote = "[[remote]]\nname = \"p\"\naddress = [\"h:1\"]\nca = \"partner/ca.pem\"\n";
    let rule = |name: &str, remote: &str, direction: &str, filter: &str, rest: &str| {
        format!(
            "[[bridge]]\nname = \"{name}\"\nremote = \"{remote}\"\ndirection = \"{direction}\"\n\
             filter = \"{filter}\"\n{rest}\n"
        )
    };
    let good = format!(
        "{remote}{}{}",
        rule(
            "o",
            "p",
            "out",
            "plant/#",
            "strip = \"plant/\"\nprefix = \"site/\""
        ),
        rule("i", "p", "in", "orders/#", "prefix = \"plant-orders/\"")
    );
    assert!(
        holdfast_config::parse::<Config>(&path, &good).is_ok(),
        "control"
    );

    let circle = format!(
        "{remote}{}{}",
        rule("o", "p", "out", "plant/#", "prefix = \"x/\""),
        rule("i", "p", "in", "x/#", "strip = \"x/\"\nprefix = \"plant/\"")
    );
    let found = faults(&path, &circle);
    assert!(found[0].1.contains("circle: o -> i"), "{found:?}");
    // Two names of one broker hide no circle.
    let second = remote.replace("\"p\"", "\"q\"");
    let hidden = format!(
        "{remote}{second}{}{}",
        rule("o", "p", "out", "plant/#", "prefix = \"x/\""),
        rule("i", "q", "in", "x/#", "strip = \"x/\"\nprefix = \"plant/\"")
    );
    assert_eq!(keys(&path, &hidden), ["bridge"]);
    let unknown = rule("o", "nobody", "out", "a", "");
    assert_eq!(keys(&path, &unknown), ["bridge"]);
    assert_eq!(keys(&path, remote), ["remote"], "named by no rule");
    let speaks = format!("{remote}{}", rule("i", "p", "in", "hf/v1/b/+/up/t", ""));
    assert_eq!(keys(&path, &speaks), ["bridge[1].filter"]);
    let strip = format!("{remote}{}", rule("o", "p", "out", "a/b", "strip = \"b/\""));
    assert_eq!(keys(&path, &strip), ["bridge[1].strip"]);
    let shared = format!(
        "{remote}{}",
        rule("i", "p", "in", "$share/g/a", "prefix = \"x/\"")
    );
    assert_eq!(keys(&path, &shared), ["bridge[1].filter"]);
}
