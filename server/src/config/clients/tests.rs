//! `[clients]`: everything off by default, and every fault told at once.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::*;

const HASH: &str = "$argon2id$v=19$m=19456,t=2,p=1$kt5hCTmh5cXlKNKtuoVbuw$EaVTHzq+PoHtQCZbT5uB4ciOvrmkVQe5Usz4cPpwnno";

struct Config(Clients);

impl Settings for Config {
    fn read(section: &mut Section<'_>) -> Self {
        Self(section.section("clients"))
    }
}

/// A folder with a good file of one client.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    let text = format!("[[client]]\nname = \"a\"\npassword = \"{HASH}\"\npublish = [\"p/#\"]\n");
    put(folder.path(), &text, 0o640);
    folder
}

fn put(folder: &Path, text: &str, mode: u32) {
    let path = folder.join("clients.toml");
    std::fs::write(&path, text).expect("file");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
}

fn faults(folder: &Path, text: &str) -> Vec<(String, String)> {
    let read = holdfast_config::parse::<Config>(&folder.join("gateway.toml"), text);
    let faults = read.err().map(|faults| faults.list().to_vec());
    let told = faults.unwrap_or_default().into_iter().map(|fault| {
        assert!(
            !fault.remedy.is_empty() && fault.line.is_some(),
            "{fault:?}"
        );
        (fault.key, fault.what)
    });
    told.collect()
}

#[test]
fn everything_is_off_unless_it_is_written() {
    let read = holdfast_config::parse::<Config>(Path::new("x"), "").expect("no faults");
    let Clients {
        file: None,
        tls: None,
        plain: None,
        websocket: None,
        websocket_password: None,
        plain_beyond_loopback: false,
        ..
    } = read.0
    else {
        panic!("{:?}", read.0);
    };
}

#[test]
fn a_plain_listener_beyond_this_machine_wants_to_be_meant() {
    let folder = folder();
    let text = |plain: &str, more: &str| {
        format!("[clients]\nfile = \"clients.toml\"\nplain = \"{plain}\"\n{more}")
    };
    for good in ["127.0.0.1:1883", "[::1]:1883"] {
        assert_eq!(faults(folder.path(), &text(good, "")), [], "{good}");
    }
    for open in ["0.0.0.0:1883", "192.168.1.1:1883", "[::]:1883"] {
        let found = faults(folder.path(), &text(open, ""));
        assert_eq!(found.len(), 1, "{open}: {found:?}");
        assert_eq!(found[0].0, "clients.plain");
        assert!(found[0].1.contains("everyone"), "{found:?}");
        let meant = text(open, "plain_beyond_loopback = true\n");
        assert_eq!(faults(folder.path(), &meant), [], "{open}");
    }
}

#[test]
fn all_faults_come_at_once_those_of_the_clients_file_with_their_lines() {
    let folder = folder();
    let bad = "[[client]]\nname = \"A b\"\npassword = \"secret\"\npublish = [\"#\"]\n";
    put(folder.path(), bad, 0o644);
    let text = "[clients]\nfile = \"clients.toml\"\nplain = \"0.0.0.0:1\"\n\
                origins = [\"https://a/b\"]\nguesses_per_minute = 0\n";
    let found = faults(folder.path(), text);
    let all = format!("{found:#?}");
    for words in [
        "everybody",
        "clients.toml:2: client[1].name",
        "clients.toml:3: client[1].password",
        "clients.toml:4: client[1].publish",
        "everyone on that network",
        "is no origin",
        "no listener is",
        "0 guesses",
    ] {
        assert!(all.contains(words), "{words}: {all}");
    }
    assert!(!all.contains("secret"), "{all}");
}

#[test]
fn what_leads_nowhere_is_a_fault() {
    let folder = folder();
    let nobody = "[clients]\nfile = \"clients.toml\"\nwebsocket = \"0.0.0.0:1\"\n";
    let found = faults(folder.path(), nobody);
    assert!(found[0].1.contains("no listener lets in"), "{found:?}");
    for key in ["tls", "plain", "websocket_password"] {
        let found = faults(
            folder.path(),
            &format!("[clients]\n{key} = \"127.0.0.1:1\"\n"),
        );
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(found[0].0, format!("clients.{key}"));
    }
    let by_certificate = "[clients]\nwebsocket = \"0.0.0.0:1\"\n";
    assert_eq!(faults(folder.path(), by_certificate), []);
    let missing = "[clients]\nfile = \"none.toml\"\ntls = \"0.0.0.0:1\"\n";
    assert!(
        faults(folder.path(), missing)[0]
            .1
            .contains("cannot be read")
    );
}
