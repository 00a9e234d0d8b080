//! The judge: a server on what is left of a disk, the clients come back to it, and all is compared with the ledger.
//!
//! The accused says nothing here but through its sockets and its public handle.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_broker::{
    Broker, Config, ConsumerOptions, Door, Filter, JournalMedium, Rights, RowId,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clients::{again2, answer, connect, subscribe};
use crate::common::{TestRights, Wire};
use crate::ledger::{Event, Ledger, State};

/// How long a PUBREL may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// So small that it is full every now and then, and images stay small.
const LOG: u64 = 16 << 10;

/// What was found, added up.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    pub(crate) images: usize,
    /// Journals that no longer open.
    pub(crate) unopenable: usize,
    /// Acknowledged messages, slots and sessions that are not there.
    pub(crate) lost: usize,
    /// QoS 2 messages that came twice.
    pub(crate) doubled: usize,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        (self.unopenable, self.lost, self.doubled) == (0, 0, 0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.images += other.images;
        self.unopenable += other.unopenable;
        self.lost += other.lost;
        self.doubled += other.doubled;
    }
}

pub(crate) fn config() -> Config {
    Config {
        reserve_bytes: 0,
        log_bytes: LOG,
        ..Config::default()
    }
}

/// A broker with one plain door, on any medium.
pub(crate) struct Host {
    pub(crate) broker: Broker,
    pub(crate) address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Host {
    pub(crate) async fn open(medium: JournalMedium) -> Result<Self, String> {
        let rights: Arc<dyn Rights> = Arc::new(TestRights::default());
        let broker = Broker::open(config(), medium, rights).map_err(|error| error.to_string())?;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serves = broker.clone();
        let serving = tokio::spawn(async move {
            let never = CancellationToken::new();
            serves.serve(listener, Door::Plain, never).await.unwrap();
        });
        Ok(Self {
            broker,
            address,
            serving,
        })
    }

    /// Ends it as a crash would: nobody is told anything.
    pub(crate) async fn end(self) {
        self.serving.abort();
        let _ = self.serving.await;
    }
}

/// The rule's filters.
pub(crate) fn filters() -> Vec<Filter> {
    vec![Filter::new("m/#").unwrap()]
}

/// (1 or 2, number) of a payload.
pub(crate) fn named(payload: &[u8]) -> (u8, u32) {
    let (kind, number) = std::str::from_utf8(payload)
        .unwrap()
        .split_once('-')
        .unwrap();
    (kind.parse().unwrap(), number.parse().unwrap())
}

/// Opens a medium and judges it from inside and outside.
pub(crate) async fn judge(medium: JournalMedium, state: &State) -> Verdict {
    let mut verdict = Verdict {
        images: 1,
        ..Verdict::default()
    };
    let Ok(host) = Host::open(medium).await else {
        verdict.unopenable = 1;
        return verdict;
    };
    if state.ready {
        inside(&host.broker, state, &mut verdict).await;
        outside(host.address, state, &mut verdict).await;
    }
    host.end().await;
    verdict
}

/// The rule's rows and the list of sessions.
async fn inside(broker: &Broker, state: &State, verdict: &mut Verdict) {
    let rule = broker
        .consumer("rule", filters(), ConsumerOptions::default())
        .await
        .unwrap();
    let mut held: BTreeSet<(u8, u32)> = BTreeSet::new();
    let mut after = RowId::START;
    loop {
        let rows = rule.read(after, 500).await.unwrap();
        let Some(last) = rows.last() else { break };
        after = last.id;
        for row in &rows {
            let (qos, number) = named(row.message.payload());
            if !held.insert((qos, number)) && qos == 2 {
                verdict.doubled += 1;
            }
        }
    }
    let taken = state.released2.values().chain(&state.done2);
    let due = state.acked1.iter().map(|number| (1, *number));
    verdict.lost += due
        .chain(taken.map(|number| (2, *number)))
        .filter(|one| !held.contains(one) && !state.gone.contains(one))
        .count();
    let sessions: BTreeSet<String> = broker
        .sessions()
        .iter()
        .map(|session| session.identity.client_id.to_string())
        .collect();
    verdict.lost += state
        .made
        .iter()
        .filter(|number| !sessions.contains(&format!("s-{number}")))
        .count();
}

/// The clients come back: the QoS 2 giver ends what it began, the taker takes the rest, slots are looked at.
pub(crate) async fn outside(address: SocketAddr, state: &State, verdict: &mut Verdict) {
    verdict.lost += usize::from(!finish2(address, state).await);
    let (mut wire, present) = connect(address, "take", true).await.unwrap();
    verdict.lost += usize::from(!present);
    let more = Ledger::new(|| 0);
    for (id, number) in &state.open2 {
        more.note(Event::Got2(*id, *number));
    }
    drain(&mut wire, state.open2.clone(), &more).await;
    let more = more.now();
    verdict.lost += state
        .acked1
        .iter()
        .filter(|number| !state.took1.contains(number) && !more.took1.contains(number))
        .count();
    let mut uses: BTreeMap<u32, usize> = BTreeMap::new();
    for number in state.used2.iter().chain(&more.used2) {
        *uses.entry(*number).or_default() += 1;
    }
    for number in &state.sent2 {
        match uses.get(number).copied().unwrap_or(0) {
            0 => verdict.lost += 1,
            1 => {}
            more => verdict.doubled += more - 1,
        }
    }
    slots(address, state, verdict).await;
}

/// True when every PUBLISH and PUBREL of before is complete.
async fn finish2(address: SocketAddr, state: &State) -> bool {
    let (mut wire, present) = connect(address, "give2", true).await.unwrap();
    let mut open = state.published2.len() + state.released2.len();
    let bytes = again2(&state.published2, state.released2.keys().copied());
    wire.send(&bytes).await;
    while open > 0 {
        match wire.packet().await {
            Some((0x50, body)) => {
                wire.send(&crate::common::packet(0x62, &body[..2])).await;
            }
            // PUBCOMP "not found" is an answer too: the id was forgotten with its PUBREL.
            Some((0x70, _)) => open -= 1,
            other => panic!("{other:?}"),
        }
    }
    present
}

/// Takes until nothing more comes.
async fn drain(wire: &mut Wire, mut open: BTreeMap<u16, u32>, ledger: &Ledger) {
    let mut quiet = false;
    let mut last = Instant::now();
    loop {
        // Whatever was due before a PINGREQ comes before its answer; PUBRELs come with their commit, unless their
        // message is lost.
        if quiet && (open.is_empty() || last.elapsed() > PATIENCE) {
            return;
        }
        if !quiet {
            last = Instant::now();
        }
        if wire.stream.write_all(&[0xC0, 0]).await.is_err() {
            return;
        }
        quiet = true;
        loop {
            let (first, body) = wire.packet().await.expect("the server stays");
            if first == 0xD0 {
                break;
            }
            quiet = false;
            let answer = answer(wire, first, &body, &mut open, ledger).unwrap();
            wire.send(&answer).await;
        }
        if quiet && !open.is_empty() {
            tokio::task::yield_now().await;
        }
    }
}

async fn slots(address: SocketAddr, state: &State, verdict: &mut Verdict) {
    let (mut wire, _) = connect(address, "look", false).await.unwrap();
    let mut found: BTreeMap<u32, u32> = BTreeMap::new();
    let mut body = vec![0, 1, 0];
    body.extend(crate::common::text("r/+"));
    body.push(0);
    wire.send(&crate::common::packet(0x82, &body)).await;
    wire.send(&[0xC0, 0]).await;
    while let Some((first, body)) = wire.packet().await {
        match first {
            0xD0 => break,
            0x90 => {}
            _ => {
                let arrived = wire.parse(first, &body);
                let slot = arrived.topic.trim_start_matches("r/").parse().unwrap();
                found.insert(slot, arrived.text().parse().unwrap());
            }
        }
    }
    for (slot, (sent, acked)) in &state.kept {
        // Any version from the newest acknowledged to the newest sent may stand there.
        let fits = (*acked..=*sent).any(|version| match found.get(slot) {
            None => version % 5 == 0,
            Some(stands) => *stands == version,
        });
        verdict.lost += usize::from(!fits);
    }
}

/// Makes the lasting sessions and the rule of a world.
pub(crate) async fn prepare(address: SocketAddr) {
    let (mut wire, _) = connect(address, "take", true).await.unwrap();
    assert!(subscribe(&mut wire, "m/#", 2).await);
    connect(address, "give2", true).await.unwrap();
}
