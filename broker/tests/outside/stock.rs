//! Stock mosquitto clients in both versions: what people really connect.
//!
//! Without the programs the tests say so loudly and pass: the rest of the suite speaks in bytes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{ChildStdout, Command, Stdio};

use crate::common::Server;
use crate::kit::{Ended, server, stock_missing, until};

const VERSIONS: [&str; 2] = ["mqttv311", "mqttv5"];

fn stock(program: &str, server: &Server, version: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", "127.0.0.1", "-p", &server.address.port().to_string()]);
    command.args(["-V", version]);
    command.args(arguments);
    command.stdin(Stdio::null());
    command
}

async fn publish(server: &Server, version: &str, arguments: &[&str]) {
    let mut command = stock("mosquitto_pub", server, version, arguments);
    let sent = tokio::task::spawn_blocking(move || command.status().unwrap()).await;
    assert!(sent.unwrap().success(), "{arguments:?}");
}

/// What a subscriber prints until it ends by itself (`-C` or `-W`).
async fn subscribe(server: &Server, version: &str, arguments: &[&str]) -> String {
    let mut command = stock("mosquitto_sub", server, version, arguments);
    let out = tokio::task::spawn_blocking(move || command.output().unwrap()).await;
    String::from_utf8(out.unwrap().stdout).unwrap()
}

/// A subscriber in the background, once it is subscribed.
async fn background(server: &Server, version: &str, arguments: &[&str]) -> (Ended, ChildStdout) {
    let before = server.broker.metrics().subscriptions;
    let mut child = stock("mosquitto_sub", server, version, arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = child.stdout.take().unwrap();
    until("subscribed", || {
        server.broker.metrics().subscriptions > before
    })
    .await;
    (Ended(child), out)
}

async fn text(mut out: ChildStdout) -> String {
    let read = tokio::task::spawn_blocking(move || {
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        text
    });
    read.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_lines_of_every_qos_arrive_in_order() {
    if stock_missing() {
        return;
    }
    let server = server().await;
    let lines: Vec<String> = (0..1000).map(|number| format!("line {number}")).collect();
    let lines = lines.join("\n") + "\n";
    for version in VERSIONS {
        for qos in ["0", "1", "2"] {
            let arguments = ["-q", qos, "-t", "lines", "-C", "1000"];
            let (_taker, out) = background(&server, version, &arguments).await;
            let mut giver = stock(
                "mosquitto_pub",
                &server,
                version,
                &["-q", qos, "-t", "lines", "-l"],
            )
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
            giver
                .stdin
                .take()
                .unwrap()
                .write_all(lines.as_bytes())
                .unwrap();
            let mut giver = Ended(giver);
            assert_eq!(text(out).await, lines, "{version} {qos}");
            let ended = tokio::task::spawn_blocking(move || giver.0.wait().unwrap()).await;
            assert!(ended.unwrap().success());
            until("gone", || server.broker.metrics().connections == 0).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retained_messages_and_their_clearing() {
    if stock_missing() {
        return;
    }
    let server = server().await;
    for version in VERSIONS {
        for (topic, payload) in [("r/1", "one"), ("r/2", "two"), ("r/3", "three")] {
            publish(
                &server,
                version,
                &["-q", "1", "-r", "-t", topic, "-m", payload],
            )
            .await;
        }
        publish(&server, version, &["-q", "1", "-r", "-t", "r/2", "-n"]).await;
        let got = subscribe(&server, version, &["-t", "r/#", "-v", "-C", "2", "-W", "5"]).await;
        let mut got: Vec<&str> = got.lines().collect();
        got.sort_unstable();
        assert_eq!(got, ["r/1 one", "r/3 three"]);
        let none = subscribe(&server, version, &["-t", "r/2", "-W", "1"]).await;
        assert_eq!(none, "");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lasting_session_over_a_restart() {
    if stock_missing() {
        return;
    }
    let mut server = server().await;
    for version in VERSIONS {
        let mut make = vec!["-q", "2", "-t", "x", "-i", "stock", "-c"];
        if version == "mqttv5" {
            make.extend(["-x", "600"]);
        }
        let open = [&make[..], &["-E"]].concat();
        subscribe(&server, version, &open).await;
        for (qos, payload) in [("1", "one"), ("2", "two"), ("0", "lost")] {
            publish(&server, version, &["-q", qos, "-t", "x", "-m", payload]).await;
        }
        server = server.restart(holdfast_broker::Config::default()).await;
        publish(&server, version, &["-q", "1", "-t", "x", "-m", "three"]).await;
        let read = [&make[..], &["-C", "3", "-W", "10"]].concat();
        let got = subscribe(&server, version, &read).await;
        // A QoS 2 message is printed at its PUBREL: sorted, since only one QoS keeps its order.
        let mut got: Vec<&str> = got.lines().collect();
        got.sort_unstable();
        assert_eq!(got, ["one", "three", "two"]);
        // It is over with a clean start.
        subscribe(
            &server,
            version,
            &["-q", "2", "-t", "x", "-i", "stock", "-E"],
        )
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_will_of_a_killed_client_and_none_of_one_that_says_goodbye() {
    if stock_missing() {
        return;
    }
    let server = server().await;
    for version in VERSIONS {
        let (taker, out) = background(&server, version, &["-t", "will/#", "-v"]).await;
        let mut lines = BufReader::new(out);
        for polite in [true, false] {
            let id = if polite { "polite" } else { "killed" };
            let will = [
                "--will-topic",
                "will/x",
                "--will-payload",
                id,
                "--will-qos",
                "1",
            ];
            let arguments = [&["-t", "y", "-C", "1", "-i", id][..], &will].concat();
            let (mut dying, _out) = background(&server, version, &arguments).await;
            if polite {
                // It ends by itself after one message. (Its answer to SIGINT is "with will" in MQTT 5.)
                publish(&server, version, &["-t", "y", "-m", "m"]).await;
            } else {
                let pid = dying.0.id().to_string();
                Command::new("kill").args(["-9", &pid]).status().unwrap();
            }
            dying.0.wait().unwrap();
            until("gone", || server.broker.metrics().connections == 1).await;
        }
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            lines.read_line(&mut line).unwrap();
            line
        });
        assert_eq!(line.await.unwrap(), "will/x killed\n", "{version}");
        drop(taker);
        until("gone", || server.broker.metrics().connections == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn properties_aliases_and_large_payloads_of_mqtt_5() {
    if stock_missing() {
        return;
    }
    let server = server().await;
    let format = ["-F", "%t|%p|%C|%R|%D|%P|%F"];
    let arguments = [&["-t", "p/#", "-C", "1", "-q", "1"][..], &format].concat();
    let (_taker, out) = background(&server, "mqttv5", &arguments).await;
    let mut properties = vec!["-t", "p/x", "-m", "text", "-q", "1"];
    for property in [
        &["content-type", "text/plain"][..],
        &["response-topic", "answer/here"],
        &["correlation-data", "c7"],
        &["payload-format-indicator", "1"],
        &["message-expiry-interval", "60"],
        &["user-property", "b", "1"],
        &["user-property", "a", "2"],
        &["topic-alias", "3"],
    ] {
        properties.extend(["-D", "publish"]);
        properties.extend(property);
    }
    publish(&server, "mqttv5", &properties).await;
    let got = text(out).await;
    assert_eq!(
        got.trim_end(),
        "p/x|text|text/plain|answer/here|c7|b:1 a:2|1"
    );
    // The next subscriber is told by the number of subscriptions, so this one must have gone.
    until("gone", || server.broker.metrics().connections == 0).await;
    // Near the packet limit, byte for byte, in both versions.
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("large");
    let large: String = ('a'..='z').cycle().take(250_000).collect();
    std::fs::write(&file, &large).unwrap();
    for version in VERSIONS {
        let (_taker, out) = background(
            &server,
            version,
            &["-t", "large", "-C", "1", "-q", "2", "-N"],
        )
        .await;
        publish(
            &server,
            version,
            &["-t", "large", "-q", "2", "-f", file.to_str().unwrap()],
        )
        .await;
        assert_eq!(text(out).await, large);
        until("gone", || server.broker.metrics().connections == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_and_response_by_mosquitto_rr() {
    if stock_missing() {
        return;
    }
    let server = server().await;
    let mut responder = server.v5("responder").await;
    responder.subscribe("ask", 1).await;
    for version in VERSIONS {
        let arguments = [
            "-t",
            "ask",
            "-e",
            "reply/here",
            "-m",
            "question",
            "-q",
            "1",
            "-W",
            "5",
        ];
        let mut command = stock("mosquitto_rr", &server, version, &arguments);
        let asked = tokio::task::spawn_blocking(move || command.output().unwrap());
        let question = responder.receive().await;
        assert_eq!(question.text(), "question");
        responder.publish("reply/here", 1, "answer").await;
        let out = asked.await.unwrap();
        assert_eq!(
            String::from_utf8(out.stdout).unwrap(),
            "answer\n",
            "{version}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shared_subscriptions_among_stock_clients() {
    if stock_missing() {
        return;
    }
    let server = server().await;
    let arguments = ["-t", "$share/g/s/#", "-q", "1", "-C", "10"];
    let (_one, first) = background(&server, "mqttv5", &arguments).await;
    let (_two, second) = background(&server, "mqttv311", &arguments).await;
    let mut giver = server.v5("giver").await;
    for number in 0..20 {
        giver.publish("s/x", 1, &format!("{number:02}")).await;
    }
    let both = text(first).await + &text(second).await;
    let mut both: Vec<&str> = both.lines().collect();
    both.sort_unstable();
    let expected: Vec<String> = (0..20).map(|number| format!("{number:02}")).collect();
    assert_eq!(both, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_understood() {
    if stock_missing() {
        return;
    }
    let server = server().await;
    server.rights.banned.lock().unwrap().insert("banned".into());
    crate::common::TestRights::forbid(&server.rights.no_subscribe, "closed");
    for version in VERSIONS {
        let mut command = stock(
            "mosquitto_pub",
            &server,
            version,
            &["-i", "banned", "-t", "x", "-m", "m"],
        );
        let out = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        assert!(!out.status.success());
        let told = String::from_utf8_lossy(&out.stderr).to_lowercase();
        assert!(
            told.contains("refused") || told.contains("banned"),
            "{told}"
        );
        let mut command = stock(
            "mosquitto_sub",
            &server,
            version,
            &["-t", "closed", "-W", "3"],
        );
        let out = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        let told = String::from_utf8_lossy(&out.stderr).contains("denied");
        assert!(told, "all subscriptions denied: {out:?}");
    }
}
