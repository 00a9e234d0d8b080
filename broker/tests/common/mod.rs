//! Shared by the broker's tests: a server in this process, a client that speaks in bytes, rights that
//! tests can change.

// Each test program uses a part of it; a test fails by panicking.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_broker::{
    Broker, Config, Connect, Door, Filter, Identity, JournalMedium, Peer, Refusal, Rights,
};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

/// Longer than anything here may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Everything is allowed but what a test forbids.
#[derive(Default)]
pub struct TestRights {
    pub closed: AtomicBool,
    pub no_publish: Mutex<Vec<Filter>>,
    pub no_subscribe: Mutex<Vec<Filter>>,
    pub no_receive: Mutex<Vec<Filter>>,
    /// May it read what is below `$SYS/`?
    pub figures: AtomicBool,
    pub banned: Mutex<HashSet<String>>,
}

impl TestRights {
    pub fn forbid(list: &Mutex<Vec<Filter>>, filter: &str) {
        list.lock().unwrap().push(Filter::new(filter).unwrap());
    }
    fn free(list: &Mutex<Vec<Filter>>, topic: &str) -> bool {
        !list
            .lock()
            .unwrap()
            .iter()
            .any(|filter| filter.matches(topic))
    }
}

impl Rights for TestRights {
    fn identify(&self, _: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Refusal::NotAuthorized);
        }
        if self.banned.lock().unwrap().contains(connect.client_id) {
            return Err(Refusal::Banned);
        }
        if connect
            .password
            .is_some_and(|password| password.0 == b"wrong")
        {
            return Err(Refusal::BadCredentials);
        }
        Ok(Identity {
            client_id: connect.client_id.into(),
            subject: connect.user_name.unwrap_or("anonymous").into(),
        })
    }
    fn may_publish(&self, _: &Identity, topic: &str) -> bool {
        Self::free(&self.no_publish, topic)
    }
    fn may_subscribe(&self, _: &Identity, filter: &str) -> bool {
        Self::free(&self.no_subscribe, filter)
    }
    fn may_receive(&self, _: &Identity, topic: &str) -> bool {
        Self::free(&self.no_receive, topic)
    }
    fn may_see_figures(&self, _: &Identity) -> bool {
        self.figures.load(Ordering::SeqCst)
    }
}

/// A broker with one plain door.
pub struct Server {
    pub broker: Broker,
    pub address: SocketAddr,
    pub rights: Arc<TestRights>,
    pub cancel: CancellationToken,
    pub served: tokio::task::JoinHandle<()>,
    folder: Option<TempDir>,
}

impl Server {
    pub async fn start(config: Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = JournalMedium::File(folder.path().join("journal.redb"));
        let mut server = Self::on(config, file).await;
        server.folder = Some(folder);
        server
    }

    pub async fn on(config: Config, medium: JournalMedium) -> Self {
        Self::with(config, medium, Arc::new(TestRights::default())).await
    }

    pub async fn with(config: Config, medium: JournalMedium, rights: Arc<TestRights>) -> Self {
        let broker = open(&config, &medium, &rights).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let cancel = CancellationToken::new();
        let (serving, stop) = (broker.clone(), cancel.clone());
        let served = tokio::spawn(async move {
            serving.serve(listener, Door::Plain, stop).await.unwrap();
        });
        Self {
            broker,
            address,
            rights,
            cancel,
            served,
            folder: None,
        }
    }

    /// Stops, and starts again on the same journal.
    pub async fn restart(mut self, config: Config) -> Self {
        let folder = self.folder.take().expect("only with a file");
        let rights = Arc::clone(&self.rights);
        self.stop().await;
        let file = JournalMedium::File(folder.path().join("journal.redb"));
        let mut server = Self::with(config, file, rights).await;
        server.folder = Some(folder);
        server
    }

    pub async fn stop(self) {
        self.cancel.cancel();
        self.served.await.unwrap();
    }

    pub async fn raw(&self) -> Wire {
        let stream = TcpStream::connect(self.address).await.unwrap();
        // Small packets follow each other without an answer between them.
        stream.set_nodelay(true).unwrap();
        Wire::new(stream)
    }

    pub async fn v5(&self, id: &str) -> Wire {
        let mut wire = self.raw().await;
        wire.v5 = true;
        wire.send(&Hello::v5(id).bytes()).await;
        wire.connack(0).await;
        wire
    }

    pub async fn v3(&self, id: &str) -> Wire {
        let mut wire = self.raw().await;
        wire.send(&Hello::v3(id).bytes()).await;
        wire.connack(0).await;
        wire
    }

    /// A v5 session that outlives its connection; returns whether it was there before.
    pub async fn lasting(&self, id: &str) -> (Wire, bool) {
        let mut wire = self.raw().await;
        wire.v5 = true;
        let mut hello = Hello::v5(id);
        hello.clean = false;
        hello.properties = expiry(3600);
        wire.send(&hello.bytes()).await;
        let present = wire.connack(0).await;
        (wire, present)
    }
}

/// The journal's lock may be held for a moment by a broker that is just ending.
async fn open(config: &Config, medium: &JournalMedium, rights: &Arc<TestRights>) -> Broker {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let rights: Arc<dyn Rights> = Arc::clone(rights) as _;
        match Broker::open(config.clone(), medium.clone(), rights) {
            Ok(broker) => return broker,
            Err(error) if tokio::time::Instant::now() > deadline => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

pub fn expiry(seconds: u32) -> Vec<u8> {
    let mut bytes = vec![0x11];
    bytes.extend(seconds.to_be_bytes());
    bytes
}

pub fn text(value: &str) -> Vec<u8> {
    let mut bytes = u16::try_from(value.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(value.as_bytes());
    bytes
}

pub fn variable(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let byte = (value & 0x7F) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(byte);
            return bytes;
        }
        bytes.push(byte | 0x80);
    }
}

pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first];
    bytes.extend(variable(body.len()));
    bytes.extend(body);
    bytes
}

/// A CONNECT.
pub struct Hello {
    pub v5: bool,
    pub id: String,
    pub clean: bool,
    pub keep_alive: u16,
    pub properties: Vec<u8>,
    /// flags (QoS, retain), properties, topic, payload
    pub will: Option<(u8, Vec<u8>, String, Vec<u8>)>,
    pub user: Option<String>,
    pub password: Option<Vec<u8>>,
}

impl Hello {
    pub fn v5(id: &str) -> Self {
        Self {
            v5: true,
            id: id.into(),
            clean: true,
            keep_alive: 60,
            properties: Vec::new(),
            will: None,
            user: None,
            password: None,
        }
    }

    pub fn v3(id: &str) -> Self {
        Self {
            v5: false,
            ..Self::v5(id)
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut flags = u8::from(self.clean) << 1;
        if let Some((will, ..)) = &self.will {
            flags |= 4 | will;
        }
        flags |= u8::from(self.user.is_some()) << 7 | u8::from(self.password.is_some()) << 6;
        let mut body = text("MQTT");
        body.push(if self.v5 { 5 } else { 4 });
        body.push(flags);
        body.extend(self.keep_alive.to_be_bytes());
        if self.v5 {
            body.extend(variable(self.properties.len()));
            body.extend(&self.properties);
        }
        body.extend(text(&self.id));
        if let Some((_, properties, topic, payload)) = &self.will {
            if self.v5 {
                body.extend(variable(properties.len()));
                body.extend(properties);
            }
            body.extend(text(topic));
            body.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
            body.extend(payload);
        }
        if let Some(user) = &self.user {
            body.extend(text(user));
        }
        if let Some(password) = &self.password {
            body.extend(u16::try_from(password.len()).unwrap().to_be_bytes());
            body.extend(password);
        }
        packet(0x10, &body)
    }
}

pub fn publish(
    v5: bool,
    flags: u8,
    topic: &str,
    id: u16,
    properties: &[u8],
    payload: &[u8],
) -> Vec<u8> {
    let mut body = text(topic);
    if flags & 6 != 0 {
        body.extend(id.to_be_bytes());
    }
    if v5 {
        body.extend(variable(properties.len()));
        body.extend(properties);
    }
    body.extend(payload);
    packet(0x30 | flags, &body)
}

/// User properties of the repeat filter.
pub fn stamp(epoch: u64, seq: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in [("hf-epoch", epoch), ("hf-seq", seq)] {
        bytes.push(0x26);
        bytes.extend(text(name));
        bytes.extend(text(&value.to_string()));
    }
    bytes
}

/// A PUBLISH as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    pub flags: u8,
    pub topic: String,
    pub id: u16,
    pub properties: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Arrived {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.payload).unwrap()
    }
    pub fn qos(&self) -> u8 {
        (self.flags >> 1) & 3
    }
    pub fn dup(&self) -> bool {
        self.flags & 8 != 0
    }
    pub fn retain(&self) -> bool {
        self.flags & 1 != 0
    }
}

/// A client that speaks in bytes.
pub struct Wire<S = TcpStream> {
    pub stream: S,
    pub v5: bool,
    next: u16,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            v5: false,
            next: 1,
        }
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// The next packet: first byte and body; `None` when the server closed.
    pub async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        tokio::time::timeout(PATIENCE, self.read_packet())
            .await
            .expect("the server says nothing")
    }

    async fn read_packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let first = self.stream.read_u8().await.ok()?;
        let mut length = 0usize;
        for shift in 0..4 {
            let byte = self.stream.read_u8().await.ok()?;
            length |= usize::from(byte & 0x7F) << (7 * shift);
            if byte & 0x80 == 0 {
                break;
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).await.ok()?;
        Some((first, body))
    }

    /// The CONNACK with this code; its session-present flag.
    pub async fn connack(&mut self, code: u8) -> bool {
        let (first, body) = self.packet().await.expect("closed instead of CONNACK");
        assert_eq!((first, body[1]), (0x20, code), "{body:?}");
        body[0] == 1
    }

    pub fn id(&mut self) -> u16 {
        let id = self.next;
        self.next = self.next.checked_add(1).unwrap_or(1);
        id
    }

    /// Subscribes to one filter; the SUBACK's code.
    pub async fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        self.subscribe_with(filter, options, &[]).await
    }

    pub async fn subscribe_with(&mut self, filter: &str, options: u8, properties: &[u8]) -> u8 {
        let id = self.id();
        let mut body = id.to_be_bytes().to_vec();
        if self.v5 {
            body.extend(variable(properties.len()));
            body.extend(properties);
        }
        body.extend(text(filter));
        body.push(options);
        self.send(&packet(0x82, &body)).await;
        let (first, body) = self.packet().await.expect("closed instead of SUBACK");
        assert_eq!(first, 0x90, "{body:?}");
        assert_eq!(body[..2], id.to_be_bytes());
        *body.last().unwrap()
    }

    pub async fn unsubscribe(&mut self, filter: &str) -> Vec<u8> {
        let id = self.id();
        let mut body = id.to_be_bytes().to_vec();
        if self.v5 {
            body.push(0);
        }
        body.extend(text(filter));
        self.send(&packet(0xA2, &body)).await;
        let (first, body) = self.packet().await.expect("closed instead of UNSUBACK");
        assert_eq!(first, 0xB0, "{body:?}");
        body[2..].to_vec()
    }

    /// Publishes and waits for the acknowledgement; its code.
    pub async fn publish(&mut self, topic: &str, qos: u8, payload: &str) -> u8 {
        self.publish_with(topic, qos << 1, &[], payload).await
    }

    pub async fn publish_with(
        &mut self,
        topic: &str,
        flags: u8,
        properties: &[u8],
        payload: &str,
    ) -> u8 {
        let id = self.id();
        let bytes = publish(self.v5, flags, topic, id, properties, payload.as_bytes());
        self.send(&bytes).await;
        match (flags >> 1) & 3 {
            0 => 0,
            1 => self.ack(0x40, id).await,
            _ => {
                let code = self.ack(0x50, id).await;
                if code >= 0x80 {
                    return code;
                }
                self.send(&packet(0x62, &id.to_be_bytes())).await;
                self.ack(0x70, id).await
            }
        }
    }

    /// The acknowledgement of that type and id; its code.
    pub async fn ack(&mut self, first: u8, id: u16) -> u8 {
        let (found, body) = self
            .packet()
            .await
            .expect("closed instead of an acknowledgement");
        assert_eq!(
            (found, &body[..2]),
            (first, &id.to_be_bytes()[..]),
            "{body:?}"
        );
        body.get(2).copied().unwrap_or(0)
    }

    /// The next PUBLISH, acknowledged when it asks for it.
    pub async fn receive(&mut self) -> Arrived {
        let arrived = self.arrived().await;
        match arrived.qos() {
            0 => {}
            1 => self.send(&packet(0x40, &arrived.id.to_be_bytes())).await,
            _ => {
                self.send(&packet(0x50, &arrived.id.to_be_bytes())).await;
                self.ack(0x62, arrived.id).await;
                self.send(&packet(0x70, &arrived.id.to_be_bytes())).await;
            }
        }
        arrived
    }

    /// The next PUBLISH, not acknowledged.
    pub async fn arrived(&mut self) -> Arrived {
        let (first, body) = self.packet().await.expect("closed instead of PUBLISH");
        assert_eq!(first & 0xF0, 0x30, "{first:#x} {body:?}");
        self.parse(first, &body)
    }

    pub fn parse(&self, first: u8, body: &[u8]) -> Arrived {
        let length = usize::from(u16::from_be_bytes([body[0], body[1]]));
        let topic = String::from_utf8(body[2..2 + length].to_vec()).unwrap();
        let mut rest = &body[2 + length..];
        let mut id = 0;
        if first & 6 != 0 {
            id = u16::from_be_bytes([rest[0], rest[1]]);
            rest = &rest[2..];
        }
        let mut properties = Vec::new();
        if self.v5 {
            let bytes = rest.iter().take_while(|byte| **byte & 0x80 != 0).count() + 1;
            let length = (0..bytes).map(|at| usize::from(rest[at] & 0x7F) << (7 * at));
            let end = bytes + length.sum::<usize>();
            properties = rest[bytes..end].to_vec();
            rest = &rest[end..];
        }
        Arrived {
            flags: first & 0x0F,
            topic,
            id,
            properties,
            payload: rest.to_vec(),
        }
    }

    /// Nothing but PINGRESP comes: whatever was due before a PINGREQ is there before its answer.
    pub async fn nothing(&mut self) {
        self.send(&[0xC0, 0]).await;
        let found = self.packet().await;
        assert_eq!(found, Some((0xD0, Vec::new())));
    }

    /// The server ends the connection; with MQTT 5, the code of its DISCONNECT.
    pub async fn closed(&mut self) -> Option<u8> {
        let mut code = None;
        while let Some((first, body)) = self.packet().await {
            assert!(
                code.is_none(),
                "{first:#x} after DISCONNECT [MQTT-3.14.4-1]"
            );
            if first == 0xE0 {
                code = Some(body.first().copied().unwrap_or(0));
            }
        }
        code
    }

    pub async fn disconnect(mut self) {
        self.send(&[0xE0, 0]).await;
        self.closed().await;
    }
}
