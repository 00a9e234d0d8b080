//! The room against a register and a server that answer by plan: kills at every store, forged and
//! replayed notices, a new server that does not work.

mod end;
mod plant;
mod renewal;

use std::sync::{Arc, Mutex};

use holdfast_link::time::ManualClock;
use holdfast_protocol::certificate::{Leaf, Purpose};
use holdfast_protocol::csr::Csr;
use holdfast_protocol::id::{DeviceId, Domain, Guid, ServiceId};
use holdfast_protocol::lifecycle::{Credential, SignedRequest};
use holdfast_protocol::name::Party;
use holdfast_protocol::notice::{Body, Stamp};
use holdfast_protocol::record::Assignment;
use holdfast_protocol::time::{Time, TimeQuality};
use serde_json::Value;
use tokio::time::timeout;

use plant::Plant;

use super::*;
use crate::kit::Authority;

const PATIENCE: Duration = Duration::from_secs(20);
const NOW: u64 = 1_800_000_000;
const DAY: u64 = 86_400;
/// The life of what is given out, in days.
const LIFE: u64 = 30;

fn device() -> DeviceId {
    DeviceId::from_guid(Guid([0xab; 16]))
}

fn domain() -> Domain {
    "holdfast.internal".parse().unwrap()
}

#[derive(Clone)]
struct World {
    plant: Arc<Mutex<Plant>>,
    authority: Arc<Authority>,
    cps_key: SigningKey,
    record_key: SigningKey,
    clock: Arc<ManualClock>,
    /// The state on the disk.
    disk: Arc<Mutex<Vec<u8>>>,
    /// How many stores are left until the kill; whether the last one gets to the disk.
    kill: Arc<Mutex<Option<(usize, bool)>>>,
    dead: CancellationToken,
}

impl World {
    fn new() -> Self {
        Self {
            plant: Arc::default(),
            authority: Arc::new(Authority::new()),
            cps_key: SigningKey::generate(&mut SystemRandom),
            record_key: SigningKey::generate(&mut SystemRandom),
            clock: Arc::new(ManualClock::at(NOW)),
            disk: Arc::new(Mutex::new(Device::default().to_cbor().to_vec())),
            kill: Arc::default(),
            dead: CancellationToken::new(),
        }
    }

    fn identity(&self) -> Identity {
        let site = SiteConfig {
            device: device(),
            site: "plant".parse().unwrap(),
            domain: domain(),
            server: "gw1".parse().unwrap(),
            anchors: vec![self.authority.der.clone()],
            chain: Vec::new(),
            notice_keys: vec![self.record_key.public()],
            servers: Vec::new(),
            time: Time::new(1_800_000_000, TimeQuality::Authenticated),
        };
        Identity {
            key: self.cps_key.clone(),
            certificate: Vec::new(),
            site,
        }
    }

    fn notice(&self, seq: u64, service: &str) -> Vec<u8> {
        notice(seq, service).sign(&self.record_key)
    }

    /// Starts the room on what is on the disk; the former one is gone.
    fn start(&mut self) -> Room {
        self.dead = CancellationToken::new();
        self.start_on(self.clone())
    }

    /// The same with its state kept elsewhere.
    fn start_on(&self, store: impl Keep + 'static) -> Room {
        let pace = Pace {
            retry: Policy {
                first: Duration::from_millis(1),
                longest: Duration::from_millis(4),
            },
            tries: 3,
            poll: Duration::from_secs(3600),
            look: Duration::from_millis(1),
            again: Policy {
                first: Duration::from_millis(1),
                longest: Duration::from_millis(20),
            },
        };
        let board = Board::default();
        let wire = self.clone();
        let opened = Services::open(&self.identity(), store, wire, pace, board.clone());
        let (services, desk) = opened.unwrap();
        let clock = Arc::clone(&self.clock) as Arc<dyn Clock>;
        let services = services.renewing(clock, Wish::default(), Arc::default());
        let (runs, stop) = (services.runs(), CancellationToken::new());
        let task = tokio::spawn(services.run(stop.clone()));
        Room {
            desk,
            runs,
            board,
            stop,
            task,
        }
    }

    async fn gone(&self) {
        if self.dead.is_cancelled() {
            std::future::pending().await
        }
    }

    fn plant(&self) -> std::sync::MutexGuard<'_, Plant> {
        self.plant.lock().unwrap()
    }

    fn certify(&self, service: &ServiceId, csr: &[u8]) -> Vec<u8> {
        let party = Party::Service {
            device: device(),
            service: service.clone(),
            site: "plant".parse().unwrap(),
        };
        let key = Csr::parse(csr).unwrap().key().clone();
        let now = self.clock.now().secs;
        let life = now - 3600..now + LIFE * DAY;
        self.authority
            .client_within(&key, party.dns(&domain()), life)
    }
}

fn notice(seq: u64, service: &str) -> Notice {
    Notice {
        issuer: "gw1".parse().unwrap(),
        site: "plant".parse().unwrap(),
        device: device(),
        stamp: Stamp { epoch: 1, seq },
        body: Body::Service {
            assignment: Assignment {
                service: service.parse().unwrap(),
                server: None,
                application: None,
                alone: false,
            },
            rank: seq,
        },
    }
}

struct Room {
    desk: Desk,
    runs: Runs,
    board: Board,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Room {
    /// Waits until the report says `state` of `service`.
    async fn reports(&mut self, service: &str, state: &str) -> Value {
        let wait = self.desk.report.wait_for(|report| {
            let Some(report) = report else { return false };
            let report: Value = serde_json::from_slice(report).unwrap();
            report["wanted"] == service && report["state"] == state
        });
        let found = timeout(PATIENCE, wait).await.expect("reports").unwrap();
        serde_json::from_slice(found.as_deref().unwrap()).unwrap()
    }

    async fn end(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

impl Keep for World {
    fn load(&mut self) -> Result<Device, FileError> {
        Ok(Device::from_cbor(&self.disk.lock().unwrap()).unwrap())
    }

    fn keep(&mut self, device: &Device) -> Result<(), FileError> {
        let mut kill = self.kill.lock().unwrap();
        let last = match kill.as_mut() {
            Some((0, kept)) => Some(*kept),
            Some((left, _)) => {
                *left -= 1;
                None
            }
            None => None,
        };
        if last != Some(false) {
            *self.disk.lock().unwrap() = device.to_cbor().to_vec();
        }
        if last.is_some() {
            // From here on nothing that this process does is seen by anybody.
            self.dead.cancel();
        }
        Ok(())
    }
}

impl Wire for World {
    async fn ask(&self, request: Vec<u8>) -> Result<Answer, String> {
        self.gone().await;
        let request = SignedRequest::parse(&request).unwrap();
        let request = request.verify(&self.cps_key.public()).unwrap();
        assert_eq!(request.device, device());
        let mut plant = self.plant();
        let (word, answer) = match request.kind {
            RequestKind::Activate { .. } => {
                let credential = Credential::generate(&mut SystemRandom);
                plant.credentials.push(credential.clone());
                let service = None;
                (
                    "activate",
                    Answer::Activated {
                        credential,
                        service,
                    },
                )
            }
            RequestKind::Update {
                service,
                credential,
                csr,
            } => {
                let known = plant.credentials.contains(&credential);
                let certificate = self.certify(&service, &csr);
                let leaf = Leaf::inspect(&certificate, &domain(), Purpose::Client);
                plant.give_out(leaf.unwrap().serial);
                let chain = Vec::new();
                match known {
                    true => (
                        "update",
                        Answer::Granted {
                            service,
                            certificate,
                            chain,
                        },
                    ),
                    false => ("update", Refusal::WrongCredential.into()),
                }
            }
            RequestKind::Report { serial, outcome } => {
                plant.note(&serial, outcome);
                ("report", Answer::Noted)
            }
            RequestKind::Poll => ("poll", Answer::Notice(plant.polled.clone())),
        };
        plant.asked.push(word);
        if plant.silent > 0 {
            plant.silent -= 1;
            return Err("no answer".to_owned());
        }
        Ok(answer)
    }

    async fn try_out(&self, new: &Running) -> Result<(), String> {
        self.gone().await;
        let mut plant = self.plant();
        let service = new.assignment.service.to_string();
        plant.tried.push(service.clone());
        match plant.broken.contains(&service) {
            true => Err("it refuses the telemetry".to_owned()),
            false => Ok(()),
        }
    }
}

#[tokio::test]
async fn a_notice_moves_the_device_and_the_old_key_goes_last() {
    let mut world = World::new();
    let mut room = world.start();
    room.desk
        .notices
        .send(world.notice(1, "civil"))
        .await
        .unwrap();
    let report = room.reports("civil", "runs").await;
    assert_eq!(report["runs"], "civil");
    world.plant().silent = 2;
    room.desk
        .notices
        .send(world.notice(2, "weather"))
        .await
        .unwrap();
    let after = room.reports("weather", "runs").await;
    assert_ne!(after["serial"], report["serial"]);
    room.end().await;
    assert_eq!(world.plant().tried, ["civil", "weather"]);
    // On the disk after a restart: the same, and nothing is done again.
    let mut room = world.start();
    room.reports("weather", "runs").await;
    room.end().await;
    assert_eq!(world.plant().tried.len(), 2);
}

/// The same by polling, when no notice came: at the start, and forged ones move nothing here either.
#[tokio::test]
async fn a_missed_notice_is_asked_for() {
    let mut world = World::new();
    world.plant().polled = Some(world.notice(1, "civil"));
    let mut room = world.start();
    room.reports("civil", "runs").await;
    room.end().await;
    let forger = SigningKey::generate(&mut SystemRandom);
    world.plant().polled = Some(notice(2, "soil").sign(&forger));
    let room = world.start();
    let refused = async {
        while room.board.now().notices_refused < 1 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(PATIENCE, refused).await.expect("it is counted");
    room.end().await;
    assert_eq!(world.plant().tried, ["civil"]);
}

#[tokio::test]
async fn forged_and_replayed_notices_move_nothing_and_are_counted() {
    let mut world = World::new();
    let mut room = world.start();
    room.desk
        .notices
        .send(world.notice(5, "civil"))
        .await
        .unwrap();
    room.reports("civil", "runs").await;
    let kept = world.disk.lock().unwrap().clone();
    let forger = SigningKey::generate(&mut SystemRandom);
    let elsewhere = Notice {
        site: "dock".parse().unwrap(),
        ..notice(9, "soil")
    };
    let other = Notice {
        device: DeviceId::from_guid(Guid([1; 16])),
        ..notice(9, "soil")
    };
    let mut flipped = world.notice(9, "soil");
    let at = flipped.len() / 2;
    flipped[at] ^= 1;
    let bad = [
        notice(9, "soil").sign(&forger),
        notice(9, "soil").sign(&world.cps_key),
        elsewhere.sign(&world.record_key),
        other.sign(&world.record_key),
        flipped,
        b"weather".to_vec(),
        Vec::new(),
        world.notice(4, "soil"),
        world.notice(1, "weather"),
    ];
    let count = bad.len() as u64;
    for _ in 0..12 {
        for payload in &bad {
            room.desk.notices.send(payload.clone()).await.unwrap();
        }
        // The one acted upon is no fault, however often it comes.
        room.desk
            .notices
            .send(world.notice(5, "civil"))
            .await
            .unwrap();
    }
    let counted = async {
        while room.board.now().notices_refused < 12 * count {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, counted).await.expect("all are counted");
    assert_eq!(room.board.now().service.as_deref(), Some("civil"));
    room.end().await;
    // Replayed after a restart too.
    let mut room = world.start();
    room.desk
        .notices
        .send(world.notice(4, "soil"))
        .await
        .unwrap();
    room.desk
        .notices
        .send(world.notice(6, "weather"))
        .await
        .unwrap();
    room.reports("weather", "runs").await;
    assert_eq!(room.board.now().notices_refused, 1);
    room.end().await;
    assert_eq!(world.plant().tried, ["civil", "weather"]);
    assert_ne!(
        *world.disk.lock().unwrap(),
        kept,
        "the control: a good one moves"
    );
}

#[tokio::test]
async fn what_does_not_work_is_rolled_back_and_reported() {
    let mut world = World::new();
    world.plant().broken.insert("soil".to_owned());
    let mut room = world.start();
    room.desk
        .notices
        .send(world.notice(1, "civil"))
        .await
        .unwrap();
    let before = room.reports("civil", "runs").await;
    room.desk
        .notices
        .send(world.notice(2, "soil"))
        .await
        .unwrap();
    let report = room.reports("soil", "rolled back").await;
    assert_eq!(report["runs"], "civil");
    assert_eq!(report["serial"], before["serial"]);
    assert_eq!(report["detail"], "it refuses the telemetry");
    room.desk
        .notices
        .send(world.notice(3, "weather"))
        .await
        .unwrap();
    room.reports("weather", "runs").await;
    room.end().await;
    let tried = world.plant().tried.clone();
    assert_eq!(tried, ["civil", "soil", "soil", "soil", "weather"]);
}

/// Killed at its n-th store, before or after that is on the disk, for every n of a change: the next
/// start ends the change, from what the disk holds and the notice that is still at the server.
#[tokio::test]
async fn killed_at_every_store_the_change_ends_right() {
    for broken in [false, true] {
        let (mut kills, mut n) = (0, 0);
        loop {
            let mut killed = false;
            for kept in [false, true] {
                let mut world = World::new();
                let mut room = world.start();
                room.desk
                    .notices
                    .send(world.notice(1, "civil"))
                    .await
                    .unwrap();
                room.reports("civil", "runs").await;
                let reported = |world: &World| {
                    let asked = world.plant().asked.clone();
                    asked.iter().filter(|word| **word == "report").count()
                };
                let noted = async {
                    while reported(&world) < 1 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                timeout(PATIENCE, noted).await.unwrap();
                room.end().await;
                if broken {
                    world.plant().broken.insert("weather".to_owned());
                }
                *world.kill.lock().unwrap() = Some((n, kept));
                let mut room = world.start();
                room.desk
                    .notices
                    .send(world.notice(2, "weather"))
                    .await
                    .unwrap();
                let state = if broken { "rolled back" } else { "runs" };
                let ended = async {
                    room.reports("weather", state).await;
                    while reported(&world) < 2 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                let ended = tokio::select! {
                    () = world.dead.cancelled() => false,
                    () = ended => true,
                };
                killed |= !ended;
                kills += u32::from(!ended);
                room.task.abort();
                let _ = room.task.await;
                *world.kill.lock().unwrap() = None;
                let mut room = world.start();
                // Retained: it comes again at each connection.
                room.desk
                    .notices
                    .send(world.notice(2, "weather"))
                    .await
                    .unwrap();
                let report = room.reports("weather", state).await;
                let runs = if broken { "civil" } else { "weather" };
                assert_eq!(report["runs"], runs, "store {n}, kept {kept}");
                room.desk
                    .notices
                    .send(world.notice(1, "civil"))
                    .await
                    .unwrap();
                let refused = async {
                    while room.board.now().notices_refused < 1 {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                };
                timeout(PATIENCE, refused)
                    .await
                    .expect("the old one is a replay");
                room.end().await;
            }
            if !killed {
                break;
            }
            n += 1;
        }
        assert!(
            kills >= 8,
            "a change has four stores and more: {kills} kills"
        );
    }
}

#[tokio::test]
async fn the_file_survives_and_a_damaged_one_is_not_taken_for_an_empty_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut file = File::new(folder.path());
    let mut state = file.load().unwrap();
    assert!(state.running().is_none());
    assert_eq!(state.hear(&notice(3, "civil")), Heard::Taken);
    file.keep(&state).unwrap();
    let again = file.load().unwrap();
    assert_eq!(*again.to_cbor(), *state.to_cbor());
    let path = folder.path().join("services");
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    assert!(matches!(file.load(), Err(FileError::Damaged(_))));
    std::fs::write(&path, vec![0; 2 << 20]).unwrap();
    assert!(matches!(file.load(), Err(FileError::Damaged(_))));
}
