//! What several rooms here need: bytes of odd CONNECTs, answers to them, memory, the example server.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use holdfast_broker::Config;

use crate::common::{Hello, PATIENCE, Server, Wire, packet, variable};

/// Both versions of the protocol.
pub(crate) const VERSIONS: [bool; 2] = [false, true];

pub(crate) async fn server() -> Server {
    Server::start(Config::default()).await
}

/// A CONNECT from its parts; `rest` begins behind the keep-alive.
pub(crate) fn connect(name: &[u8], level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut body = u16::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    body.extend(name);
    body.extend([level, flags, 0, 60]);
    body.extend(rest);
    packet(0x10, &body)
}

/// A MQTT 5 CONNECT with these properties and a good client id.
pub(crate) fn connect_with(properties: &[u8]) -> Vec<u8> {
    let mut rest = variable(properties.len());
    rest.extend(properties);
    rest.extend([0, 1, b'p']);
    connect(b"MQTT", 5, 2, &rest)
}

/// The CONNACK's body, `None` when the server just closes. A refusal must close too.
pub(crate) async fn answer(server: &Server, bytes: &[u8]) -> Option<Vec<u8>> {
    let mut wire = server.raw().await;
    wire.send(bytes).await;
    let (first, body) = wire.packet().await?;
    assert_eq!(first, 0x20, "CONNACK comes first [MQTT-3.2.0-1]");
    if body[1] != 0 {
        assert_eq!(body[0], 0, "no session with a refusal [MQTT-3.2.2-6]");
        assert_eq!(wire.packet().await, None, "[MQTT-3.2.2-7]");
    }
    Some(body)
}

/// None of these CONNECTs, which break the form, gets a session; 3.1.1 gets no answer at all
/// [MQTT-3.1.4-1].
pub(crate) async fn refuses(server: &Server, cases: &[(&str, Vec<u8>)]) {
    for (what, bytes) in cases {
        let found = answer(server, bytes).await;
        if bytes.windows(5).any(|part| part == b"MQTT\x04") {
            assert_eq!(found, None, "{what}: 3.1.1 closes without CONNACK");
        }
        assert!(found.is_none_or(|body| body[1] != 0), "{what}");
    }
    assert_eq!(server.broker.metrics().sessions, 0);
}

/// A connection with this CONNECT, accepted.
pub(crate) async fn hello(server: &Server, hello: &Hello) -> Wire {
    hello_present(server, hello).await.0
}

pub(crate) async fn hello_present(server: &Server, hello: &Hello) -> (Wire, bool) {
    let mut wire = server.raw().await;
    wire.v5 = hello.v5;
    wire.send(&hello.bytes()).await;
    let present = wire.connack(0).await;
    (wire, present)
}

pub(crate) async fn client(server: &Server, v5: bool, id: &str) -> Wire {
    let mut greeting = Hello::v5(id);
    greeting.v5 = v5;
    hello(server, &greeting).await
}

/// A session that outlives its connection, in either version.
pub(crate) fn lasting(v5: bool, id: &str) -> Hello {
    let mut hello = Hello::v5(id);
    hello.v5 = v5;
    hello.clean = false;
    if v5 {
        hello.properties = crate::common::expiry(3600);
    }
    hello
}

/// These bytes end a good connection; the code of the DISCONNECT, if there is one.
pub(crate) async fn ends(server: &Server, v5: bool, bytes: &[u8]) -> Option<u8> {
    let mut wire = client(server, v5, "ends").await;
    wire.send(bytes).await;
    wire.closed().await
}

/// Waits until it holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Resident memory of this process, in bytes.
pub(crate) fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find(|line| line.starts_with("VmRSS:"));
    let words = line.unwrap().split_whitespace().nth(1);
    words.unwrap().parse::<usize>().unwrap() * 1024
}

static PANICS: AtomicUsize = AtomicUsize::new(0);
static WATCH: Once = Once::new();

/// Panics inside the broker's own code so far: a task that panics is silent otherwise.
pub(crate) fn panics() -> usize {
    WATCH.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let ours = info
                .location()
                .is_some_and(|place| !place.file().contains("tests"));
            if ours {
                PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
    PANICS.load(Ordering::SeqCst)
}

/// Small and repeatable: the same seed gives the same numbers.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(bound.max(1)).unwrap()).unwrap()
    }
}

/// Ends with its owner.
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The example server on a journal: its process and port.
pub(crate) fn example(journal: &Path) -> (Ended, u16) {
    // Built by cargo together with the tests.
    let mut program = std::env::current_exe().unwrap();
    program.pop();
    program.pop();
    program.push("examples/server");
    let mut child = Command::new(&program)
        .arg("127.0.0.1:0")
        .arg(journal)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
    (Ended(child), port)
}

/// Another door to the same broker, closed when the token is cancelled.
pub(crate) async fn door(
    server: &Server,
    door: holdfast_broker::Door,
) -> (std::net::SocketAddr, tokio_util::sync::CancellationToken) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cancel = tokio_util::sync::CancellationToken::new();
    let (broker, stop) = (server.broker.clone(), cancel.clone());
    tokio::spawn(async move { broker.serve(listener, door, stop).await });
    (address, cancel)
}

/// Says loudly that something could not be tried, and has it counted by `make test`.
pub(crate) fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
    if let Some(file) = std::env::var_os("HOLDFAST_SKIPS") {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.append(true).create(true).open(file).unwrap();
        writeln!(file, "{why}").unwrap();
    }
}

/// Says loudly that the stock clients are missing.
pub(crate) fn stock_missing() -> bool {
    let found = |name| Command::new(name).arg("--help").output().is_ok();
    let missing = !found("mosquitto_pub") || !found("mosquitto_sub");
    if missing {
        skipped(
            "mosquitto_pub and mosquitto_sub are not installed (apt install mosquitto-clients)",
        );
    }
    missing
}
