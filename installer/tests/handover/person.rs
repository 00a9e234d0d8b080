//! A person with an installer: the real program with a state folder, vouchers for it, and what it said.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{HmacSecret, MacAlg, SigningKey, hmac};
use holdfast_protocol::id::Guid;
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use holdfast_protocol::voucher::NewVoucher;
use rand_core::Rng as _;

use crate::gateway::Gateway;

#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Told {
    /// The sentence that is left on the screen.
    pub(crate) fn last(&self) -> &str {
        self.err.trim_end().lines().last().unwrap_or_default()
    }
}

pub(crate) struct Person {
    folder: tempfile::TempDir,
    vouchers: Cell<u32>,
}

impl Person {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let vouchers = Cell::new(0);
        let person = Self { folder, vouchers };
        assert_eq!(person.runs(&["key", "new"]).code, 0);
        person
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("state")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-installer"));
        command.arg("--state").arg(self.state()).args(words);
        command
    }

    pub(crate) fn runs(&self, words: &[&str]) -> Told {
        let output = self.command(words).output().unwrap();
        Told {
            code: output.status.code().unwrap(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    pub(crate) fn starts(&self, words: &[&str]) -> Child {
        let mut command = self.command(words);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().unwrap()
    }

    pub(crate) fn extends(&self, file: &str, gateway: &Gateway, more: &[&str]) -> Told {
        let at = gateway.at();
        let words = [&["extend", file, "--gateway", &at][..], more].concat();
        self.runs(&words)
    }

    pub(crate) fn trusts(&self, gateway: &Gateway) {
        assert_eq!(self.runs(&["trust", &gateway.root_file]).code, 0);
    }

    /// Notes of what was handed to whom.
    pub(crate) fn notes(&self) -> usize {
        std::fs::read_dir(self.state().join("handed"))
            .unwrap()
            .count()
    }

    fn key(&self) -> SigningKey {
        let der = std::fs::read(self.state().join("installer.key")).unwrap();
        SigningKey::from_pkcs8_der(&der).unwrap()
    }

    /// A voucher that names this person's key, as a file, and its GUID.
    pub(crate) fn voucher(&self) -> (String, Guid) {
        let maker = SigningKey::generate(&mut SystemRandom);
        let mut guid = Guid([0; 16]);
        SystemRandom.fill_bytes(&mut guid.0);
        let directive = vec![
            Instruction::DevOnly,
            Instruction::Dns("holdfast-rv.local".into()),
        ];
        let rendezvous = RendezvousInfo::new(vec![directive]).unwrap();
        let maker_key = PublicKey::x509(&maker.public());
        let new = NewVoucher::new(guid, &rendezvous, "thermometer", &maker_key, None);
        let secret = HmacSecret::from_bytes([9; 32]);
        let mac = hmac(MacAlg::HmacSha256, &secret, new.header().as_bytes());
        let voucher = new.seal(mac).unwrap();
        let extended = voucher.extend(&PublicKey::x509(&self.key().public()), &maker);
        self.vouchers.set(self.vouchers.get() + 1);
        let path = self
            .folder
            .path()
            .join(format!("{}.ov", self.vouchers.get()));
        std::fs::write(&path, extended.unwrap().to_pem()).unwrap();
        (path.display().to_string(), guid)
    }
}
