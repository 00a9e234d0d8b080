//! The clock under false walls, restarts, reboots and damaged copies.

use std::sync::atomic::{AtomicU64, Ordering};

use super::*;

const WALL_1970: u64 = 1_000;
const WALL_TODAY: u64 = BUILD_FLOOR + 30_000_000;
const WALL_FAR: u64 = BUILD_FLOOR + 3_000_000_000;

/// A machine whose counters a test turns.
#[derive(Debug, Clone, Default)]
struct Fake(Arc<[AtomicU64; 3]>);

impl Fake {
    fn with_wall(wall: u64) -> Self {
        let fake = Self::default();
        fake.set_wall(wall);
        fake.0[1].store(100, Ordering::Relaxed);
        fake.0[2].store(1, Ordering::Relaxed);
        fake
    }

    fn set_wall(&self, wall: u64) {
        self.0[0].store(wall, Ordering::Relaxed);
    }

    fn pass(&self, secs: u64) {
        self.0[1].fetch_add(secs, Ordering::Relaxed);
    }

    /// Off and on again: the counter of the boot begins anew.
    fn reboot(&self, uptime: u64) {
        self.0[1].store(uptime, Ordering::Relaxed);
        self.0[2].fetch_add(1, Ordering::Relaxed);
    }

    fn hide_boot(&self) {
        self.0[2].store(0, Ordering::Relaxed);
    }

    fn open(&self, path: &Path, trust: SystemTrust) -> SystemClock {
        SystemClock::on(Box::new(self.clone()), Some(path), trust).unwrap()
    }
}

impl Machine for Fake {
    fn wall(&self) -> u64 {
        self.0[0].load(Ordering::Relaxed)
    }

    fn uptime(&self) -> Duration {
        Duration::from_secs(self.0[1].load(Ordering::Relaxed))
    }

    fn boot(&self) -> u64 {
        self.0[2].load(Ordering::Relaxed)
    }
}

fn open(path: &Path, trust: SystemTrust, wall: u64) -> SystemClock {
    Fake::with_wall(wall).open(path, trust)
}

fn shows(clock: &SystemClock, secs: u64, quality: TimeQuality) {
    assert_eq!(clock.now(), Time::new(secs, quality));
}

fn is_certain(clock: &SystemClock, secs: u64, quality: TimeQuality) {
    assert_eq!(clock.certain(), Time::new(secs, quality));
}

#[test]
fn a_machine_that_knows_nothing_starts_at_the_build() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let clock = open(&path, SystemTrust::Hint, WALL_1970);
    shows(&clock, BUILD_FLOOR, TimeQuality::None);
    // Its own guess is not kept as a floor.
    clock.keep_floor().unwrap();
    let clock = open(&path, SystemTrust::Hint, WALL_1970);
    shows(&clock, BUILD_FLOOR, TimeQuality::None);
}

#[test]
fn what_a_peer_told_survives_a_reboot_in_1970() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let told = BUILD_FLOOR + 77_000;
    let machine = Fake::with_wall(WALL_1970);
    let clock = machine.open(&path, SystemTrust::Hint);
    assert!(clock.learn(told));
    shows(&clock, told, TimeQuality::Authenticated);
    clock.keep_floor().unwrap();
    drop(clock);

    machine.reboot(7);
    let clock = machine.open(&path, SystemTrust::Hint);
    shows(&clock, told + 7, TimeQuality::Floor);
    is_certain(&clock, told + 7, TimeQuality::Floor);
    // A replayed older time changes nothing.
    assert!(!clock.learn(told - 50_000));
    shows(&clock, told + 7, TimeQuality::Floor);
}

#[test]
fn a_restart_in_the_same_boot_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let told = BUILD_FLOOR + 77_000;
    let machine = Fake::with_wall(WALL_1970);
    let clock = machine.open(&path, SystemTrust::Hint);
    clock.learn(told);
    clock.keep_floor().unwrap();
    drop(clock);
    machine.pass(5_000);
    machine.set_wall(WALL_FAR);
    let clock = machine.open(&path, SystemTrust::Hint);
    shows(&clock, told + 5_000, TimeQuality::Authenticated);
    // Where the boot cannot be told from another the bound is as good, the quality is not.
    machine.hide_boot();
    machine.set_wall(WALL_1970);
    let clock = machine.open(&path, SystemTrust::Hint);
    shows(&clock, told + 5_000, TimeQuality::Floor);
    // Nor could a counter that went back, or another boot with a higher one, be the same.
    machine.reboot(50);
    let clock = machine.open(&path, SystemTrust::Hint);
    shows(&clock, told + 50, TimeQuality::Floor);
    machine.reboot(9_000);
    let clock = machine.open(&path, SystemTrust::Hint);
    shows(&clock, told + 9_000, TimeQuality::Floor);
}

#[test]
fn the_wall_clock_moves_a_guess_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let told = BUILD_FLOOR + 77_000;
    let machine = Fake::with_wall(WALL_1970);
    let clock = machine.open(&path, SystemTrust::Hint);
    clock.learn(told);
    clock.keep_floor().unwrap();
    machine.reboot(0);
    machine.set_wall(WALL_TODAY);
    let clock = machine.open(&path, SystemTrust::Hint);
    shows(&clock, WALL_TODAY, TimeQuality::Floor);
    is_certain(&clock, told, TimeQuality::Floor);
    // A jump while it runs moves not even the guess.
    machine.set_wall(WALL_FAR);
    shows(&clock, WALL_TODAY, TimeQuality::Floor);
    // Beyond the end of the site's authority it is no guess at all.
    let clock = machine.open(&path, SystemTrust::Hint);
    clock.never_after(WALL_TODAY + 1);
    shows(&clock, told, TimeQuality::Floor);
    // The guess goes to no disk.
    clock.keep_floor().unwrap();
    machine.set_wall(WALL_1970);
    let clock = machine.open(&path, SystemTrust::Hint);
    shows(&clock, told, TimeQuality::Floor);
}

#[test]
fn authenticated_time_wins_over_a_wall_far_ahead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let told = BUILD_FLOOR + 77_000;
    let clock = open(&path, SystemTrust::Hint, WALL_FAR);
    clock.learn(told);
    shows(&clock, told, TimeQuality::Authenticated);
    is_certain(&clock, told, TimeQuality::Authenticated);
    assert_eq!(
        clock.shift(),
        Some(told.cast_signed() - WALL_FAR.cast_signed())
    );
}

#[test]
fn a_peer_corrects_drift_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Fake::with_wall(WALL_1970);
    let clock = machine.open(&dir.path().join("floor"), SystemTrust::Hint);
    let told = BUILD_FLOOR + 77_000;
    clock.learn(told);
    machine.pass(100_000);
    assert!(clock.learn(told + 100_000 - 159), "drift of a day");
    shows(&clock, told + 100_000 - 159, TimeQuality::Authenticated);
    assert!(!clock.learn(told + 100_000 - 159 - 61), "a replay");
    // A time at which everything would be void is a lie or a fault.
    clock.never_after(told + 1_000_000);
    assert!(!clock.learn(told + 1_000_000));
    assert!(clock.learn(told + 999_999));
}

#[test]
fn a_lower_bound_is_no_present() {
    let dir = tempfile::tempdir().unwrap();
    let machine = Fake::with_wall(WALL_1970);
    let path = dir.path().join("floor");
    let clock = machine.open(&path, SystemTrust::Hint);
    clock.learn_least(BUILD_FLOOR + 5_000);
    is_certain(&clock, BUILD_FLOOR + 5_000, TimeQuality::Floor);
    clock.learn_least(BUILD_FLOOR + 4_000);
    is_certain(&clock, BUILD_FLOOR + 5_000, TimeQuality::Floor);
    clock.keep_floor().unwrap();
    let clock = machine.open(&path, SystemTrust::Hint);
    is_certain(&clock, BUILD_FLOOR + 5_000, TimeQuality::Floor);
    assert!(clock.learn(BUILD_FLOOR + 6_000));
    clock.learn_least(BUILD_FLOOR + 9_000);
    is_certain(&clock, BUILD_FLOOR + 6_000, TimeQuality::Authenticated);
}

#[test]
fn a_vouched_wall_counts_unless_it_is_behind_the_floor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let machine = Fake::with_wall(WALL_TODAY);
    let clock = machine.open(&path, SystemTrust::Vouched);
    shows(&clock, WALL_TODAY, TimeQuality::Authenticated);
    clock.keep_floor().unwrap();
    machine.reboot(0);
    machine.set_wall(WALL_1970);
    let clock = machine.open(&path, SystemTrust::Vouched);
    shows(&clock, WALL_TODAY, TimeQuality::Floor);
}

#[test]
fn a_floor_of_the_former_format_holds() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let floor = BUILD_FLOOR + 77;
    let text = format!("holdfast-floor-1\n{floor:016x} {:016x}\n", !floor);
    std::fs::write(dir.path().join("floor.0"), text).unwrap();
    let clock = open(&path, SystemTrust::Hint, WALL_1970);
    is_certain(&clock, floor + 100, TimeQuality::Floor);
}

#[test]
fn one_damaged_copy_costs_nothing_and_two_cost_the_quality() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let copies = [0, 1].map(|n| dir.path().join(format!("floor.{n}")));
    for (round, copy) in copies.iter().enumerate() {
        let clock = open(&path, SystemTrust::Hint, WALL_1970);
        for step in 1..=3 {
            clock.learn(BUILD_FLOOR + 10_000 * (round as u64 * 3 + step));
            clock.keep_floor().unwrap();
        }
        let newest = clock.now().secs;
        let (good, flipped) = (std::fs::read(copy).unwrap(), {
            let mut bytes = std::fs::read(copy).unwrap();
            bytes[20] ^= 1;
            bytes
        });
        for damaged in [&b""[..], &good[..good.len() - 1], &flipped, b"\0\0\0\0"] {
            std::fs::write(copy, damaged).unwrap();
            let clock = open(&path, SystemTrust::Hint, WALL_1970);
            assert!(clock.now().quality >= TimeQuality::Floor);
            assert!(
                clock.now().secs + 10_105 >= newest,
                "one step at most is lost"
            );
        }
        std::fs::write(copy, good).unwrap();
    }
    for copy in &copies {
        std::fs::write(copy, "torn").unwrap();
    }
    let clock = open(&path, SystemTrust::Hint, WALL_1970);
    shows(&clock, BUILD_FLOOR, TimeQuality::None);
}

fn kept(floor: u64) -> Kept {
    Kept {
        floor,
        uptime: Duration::from_secs(9),
        boot: 1,
        authenticated: true,
    }
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    /// The model is the list of floors kept: after any writes and restarts the highest stands, and
    /// with either copy torn at any byte at least the one before it.
    #[test]
    fn the_floor_on_disk_never_falls(
        writes in proptest::collection::vec((0u64..5_000, proptest::bool::ANY), 1..12),
        copy in 0usize..2,
        torn in 0usize..100,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("floor");
        let (mut file, found) = FloorFile::open(&path).unwrap();
        assert_eq!(found, None);
        let mut model = vec![0];
        for (floor, restart) in writes {
            file.write(kept(floor)).unwrap();
            if floor > *model.last().unwrap() {
                model.push(floor);
            }
            if restart {
                file = FloorFile::open(&path).unwrap().0;
            }
            let found = FloorFile::open(&path).unwrap().1;
            assert_eq!(found.map_or(0, |kept| kept.floor), *model.last().unwrap());
        }
        let copy = dir.path().join(format!("floor.{copy}"));
        if let Ok(bytes) = std::fs::read(&copy) {
            std::fs::write(&copy, &bytes[..torn.min(bytes.len())]).unwrap();
        }
        let found = FloorFile::open(&path).unwrap().1.map_or(0, |kept| kept.floor);
        let allowed = &model[model.len().saturating_sub(2)..];
        assert!(allowed.contains(&found), "{found} is none of {allowed:?}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_told() {
    let clock = open(
        Path::new("/nowhere/at/all/floor"),
        SystemTrust::Vouched,
        WALL_TODAY,
    );
    let error = clock.keep_floor().unwrap_err().to_string();
    assert!(
        error.contains("/nowhere/at/all/floor.0") && error.contains("writable"),
        "{error}"
    );
}

#[tokio::test]
async fn a_daemon_keeps_its_floor_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let clock = Arc::new(open(&path, SystemTrust::Hint, WALL_1970));
    clock.learn(BUILD_FLOOR + 500);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let keeping = tokio::spawn(Arc::clone(&clock).keep_floor_until(async {
        let _ = stopped.await;
    }));
    stop.send(()).unwrap();
    keeping.await.unwrap();
    let kept = FloorFile::open(&path).unwrap().1.expect("a floor is kept");
    assert_eq!(kept.floor, BUILD_FLOOR + 500);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(128))]
    /// The model knows the true time. Whatever the wall clock shows, whatever happens to the machine:
    /// what is certain never leads the truth by more than drift, and never falls; and the quality
    /// "authenticated" is the truth.
    #[test]
    fn what_is_certain_never_leads(
        steps in proptest::collection::vec((0u8..6, 0u64..400_000, proptest::num::u64::ANY), 1..40),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("floor");
        let machine = Fake::with_wall(WALL_1970);
        let mut clock = machine.open(&path, SystemTrust::Hint);
        let (mut truth, mut before) = (WALL_TODAY, 0);
        for (step, secs, wall) in steps {
            match step {
                0 => _ = clock.learn(truth),
                1 => machine.set_wall(wall % (1 << 40)),
                2 => {
                    machine.pass(secs);
                    truth += secs;
                }
                3 => {
                    clock.keep_floor().unwrap();
                    clock = machine.open(&path, SystemTrust::Hint);
                }
                4 => {
                    clock.keep_floor().unwrap();
                    truth += secs;
                    machine.reboot(secs / 2);
                    clock = machine.open(&path, SystemTrust::Hint);
                }
                _ => clock.learn_least(truth - secs),
            }
            let certain = clock.certain();
            proptest::prop_assert!(certain.secs <= truth, "{certain} leads {truth}");
            proptest::prop_assert!(certain.secs >= before, "{certain} fell from {before}");
            if certain.is_authenticated() {
                proptest::prop_assert_eq!(certain.secs, truth);
                proptest::prop_assert_eq!(clock.now(), certain);
            }
            // What nobody ever confirmed is not kept.
            if certain.quality > TimeQuality::None {
                before = certain.secs;
            }
        }
    }
}

#[test]
fn a_moment_gets_its_time_when_the_time_is_known_but_only_in_its_own_run() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let machine = Fake::with_wall(WALL_1970);
    let clock = machine.open(&path, SystemTrust::Hint);
    let read = clock.read();
    assert_eq!(read.time, Time::new(BUILD_FLOOR, TimeQuality::None));
    assert_eq!(clock.trace(read.moment), Traced::NotYet);
    machine.pass(40);
    // The wall clock jumps, the program starts anew, another peer tells that time has passed: the
    // counter goes on.
    machine.set_wall(WALL_FAR);
    let clock = machine.open(&path, SystemTrust::Hint);
    clock.learn_least(BUILD_FLOOR + 5_000);
    let later = clock.read();
    machine.pass(60);
    let told = BUILD_FLOOR + 1_000_000;
    assert!(clock.learn(told));
    assert_eq!(clock.trace(read.moment), Traced::Known(told - 100));
    assert_eq!(clock.trace(later.moment), Traced::Known(told - 60));
    machine.pass(7);
    assert_eq!(
        clock.trace(read.moment),
        Traced::Known(told - 100),
        "and stays"
    );
    // Started anew in the same boot before anybody wrote that down.
    clock.keep_floor().unwrap();
    let again = machine.open(&path, SystemTrust::Hint);
    assert_eq!(again.trace(read.moment), Traced::Known(told - 100));
    // Off for nobody knows how long.
    machine.reboot(500);
    let other = machine.open(&path, SystemTrust::Hint);
    other.learn(told + 9_000);
    assert_eq!(other.trace(read.moment), Traced::Never, "the control");
    assert_eq!(other.trace(Moment::UNKNOWN), Traced::Never);
    // Where nobody tells which boot it is, another run of the program may be another boot.
    machine.hide_boot();
    let hidden = machine.open(&path, SystemTrust::Hint);
    let within = hidden.read();
    hidden.learn(told + 10_000);
    assert_eq!(hidden.trace(within.moment), Traced::Known(told + 10_000));
    let next = machine.open(&path, SystemTrust::Hint);
    next.learn(told + 10_000);
    assert_eq!(next.trace(within.moment), Traced::Never);
}
