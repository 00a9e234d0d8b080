//! A small MQTT 5 server over mutual TLS that keeps a ledger and misbehaves by plan.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use holdfast_link::time::ManualClock;
use holdfast_link::tls::{self, Anchors, ClientAuth, IdentitySlot};
use holdfast_protocol::crypto::SigningKey;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::kit::Authority;

/// What the server does with a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Acknowledge,
    /// Keeps it and cuts the link before the acknowledgement.
    KeepAndCut,
    /// Cuts the link before keeping it.
    Cut,
    /// Refuses it (0x97) and stays.
    Refuse,
}

/// What it has kept.
#[derive(Debug, Default, Clone)]
pub(super) struct Ledger {
    /// (topic, epoch, seq, payload), in the order of keeping.
    pub(super) kept: Vec<(String, u64, u64, Vec<u8>)>,
    /// Repeats that were recognised.
    pub(super) repeats: u32,
    pub(super) connections: u32,
    pub(super) filters: Vec<String>,
    pub(super) highest: BTreeMap<String, (u64, u64)>,
    /// Whether what follows a refused publication on its topic is refused too, on that connection.
    pub(super) holds_back: bool,
    /// Sent with QoS 1 to whoever has subscribed, each time.
    pub(super) orders: Vec<(String, Vec<u8>)>,
    /// Acknowledgements of them.
    pub(super) obeyed: u32,
    /// The sensors that user properties name, in the order of keeping.
    pub(super) sources: Vec<String>,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) ledger: watch::Receiver<Ledger>,
    _task: JoinSet<()>,
}

type Plan = Arc<Mutex<dyn FnMut() -> Act + Send>>;

impl Server {
    /// Listens at `address` (port 0: any).
    pub(super) async fn start(
        authority: &Authority,
        name: &str,
        address: SocketAddr,
        ledger: Ledger,
        plan: impl FnMut() -> Act + Send + 'static,
    ) -> Self {
        let key = SigningKey::generate(&mut holdfast_link::random::SystemRandom);
        let leaf = authority.server(&key.public(), name.to_owned());
        let identity = tls::Identity::new(vec![leaf], key.to_pkcs8_der()).unwrap();
        let anchors = Anchors::new([authority.der.clone()]).unwrap();
        let clock = Arc::new(ManualClock::at(1_800_000_000));
        let slot = IdentitySlot::with(identity);
        let config = tls::server_config(slot, ClientAuth::Required(anchors), clock).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (ledger, watching) = watch::channel(ledger);
        let plan: Plan = Arc::new(Mutex::new(plan));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            let ledger = Arc::new(ledger);
            let mut sessions = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, ledger, plan) = (acceptor.clone(), ledger.clone(), plan.clone());
                sessions.spawn(async move {
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let _ = session(stream, &ledger, &plan).await;
                    }
                });
            }
        });
        Self {
            address,
            ledger: watching,
            _task: task,
        }
    }
}

async fn session(
    mut stream: tokio_rustls::server::TlsStream<tokio::net::TcpStream>,
    ledger: &watch::Sender<Ledger>,
    plan: &Plan,
) -> std::io::Result<()> {
    let mut held = BTreeMap::new();
    loop {
        let (head, body) = packet(&mut stream).await?;
        let reply: Vec<u8> = match head >> 4 {
            1 => {
                ledger.send_modify(|ledger| ledger.connections += 1);
                vec![0x20, 3, 0, 0, 0]
            }
            3 => match publish(&body, ledger, plan, &mut held) {
                Some(reply) => reply,
                None => return Ok(()),
            },
            4 => {
                ledger.send_modify(|ledger| ledger.obeyed += 1);
                continue;
            }
            8 => subscribe(&body, ledger),
            12 => vec![0xd0, 0],
            14 => return Ok(()),
            other => panic!("packet {other}"),
        };
        stream.write_all(&reply).await?;
        stream.flush().await?;
    }
}

fn publish(
    body: &[u8],
    ledger: &watch::Sender<Ledger>,
    plan: &Plan,
    held: &mut BTreeMap<String, (u64, u64)>,
) -> Option<Vec<u8>> {
    let mut cursor = Cursor(body);
    let topic = cursor.text();
    let id = cursor.take(2).to_vec();
    let length = cursor.varint();
    let mut properties = Cursor(cursor.take(length));
    let mut user = BTreeMap::new();
    while !properties.0.is_empty() {
        assert_eq!(
            properties.take(1),
            [0x26],
            "only user properties are expected"
        );
        let name = properties.text();
        user.insert(name, properties.text());
    }
    let number = |name: &str| user[name].parse::<u64>().unwrap();
    let stamp = (number("hf-epoch"), number("hf-seq"));
    let act = (plan.lock().unwrap())();
    if act == Act::Cut {
        return None;
    }
    let mut reason = 0;
    ledger.send_modify(|ledger| {
        let highest = ledger.highest.entry(topic.clone()).or_default();
        let behind = ledger.holds_back && held.get(&topic).is_some_and(|first| stamp > *first);
        if stamp <= *highest {
            ledger.repeats += 1;
        } else if act == Act::Refuse || behind {
            held.entry(topic).or_insert(stamp);
            reason = 0x97;
        } else {
            *highest = stamp;
            held.remove(&topic);
            ledger.sources.extend(user.get("hf-source").cloned());
            ledger
                .kept
                .push((topic, stamp.0, stamp.1, cursor.0.to_vec()));
        }
    });
    (act != Act::KeepAndCut).then(|| vec![0x40, 3, id[0], id[1], reason])
}

fn subscribe(body: &[u8], ledger: &watch::Sender<Ledger>) -> Vec<u8> {
    let mut cursor = Cursor(body);
    let id = cursor.take(2).to_vec();
    let length = cursor.varint();
    cursor.take(length);
    let mut filters = Vec::new();
    while !cursor.0.is_empty() {
        filters.push(cursor.text());
        cursor.take(1);
    }
    let codes = vec![1; filters.len()];
    ledger.send_modify(|ledger| ledger.filters = filters);
    let mut reply = vec![
        0x90,
        u8::try_from(3 + codes.len()).unwrap(),
        id[0],
        id[1],
        0,
    ];
    reply.extend(codes);
    for (id, (topic, payload)) in (1u8..).zip(&ledger.borrow().orders) {
        let length = 2 + topic.len() + 3 + payload.len();
        reply.extend([0x32, u8::try_from(length).unwrap()]);
        reply.extend(u16::try_from(topic.len()).unwrap().to_be_bytes());
        reply.extend(topic.as_bytes());
        reply.extend([0, id, 0]);
        reply.extend(payload);
    }
    reply
}

async fn packet(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<(u8, Vec<u8>)> {
    let head = stream.read_u8().await?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let byte = stream.read_u8().await?;
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok((head, body))
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn text(&mut self) -> String {
        let length = self.take(2);
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        String::from_utf8(self.take(length).to_vec()).unwrap()
    }

    fn varint(&mut self) -> usize {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = self.take(1)[0];
            value |= usize::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
}
