//! Stock mosquitto clients against the broker and its example, the example killed with kill -9.
//!
//! Without the programs the tests say so loudly and pass: the rest of the suite speaks in bytes.

// Helpers fail by panicking, as tests do.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{PATIENCE, Server, Wire};
use holdfast_broker::Config;
use tokio::net::TcpStream;

/// Ends with its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn missing() -> bool {
    let found = |name| Command::new(name).arg("--help").output().is_ok();
    let missing = !found("mosquitto_pub") || !found("mosquitto_sub");
    if missing {
        eprintln!(
            "SKIPPED: mosquitto_pub and mosquitto_sub are not installed (apt install mosquitto-clients)"
        );
    }
    missing
}

fn mosquitto(program: &str, port: u16, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &port.to_string()]);
    command.args(arguments);
    command
}

/// The example server: its process and port.
fn example(journal: &std::path::Path, address: &str) -> (Ended, u16) {
    // Built by cargo together with the tests.
    let mut program = std::env::current_exe().unwrap();
    program.pop();
    program.pop();
    program.push("examples");
    program.push("server");
    let mut child = Command::new(&program)
        .arg(address)
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stock_clients_of_both_versions_publish_and_subscribe() {
    if missing() {
        return;
    }
    let server = Server::start(Config::default()).await;
    let port = server.address.port();
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let topic = format!("stock/{version}/{qos}");
            let mut taker = Ended(
                mosquitto(
                    "mosquitto_sub",
                    port,
                    &["-V", version, "-q", qos, "-t", &topic, "-C", "3"],
                )
                .stdout(Stdio::piped())
                .spawn()
                .unwrap(),
            );
            let deadline = Instant::now() + PATIENCE;
            while server.broker.metrics().subscriptions == 0 {
                assert!(Instant::now() < deadline);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            for payload in ["one", "two", "three"] {
                let sent = mosquitto(
                    "mosquitto_pub",
                    port,
                    &["-V", version, "-q", qos, "-t", &topic, "-m", payload],
                )
                .status()
                .unwrap();
                assert!(sent.success());
            }
            let mut out = String::new();
            taker
                .0
                .stdout
                .take()
                .unwrap()
                .read_to_string(&mut out)
                .unwrap();
            assert_eq!(out, "one\ntwo\nthree\n", "{topic}");
            assert!(taker.0.wait().unwrap().success());
            while server.broker.metrics().subscriptions > 0 {
                assert!(Instant::now() < deadline);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_nothing_acknowledged_and_a_stock_client_gets_it_all() {
    if missing() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("journal.redb");
    let (mut running, mut port) = example(&journal, "127.0.0.1:0");
    // The session, and nobody there.
    let made = mosquitto(
        "mosquitto_sub",
        port,
        &["-q", "1", "-t", "x", "-c", "-i", "taker", "-E"],
    )
    .status()
    .unwrap();
    assert!(made.success());
    let mut acknowledged: Vec<String> = Vec::new();
    for round in 0..5 {
        let mut wire = Wire::new(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
        wire.send(&common::Hello::v3("giver").bytes()).await;
        wire.connack(0).await;
        // The kill falls somewhere into a stream of publishes.
        let pid = running.0.id().to_string();
        let killer = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20 + 13 * round)).await;
            Command::new("kill").args(["-9", &pid]).status().unwrap();
        });
        for number in 0..100_000 {
            let payload = format!("{round}-{number}");
            let id = wire.id();
            let bytes = common::publish(false, 2, "x", id, &[], payload.as_bytes());
            if tokio::io::AsyncWriteExt::write_all(&mut wire.stream, &bytes)
                .await
                .is_err()
            {
                break;
            }
            match wire.packet().await {
                Some((0x40, _)) => acknowledged.push(payload),
                Some(other) => panic!("{other:?}"),
                None => break,
            }
        }
        killer.await.unwrap();
        running.0.wait().unwrap();
        (running, port) = example(&journal, "127.0.0.1:0");
    }
    assert!(acknowledged.len() > 10, "too few to mean anything");
    let count = acknowledged.len().to_string();
    // What was in the store without its acknowledgement may come too: read more than the count.
    let out = mosquitto(
        "mosquitto_sub",
        port,
        &["-q", "1", "-t", "x", "-c", "-i", "taker", "-W", "3"],
    )
    .output()
    .unwrap();
    let got: Vec<&str> = std::str::from_utf8(&out.stdout).unwrap().lines().collect();
    let lost: Vec<_> = acknowledged
        .iter()
        .filter(|payload| !got.contains(&payload.as_str()))
        .collect();
    assert!(lost.is_empty(), "of {count} acknowledged, lost {lost:?}");
    let mut unique = got.clone();
    unique.sort_unstable();
    unique.dedup();
    assert_eq!(unique.len(), got.len(), "doubled");
    drop(running);
}
