//! Clients that others made (paho-mqtt, mqtt.js, rumqttc), each with its judge in `tests/foreign-mqtt`.
//!
//! They are installed by name the first time; where that cannot be, the test says so and is counted as
//! skipped.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use holdfast_broker::{Door, Origins, Passwords};
use tokio::process::Command;

use crate::common::Server;
use crate::kit::{door, server, skipped};

/// For a download and a build on a busy machine.
const INSTALL: Duration = Duration::from_secs(300);
/// For one judge.
const JUDGE: Duration = Duration::from_secs(120);

/// The words that run a judge; `None` when it cannot be had.
async fn install(name: &str) -> Option<Vec<String>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/foreign-mqtt/install.sh");
    let mut command = Command::new(script);
    command.arg(name).stdin(Stdio::null()).kill_on_drop(true);
    let why = match tokio::time::timeout(INSTALL, command.output()).await {
        Ok(Ok(output)) if output.status.success() => {
            let words = String::from_utf8(output.stdout).unwrap();
            return Some(words.lines().map(str::to_owned).collect());
        }
        Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr)
            .lines()
            .last()
            .unwrap_or("no reason")
            .to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "it took too long".to_owned(),
    };
    skipped(&format!("foreign client {name}: {why}"));
    None
}

/// Runs a judge against a plain door, one through WebSocket, and one with passwords.
async fn judge(name: &str) {
    let Some(words) = install(name).await else {
        return;
    };
    let server = server().await;
    let text = Passwords::line("meter", b"right").unwrap();
    let passwords = Arc::new(Passwords::parse(&text).unwrap());
    let through = Door::WebSocket(Box::new(Door::Plain), Origins::None);
    let (web, _stop) = door(&server, through).await;
    let (guarded, _stop) = door(&server, Door::Passwords(Box::new(Door::Plain), passwords)).await;
    let ports = [server.address.port(), web.port(), guarded.port()];
    let mut command = Command::new(&words[0]);
    command
        .args(&words[1..])
        .args(ports.map(|port| port.to_string()));
    command.stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(JUDGE, command.output()).await;
    let output = output.expect("the judge hangs").unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let wrong = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {said}\n{wrong}");
    assert!(said.contains("held:"), "it says what it tried: {said}");
    assert_clean(&server);
}

/// Nothing was lost on the way.
fn assert_clean(server: &Server) {
    let dropped = server.broker.metrics().dropped;
    let lost: u64 = dropped
        .iter()
        .filter(|(reason, _)| **reason != holdfast_broker::DropReason::Offline)
        .map(|(_, count)| count)
        .sum();
    assert_eq!(lost, 0, "{dropped:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paho_of_python_just_works() {
    judge("paho").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mqtt_js_of_node_just_works() {
    judge("mqttjs").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rumqttc_just_works() {
    judge("rumqttc").await;
}
