//! The outbox against a model, on a disk whose power is cut after every sync and in between, and on
//! one that fails: no reading lost, none doubled, no number given twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_store::fault::{Call, CrashBackend, FailingBackend, Fault, Image, Times};
use holdfast_store::twice::Twice;
use proptest::prelude::*;

use super::*;

const ROOM: u64 = 1 << 30;

fn options() -> Options {
    Options {
        name: "outbox",
        reopen_pause: Duration::from_millis(10),
        ..Options::default()
    }
}

fn open_at(medium: Medium, folder: &Path, now: u64) -> Outbox {
    let epochs = Twice::open(folder.join("epoch")).unwrap();
    Outbox::with(medium, options(), epochs, Numbering::Each, ROOM, now).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A sensor that counts: reading `n` is its number, and so is its position.
async fn push(outbox: &Outbox, name: &str, from: u64, count: u64) -> Result<(), StoreError> {
    let readings = (from..from + count).map(reading).collect();
    let position = (from + count).to_le_bytes().to_vec();
    outbox
        .append(Append {
            name: name.to_owned(),
            readings,
            position,
        })
        .await
}

fn reading(n: u64) -> Vec<u8> {
    let mut reading = n.to_le_bytes().to_vec();
    reading.resize(40 + usize::try_from(n % 7).unwrap() * 90, 0x5a);
    reading
}

fn number(row: &Row) -> u64 {
    let number = u64::from_le_bytes(row.reading[..8].try_into().unwrap());
    assert_eq!(row.reading, reading(number));
    number
}

fn goes_on(outbox: &Outbox, name: &str) -> u64 {
    outbox
        .position(name)
        .unwrap()
        .map_or(0, |bytes| u64::from_le_bytes(bytes.try_into().unwrap()))
}

#[derive(Debug, Clone)]
enum Step {
    Push { topic: u8, count: u64 },
    Acknowledge { picks: Vec<u8> },
    Restamp { pick: u8 },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_u8, 1..5_u64).prop_map(|(topic, count)| Step::Push { topic, count }),
        3 => prop::collection::vec(any::<u8>(), 1..6).prop_map(|picks| Step::Acknowledge { picks }),
        1 => any::<u8>().prop_map(|pick| Step::Restamp { pick }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Debug, Default)]
struct Model {
    rows: Vec<(u8, u64)>,
    next: BTreeMap<u8, u64>,
}

fn pick(rows: &[(u8, u64)], pick: u8) -> Option<usize> {
    (!rows.is_empty()).then(|| usize::from(pick) % rows.len())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]
    #[test]
    fn behaves_as_queues_with_numbers(steps in prop::collection::vec(step(), 1..30)) {
        runtime().block_on(play(steps));
    }
}

async fn play(steps: Vec<Step>) {
    let folder = tempfile::tempdir().unwrap();
    let disk = CrashBackend::new();
    let medium = || Medium::Backend(Arc::new(disk.clone()));
    let mut outbox = open_at(medium(), folder.path(), 5);
    let mut model = Model::default();
    let mut numbers = BTreeSet::new();
    for step in steps {
        match step {
            Step::Push { topic, count } => {
                let from = model.next.entry(topic).or_default();
                push(&outbox, &topic.to_string(), *from, count)
                    .await
                    .unwrap();
                model
                    .rows
                    .extend((*from..*from + count).map(|n| (topic, n)));
                *from += count;
            }
            Step::Acknowledge { picks } => {
                let rows = outbox.after(0, usize::MAX).unwrap();
                let mut ids = Vec::new();
                for choice in picks {
                    if let Some(index) = pick(&model.rows, choice) {
                        let wanted = model.rows.remove(index);
                        let row = rows
                            .iter()
                            .find(|row| (row.name.parse().unwrap(), number(row)) == wanted);
                        ids.push(row.unwrap().id);
                    }
                }
                // Told twice, as after a lost answer.
                outbox.acknowledge(ids.clone()).await.unwrap();
                outbox.acknowledge(ids).await.unwrap();
            }
            Step::Restamp { pick: choice } => {
                if let Some(index) = pick(&model.rows, choice) {
                    let id = outbox.after(0, usize::MAX).unwrap()[index].id;
                    outbox.restamp(id).await.unwrap();
                    let moved = model.rows.remove(index);
                    model.rows.push(moved);
                }
            }
            Step::Reopen => {
                drop(outbox);
                outbox = open_at(medium(), folder.path(), 5);
            }
        }
        check(&outbox, &model, &mut numbers);
    }
}

fn check(outbox: &Outbox, model: &Model, numbers: &mut BTreeSet<(String, u64, u64, u64)>) {
    let rows = outbox.after(0, usize::MAX).unwrap();
    let found: Vec<_> = rows
        .iter()
        .map(|row| (row.name.parse().unwrap(), number(row)))
        .collect();
    assert_eq!(found, model.rows);
    assert!(rows.windows(2).all(|pair| pair[0].id < pair[1].id));
    for row in &rows {
        numbers.insert((row.name.clone(), row.epoch, row.seq, number(row)));
        // Within a topic the order of the rows is the order of the numbers.
        assert!(rows.iter().all(|other| {
            other.name != row.name
                || (other.id < row.id) == ((other.epoch, other.seq) < (row.epoch, row.seq))
        }));
    }
    // A number stands for one reading for ever.
    let distinct: BTreeSet<_> = numbers
        .iter()
        .map(|(name, epoch, seq, _)| (name, epoch, seq))
        .collect();
    assert_eq!(distinct.len(), numbers.len());
    for (topic, next) in &model.next {
        assert_eq!(goes_on(outbox, &topic.to_string()), *next);
    }
    let level = *outbox.level().borrow();
    assert_eq!(level.rows, rows.len() as u64);
    let bytes: usize = rows.iter().map(|row| row.reading.len() + 64).sum();
    assert_eq!(level.bytes, bytes as u64);
}

/// What the run before a crash knows for certain, and from which moment on.
#[derive(Debug, Default)]
struct Certain {
    /// (at, readings of the sensor that are durable).
    pushed: Vec<(usize, u64)>,
    /// (at, number of a reading that was sent and acknowledged, its stamp).
    taken: Vec<(usize, u64)>,
    sent: BTreeMap<u64, (u64, u64)>,
}

/// A sensor and a server: reads are pushed, some sent, some acknowledged.
async fn life(disk: &CrashBackend, folder: &Path) -> (Certain, usize) {
    let outbox = open_at(Medium::Backend(Arc::new(disk.clone())), folder, 5);
    let made = disk.position();
    let mut certain = Certain::default();
    let mut next = 0;
    for round in 0..30 {
        let count = 1 + round % 4;
        push(&outbox, "weather", next, count).await.unwrap();
        next += count;
        certain.pushed.push((disk.position(), next));
        let rows = outbox.after(0, 6).unwrap();
        for row in &rows {
            certain.sent.insert(number(row), (row.epoch, row.seq));
        }
        if round % 3 == 0 {
            let done: Vec<_> = rows.iter().take(3).collect();
            outbox
                .acknowledge(done.iter().map(|row| row.id).collect())
                .await
                .unwrap();
            let at = disk.position();
            certain
                .taken
                .extend(done.iter().map(|row| (at, number(row))));
        }
    }
    (certain, made)
}

/// The restarted agent plays the sensor from its position to `END` and sends all; together with what
/// was acknowledged before, the server has each reading exactly once by its stamp.
const END: u64 = 90;

async fn after_the_cut(image: Image, certain: &Certain, folder: &Path) {
    let at = image.at;
    let outbox = open_at(image.into_medium(), folder, 5);
    let known = |list: &[(usize, u64)]| {
        list.iter()
            .filter(|(when, _)| *when <= at)
            .map(|(_, n)| *n)
            .collect::<BTreeSet<_>>()
    };
    let durable = known(&certain.pushed).last().copied().unwrap_or(0);
    let position = goes_on(&outbox, "weather");
    assert!(
        position >= durable,
        "a durable reading is lost: {position} of {durable}"
    );
    for (number, stamp) in outbox
        .after(0, usize::MAX)
        .unwrap()
        .iter()
        .map(|row| (number(row), (row.epoch, row.seq)))
    {
        // The server may have it from before: it must come under the same stamp.
        if let Some(before) = certain.sent.get(&number) {
            assert_eq!(stamp, *before, "reading {number} got another stamp");
        }
    }
    push(&outbox, "weather", position, END - position)
        .await
        .unwrap();
    let rows = outbox.after(0, usize::MAX).unwrap();
    let waiting: Vec<u64> = rows.iter().map(number).collect();
    let taken: BTreeSet<u64> = certain.taken.iter().map(|(_, number)| *number).collect();
    let certainly_taken = known(&certain.taken);
    let mut all: BTreeSet<u64> = taken.clone();
    all.extend(&waiting);
    assert_eq!(all, (0..END).collect(), "a reading is lost");
    assert!(
        waiting.windows(2).all(|pair| pair[0] < pair[1]),
        "doubled or out of order"
    );
    assert!(
        waiting.iter().all(|n| !certainly_taken.contains(n)),
        "an acknowledged one is back"
    );
}

#[test]
fn a_power_cut_at_any_moment_loses_and_doubles_nothing() {
    let disk = CrashBackend::new();
    let folder = tempfile::tempdir().unwrap();
    let (certain, made) = runtime().block_on(life(&disk, folder.path()));
    let mut seed = 7_u64;
    let random = move || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut images = 0;
    disk.each_image(6, random, |image| {
        if image.at >= made {
            images += 1;
            // The epoch file is written before anything else and never again.
            runtime().block_on(after_the_cut(image, &certain, folder.path()));
        }
    });
    assert!(images > 400, "{images}");
}

/// The control: an outbox that answers while the disk has skipped its syncs must be caught.
#[test]
fn control_a_lying_disk_is_caught() {
    let disk = CrashBackend::without_sync();
    let folder = tempfile::tempdir().unwrap();
    let (certain, made) = runtime().block_on(life(&disk, folder.path()));
    let mut caught = 0;
    for at in (made..disk.position()).step_by(25) {
        let image = disk.image(at, || false);
        let judged = std::panic::catch_unwind(|| {
            runtime().block_on(after_the_cut(image, &certain, folder.path()));
        });
        caught += u32::from(judged.is_err());
    }
    assert!(caught > 0);
}

#[test]
fn a_failing_disk_neither_loses_nor_doubles() {
    for call in [Call::Write, Call::Sync] {
        for at in 1..14 {
            let folder = tempfile::tempdir().unwrap();
            let failing = FailingBackend::new(Arc::new(CrashBackend::new()));
            let outbox = open_at(Medium::Backend(Arc::new(failing.clone())), folder.path(), 5);
            failing.plan(Some(Fault {
                call,
                at,
                os_error: 5,
                times: Times::Once,
            }));
            runtime().block_on(async {
                let mut next = 0;
                while next < 12 {
                    if push(&outbox, "weather", next, 1).await.is_err() {
                        // As the sensors do it: the durable position decides.
                        let mut health = outbox.health();
                        health
                            .wait_for(|h| h.state == holdfast_store::State::Open)
                            .await
                            .unwrap();
                    }
                    next = goes_on(&outbox, "weather");
                }
                let rows = outbox.after(0, usize::MAX).unwrap();
                let found: Vec<u64> = rows.iter().map(number).collect();
                assert_eq!(found, (0..12).collect::<Vec<_>>(), "{call:?} {at}");
            });
        }
    }
}

#[tokio::test]
async fn a_lost_or_restored_file_begins_a_higher_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path();
    let epoch = |outbox: &Outbox| outbox.after(0, 9).unwrap().last().unwrap().epoch;
    let outbox = Outbox::open(state, Numbering::Each, ROOM, 1000).unwrap();
    push(&outbox, "a", 0, 1).await.unwrap();
    assert_eq!(epoch(&outbox), 1000);
    drop(outbox);
    let copy = std::fs::read(state.join("outbox.redb")).unwrap();
    // Lost, with a clock that went back.
    std::fs::remove_file(state.join("outbox.redb")).unwrap();
    let outbox = Outbox::open(state, Numbering::Each, ROOM, 3).unwrap();
    push(&outbox, "a", 0, 1).await.unwrap();
    assert_eq!(epoch(&outbox), 1001);
    drop(outbox);
    // Restored from a copy of before: what it holds keeps its stamp, what is new is above all.
    std::fs::write(state.join("outbox.redb"), copy).unwrap();
    let outbox = Outbox::open(state, Numbering::Each, ROOM, 3).unwrap();
    push(&outbox, "a", 1, 1).await.unwrap();
    let rows = outbox.after(0, 9).unwrap();
    let stamps: Vec<_> = rows.iter().map(|row| (row.epoch, row.seq)).collect();
    assert_eq!(stamps, [(1000, 1), (1002, 1)]);
    drop(outbox);
    // Damaged: moved away, not fatal.
    std::fs::write(state.join("outbox.redb"), b"rubbish").unwrap();
    let outbox = Outbox::open(state, Numbering::Each, ROOM, 3).unwrap();
    push(&outbox, "a", 0, 1).await.unwrap();
    assert_eq!(epoch(&outbox), 1003);
    assert!(outbox.health().borrow().quarantined.is_some());
}

#[tokio::test]
async fn a_full_outbox_makes_the_sensor_wait() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::Each, 100, 1).unwrap();
    push(&outbox, "a", 0, 1).await.unwrap();
    let waiting = tokio::spawn({
        let outbox = outbox.clone();
        async move { push(&outbox, "a", 1, 1).await }
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    assert!(!waiting.is_finished());
    let id = outbox.after(0, 1).unwrap()[0].id;
    outbox.acknowledge(vec![id]).await.unwrap();
    waiting.await.unwrap().unwrap();
    assert_eq!(
        outbox.topics().unwrap()["a"],
        Topic {
            last: 2,
            acknowledged: 1,
            count: 1
        }
    );
}
