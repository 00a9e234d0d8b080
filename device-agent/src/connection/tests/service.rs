//! The device in its service: readings under the service's name, commands kept, the change from one to the next.

use holdfast_protocol::lifecycle::Running;
use holdfast_protocol::record::{Assignment, Serial};
use tokio::sync::watch;

use super::*;
use crate::commands::Commands;
use crate::config::CommandsTo;
use crate::service::Session;

const PROVIDER: &str = "metering.example.com";

fn running(authority: &Authority, service: &str, provider: Option<SocketAddr>) -> Arc<Running> {
    let key = SigningKey::generate(&mut SystemRandom);
    let name = Party::Service {
        device: DeviceId::from_guid(Guid([0xab; 16])),
        service: service.parse().unwrap(),
        site: "plant".parse().unwrap(),
    };
    let certificate = authority.client(
        &key.public(),
        Some(name.dns(&"holdfast.internal".parse().unwrap())),
    );
    let mut serial = [0; 8];
    rand_core::Rng::fill_bytes(&mut SystemRandom, &mut serial);
    serial[0] = 1;
    Arc::new(Running {
        assignment: Assignment {
            service: service.parse().unwrap(),
            server: provider.map(|address| ServerAddress {
                server: "metering".parse().unwrap(),
                role: ServerRole::Cloud,
                name: PROVIDER.to_owned(),
                mqtt: vec![address.to_string()],
                https: Vec::new(),
            }),
            application: None,
            alone: false,
        },
        key,
        certificate,
        chain: Vec::new(),
        serial: Serial::new(&serial).unwrap(),
    })
}

/// An agent's session for services, and what steers it.
struct Served {
    outbox: Outbox,
    board: Board,
    runs: watch::Sender<Option<Arc<Running>>>,
    _servers: watch::Sender<Vec<ServerAddress>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    folder: tempfile::TempDir,
}

fn served(authority: &Authority, gateway: SocketAddr) -> Served {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::All, 1 << 20, 1).unwrap();
    let (board, stop) = (Board::default(), CancellationToken::new());
    let journal = config::Commands {
        to: CommandsTo::Journal,
        max_bytes: holdfast_config::ByteSize(4096),
    };
    let home = identity(authority, gateway, gateway);
    let (servers, told) = watch::channel(home.site.servers.clone());
    let session = Session {
        site: home.site,
        servers: told,
        outbox: outbox.clone(),
        config: pace(),
        discovery: None,
        clock: Arc::new(ManualClock::at(1_800_000_000)),
        board: board.clone(),
        commands: Commands::of(&journal, folder.path()),
        sessions: Arc::default(),
    };
    let (runs, running) = watch::channel(None);
    let task = tokio::spawn(session.run(running, stop.clone()));
    Served {
        outbox,
        board,
        runs,
        _servers: servers,
        stop,
        task,
        folder,
    }
}

impl Served {
    async fn is_served_by(&self, service: &str, server: &str) {
        let here = async {
            loop {
                let link = self.board.now().service_link;
                if link.service.as_deref() == Some(service)
                    && link.server.as_deref() == Some(server)
                {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        let late = timeout(PATIENCE, here).await.is_err();
        assert!(
            !late,
            "{service} by {server}: {:?}",
            self.board.now().service_link
        );
    }

    async fn ends(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap();
    }
}

fn topic(service: &str, last: &str) -> String {
    let device = DeviceId::from_guid(Guid([0xab; 16]));
    format!("svc/v1/plant/{service}/{device}/{last}")
}

fn taken(server: &Server, service: &str) -> Vec<(u64, u32)> {
    let ledger = server.ledger.borrow();
    let mine = ledger
        .kept
        .iter()
        .filter(|(kept, ..)| *kept == topic(service, "telemetry"));
    mine.map(|(_, _, seq, payload)| (*seq, String::from_utf8_lossy(payload).parse().unwrap()))
        .collect()
}

/// Two sensors share the topic, so their readings are numbered in one row; whatever is cut, each arrives once.
#[tokio::test]
async fn readings_of_all_sensors_go_to_the_service_once_and_in_order() {
    let authority = Authority::new();
    let plan = by_lot(10, &[Act::Cut, Act::KeepAndCut, Act::Refuse], 11);
    let ledger = Ledger {
        holds_back: true,
        ..Ledger::default()
    };
    let gateway = Server::start(&authority, GATEWAY, anywhere(), ledger, plan).await;
    let device = served(&authority, gateway.address);
    // Nothing runs yet: they wait.
    push(&device.outbox, "light", 0..20).await;
    assert_eq!(gateway.ledger.borrow().connections, 0);
    device
        .runs
        .send_replace(Some(running(&authority, "civil", None)));
    for n in 1..10 {
        push(&device.outbox, "light", n * 20..n * 20 + 10).await;
        push(&device.outbox, "heat", n * 20 + 10..n * 20 + 20).await;
    }
    drained(&device.outbox).await;
    let all = taken(&gateway, "civil");
    let payloads: BTreeSet<_> = all.iter().map(|(_, payload)| *payload).collect();
    assert_eq!(
        (all.len(), payloads),
        (200, (0..200).collect()),
        "each once"
    );
    assert!(
        all.windows(2).all(|pair| pair[0].0 < pair[1].0),
        "one row of numbers"
    );
    let ledger = gateway.ledger.borrow().clone();
    assert!(ledger.connections > 3 && ledger.repeats > 0);
    assert_eq!(
        ledger
            .sources
            .iter()
            .filter(|source| *source == "heat")
            .count(),
        90
    );
    assert_eq!(
        ledger.filters,
        [topic("civil", "command")],
        "its own and no other"
    );
    device.ends().await;
}

/// Two sensors, each numbered for itself, on one topic: the control. The server takes half of it for repeats.
#[tokio::test]
async fn control_sensors_numbered_apart_lose_readings_on_a_shared_topic() {
    let authority = Authority::new();
    let always = || Act::Acknowledge;
    let gateway = Server::start(&authority, GATEWAY, anywhere(), Ledger::default(), always).await;
    let folder = tempfile::tempdir().unwrap();
    let apart = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    push(&apart, "light", 0..20).await;
    push(&apart, "heat", 20..40).await;
    let home = crate::service::identity_for(
        &identity(&authority, gateway.address, gateway.address).site,
        &running(&authority, "civil", None),
    );
    let clock = Arc::new(ManualClock::at(1_800_000_000));
    let stop = CancellationToken::new();
    let wrong =
        Connection::new(home, apart.clone(), pace(), None, clock, Board::default()).unwrap();
    let task = tokio::spawn(wrong.in_service("civil".parse().unwrap()).run(stop.clone()));
    drained(&apart).await;
    assert_eq!(taken(&gateway, "civil").len(), 20);
    stop.cancel();
    timeout(PATIENCE, task).await.unwrap().unwrap();
}

#[tokio::test]
async fn the_old_service_stays_until_another_runs_and_what_waits_goes_along() {
    let authority = Authority::new();
    let always = || Act::Acknowledge;
    let gateway = Server::start(&authority, GATEWAY, anywhere(), Ledger::default(), always).await;
    let device = served(&authority, gateway.address);
    device
        .runs
        .send_replace(Some(running(&authority, "civil", None)));
    device.is_served_by("civil", "gw1").await;
    push(&device.outbox, "a", 0..10).await;
    drained(&device.outbox).await;
    device
        .runs
        .send_replace(Some(running(&authority, "weather", None)));
    push(&device.outbox, "a", 10..20).await;
    drained(&device.outbox).await;
    device.is_served_by("weather", "gw1").await;
    let (civil, weather) = (taken(&gateway, "civil"), taken(&gateway, "weather"));
    let all: Vec<_> = civil
        .iter()
        .chain(&weather)
        .map(|(_, payload)| *payload)
        .collect();
    assert_eq!(all, (0..20).collect::<Vec<_>>(), "each once, in order");
    assert!(!weather.is_empty() && weather[0].0 > civil[civil.len() - 1].0);
    // The end of use: nothing is sent any more, and nothing is lost.
    device.runs.send_replace(None);
    let gone = async {
        while device.board.now().service_link.service.is_some() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the link ends");
    push(&device.outbox, "a", 20..25).await;
    assert_eq!(device.outbox.level().borrow().rows, 5);
    device
        .runs
        .send_replace(Some(running(&authority, "soil", None)));
    drained(&device.outbox).await;
    assert_eq!(taken(&gateway, "soil").len(), 5);
    device.ends().await;
}

/// The server that provides the service is preferred; the gateway stands in for it, and is left again.
#[tokio::test]
async fn the_gateway_stands_in_for_the_server_named() {
    let authority = Authority::new();
    let always = || Act::Acknowledge;
    let gateway = Server::start(&authority, GATEWAY, anywhere(), Ledger::default(), always).await;
    let away = nowhere().await;
    let device = served(&authority, gateway.address);
    device
        .runs
        .send_replace(Some(running(&authority, "civil", Some(away))));
    push(&device.outbox, "a", 0..3).await;
    drained(&device.outbox).await;
    device.is_served_by("civil", "gw1").await;
    let provider = Server::start(&authority, PROVIDER, away, Ledger::default(), always).await;
    device.is_served_by("civil", "metering").await;
    push(&device.outbox, "a", 3..6).await;
    drained(&device.outbox).await;
    assert_eq!(taken(&gateway, "civil").len(), 3);
    assert_eq!(taken(&provider, "civil").len(), 3);
    device.ends().await;
}

/// The same with a service that forbids it: what the device has to say waits for the server that is named.
#[tokio::test]
async fn nobody_stands_in_where_the_service_forbids_it() {
    let authority = Authority::new();
    let always = || Act::Acknowledge;
    let gateway = Server::start(&authority, GATEWAY, anywhere(), Ledger::default(), always).await;
    let away = nowhere().await;
    let device = served(&authority, gateway.address);
    let mut alone = Running::clone(&running(&authority, "civil", Some(away)));
    alone.assignment.alone = true;
    device.runs.send_replace(Some(Arc::new(alone)));
    push(&device.outbox, "a", 0..3).await;
    let tried = async {
        while device.board.now().service_link.detail.is_empty() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, tried)
        .await
        .expect("the server named is tried");
    let provider = Server::start(&authority, PROVIDER, away, Ledger::default(), always).await;
    device.is_served_by("civil", "metering").await;
    drained(&device.outbox).await;
    assert_eq!(taken(&gateway, "civil").len(), 0);
    assert_eq!(taken(&provider, "civil").len(), 3);
    device.ends().await;
}

/// A command is acknowledged when it is on the disk, and not before.
#[tokio::test]
async fn commands_of_the_service_are_kept_before_they_are_acknowledged() {
    let authority = Authority::new();
    let ledger = Ledger {
        orders: vec![
            (topic("civil", "command"), b"open the valve".to_vec()),
            (topic("civil", "command"), b"shut it".to_vec()),
        ],
        ..Ledger::default()
    };
    let always = || Act::Acknowledge;
    let gateway = Server::start(&authority, GATEWAY, anywhere(), ledger, always).await;
    let device = served(&authority, gateway.address);
    let path = device.folder.path().join("commands.jsonl");
    // The disk refuses at first.
    std::fs::create_dir(&path).unwrap();
    device
        .runs
        .send_replace(Some(running(&authority, "civil", None)));
    let heard = async {
        while device.board.now().received < 1 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, heard).await.expect("a command came");
    assert_eq!(gateway.ledger.borrow().obeyed, 0, "not on the disk yet");
    std::fs::remove_dir(&path).unwrap();
    let mut watching = gateway.ledger.clone();
    let obeyed = watching.wait_for(|ledger| ledger.obeyed == 2);
    timeout(PATIENCE, obeyed)
        .await
        .expect("acknowledged")
        .unwrap();
    let kept = std::fs::read_to_string(&path).unwrap();
    let kept: Vec<serde_json::Value> = kept
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let payloads: Vec<_> = kept
        .iter()
        .map(|line| line["payload"].as_str().unwrap())
        .collect();
    assert_eq!(payloads, ["open the valve", "shut it"]);
    device.ends().await;
}
