//! Tests of the stock of vouchers: one extension per voucher, restarts, and what is refused.

use std::sync::Arc;

use holdfast_link::random::SystemRandom;
use holdfast_protocol::crypto::{HmacSecret, MacAlg, SigningKey, hmac};
use holdfast_protocol::id::Guid;
use holdfast_protocol::key::PublicKey;
use holdfast_protocol::rv::{Instruction, RendezvousInfo};
use holdfast_protocol::voucher::{NewVoucher, Voucher};
use holdfast_store::{Medium, Options};

use super::{Stock, StockError};

struct Fixture {
    _folder: tempfile::TempDir,
    path: std::path::PathBuf,
    key: Arc<SigningKey>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("vouchers.redb");
        Self {
            _folder: folder,
            path,
            key: Arc::new(new_key()),
        }
    }

    fn open(&self) -> Stock {
        let medium = Medium::File(self.path.clone());
        Stock::open(medium, Options::default(), Arc::clone(&self.key)).expect("opens")
    }
}

fn new_key() -> SigningKey {
    SigningKey::generate(&mut SystemRandom)
}

/// A voucher of device `n`, issued to `owner`; without a device certificate, which is not looked at.
fn issued(n: u8, owner: &SigningKey) -> Voucher {
    let directive = vec![
        Instruction::Dns("rv.example.com".into()),
        Instruction::DevPort(80),
    ];
    let info = RendezvousInfo::new(vec![directive]).expect("fits");
    let owner = PublicKey::x509(&owner.public());
    let new = NewVoucher::new(Guid([n; 16]), &info, "thermometer", &owner, None);
    let secret = HmacSecret::generate(&mut SystemRandom);
    let mac = hmac(MacAlg::HmacSha256, &secret, new.header().as_bytes());
    new.seal(mac).expect("sealed")
}

#[tokio::test]
async fn a_voucher_is_extended_once_and_the_same_owner_gets_the_same_bytes() {
    let fixture = Fixture::new();
    let stock = fixture.open();
    let voucher = issued(1, &fixture.key);
    stock
        .keep(voucher.clone(), Some("t-1"))
        .await
        .expect("kept");
    stock
        .keep(voucher.clone(), Some("t-1"))
        .await
        .expect("keeping twice is no error");
    let (owner, other) = (new_key(), new_key());
    let next = PublicKey::x509(&owner.public());
    let first = stock.extend(voucher.guid(), &next).await.expect("extended");
    assert!(first.is_owned_by(&owner.public()) && first.entries().len() == 1);
    drop(stock);
    let stock = fixture.open();
    let again = stock.extend(voucher.guid(), &next).await.expect("again");
    assert_eq!(
        again.as_bytes(),
        first.as_bytes(),
        "a second signature would be a fork"
    );
    let fork = stock
        .extend(voucher.guid(), &PublicKey::x509(&other.public()))
        .await;
    assert!(matches!(fork, Err(StockError::AlreadyGiven(_))), "{fork:?}");
    let kept = stock.get(voucher.guid()).expect("there");
    assert_eq!((kept.given, kept.serial.as_deref()), (true, Some("t-1")));
    assert_eq!(stock.list().expect("list").len(), 1);
}

#[tokio::test]
async fn foreign_and_contradicting_vouchers_are_refused() {
    let fixture = Fixture::new();
    let stock = fixture.open();
    let foreign = issued(1, &new_key());
    let refused = stock.keep(foreign, None).await;
    assert!(
        matches!(refused, Err(StockError::ForeignOwner)),
        "{refused:?}"
    );
    stock
        .keep(issued(1, &fixture.key), None)
        .await
        .expect("kept");
    let twin = stock.keep(issued(1, &fixture.key), None).await;
    assert!(
        matches!(twin, Err(StockError::Taken(_))),
        "another voucher of the same GUID: {twin:?}"
    );
    let next = PublicKey::x509(&new_key().public());
    let unknown = stock.extend(Guid([9; 16]), &next).await;
    assert!(
        matches!(unknown, Err(StockError::Unknown(_))),
        "{unknown:?}"
    );
}

#[tokio::test]
async fn a_device_belongs_to_one_site() {
    let fixture = Fixture::new();
    let stock = fixture.open();
    let voucher = issued(1, &fixture.key);
    stock.keep(voucher.clone(), None).await.expect("kept");
    let (bern, basel) = (
        "bern".parse().expect("site"),
        "basel".parse().expect("site"),
    );
    stock.assign(voucher.guid(), &bern).await.expect("assigned");
    stock
        .assign(voucher.guid(), &bern)
        .await
        .expect("the same again");
    let other = stock.assign(voucher.guid(), &basel).await;
    assert!(
        matches!(other, Err(StockError::Assigned { .. })),
        "{other:?}"
    );
    assert_eq!(stock.get(voucher.guid()).expect("there").site, Some(bern));
}
