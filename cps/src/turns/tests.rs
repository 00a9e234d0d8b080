//! The counter against a gateway that is cut, killed, slow and unanswered at every point, and against
//! copies of it. The control is a gateway that shows its next turn before it is on the disk.

use std::path::Path;
use std::time::Duration;

use super::own::TURN;
use super::*;

/// What the cloud has on its disk.
#[derive(Clone, Default)]
struct Kept(Option<TurnRow>);

impl Kept {
    /// Whether the gateway is served; `Err` is the lock.
    fn ask(&mut self, shown: Option<&Turn>) -> Result<bool, Copy> {
        match judge(self.0.as_ref(), shown) {
            Verdict::Same => Ok(true),
            Verdict::Keep(row) => {
                self.0 = Some(row);
                Ok(true)
            }
            Verdict::Late(row) => {
                self.0 = Some(row);
                Ok(false)
            }
            Verdict::Copy(copy) => Err(copy),
        }
    }
}

/// A gateway's machine: a folder, and what runs on it.
struct Machine {
    folder: tempfile::TempDir,
    running: Own,
}

impl Machine {
    fn new() -> Self {
        Self::on(tempfile::tempdir().unwrap())
    }

    fn on(folder: tempfile::TempDir) -> Self {
        let running = Own::open(folder.path(), 1).unwrap();
        Self { folder, running }
    }

    fn start_again(&mut self) {
        self.running = Own::open(self.folder.path(), 1).unwrap();
    }

    /// One whole request.
    fn ask(&self, cloud: &mut Kept) -> Result<bool, Copy> {
        let shown = self.running.show();
        let served = cloud.ask(shown.as_ref())?;
        if served {
            self.running.answered(&shown.unwrap());
        }
        Ok(served)
    }

    fn image(&self) -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        copy_files(self.folder.path(), copy.path());
        copy
    }
}

fn copy_files(from: &Path, to: &Path) {
    for name in ["turn.a", "turn.b"] {
        _ = std::fs::remove_file(to.join(name));
        if from.join(name).exists() {
            std::fs::copy(from.join(name), to.join(name)).unwrap();
        }
    }
}

/// The images that a cut may leave of a write from `before` to `after`: nothing of it, the first copy
/// torn, the first whole, the second torn, all.
fn images(before: &Path, after: &Path) -> Vec<tempfile::TempDir> {
    let mut all = Vec::new();
    for cut in 0..5 {
        let image = tempfile::tempdir().unwrap();
        copy_files(before, image.path());
        let take = |name: &str, whole: bool| {
            let mut bytes = std::fs::read(after.join(name)).unwrap();
            if !whole {
                // A torn write in place: its head is new, its tail old.
                let old = std::fs::read(before.join(name)).unwrap_or_default();
                let half = bytes.len() / 2;
                bytes.truncate(half);
                bytes.extend(old.iter().skip(half));
            }
            std::fs::write(image.path().join(name), bytes).unwrap();
        };
        let existed = before.join("turn.a").exists();
        match cut {
            // A copy that did not exist appears whole, by a rename.
            1 if existed => take("turn.a", false),
            2 => take("turn.a", true),
            3 if existed => {
                take("turn.a", true);
                take("turn.b", false);
            }
            4 => {
                take("turn.a", true);
                take("turn.b", true);
            }
            _ => {}
        }
        all.push(image);
    }
    all
}

/// Cut at each point of a request that takes a turn: while the turn is written, before it reaches the
/// cloud, before and after the cloud's commit, before the answer is noted. From each such state the
/// machine starts, and is cut again, three deep.
fn cut_everywhere(machine: &tempfile::TempDir, cloud: &Kept, depth: u32, seen: &mut u32) {
    let start = |image: &tempfile::TempDir| {
        let folder = tempfile::tempdir().unwrap();
        copy_files(image.path(), folder.path());
        Machine::on(folder)
    };
    let (whole, mut cloud) = (start(machine), cloud.clone());
    for _ in 0..3 {
        let before = whole.image();
        let shown = whole.running.show();
        for image in images(before.path(), whole.folder.path()) {
            *seen += 1;
            let cut = start(&image).ask(&mut cloud.clone());
            assert_eq!(cut, Ok(true), "cut in the write, {depth}");
            if depth > 0 {
                cut_everywhere(&image, &cloud, depth - 1, seen);
            }
        }
        assert_eq!(cloud.ask(shown.as_ref()), Ok(true));
        // The answer is lost, or the machine is cut before it notes it.
        let image = whole.image();
        *seen += 1;
        let cut = start(&image).ask(&mut cloud.clone());
        assert_eq!(cut, Ok(true), "unanswered, {depth}");
        if depth > 0 {
            cut_everywhere(&image, &cloud, depth - 1, seen);
        }
        whole.running.answered(&shown.unwrap());
    }
}

#[test]
fn an_honest_gateway_is_never_locked_out_wherever_it_is_cut() {
    let mut seen = 0;
    cut_everywhere(
        &tempfile::tempdir().unwrap(),
        &Kept::default(),
        1,
        &mut seen,
    );
    assert!(seen > 200, "{seen} cuts");
}

/// The control: the next turn is shown, and only then written.
#[test]
fn a_gateway_that_shows_before_it_writes_is_locked_out_by_a_cut() {
    let (mut machine, mut cloud) = (Machine::new(), Kept::default());
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    machine.start_again();
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    let disk = machine.image();
    // The cloud has seen what the disk has not when the power goes.
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    let locked = Machine::on(disk).ask(&mut cloud);
    assert!(matches!(locked, Err(Copy::Older { .. })), "{locked:?}");
}

#[test]
fn starts_without_an_answer_are_one_turn() {
    let (mut machine, mut cloud) = (Machine::new(), Kept::default());
    for _ in 0..40 {
        // Started, and the link is away.
        machine.running.show();
        machine.start_again();
    }
    for _ in 0..20 {
        assert_eq!(machine.ask(&mut cloud), Ok(true));
        machine.start_again();
    }
    for _ in 0..20 {
        // Served, and the answer is lost each time.
        cloud.ask(machine.running.show().as_ref()).unwrap();
        machine.start_again();
    }
    assert_eq!(machine.ask(&mut cloud), Ok(true));
}

#[test]
fn a_late_request_of_a_killed_program_is_not_served_and_locks_nobody_out() {
    let (mut machine, mut cloud) = (Machine::new(), Kept::default());
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    // On its way when the program was killed; it never came to the cloud before.
    let late = machine.running.show();
    machine.start_again();
    let later = machine.running.show();
    machine.start_again();
    for _ in 0..3 {
        assert_eq!(machine.ask(&mut cloud), Ok(true));
    }
    assert_eq!(cloud.ask(late.as_ref()), Ok(false));
    assert_eq!(cloud.ask(later.as_ref()), Ok(false));
    assert_eq!(machine.ask(&mut cloud), Ok(true));
}

#[test]
fn a_snapshot_set_back_is_a_copy() {
    let (mut machine, mut cloud) = (Machine::new(), Kept::default());
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    let snapshot = machine.image();
    for _ in 0..3 {
        machine.start_again();
        assert_eq!(machine.ask(&mut cloud), Ok(true));
        assert_eq!(machine.ask(&mut cloud), Ok(true));
    }
    let back = Machine::on(snapshot);
    assert!(matches!(back.ask(&mut cloud), Err(Copy::Older { .. })));
}

/// Cloned while it runs; both go on. Whoever asks first, and however they take turns at asking, one of
/// them is found out before either has asked many times.
#[test]
fn of_two_machines_with_one_disk_one_is_found_out() {
    for pattern in 0..64_u32 {
        let (first, mut cloud) = (Machine::new(), Kept::default());
        for _ in 0..2 {
            assert_eq!(first.ask(&mut cloud), Ok(true));
        }
        let second = Machine::on(first.image());
        let mut found = None;
        for ask in 0..30 {
            let who = match pattern >> (ask % 6) & 1 {
                0 => &first,
                _ => &second,
            };
            // Each asks now and then, whatever the pattern.
            let who = match ask % 7 {
                5 => &first,
                6 => &second,
                _ => who,
            };
            if let Err(copy) = who.ask(&mut cloud) {
                found = Some(copy);
                break;
            }
        }
        assert!(found.is_some(), "pattern {pattern:06b}");
    }
}

/// A snapshot with its memory: both are one start of one program, until a turn is due.
#[tokio::test(start_paused = true)]
async fn two_with_one_memory_part_at_the_next_turn() {
    let (machine, mut cloud) = (Machine::new(), Kept::default());
    for _ in 0..3 {
        assert_eq!(machine.ask(&mut cloud), Ok(true));
    }
    let frozen = machine.running.show();
    assert_eq!(cloud.ask(frozen.as_ref()), Ok(true), "not to be told apart");
    tokio::time::advance(TURN + Duration::from_secs(1)).await;
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    // The other takes its own next turn, or goes on with the old one.
    let mut next = frozen.clone().unwrap();
    next.last = next.this.clone();
    next.number += 1;
    next.this = Mark::of([7; 16]);
    assert!(matches!(
        cloud.clone().ask(Some(&next)),
        Err(Copy::Parted(_))
    ));
    for _ in 0..MOST_LATE {
        assert_eq!(cloud.ask(frozen.as_ref()), Ok(false), "perhaps late");
    }
    assert!(matches!(
        cloud.ask(frozen.as_ref()),
        Err(Copy::Older { .. })
    ));
}

#[test]
fn a_cloud_that_forgot_blames_no_gateway_and_silence_is_a_copy() {
    let (mut machine, mut cloud) = (Machine::new(), Kept::default());
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    let backup = cloud.clone();
    for _ in 0..3 {
        machine.start_again();
        machine.ask(&mut cloud).unwrap();
        machine.ask(&mut cloud).unwrap();
    }
    let mut cloud = backup;
    assert_eq!(machine.ask(&mut cloud), Ok(true));
    assert!(matches!(cloud.ask(None), Err(Copy::Silent(_))));
    assert_eq!(Kept::default().ask(None), Ok(true), "a program of before");
    let mut cloud = Kept(Some(TurnRow::open()));
    assert_eq!(machine.ask(&mut cloud), Ok(true), "let in again");
}

/// Both copies of the file bad: it shows nothing, and the cloud asks for an operator. One bad copy
/// changes nothing.
#[test]
fn a_damaged_counter_is_told_and_one_good_copy_serves() {
    let (mut machine, mut cloud) = (Machine::new(), Kept::default());
    machine.ask(&mut cloud).unwrap();
    let spoil = |name: &str| {
        let path = machine.folder.path().join(name);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[24] ^= 1;
        std::fs::write(path, bytes).unwrap();
    };
    spoil("turn.a");
    let again = Own::open(machine.folder.path(), 1).unwrap();
    assert_eq!(cloud.ask(again.show().as_ref()), Ok(true));
    let other = Own::open(machine.folder.path(), 2).unwrap();
    assert_eq!(other.show().unwrap().number, 1, "an enrolment of its own");
    spoil("turn.a");
    spoil("turn.b");
    machine.start_again();
    assert_eq!(machine.running.show(), None);
    assert!(matches!(cloud.ask(None), Err(Copy::Silent(_))));
}
