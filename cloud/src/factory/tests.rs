//! Tests of factory initialisation: a whole DI run, and runs that must fail.

use std::sync::Arc;
use std::time::Duration;

use holdfast_cps::fdo::{FdoParty, FdoReply, FdoRequest, Token};
use holdfast_link::random::SystemRandom;
use holdfast_link::time::ManualClock;
use holdfast_protocol::crypto::SigningKey;
use holdfast_protocol::fdo::di;
use holdfast_protocol::fdo::error::{ErrorCode, ErrorMessage};
use holdfast_protocol::fdo::{Message, MessageType};
use holdfast_protocol::key::{PublicKey, certificate_key};
use holdfast_protocol::voucher::Policy;
use holdfast_store::{Medium, Options};

use super::{Factory, FactoryAuthority, FactoryParts, rendezvous_info};
use crate::config::Manufacturing;
use crate::stock::Stock;

struct Fixture {
    _folder: tempfile::TempDir,
    factory: Factory,
    stock: Stock,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().expect("folder");
    let owner = Arc::new(SigningKey::generate(&mut SystemRandom));
    let public = owner.public();
    let medium = Medium::File(folder.path().join("vouchers.redb"));
    let stock = Stock::open(medium, Options::default(), owner).expect("opens");
    let key = SigningKey::generate(&mut SystemRandom);
    let authority = FactoryAuthority::open(&folder.path().join("f.der"), key, 1_800_000_000);
    let internet = ["rv.example.com:80".parse().expect("host")];
    let factory = Factory::new(FactoryParts {
        authority: authority.expect("made"),
        owner: public,
        stock: stock.clone(),
        rendezvous: rendezvous_info(&Manufacturing::default(), &internet).expect("fits"),
        certificate_life: Duration::from_secs(3600),
        clock: Arc::new(ManualClock::at(1_800_000_000)),
        most_in_stock: 3,
        most_runs: 4,
        run_life: Duration::from_secs(60),
    });
    Fixture {
        _folder: folder,
        factory,
        stock,
    }
}

async fn send(factory: &Factory, message: &Message, token: Option<&Token>) -> FdoReply {
    let request = FdoRequest {
        message: message.kind.number(),
        token: token.cloned(),
        body: message.body.clone().into(),
    };
    factory.answer(request).await
}

fn message(reply: FdoReply) -> Message {
    let kind = MessageType::from_number(reply.message).expect("known");
    Message::new(kind, reply.body)
}

fn code(reply: &FdoReply) -> ErrorCode {
    assert_eq!(reply.message, FdoReply::ERROR);
    ErrorMessage::parse(&reply.body).code
}

#[tokio::test]
async fn a_device_gets_its_credential_and_its_voucher_is_kept_first() {
    let Fixture {
        factory,
        stock,
        _folder,
    } = fixture();
    let key = SigningKey::generate(&mut SystemRandom);
    let (device, hello) = di::start("t-1", "thermometer", key.clone()).expect("starts");
    let reply = send(&factory, &hello, None).await;
    let token = reply.token.clone().expect("a run");
    let (device, hmac) = device
        .step(&message(reply), &mut SystemRandom)
        .expect("credentials");
    let reply = send(&factory, &hmac, Some(&token)).await;
    assert_eq!(
        reply.token.as_ref(),
        Some(&token),
        "the token never changes in a run"
    );
    let credential = device.step(&message(reply)).expect("done");

    let kept = stock.get(credential.guid).expect("kept");
    kept.voucher.verify(&Policy::default()).expect("good");
    assert_eq!(kept.serial.as_deref(), Some("t-1"));
    assert!(kept.voucher.owner_key().same_key(stock.public_key()));
    let chain = kept.voucher.device_chain().expect("certified");
    assert_eq!(certificate_key(&chain[0]).expect("parses"), key.public());
    let over = send(&factory, &hmac, Some(&token)).await;
    assert_eq!(code(&over), ErrorCode::InvalidToken, "the run is over");
}

#[tokio::test]
async fn wrong_order_foreign_tokens_and_nonsense_are_refused() {
    let Fixture {
        factory,
        stock,
        _folder,
    } = fixture();
    let hmac = Message::new(MessageType::DiSetHmac, vec![0x80]);
    let reply = send(&factory, &hmac, Some(&Token::random())).await;
    assert_eq!(code(&reply), ErrorCode::InvalidToken);
    for nonsense in [&b""[..], b"\xff", b"\x81\x40", b"\x81\x43abc"] {
        let hello = Message::new(MessageType::DiAppStart, nonsense.to_vec());
        let reply = send(&factory, &hello, None).await;
        assert_eq!(code(&reply), ErrorCode::MessageBody, "{nonsense:02x?}");
    }
    let key = SigningKey::generate(&mut SystemRandom);
    let (_, hello) = di::start("t-1", "thermometer", key).expect("starts");
    let token = send(&factory, &hello, None).await.token.expect("a run");
    factory.give_up(&token);
    let reply = send(&factory, &hmac, Some(&token)).await;
    assert_eq!(code(&reply), ErrorCode::InvalidToken, "given up");
    assert!(
        stock.list().expect("list").is_empty(),
        "nothing half-made is kept"
    );
}

/// One whole run; the reply to its last message.
async fn made(factory: &Factory, serial: &str) -> FdoReply {
    let key = SigningKey::generate(&mut SystemRandom);
    let (device, hello) = di::start(serial, "thermometer", key).expect("starts");
    let reply = send(factory, &hello, None).await;
    let token = reply.token.clone().expect("a run");
    let (_, hmac) = device
        .step(&message(reply), &mut SystemRandom)
        .expect("credentials");
    send(factory, &hmac, Some(&token)).await
}

#[tokio::test]
async fn a_full_stock_has_no_more_devices_made_until_vouchers_leave() {
    let Fixture {
        factory,
        stock,
        _folder,
    } = fixture();
    for serial in ["a", "b", "c"] {
        assert_ne!(made(&factory, serial).await.message, FdoReply::ERROR);
    }
    assert_eq!(code(&made(&factory, "d").await), ErrorCode::Internal);
    let kept = stock.list().expect("list");
    assert_eq!(kept.len(), 3, "nothing half-made is kept");
    let buyer = PublicKey::x509(&SigningKey::generate(&mut SystemRandom).public());
    let gone = stock.extend(kept[0].voucher.guid(), &buyer).await;
    gone.expect("extended");
    assert_ne!(made(&factory, "d").await.message, FdoReply::ERROR);
    assert_eq!(code(&made(&factory, "e").await), ErrorCode::Internal);
}
