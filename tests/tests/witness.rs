//! The witnesses themselves are tested: a stock broker, a stock publisher, and between them the reader, the cuttable
//! uplink and the judge of the drill. What they say of Holdfast is worth only what they can see here.

#![allow(clippy::unwrap_used, reason = "a failed expectation ends the test")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_tests::judge::{Arrival, Verdict, judge};
use holdfast_tests::place::local_socket;
use holdfast_tests::process::{Process, run, wait_until};
use holdfast_tests::proxy::{Mode, Proxy};
use holdfast_tests::reader::{Reader, Subscription};
use holdfast_tests::seat::Seat;
use holdfast_tests::skip::{has_program, skip};
use holdfast_tests::weather::Table;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

const SOON: Duration = Duration::from_secs(10);
const TOPIC: &str = "hf/v1/harbour/d/up/weather";

#[tokio::test]
async fn the_witness_sees_what_a_stock_broker_delivers_through_the_uplink() {
    let Some(stage) = Stage::build().await else {
        return;
    };
    let table = Table::parse("n\n0\n1\n2\n3\n4\n5\n").unwrap();
    for row in 0..3 {
        stage.publish(row).await;
    }
    assert!(stage.verdict_of(&table, 3).await.is_exact());

    stage.uplink.set(Mode::Silent);
    stage.publish(3).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(
        stage.reader.count(|_| true),
        3,
        "a message passed a silent uplink"
    );
    stage.uplink.set(Mode::Open);
    let verdict = stage.verdict_of(&table, 4).await;
    assert!(verdict.is_exact(), "{verdict}");
}

/// A row left out, one sent twice and one sent late are seen as what they are.
#[tokio::test]
async fn control_planted_faults_are_seen_from_end_to_end() {
    let Some(stage) = Stage::build().await else {
        return;
    };
    let table = Table::parse("n\n0\n1\n2\n3\n4\n5\n").unwrap();
    for row in [0, 2, 2, 1, 4] {
        stage.publish(row).await;
    }
    let verdict = stage.verdict_of(&table, 5).await;
    assert_eq!(
        (verdict.missing, verdict.doubled, verdict.late),
        (vec![3], vec![2], vec![1])
    );
}

/// A broker, a reader behind an uplink, and where to publish.
struct Stage {
    broker: SocketAddr,
    identity: PathBuf,
    uplink: Proxy,
    reader: Reader,
    _mosquitto: Process,
    _folder: tempfile::TempDir,
}

impl Stage {
    async fn build() -> Option<Self> {
        if !has_program("mosquitto") || !has_program("mosquitto_sub") {
            skip("witness", "mosquitto or mosquitto-clients is not installed");
            return None;
        }
        let folder = tempfile::tempdir().unwrap();
        let identity = folder.path().to_owned();
        let broker = local_socket().unwrap();
        certify(&identity);
        let mosquitto = start_mosquitto(&identity, broker).await;
        let mut uplink = Proxy::new();
        let near = uplink
            .wire(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), broker)
            .await
            .unwrap();
        let what = Subscription {
            seat: Seat::here(),
            broker: near,
            identity: identity.clone(),
            client: "witness".to_owned(),
            filters: vec!["hf/v1/harbour/#".to_owned()],
        };
        let reader = Reader::start("witness", &what, &identity.join("ledger"))
            .await
            .unwrap();
        reader.wait_subscribed(SOON).await.unwrap();
        Some(Self {
            broker,
            identity,
            uplink,
            reader,
            _mosquitto: mosquitto,
            _folder: folder,
        })
    }

    async fn publish(&self, row: u32) {
        let file = |name: &str| self.identity.join(name).display().to_string();
        let (ca, cert, key) = (file("ca.pem"), file("cert.pem"), file("key.pem"));
        let (host, port) = (self.broker.ip().to_string(), self.broker.port().to_string());
        let payload = format!("{{\"n\": {row}}}");
        let words = [
            "-V", "5", "-q", "1", "-h", &host, "-p", &port, "-t", TOPIC, "-m", &payload,
            "--cafile", &ca, "--cert", &cert, "--key", &key,
        ];
        run(Path::new("mosquitto_pub"), &words, "")
            .await
            .unwrap()
            .success("mosquitto_pub")
            .unwrap();
    }

    /// The verdict once as many messages have come as were sent, or after a while.
    async fn verdict_of(&self, table: &Table, wanted: usize) -> Verdict {
        let _ = wait_until("the messages", SOON, || {
            self.reader.count(|_| true) >= wanted
        })
        .await;
        let seen = self.reader.seen(|topic| topic == TOPIC);
        let arrivals: Vec<_> = seen
            .into_iter()
            .map(|seen| Arrival {
                payload: seen.payload,
                is_repeat_marked: seen.is_dup,
            })
            .collect();
        judge(table, &arrivals, wanted)
    }
}

/// A stock broker of our own: not the system's service, not its port, not its files.
async fn start_mosquitto(folder: &Path, door: SocketAddr) -> Process {
    let file = |name: &str| folder.join(name).display().to_string();
    let config = folder.join("mosquitto.conf");
    let text = format!(
        "user root\nlistener {} {}\ncafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\nallow_anonymous true\n",
        door.port(),
        door.ip(),
        file("ca.pem"),
        file("cert.pem"),
        file("key.pem"),
    );
    std::fs::write(&config, text).unwrap();
    let program = [
        "/usr/sbin/mosquitto",
        "/usr/local/sbin/mosquitto",
        "/usr/bin/mosquitto",
    ]
    .into_iter()
    .map(Path::new)
    .find(|path| path.is_file())
    .expect("has_program found it");
    let words = ["-c".to_owned(), config.display().to_string()];
    let mut process =
        Process::start("mosquitto", program, &words, &folder.join("mosquitto.log")).unwrap();
    process.wait_for_log("running", 0, SOON).await.unwrap();
    process
}

/// `ca.pem`, `cert.pem`, `key.pem`: one identity for the broker and its clients.
fn certify(folder: &Path) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut leaf = CertificateParams::new(Vec::new()).unwrap();
    // OpenSSL takes a certificate whose subject is its issuer's name for self-signed.
    leaf.distinguished_name
        .push(rcgen::DnType::CommonName, "broker and clients");
    leaf.subject_alt_names = vec![rcgen::SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
    let leaf = leaf
        .signed_by(&key, &Issuer::from_params(&authority, &authority_key))
        .unwrap();
    for (name, text) in [
        ("ca.pem", root.pem()),
        ("cert.pem", leaf.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        std::fs::write(folder.join(name), text).unwrap();
    }
}
