//! The tool as a person meets it: the real program, real files, every refusal with its remedy.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
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
    std::fs::write(path, voucher(owner, 7).to_pem()).expect("voucher file");
}

/// A voucher of the device of that number.
fn voucher(owner: &SigningKey, device: u8) -> Voucher {
    let maker = SigningKey::generate(&mut SystemRandom);
    let directive = vec![
        Instruction::DevOnly,
        Instruction::Dns("holdfast-rv.local".into()),
    ];
    let rendezvous = RendezvousInfo::new(vec![directive]).expect("rendezvous");
    let maker_key = PublicKey::x509(&maker.public());
    let new = NewVoucher::new(
        Guid([device; 16]),
        &rendezvous,
        "thermometer",
        &maker_key,
        None,
    );
    let mac = hmac(
        MacAlg::HmacSha256,
        &HmacSecret::from_bytes([9; 32]),
        new.header().as_bytes(),
    );
    let voucher = new.seal(mac).expect("voucher");
    voucher
        .extend(&PublicKey::x509(&owner.public()), &maker)
        .expect("extended")
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

/// What a stick, a sticker or a seller's mail may carry.
#[test]
fn a_voucher_is_read_in_every_form_and_the_one_for_this_key_is_picked() {
    let root = tempfile::tempdir().expect("folder");
    let (ours, _) = person(root.path(), "ours");
    let (theirs, public) = person(root.path(), "theirs");
    let (own, other) = (key_of(&ours), key_of(&theirs));
    let mine = voucher(&own, 7);
    let dense = STANDARD.encode(mine.as_bytes());
    let lines: Vec<_> = dense
        .as_bytes()
        .chunks(40)
        .map(String::from_utf8_lossy)
        .collect();
    let old_key = voucher(&other, 7).to_pem();
    let forms: [(&str, Vec<u8>); 7] = [
        ("PEM", mine.to_pem().into_bytes()),
        (
            "PEM of Windows",
            mine.to_pem().replace('\n', "\r\n").into_bytes(),
        ),
        ("CBOR", mine.as_bytes().to_vec()),
        ("base64", dense.clone().into_bytes()),
        (
            "base64 in lines",
            format!("{}\n", lines.join("\n")).into_bytes(),
        ),
        (
            "base64url, bare",
            URL_SAFE_NO_PAD.encode(mine.as_bytes()).into_bytes(),
        ),
        (
            "two keys",
            format!(
                "for the old key\n{old_key}for the new one\n{}",
                mine.to_pem()
            )
            .into_bytes(),
        ),
    ];
    let to = public.to_str().expect("text");
    for (at, (form, bytes)) in forms.iter().enumerate() {
        let file = root.path().join(format!("{at}.ov"));
        std::fs::write(&file, bytes).expect("file");
        let file = file.to_str().expect("text");
        let shown = ok(&tool(&ours, &["show", file]));
        assert_eq!(
            shown.matches("thermometer").count(),
            1 + usize::from(*form == "two keys")
        );
        let out = root.path().join(format!("{at}.out"));
        let out = out.to_str().expect("text");
        ok(&tool(&ours, &["extend", file, "--to", to, "--out", out]));
        let handed = Voucher::read(&std::fs::read(out).expect("written")).expect("voucher");
        assert_eq!(handed.entries().len(), 2, "{form}");
    }
}

#[test]
fn what_is_no_voucher_is_refused_in_one_sentence() {
    let root = tempfile::tempdir().expect("folder");
    let (ours, public) = person(root.path(), "ours");
    let whole = voucher(&key_of(&ours), 7);
    let pem = whole.to_pem();
    let other_device = voucher(&key_of(&ours), 8).to_pem();
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("empty", Vec::new(), "is empty"),
        (
            "cut PEM",
            pem.as_bytes()[..pem.len() / 2].to_vec(),
            "ask its sender for a new copy",
        ),
        (
            "cut CBOR",
            whole.as_bytes()[..whole.as_bytes().len() - 1].to_vec(),
            "ask its sender",
        ),
        (
            "one byte more",
            [whole.as_bytes(), &[0][..]].concat(),
            "ask its sender",
        ),
        (
            "a public key",
            std::fs::read(&public).expect("key"),
            "OWNERSHIP VOUCHER",
        ),
        (
            "a letter",
            b"Dear Anna, here is the voucher.".to_vec(),
            "not an ownership voucher",
        ),
        ("too long", vec![b'A'; 70_000], "larger than"),
        (
            "two devices",
            format!("{pem}{other_device}").into_bytes(),
            "several devices",
        ),
    ];
    let to = public.to_str().expect("text");
    let out = root.path().join("out");
    for (what, bytes, words) in cases {
        let file = root.path().join("file");
        std::fs::write(&file, bytes).expect("file");
        let file = file.to_str().expect("text");
        let words_to = [
            "extend",
            file,
            "--to",
            to,
            "--out",
            out.to_str().expect("text"),
        ];
        let told = refused(&tool(&ours, &words_to));
        assert!(told.contains(words), "{what}: {told}");
        assert_eq!(told.trim_end().lines().count(), 1, "{what}: {told}");
    }
    let folder = root.path().to_str().expect("text");
    let told = refused(&tool(&ours, &["show", folder]));
    assert!(told.contains("check the path"), "{told}");
}

#[test]
fn a_device_that_does_not_come_is_said_and_an_address_that_is_not_here_too() {
    let root = tempfile::tempdir().expect("folder");
    let (ours, _) = person(root.path(), "ours");
    let file = root.path().join("a.ov");
    voucher_for(&key_of(&ours), &file);
    let path = file.to_str().expect("text");
    let pair = |listen, patience| {
        let words = [
            "pair",
            path,
            "--ssid",
            "harbour",
            "--listen",
            listen,
            "--patience",
            patience,
        ];
        tool(&ours, &words)
    };
    let late = pair("127.0.0.1:0", "1");
    assert_eq!(late.status.code(), Some(69));
    let late = refused(&late);
    assert!(late.contains("waiting for device"), "{late}");
    assert!(
        late.contains("did not come within 1 s; check that it is powered"),
        "{late}"
    );
    let elsewhere = refused(&pair("192.0.2.1:8042", "1"));
    assert!(
        elsewhere.contains("give this machine that address first"),
        "{elsewhere}"
    );
}
