//! The tool as a person meets it: the real program, real files, every refusal with its remedy.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{HmacSecret, MacAlg, SigningKey, hmac};
use holdfast_protocol::id::Guid;
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use holdfast_protocol::voucher::{NewVoucher, Voucher};

fn tool(state: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast-installer"))
        .arg("--state")
        .arg(state)
        .args(arguments)
        .output()
        .expect("the tool runs")
}

fn ok(output: &Output) -> String {
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn refused(output: &Output) -> String {
    assert!(
        !output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A state folder with a key, and the PEM of its public half beside it.
fn person(root: &Path, name: &str) -> (PathBuf, PathBuf) {
    let state = root.join(name);
    let public = root.join(format!("{name}.pem"));
    std::fs::write(&public, ok(&tool(&state, &["key", "new"]))).expect("public key");
    (state, public)
}

fn key_of(state: &Path) -> SigningKey {
    let der = std::fs::read(state.join("installer.key")).expect("key file");
    SigningKey::from_pkcs8_der(&der).expect("key")
}

/// A voucher whose present owner is `owner`, as a file.
fn voucher_for(owner: &SigningKey, path: &Path) {
    let maker = SigningKey::generate(&mut SystemRandom);
    let directive = vec![
        Instruction::DevOnly,
        Instruction::Dns("holdfast-rv.local".into()),
    ];
    let rendezvous = RendezvousInfo::new(vec![directive]).expect("rendezvous");
    let maker_key = PublicKey::x509(&maker.public());
    let new = NewVoucher::new(Guid([7; 16]), &rendezvous, "thermometer", &maker_key, None);
    let mac = hmac(
        MacAlg::HmacSha256,
        &HmacSecret::from_bytes([9; 32]),
        new.header().as_bytes(),
    );
    let voucher = new.seal(mac).expect("voucher");
    let extended = voucher
        .extend(&PublicKey::x509(&owner.public()), &maker)
        .expect("extended");
    std::fs::write(path, extended.to_pem()).expect("voucher file");
}

#[test]
fn a_voucher_is_shown_and_handed_on_and_the_result_verifies() {
    let root = tempfile::tempdir().expect("folder");
    let (ours, _) = person(root.path(), "ours");
    let (theirs, their_public) = person(root.path(), "theirs");
    let file = root.path().join("a.ov");
    voucher_for(&key_of(&ours), &file);
    let path = file.to_str().expect("text");
    assert!(ok(&tool(&ours, &["show", path])).contains("thermometer"));

    let out = root.path().join("b.ov");
    let out_text = out.to_str().expect("text");
    let to = their_public.to_str().expect("text");
    ok(&tool(
        &ours,
        &["extend", path, "--to", to, "--out", out_text],
    ));
    let handed = Voucher::read(&std::fs::read(&out).expect("written")).expect("voucher");
    handed
        .verify_owned_by(&key_of(&theirs).public(), &Default::default())
        .expect("the next owner holds it");

    let again = refused(&tool(
        &ours,
        &["extend", path, "--to", to, "--out", out_text],
    ));
    assert!(again.contains("exists already"), "{again}");
    let third = root.path().join("c.ov");
    let twice = refused(&tool(
        &ours,
        &[
            "extend",
            out_text,
            "--to",
            to,
            "--out",
            third.to_str().expect("text"),
        ],
    ));
    assert!(twice.contains("was extended to"), "{twice}");
    assert!(!third.exists());
}

#[test]
fn what_is_not_ours_or_not_whole_is_refused_with_a_remedy() {
    let root = tempfile::tempdir().expect("folder");
    let (ours, _) = person(root.path(), "ours");
    let (theirs, their_public) = person(root.path(), "theirs");
    let (_, third_public) = person(root.path(), "third");
    let file = root.path().join("a.ov");
    voucher_for(&key_of(&theirs), &file);
    let path = file.to_str().expect("text");
    let out = root.path().join("b.ov");
    let out = out.to_str().expect("text");
    let third = third_public.to_str().expect("text");

    let not_ours = refused(&tool(&ours, &["extend", path, "--to", third, "--out", out]));
    assert!(not_ours.contains("not for this installer"), "{not_ours}");
    let nobody = root.path().join("nobody");
    let to = their_public.to_str().expect("text");
    let no_key = refused(&tool(&nobody, &["extend", path, "--to", to, "--out", out]));
    assert!(no_key.contains("key new"), "{no_key}");

    let mut bytes = Voucher::read(&std::fs::read(&file).expect("file"))
        .expect("voucher")
        .as_bytes()
        .to_vec();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&file, bytes).expect("spoil");
    let broken = refused(&tool(&ours, &["show", path]));
    assert!(
        broken.contains("not a voucher that can be trusted"),
        "{broken}"
    );
    let missing = refused(&tool(&ours, &["show", "/nonexistent"]));
    assert!(missing.contains("check the path"), "{missing}");
}
