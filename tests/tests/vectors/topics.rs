//! Escapes at the real gateway: a device asks for what is not its own, leaves wills where it may not publish, and takes
//! another's client id. Ten thousand messages go round meanwhile; it hears none of them. The control hears them all.

use std::time::Duration;

use holdfast_tests::world::{Plan, SITE, Server, World};
use rcgen::ExtendedKeyUsagePurpose as Eku;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::doors::{VERSIONS, client};
use crate::makers::{DEVICE, Forge, Shown, VICTIM, device_at, leaf};

/// Foreign messages.
const MESSAGES: usize = 10_000;
/// Sent before their acknowledgements are read.
const WINDOW: usize = 20;
/// For one packet.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_device_hears_and_says_nothing_that_is_not_its_own() {
    let mut world = World::new(&Plan::apart()).await.unwrap();
    world.start_cloud().await.unwrap();
    world.enrol().await.unwrap();
    world.start_gateway().await.unwrap();
    let forge = Forge::of(&world);
    let identity = |device: &str| {
        let params = leaf(&device_at(device, SITE), Eku::ClientAuth);
        Shown::by(&params, &forge.site, &[&forge.site])
    };
    let all = [format!("hf/v1/{SITE}/#"), format!("svc/v1/{SITE}/#")];
    let all = [all[0].as_str(), all[1].as_str()];
    let loud = world
        .admit(Server::Gateway, "loud", &all, &all)
        .await
        .unwrap();
    let loud = Shown::from_folder(&loud);
    let gate = Gate {
        world: &world,
        forge: &forge,
    };

    let mut witness = gate.enter(&loud, "", None).await.unwrap();
    for filter in all {
        assert!(
            witness
                .subscribe(filter)
                .await
                .is_some_and(|code| code < 0x80),
            "{filter}"
        );
    }
    let hearing = tokio::spawn(async move { witness.topics_until("end").await });
    let mut device = gate.refuses_escapes(&identity(DEVICE)).await;
    gate.refuses_wills(&identity(DEVICE)).await;
    gate.refuses_the_client_id_of(&mut device, &identity(VICTIM))
        .await;

    // The witness has its client id: the speaker is a client of its own.
    let speaker = world
        .admit(Server::Gateway, "speaker", &all, &[])
        .await
        .unwrap();
    let mut speaker = gate
        .enter(&Shown::from_folder(&speaker), "", None)
        .await
        .unwrap();
    speaker.say_all().await;
    let heard = device.topics_until("end").await;
    let own = format!("hf/v1/{SITE}/{DEVICE}/");
    let foreign: Vec<_> = heard
        .iter()
        .filter(|topic| !topic.starts_with(&own))
        .collect();
    assert!(
        foreign.is_empty(),
        "the device heard {} foreign messages, as of {}",
        foreign.len(),
        foreign[0]
    );
    let heard = timeout(PATIENCE, hearing).await.unwrap().unwrap();
    let of_victim = heard.iter().filter(|topic| topic.contains(VICTIM)).count();
    assert!(of_victim >= MESSAGES, "the control heard {of_victim} only");
    assert!(
        !heard.iter().any(|topic| topic.ends_with("/will")),
        "a forbidden will was delivered"
    );
    world.stop().await.unwrap();
}

struct Gate<'a> {
    world: &'a World,
    forge: &'a Forge,
}

impl Gate<'_> {
    /// A session; the code of the refusal, or 0 if the connection ended without one.
    async fn enter(&self, shown: &Shown, id: &str, will: Option<&str>) -> Result<Session, u8> {
        let door = self.world.gateway_doors.mqtt;
        let stream = TcpStream::connect(door).await.unwrap();
        let config = client(Some(shown), VERSIONS[0], &self.forge.root.der);
        let name = rustls::pki_types::ServerName::from(door.ip());
        let connector = TlsConnector::from(std::sync::Arc::new(config));
        let mut session = Session(connector.connect(name, stream).await.unwrap());
        let flags = if will.is_some() { 0x06 } else { 0x02 };
        let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 5, flags, 0, 60, 0];
        body.extend(text(id));
        if let Some(topic) = will {
            body.push(0);
            body.extend([text(topic), text("bye")].concat());
        }
        session.send(0x10, &body).await;
        match session.packet().await {
            Some((0x20, body)) if body[1] == 0 => Ok(session),
            Some((0x20, body)) => Err(body[1]),
            _ => Err(0),
        }
    }

    /// The session that has tried everything and holds its own branch only.
    async fn refuses_escapes(&self, shown: &Shown) -> Session {
        let mut session = self.enter(shown, "", None).await.unwrap();
        for filter in escapes() {
            let told = session.subscribe(&filter).await;
            let named: String = filter.chars().take(80).collect();
            assert!(
                told.is_none_or(|code| code >= 0x80),
                "{named:?} is granted: {told:?}"
            );
            if told.is_none() {
                // Closed, which is an answer too: once more.
                session = self.enter(shown, "", None).await.unwrap();
            }
        }
        let many = session
            .subscribe_many(&vec![format!("hf/v1/{SITE}/{VICTIM}/up/#"); 200])
            .await;
        assert!(
            many.iter().all(|code| *code >= 0x80),
            "200 at once: {many:?}"
        );
        let own = format!("hf/v1/{SITE}/{DEVICE}/#");
        let told = session.subscribe(&own).await;
        assert!(
            told.is_some_and(|code| code < 0x80),
            "its own branch is refused: {told:?}"
        );
        session
    }

    async fn refuses_wills(&self, shown: &Shown) {
        let topics = [
            format!("hf/v1/{SITE}/{VICTIM}/up/will"),
            format!("hf/v1/{SITE}/gateway/will"),
            "$SYS/will".to_owned(),
            "hf/v1/+/will".to_owned(),
            format!("hf/v1/other/{DEVICE}/up/will"),
        ];
        for topic in topics {
            let told = self.enter(shown, "", Some(&topic)).await;
            assert!(told.is_err(), "a will on {topic} is taken");
        }
    }

    async fn refuses_the_client_id_of(&self, device: &mut Session, other: &Shown) {
        for id in [DEVICE, &format!("{DEVICE}.devices.{SITE}")] {
            let told = self.enter(other, id, None).await;
            assert!(told.is_err(), "another device got the client id {id}");
        }
        device.send(0xc0, &[]).await;
        let answer = device.packet().await.map(|(first, _)| first);
        assert_eq!(answer, Some(0xd0), "the device whose id was taken is gone");
    }
}

/// Row E6: filters that reach beyond the device's own branch, and what only looks like its own.
fn escapes() -> Vec<String> {
    let (own, other) = (
        format!("hf/v1/{SITE}/{DEVICE}"),
        format!("hf/v1/{SITE}/{VICTIM}"),
    );
    let upper = DEVICE.to_uppercase();
    let wild = [
        "#",
        "+/#",
        "+",
        "/#",
        "//",
        "$SYS/#",
        "$share/g/#",
        "$queue/#",
        "$CONTROL/#",
        "$/#",
        "hf/#",
        "hf/v1/#",
        "hf/+/#",
    ];
    let mut all: Vec<String> = wild.map(str::to_owned).to_vec();
    all.extend([
        format!("hf/v1/{SITE}/#"),
        format!("hf/v1/{SITE}/+/up/#"),
        format!("hf/v1/+/{DEVICE}/#"),
        format!("hf/v1/{SITE}/+/#"),
        format!("{other}/#"),
        format!("{other}/up/x"),
        format!("{own}/../{VICTIM}/#"),
        format!("{own}/+/../#"),
        format!("$share/g/{other}/#"),
        format!("$share/g/{own}/#"),
        format!("hf/v1/{SITE}/{upper}/#"),
        format!("HF/v1/{SITE}/{DEVICE}/#"),
        format!("hf/v1/{SITE}//{DEVICE}/#"),
        format!("hf/v1/{SITE}/{DEVICE}\u{feff}/#"),
        format!("hf/v1/{SITE}/{DEVICE}\u{200b}/#"),
        format!("hf/v1/{SITE}e\u{301}/{DEVICE}/#"),
        format!("hf/v1/{SITE}/gateway/health"),
        format!("svc/v1/{SITE}/+/{DEVICE}/telemetry"),
        format!("svc/v1/{SITE}/weather/{VICTIM}/command"),
        "x".repeat(65_535),
        String::new(),
        "a/#/b".to_owned(),
        "a+/b".to_owned(),
        "a\0b".to_owned(),
    ]);
    all
}

/// One client's connection, MQTT 5, as little of it as is needed.
struct Session(TlsStream<TcpStream>);

fn text(text: &str) -> Vec<u8> {
    let length = u16::try_from(text.len()).unwrap();
    [&length.to_be_bytes()[..], text.as_bytes()].concat()
}

impl Session {
    async fn send(&mut self, first: u8, body: &[u8]) {
        let mut packet = vec![first];
        let mut length = body.len();
        loop {
            let more = if length > 127 { 0x80 } else { 0 };
            packet.push(u8::try_from(length & 0x7f).unwrap() | more);
            length >>= 7;
            if length == 0 {
                break;
            }
        }
        packet.extend(body);
        // A server that has closed shows it at the next read.
        let _ = self.0.write_all(&packet).await;
        let _ = self.0.flush().await;
    }

    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let read = async {
            let first = self.0.read_u8().await.ok()?;
            let (mut length, mut shift) = (0, 0);
            loop {
                let byte = self.0.read_u8().await.ok()?;
                length |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut body = vec![0; length];
            self.0.read_exact(&mut body).await.ok()?;
            Some((first, body))
        };
        timeout(PATIENCE, read).await.ok()?
    }

    /// The SUBACK's code; none if the connection was closed instead.
    async fn subscribe(&mut self, filter: &str) -> Option<u8> {
        self.subscribe_many(&[filter.to_owned()])
            .await
            .first()
            .copied()
    }

    async fn subscribe_many(&mut self, filters: &[String]) -> Vec<u8> {
        let mut body = vec![0, 7, 0];
        for filter in filters {
            body.extend(text(filter));
            body.push(1);
        }
        self.send(0x82, &body).await;
        loop {
            match self.packet().await {
                Some((0x90, body)) => return body[body.len() - filters.len()..].to_vec(),
                // Retained messages may come first.
                Some((first, _)) if first >> 4 == 3 => {}
                _ => return Vec::new(),
            }
        }
    }

    /// Everything round the victim, and at last one word for each device.
    async fn say_all(&mut self) {
        let other = format!("hf/v1/{SITE}/{VICTIM}");
        let topics = [
            format!("{other}/up/x"),
            format!("{other}/down/x"),
            format!("{other}/service/reported"),
            format!("svc/v1/{SITE}/weather/{VICTIM}/telemetry"),
            format!("svc/v1/{SITE}/weather/{VICTIM}/command"),
        ];
        for round in 0..MESSAGES / WINDOW {
            for number in 0..WINDOW {
                self.say(&topics[(round + number) % topics.len()], number)
                    .await;
            }
            self.acknowledged(WINDOW).await;
        }
        self.say(&format!("hf/v1/{SITE}/{DEVICE}/down/end"), 0)
            .await;
        self.acknowledged(1).await;
    }

    async fn say(&mut self, topic: &str, number: usize) {
        let id = u16::try_from(number + 1).unwrap().to_be_bytes();
        let body = [&text(topic)[..], &id, &[0], b"x"].concat();
        self.send(0x32, &body).await;
    }

    async fn acknowledged(&mut self, count: usize) {
        for _ in 0..count {
            let (first, body) = self.packet().await.expect("an acknowledgement");
            assert_eq!(first, 0x40);
            assert!(
                body.get(2).is_none_or(|code| *code < 0x80),
                "a publish is refused: {body:?}"
            );
        }
    }

    /// The topics of all messages until one that ends so; each is acknowledged.
    async fn topics_until(&mut self, last: &str) -> Vec<String> {
        let mut topics = Vec::new();
        loop {
            let (first, body) = self.packet().await.expect("messages, and the last one");
            if first >> 4 != 3 {
                continue;
            }
            let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
            let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
            if first & 0x06 != 0 {
                let id = [body[2 + length], body[3 + length]];
                self.send(0x40, &id).await;
            }
            let is_last = topic.ends_with(last);
            topics.push(topic);
            if is_last {
                return topics;
            }
        }
    }
}
