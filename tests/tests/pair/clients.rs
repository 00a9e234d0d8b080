//! Ordinary MQTT clients by configuration, as stock clients see them: with name and password on listeners
//! of their own, within their topics and nowhere else, guessing no longer than is borne, gone when the file
//! is read again without them.

use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};

use holdfast_broker::{Broker, ConsumerOptions, Filter, Message, Passwords, Qos, RowId};
use holdfast_config::secret_file;
use holdfast_tests::process::{Finished, run};
use holdfast_tests::skip::{has_program, skip};
use tokio::signal::unix::{SignalKind, signal};

use crate::pair::{Gateway, Pair, SITE, until};

/// Wrong passwords that the gateway under test bears of one user.
const GUESSES: u32 = 4;
/// A device whose topics nobody else may use.
const DEVICE: &str = "00000000000000000000000000000001";

/// The clients: name, password, what they publish, what they subscribe to.
pub(crate) const METER: (&str, &str) = ("meter", "meter's own word");
pub(crate) const PUMP: (&str, &str) = ("pump", "pump's own word");

fn table((name, password): (&str, &str), topics: &str) -> String {
    let hash = Passwords::hash(password.as_bytes()).expect("a hash");
    format!("[[client]]\nname = \"{name}\"\npassword = \"{hash}\"\n{topics}\n")
}

fn meter() -> String {
    table(
        METER,
        "publish = [\"plant/meter/#\"]\nsubscribe = [\"plant/meter/set\", \"hf/v1/bern/+/up/#\"]\n\
         client_id = \"ESP_5FA2C1\"",
    )
}

fn pump() -> String {
    table(
        PUMP,
        "publish = [\"plant/pump/#\"]\nsubscribe = [\"plant/pump/#\"]",
    )
}

/// A gateway that lets ordinary clients in, by every door.
pub(crate) struct Site {
    /// Keeps the folder.
    _pair: Pair,
    pub(crate) gateway: Gateway,
    /// ca.pem, cert.pem and key.pem of the client `thermo`.
    pub(crate) identity: PathBuf,
    file: PathBuf,
}

impl Site {
    pub(crate) async fn open() -> Self {
        let mut pair = Pair::new().await;
        let file = pair.state("clients.toml");
        secret_file::write(&file, (meter() + &pump()).as_bytes()).expect("file");
        let own = SocketAddr::new(pair.gateway.listen.mqtt.ip(), 0);
        let wanted = &mut pair.gateway.clients;
        wanted.file = Some(file.clone());
        wanted.tls = Some(own);
        wanted.plain = Some(own);
        wanted.websocket = Some(own);
        wanted.websocket_password = Some(own);
        wanted.origins = vec!["https://console.example".to_owned()];
        wanted.guesses_per_minute = GUESSES;
        let (cloud, gateway) = pair.up().await;
        cloud.stop().await;
        let identity = pair.state("thermo");
        let filters = |text: &str| vec![text.parse().expect("filter")];
        let clients = gateway.daemon.cps.clients();
        let name = "thermo".parse().expect("name");
        let files = clients.issue(name, None, filters("plant/thermo/#"), filters("plant/#"));
        let files = files.await.expect("issued");
        std::fs::create_dir(&identity).expect("folder");
        for (name, text) in [
            ("ca.pem", files.ca.as_str()),
            ("cert.pem", &files.cert),
            ("key.pem", &files.key),
        ] {
            std::fs::write(identity.join(name), text).expect("file");
        }
        Self {
            _pair: pair,
            gateway,
            identity,
            file,
        }
    }

    pub(crate) fn door(&self, key: &str) -> SocketAddr {
        let found = self.gateway.clients.iter().find(|(name, _)| *name == key);
        found.expect("the door is open").1
    }

    pub(crate) fn refusals(&self, reason: &'static str) -> u64 {
        let metrics = self.gateway.daemon.cps.metrics();
        metrics.refusals(holdfast_server::rights::LOGINS, reason)
    }

    fn broker(&self) -> &Broker {
        &self.gateway.daemon.broker
    }

    fn is_connected(&self, session: &str) -> bool {
        let sessions = self.broker().sessions();
        let mut ours = sessions
            .iter()
            .filter(|it| &*it.identity.client_id == session);
        ours.any(|it| it.connected)
    }
}

/// A stock client at one of the doors.
#[derive(Clone)]
struct Stock {
    words: Vec<String>,
}

impl Stock {
    fn at(address: SocketAddr) -> Self {
        let (host, port) = (address.ip().to_string(), address.port().to_string());
        let words = ["-h", &host, "-p", &port, "-q", "1"];
        Self {
            words: words.map(str::to_owned).to_vec(),
        }
    }

    fn with(mut self, words: &[&str]) -> Self {
        self.words
            .extend(words.iter().map(|word| (*word).to_owned()));
        self
    }

    fn user(self, (name, password): (&str, &str)) -> Self {
        self.with(&["-u", name, "-P", password])
    }

    fn believing(self, identity: &Path) -> Self {
        let ca = identity.join("ca.pem");
        self.with(&["--cafile", &ca.to_string_lossy()])
    }

    async fn publish(self, topic: &str, text: &str) -> Finished {
        let this = self.with(&["-t", topic, "-m", text]);
        let done = run(Path::new("mosquitto_pub"), &this.words, "").await;
        done.expect("mosquitto_pub runs")
    }

    /// The first retained message on any of these topics.
    async fn first(self, topics: &[&str]) -> Finished {
        let topics: Vec<&str> = topics.iter().flat_map(|topic| ["-t", topic]).collect();
        let this = self.with(&topics).with(&["-C", "1", "-W", "10", "-v"]);
        let done = run(Path::new("mosquitto_sub"), &this.words, "").await;
        done.expect("mosquitto_sub runs")
    }
}

/// Everything that is published below `plant` and `hf`, as the journal has it.
async fn witness(broker: &Broker) -> holdfast_broker::Consumer {
    let filters = ["plant/#", "hf/#"].map(|text| Filter::new(text).expect("filter"));
    let options = ConsumerOptions::default();
    let consumer = broker.consumer("witness", filters.to_vec(), options).await;
    consumer.expect("a consumer")
}

async fn seen(consumer: &holdfast_broker::Consumer) -> Vec<String> {
    let rows = consumer.read(RowId::START, 1000).await.expect("read");
    let ids: Vec<_> = rows.iter().map(|row| row.id).collect();
    consumer.acknowledge(&ids).await.expect("acknowledged");
    let texts = rows.iter().map(|row| row.message.topic().to_owned());
    // The gateway tells its own health too.
    texts.filter(|topic| !topic.ends_with("/health")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn passwords_let_in_whom_they_should_and_no_further() {
    if !has_program("mosquitto_pub") {
        return skip("clients", "mosquitto-clients is not installed");
    }
    let site = Site::open().await;
    for door in ["plain", "tls"] {
        logins(&site, door).await;
    }
    topics(&site).await;
    rights_do_open(&site).await;
    names(&site).await;
    guesses(&site).await;
    read_again(&site).await;
    site.gateway.stop().await;
}

fn at(site: &Site, door: &str) -> Stock {
    match door {
        "tls" => Stock::at(site.door("tls")).believing(&site.identity),
        other => Stock::at(site.door(other)),
    }
}

/// The right password and no other, by both versions; and never a certificate in its place.
async fn logins(site: &Site, door: &str) {
    let consumer = witness(site.broker()).await;
    for version in ["311", "5"] {
        let stock = || at(site, door).with(&["-V", version]);
        let right = stock().user(METER).publish("plant/meter/x", "1").await;
        assert_eq!(right.code, Some(0), "{door} {version}: {}", right.err);
        assert_eq!(seen(&consumer).await, ["plant/meter/x"], "{door} {version}");
    }
    let before = (
        site.refusals("wrong password"),
        site.refusals("no password"),
    );
    let wrong = [("meter", "pump's own word"), ("nobody", "meter's own word")];
    for login in wrong {
        let refused = at(site, door)
            .user(login)
            .publish("plant/meter/x", "2")
            .await;
        assert_ne!(refused.code, Some(0), "{door} {login:?}");
    }
    let without = at(site, door).publish("plant/meter/x", "3").await;
    assert_ne!(without.code, Some(0), "{door} without a password");
    let mut more = 1;
    if door == "tls" {
        let file = |name: &str| site.identity.join(name).display().to_string();
        let (cert, key) = (file("cert.pem"), file("key.pem"));
        let by_certificate = at(site, door).with(&["--cert", &cert, "--key", &key]);
        let refused = by_certificate.publish("plant/thermo/x", "4").await;
        assert_ne!(
            refused.code,
            Some(0),
            "a certificate on the password's door"
        );
        more += 1;
    }
    assert_eq!(site.refusals("wrong password"), before.0 + 2, "{door}");
    assert_eq!(site.refusals("no password"), before.1 + more, "{door}");
    // And a password is no certificate.
    let other = Stock::at(site.gateway.mqtt).believing(&site.identity);
    let refused = other.user(METER).publish("plant/meter/x", "5").await;
    assert_ne!(
        refused.code,
        Some(0),
        "a password on the certificates' door"
    );
    assert_eq!(seen(&consumer).await, [""; 0], "{door}");
}

/// Publishing, wills and subscriptions outside of what was granted lead nowhere.
async fn topics(site: &Site) {
    let consumer = witness(site.broker()).await;
    let up = format!("hf/v1/{SITE}/{DEVICE}/up/x");
    let desired = format!("hf/v1/{SITE}/{DEVICE}/service/desired");
    for closed in [
        "plant/pump/x",
        "plant/thermo/x",
        "plant",
        &up,
        &desired,
        "$SYS/x",
        "x",
    ] {
        let stock = at(site, "plain").user(METER).with(&["-V", "5"]);
        stock.publish(closed, "1").await;
        let will = at(site, "plain").user(METER);
        let will = will.with(&["--will-topic", closed, "--will-payload", "gone"]);
        let refused = will.publish("plant/meter/y", "1").await;
        assert_ne!(refused.code, Some(0), "a will on {closed}");
    }
    let open = at(site, "plain")
        .user(METER)
        .publish("plant/meter/open", "1")
        .await;
    assert_eq!(open.code, Some(0), "{}", open.err);
    assert_eq!(seen(&consumer).await, ["plant/meter/open"]);

    for topic in ["plant/pump/set", &desired, &up, "plant/meter/set"] {
        let message = Message::new(topic, topic.to_owned()).qos(Qos::AtLeastOnce);
        let kept = site.broker().publish(message.retain(true)).await;
        kept.expect("retained");
    }
    let stock = || at(site, "plain").user(METER).with(&["-V", "5"]);
    let closed = [
        "plant/pump/set",
        "plant/#",
        "#",
        "+/+/+",
        "hf/#",
        &desired,
        "$SYS/#",
    ];
    let told = stock()
        .first(&[&closed[..], &["plant/meter/set"]].concat())
        .await;
    assert_eq!(
        told.out.trim(),
        "plant/meter/set plant/meter/set",
        "{}",
        told.err
    );
    let told = stock().first(&[&format!("hf/v1/{SITE}/+/up/#")]).await;
    assert_eq!(
        told.out.trim(),
        format!("{up} {up}"),
        "granted: {}",
        told.err
    );
}

/// Control: who has the right does see and say what was closed to the meter, so a leak would have shown.
async fn rights_do_open(site: &Site) {
    let told = at(site, "plain")
        .user(PUMP)
        .first(&["plant/pump/set"])
        .await;
    assert_eq!(
        told.out.trim(),
        "plant/pump/set plant/pump/set",
        "{}",
        told.err
    );
    let consumer = witness(site.broker()).await;
    seen(&consumer).await;
    let said = at(site, "plain")
        .user(PUMP)
        .publish("plant/pump/x", "1")
        .await;
    assert_eq!(said.code, Some(0), "{}", said.err);
    assert_eq!(seen(&consumer).await, ["plant/pump/x"]);
}

/// Who says another's client id is not let in, and takes nobody's session.
async fn names(site: &Site) {
    let file = |name: &str| site.identity.join(name).display().to_string();
    let words = [
        "--cert",
        &file("cert.pem"),
        "--key",
        &file("key.pem"),
        "-t",
        "plant/none",
    ];
    let thermo = Stock::at(site.gateway.mqtt)
        .believing(&site.identity)
        .with(&words);
    let mut thermo = tokio::process::Command::new("mosquitto_sub")
        .args(&thermo.words)
        .kill_on_drop(true)
        .spawn()
        .expect("mosquitto_sub runs");
    until("the client with a certificate", || {
        site.is_connected("thermo.clients.bern")
    })
    .await;
    let before = site.refusals("client id");
    let device = format!("{DEVICE}.devices.{SITE}");
    let foreign = [
        "thermo",
        "thermo.clients.bern",
        "pump",
        "user:pump",
        DEVICE,
        &device,
    ];
    for id in foreign {
        let stock = at(site, "plain").user(METER).with(&["-i", id]);
        let refused = stock.publish("plant/meter/x", "1").await;
        assert_ne!(refused.code, Some(0), "{id}");
    }
    assert_eq!(site.refusals("client id"), before + foreign.len() as u64);
    for id in ["meter", "user:meter", "ESP_5FA2C1"] {
        let stock = at(site, "plain").user(METER).with(&["-i", id]);
        let taken = stock.publish("plant/meter/x", "1").await;
        assert_eq!(taken.code, Some(0), "{id}: {}", taken.err);
    }
    assert!(
        site.is_connected("thermo.clients.bern"),
        "nobody took it over"
    );
    thermo.kill().await.expect("killed");
}

/// Guessing ends soon, for the name that is guessed at.
async fn guesses(site: &Site) {
    let wrong = ("pump", "is it this one?");
    for _ in 0..GUESSES {
        let refused = at(site, "plain")
            .user(wrong)
            .publish("plant/pump/x", "1")
            .await;
        assert_ne!(refused.code, Some(0));
    }
    assert_eq!(site.refusals("too many guesses"), 0);
    let late = at(site, "plain")
        .user(PUMP)
        .publish("plant/pump/x", "1")
        .await;
    assert_ne!(late.code, Some(0), "not even checked");
    assert_eq!(site.refusals("too many guesses"), 1);
    let other = at(site, "plain")
        .user(METER)
        .publish("plant/meter/x", "1")
        .await;
    assert_eq!(other.code, Some(0), "its neighbour: {}", other.err);
}

/// The file is read again: who is gone is cut, a faulty one changes nothing, SIGHUP does the same.
async fn read_again(site: &Site) {
    let put = |text: &str| secret_file::write(&site.file, text.as_bytes()).expect("file");
    let stock = at(site, "tls").user(METER).with(&["-t", "plant/meter/set"]);
    let mut stays = tokio::process::Command::new("mosquitto_sub");
    stays.args(&stock.words).kill_on_drop(true);
    stays.stdout(std::process::Stdio::null());
    // Who published as the meter before was of the same name, and may not be gone yet.
    let is_there = || site.is_connected("user:meter");
    until("the one before to be gone", || !is_there()).await;
    let mut stays = stays.spawn().expect("mosquitto_sub runs");
    until("the meter", is_there).await;
    put("[[client]]\nname = \"meter\"\n");
    let faults = site.gateway.reload.again().expect_err("faulty").to_string();
    assert!(
        faults.contains("clients.toml:1: client[1].password"),
        "{faults}"
    );
    assert!(is_there(), "a faulty file changes nothing");

    put(&(meter() + &table(("fan", "fan's own word"), "publish = [\"plant/fan\"]")));
    // Another salt is another hash, so this one has another password as far as anybody knows.
    let done = site.gateway.reload.again().expect("read");
    assert_eq!((done.clients, done.cut), (2, 1));
    let fan = at(site, "plain").user(("fan", "fan's own word"));
    assert_eq!(
        fan.publish("plant/fan", "1").await.code,
        Some(0),
        "the new one"
    );
    until("the meter again, with the password that holds", is_there).await;

    // From here on the signal's own action, to end the process, is off for good.
    let _listening = signal(SignalKind::hangup()).expect("signal");
    put("");
    let own = rustix::process::getpid();
    rustix::process::kill_process(own, rustix::process::Signal::HUP).expect("signal");
    until("the meter to be cut", || !is_there()).await;
    let gone = at(site, "plain")
        .user(METER)
        .publish("plant/meter/x", "1")
        .await;
    assert_ne!(gone.code, Some(0), "gone");
    stays.kill().await.expect("killed");
    let status = stays.wait().await.expect("ended");
    assert!(status.signal().is_some() || !status.success(), "{status}");
}
