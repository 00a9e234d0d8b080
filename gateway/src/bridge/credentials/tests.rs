//! The files of a foreign remote: good ones, and every way of being no good.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};

use super::*;

/// Writes `ca.pem`, `client.pem`, `client.key` and `password` into `folder`, as a partner sends them.
pub(crate) fn partner(folder: &Path) {
    let key = KeyPair::generate().expect("key");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key).expect("certificate");
    let issuer = Issuer::from_params(&authority, &key);
    let own = KeyPair::generate().expect("key");
    let client = CertificateParams::new(vec!["site-7.example".to_owned()]).expect("parameters");
    let client = client.signed_by(&own, &issuer).expect("certificate");
    for (file, text, mode) in [
        ("ca.pem", ca.pem(), 0o644),
        ("client.pem", client.pem() + &ca.pem(), 0o644),
        ("client.key", own.serialize_pem(), 0o640),
        ("password", "secret\nnot this\n".to_owned(), 0o600),
    ] {
        write(folder, file, &text, mode);
    }
}

fn write(folder: &Path, file: &str, text: &str, mode: u32) -> PathBuf {
    let path = folder.join(file);
    std::fs::write(&path, text).expect("written");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("mode");
    path
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("folder");
    partner(folder.path());
    folder
}

#[test]
fn good_files_are_taken() {
    let folder = folder();
    let at = |file: &str| folder.path().join(file);
    assert_eq!(roots(&at("ca.pem")).expect("roots").len(), 1);
    let own = identity(&at("client.pem"), &at("client.key")).expect("identity");
    assert_eq!(own.cert.len(), 2);
    assert_eq!(
        password(&at("password")).expect("password").as_slice(),
        b"secret"
    );
}

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_path_and_a_remedy() {
    let (folder, other) = (folder(), folder());
    let at = |file: &str| folder.path().join(file);
    let put = |file: &str, text: &str, mode| write(folder.path(), file, text, mode);
    let key = std::fs::read_to_string(at("client.key")).expect("key");
    let client = at("client.pem");
    let faults = [
        (roots(&at("nothing")).err(), "cannot be read"),
        (roots(&put("empty", "", 0o644)).err(), "no certificate"),
        (
            roots(&put("torn", "-----BEGIN CERTIFICATE-----\n!!\n", 0o644)).err(),
            "no good PEM",
        ),
        (
            roots(&put(
                "noise",
                "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
                0o644,
            ))
            .err(),
            "no authority",
        ),
        (
            roots(&put("large", &"x".repeat(2 << 20), 0o644)).err(),
            "larger than",
        ),
        (
            identity(&client, &put("open", &key, 0o644)).err(),
            "by everybody",
        ),
        (
            identity(&client, &put("none", "x", 0o600)).err(),
            "no private key",
        ),
        (
            identity(&client, &other.path().join("client.key")).err(),
            "is not the key of",
        ),
        (
            identity(&put("cert", "", 0o644), &at("client.key")).err(),
            "no certificate",
        ),
        (password(&put("open", "x", 0o604)).err(), "by everybody"),
        (password(&put("blank", "\nx", 0o600)).err(), "no password"),
        (password(folder.path()).err(), "cannot be read"),
    ];
    for (fault, expected) in faults {
        let fault = fault.unwrap_or_else(|| panic!("taken: {expected}"));
        assert!(fault.what.contains(expected), "{fault}");
        assert!(
            fault.what.starts_with('/') && !fault.remedy.is_empty(),
            "{fault}"
        );
    }
}

#[test]
fn a_changed_file_is_noticed() {
    let folder = folder();
    let (ca, gone) = (folder.path().join("ca.pem"), folder.path().join("gone"));
    let look = || Fingerprint::of([ca.as_path(), gone.as_path()]);
    let before = look();
    assert_eq!(before, look(), "control");
    std::fs::write(&gone, "x").expect("written");
    let with = look();
    assert_ne!(before, with);
    // As renewals do it: a new file in the old one's place.
    let fresh = write(folder.path(), "fresh", "y", 0o644);
    std::fs::rename(fresh, &gone).expect("renamed");
    assert_ne!(with, look());
}
