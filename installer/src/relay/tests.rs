//! The relay before real rendezvous servers: in both orders, lost at each place, and with every word they may say.

use std::net::SocketAddr;
use std::sync::Arc;

use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::fdo::MessageType;
use holdfast_protocol::fdo::to1::{self, To1d};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::*;
use crate::desk::Desk;
use crate::desk::tests::{desk, device, key};
use crate::serve::{Counter, serve};

/// A rendezvous server, until dropped: a desk that answers for the device of one voucher.
struct Backend {
    at: SocketAddr,
    serving: JoinSet<std::io::Error>,
}

impl Backend {
    async fn start(knows: Desk) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let at = listener.local_addr().expect("address");
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Counter::new(knows, Relay::to(Vec::new()))));
        Self { at, serving }
    }

    /// Knows nobody: code 6.
    async fn empty() -> Self {
        Self::start(Desk::new(([127, 0, 0, 1], 1).into(), None)).await
    }

    async fn stop(mut self) {
        self.serving.shutdown().await;
    }
}

/// An address where nobody listens.
fn nowhere() -> SocketAddr {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    free.local_addr().expect("address")
}

fn relay(servers: &[SocketAddr]) -> Relay {
    Relay::to(
        servers
            .iter()
            .map(|at| Server::named(at.to_string()))
            .collect(),
    )
}

/// The device's TO1 through the relay.
async fn to1(relay: &Relay, credential: &DeviceCredential) -> Result<To1d, Error> {
    let (state, hello) = to1::hello(credential);
    let answer = relay.begin("t", &hello).await.map_err(|(error, _)| error)?;
    let (state, proof) = state.step(&answer)?;
    let (answer, _) = relay.go_on("t", &proof).await.map_err(|(error, _)| error)?;
    state.step(&answer)
}

#[tokio::test]
async fn the_first_server_that_knows_the_device_answers_in_either_order() {
    let owner = key();
    let (credential, voucher) = device(&owner);
    let knows = Backend::start(desk(voucher, owner)).await;
    let empty = Backend::empty().await;
    let lost = nowhere();
    for servers in [
        vec![knows.at],
        vec![knows.at, lost],
        vec![lost, knows.at],
        vec![knows.at, empty.at],
        vec![empty.at, knows.at],
        vec![lost, empty.at, knows.at],
    ] {
        let relay = relay(&servers);
        for _ in 0..2 {
            let to1d = to1(&relay, &credential).await.expect("relayed");
            assert_eq!(to1d.addresses()[0].port, 8042, "{servers:?}");
        }
    }
    // A stranger is known to nobody; with nobody in reach nothing is known of anyone.
    let (stranger, _) = device(&key());
    let known = to1(&relay(&[knows.at, empty.at, lost]), &stranger).await;
    assert!(matches!(known, Err(Error::NotFound)), "{known:?}");
    let alone = to1(&relay(&[lost, nowhere()]), &credential).await;
    assert!(matches!(alone, Err(Error::Own(_))), "{alone:?}");
}

#[tokio::test]
async fn a_run_stays_with_the_server_it_began_with() {
    let owner = key();
    let (credential, voucher) = device(&owner);
    let first = Backend::start(desk(voucher.clone(), owner.clone())).await;
    let second = std::net::TcpListener::bind("127.0.0.1:0").expect("listens");
    second.set_nonblocking(true).expect("nonblocking");
    let relay = relay(&[first.at, second.local_addr().expect("address")]);
    let (state, hello) = to1::hello(&credential);
    let answer = relay.begin("t", &hello).await.expect("the first answers");
    let (_, proof) = state.step(&answer).expect("proof");
    first.stop().await;
    let (error, said) = relay.go_on("t", &proof).await.expect_err("lost in mid-run");
    let report = error
        .report(MessageType::To1ProveToRv)
        .expect("an error of ours");
    assert_eq!(error.code(), ErrorCode::Internal);
    assert!(!report.is_empty());
    let Some(Said::Failed { why, .. }) = said else {
        panic!("nothing is said of it")
    };
    assert!(why.contains("lost in the middle"), "{why}");
    let untouched = second
        .accept()
        .expect_err("the second never heard of the run");
    assert_eq!(untouched.kind(), std::io::ErrorKind::WouldBlock);
    // The run is over: the same message again belongs to none.
    let again = relay.go_on("t", &proof).await.expect_err("over");
    assert!(matches!(again.0, Error::NoSession));
    // The control: a run that begins now goes to the second.
    let told = std::thread::spawn(move || {
        second.set_nonblocking(false).expect("blocking");
        second.accept().map(drop)
    });
    let (_, hello) = to1::hello(&credential);
    relay.begin("u", &hello).await.expect_err("it hangs up");
    told.join().expect("joined").expect("it was asked");
}

/// A server that answers every request with this FDO error.
async fn refusing(code: u16, asked: Arc<Mutex<u32>>) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let at = listener.local_addr().expect("address");
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            *asked.lock().expect("lock") += 1;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let body = holdfast_protocol::wire::cbor::encode(|w| {
                w.array(5).uint(code.into()).uint(30).text("no").null().null();
            });
            let head = format!(
                "HTTP/1.1 500 No\r\nmessage-type: 255\r\ncontent-type: application/cbor\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(&body).await;
        }
    });
    (at, serving)
}

#[tokio::test]
async fn only_code_six_is_passed_over() {
    let owner = key();
    let (credential, voucher) = device(&owner);
    let knows = Backend::start(desk(voucher, owner)).await;
    for code in [1, 2, 3, 5, 6, 100, 101, 500, 999] {
        let asked = Arc::new(Mutex::new(0));
        let (refuses, _serving) = refusing(code, Arc::clone(&asked)).await;
        let answer = to1(&relay(&[refuses, knows.at]), &credential).await;
        match answer {
            Ok(_) => assert_eq!(code, 6),
            Err(Error::Peer(said)) => assert_eq!((said.code.number(), code != 6), (code, true)),
            Err(other) => panic!("{code}: {other}"),
        }
        assert_eq!(*asked.lock().expect("lock"), 1);
    }
}

#[tokio::test]
async fn runs_are_bounded_and_the_oldest_gives_way() {
    let owner = key();
    let (credential, voucher) = device(&owner);
    let knows = Backend::start(desk(voucher, owner)).await;
    let relay = relay(&[knows.at]);
    for at in 0..=MOST_RUNS {
        let (_, hello) = to1::hello(&credential);
        // Behind the relay the desk keeps fewer: only the relay's own bound is looked at.
        relay
            .begin(&at.to_string(), &hello)
            .await
            .expect("answered");
    }
    assert_eq!(relay.runs.lock().expect("lock").len(), MOST_RUNS);
    assert!(relay.take("0").is_none() && relay.take("1").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_devices_give_up_on_is_asked_last() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("listens");
    let server = Server::named(silent.local_addr().expect("address").to_string());
    let relay = Relay::to(vec![server]);
    let (credential, _) = device(&key());
    let (_, hello) = to1::hello(&credential);
    for (patience, lost) in [(SLOW / 2, false), (SLOW * 2, true)] {
        let gave_up = tokio::time::timeout(patience, relay.begin("t", &hello)).await;
        gave_up.expect_err("no answer");
        assert_eq!(relay.servers[0].was_lost(), lost, "{patience:?}");
    }
    tokio::time::advance(REST).await;
    assert!(!relay.servers[0].was_lost(), "it is tried again");
}
