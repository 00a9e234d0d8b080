//! Makings of tests: reproducible randomness, a device authority, a device fresh from its factory.
//!
//! Used by the tests of this crate only.

use std::convert::Infallible;
use std::path::PathBuf;

use rand_core::{TryCryptoRng, TryRng};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SubjectPublicKeyInfo,
};

use crate::credential::DeviceCredential;
use crate::crypto::{HashAlg, SigningKey, VerifyingKey, hash};
use crate::fdo::di;
use crate::id::Guid;
use crate::rv::{Instruction, RendezvousInfo, RvProtocol};
use crate::voucher::Voucher;

/// A stream of bytes that depends on the seed alone.
#[derive(Debug)]
pub(crate) struct TestRng {
    seed: u64,
    block: u64,
    left: Vec<u8>,
}

impl TestRng {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            seed,
            block: 0,
            left: Vec::new(),
        }
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        let Ok(number) = self.try_next_u64();
        (number % bound as u64) as usize
    }
}

impl TryRng for TestRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let mut bytes = [0; 4];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        let mut bytes = [0; 8];
        self.try_fill_bytes(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn try_fill_bytes(&mut self, out: &mut [u8]) -> Result<(), Infallible> {
        while self.left.len() < out.len() {
            let text = [self.seed.to_le_bytes(), self.block.to_le_bytes()].concat();
            self.left
                .extend_from_slice(hash(HashAlg::Sha256, &text).value());
            self.block += 1;
        }
        out.copy_from_slice(&self.left[..out.len()]);
        self.left.drain(..out.len());
        Ok(())
    }
}

impl TryCryptoRng for TestRng {}

/// An authority that certifies devices.
pub(crate) struct DeviceCa {
    pub(crate) root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl DeviceCa {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().to_vec();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    /// A certificate of this authority that is none itself, used to issue all the same.
    pub(crate) fn pretender(&self) -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "pretender");
        let key = KeyPair::generate().unwrap();
        let root = params.signed_by(&key, &self.issuer).unwrap().der().to_vec();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    pub(crate) fn issue(&self, key: &VerifyingKey) -> Vec<u8> {
        self.issue_with(key, |_| {})
    }

    pub(crate) fn issue_with(
        &self,
        key: &VerifyingKey,
        edit: impl FnOnce(&mut CertificateParams),
    ) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "device");
        edit(&mut params);
        let key = SubjectPublicKeyInfo::from_der(&key.to_spki_der()).unwrap();
        params.signed_by(&key, &self.issuer).unwrap().der().to_vec()
    }
}

pub(crate) fn rendezvous(host: &str) -> RendezvousInfo {
    let directive = vec![
        Instruction::Protocol(RvProtocol::Http),
        Instruction::Dns(host.to_owned()),
        Instruction::DevPort(8042),
        Instruction::OwnerPort(8042),
        Instruction::DelaySecs(2),
    ];
    RendezvousInfo::new(vec![directive]).unwrap()
}

pub(crate) fn guid(rng: &mut TestRng) -> Guid {
    let mut guid = [0; 16];
    let Ok(()) = rng.try_fill_bytes(&mut guid);
    Guid(guid)
}

/// A device and its voucher, not extended yet.
pub(crate) struct Born {
    pub(crate) ca: DeviceCa,
    pub(crate) manufacturer: SigningKey,
    pub(crate) credential: DeviceCredential,
    pub(crate) voucher: Voucher,
}

/// Runs DI.
pub(crate) fn born(rng: &mut TestRng) -> Born {
    let (ca, manufacturer) = (DeviceCa::new("device authority"), SigningKey::generate(rng));
    let (device, hello) = di::start("serial-1", "thermometer", SigningKey::generate(rng)).unwrap();
    let start = di::AppStart::read(&hello).unwrap();
    let chain = vec![ca.issue(start.csr().key()), ca.root.clone()];
    let terms = di::IssueTerms {
        guid: guid(rng),
        rendezvous: &rendezvous("rv.example"),
        manufacturer: &manufacturer.public(),
        chain,
    };
    let (factory, reply) = start.issue(terms).unwrap();
    let (device, reply) = device.step(&reply, rng).unwrap();
    let (voucher, reply) = factory.step(&reply).unwrap();
    Born {
        ca,
        manufacturer,
        credential: device.step(&reply).unwrap(),
        voucher,
    }
}

/// Folder of the samples of another implementation.
pub(crate) fn samples(folder: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/data/fdo")
        .join(folder)
}

/// A quick stream of numbers for simulations that draw millions; depends on the seed alone.
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}
