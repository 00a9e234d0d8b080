//! The clock under false walls, restarts and damaged copies.

use super::*;

fn wall_1970() -> u64 {
    1_000
}
fn wall_today() -> u64 {
    BUILD_FLOOR + 30_000_000
}
fn wall_far() -> u64 {
    BUILD_FLOOR + 3_000_000_000
}

fn open(path: &Path, trust: SystemTrust, wall: fn() -> u64) -> SystemClock {
    SystemClock::with_wall(path, trust, wall).unwrap()
}

fn shows(clock: &SystemClock, secs: u64, quality: TimeQuality) {
    let now = clock.now();
    assert_eq!(now.quality, quality);
    // The test itself takes a moment.
    assert!(now.secs.abs_diff(secs) <= 5, "{now} is not about {secs}");
}

#[test]
fn a_machine_that_knows_nothing_starts_at_the_build() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let clock = open(&path, SystemTrust::Hint, wall_1970);
    shows(&clock, BUILD_FLOOR, TimeQuality::None);
    // Its own guess is not kept as a floor.
    clock.keep_floor().unwrap();
    let clock = open(&path, SystemTrust::Hint, wall_1970);
    shows(&clock, BUILD_FLOOR, TimeQuality::None);
}

#[test]
fn what_a_peer_told_survives_a_restart_in_1970() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let told = BUILD_FLOOR + 77_000;
    let clock = open(&path, SystemTrust::Hint, wall_1970);
    assert!(clock.learn(told));
    shows(&clock, told, TimeQuality::Authenticated);
    clock.keep_floor().unwrap();
    drop(clock);

    let clock = open(&path, SystemTrust::Hint, wall_1970);
    shows(&clock, told, TimeQuality::Floor);
    // A replayed older time changes nothing.
    assert!(!clock.learn(told - 50_000));
    shows(&clock, told, TimeQuality::Floor);
    // The control: the wall clock does move it on, without raising its quality.
    let clock = open(&path, SystemTrust::Hint, wall_today);
    shows(&clock, wall_today(), TimeQuality::Floor);
}

#[test]
fn a_wall_far_ahead_does_not_lift_the_floor_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let told = BUILD_FLOOR + 77_000;
    let clock = open(&path, SystemTrust::Hint, wall_far);
    clock.learn(told);
    clock.keep_floor().unwrap();
    // Authenticated time wins over the wall.
    shows(&clock, told, TimeQuality::Authenticated);
    let clock = open(&path, SystemTrust::Hint, wall_1970);
    shows(&clock, told, TimeQuality::Floor);
}

#[test]
fn a_vouched_wall_counts_unless_it_is_behind_the_floor() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let clock = open(&path, SystemTrust::Vouched, wall_today);
    shows(&clock, wall_today(), TimeQuality::Authenticated);
    clock.keep_floor().unwrap();
    let clock = open(&path, SystemTrust::Vouched, wall_1970);
    shows(&clock, wall_today(), TimeQuality::Floor);
}

#[test]
fn one_damaged_copy_costs_nothing_and_two_cost_the_quality() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("floor");
    let copies = [0, 1].map(|n| dir.path().join(format!("floor.{n}")));
    for (round, copy) in copies.iter().enumerate() {
        let clock = open(&path, SystemTrust::Hint, wall_1970);
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
            let clock = open(&path, SystemTrust::Hint, wall_1970);
            assert_eq!(clock.now().quality, TimeQuality::Floor);
            assert!(
                clock.now().secs + 10_005 >= newest,
                "one step at most is lost"
            );
        }
        std::fs::write(copy, good).unwrap();
    }
    for copy in &copies {
        std::fs::write(copy, "torn").unwrap();
    }
    let clock = open(&path, SystemTrust::Hint, wall_1970);
    shows(&clock, BUILD_FLOOR, TimeQuality::None);
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(64))]
    /// The model is the list of floors kept: after any writes and restarts the highest stands, and
    /// with either copy torn at any byte at least the one before it.
    #[test]
    fn the_floor_on_disk_never_falls(
        writes in proptest::collection::vec((0u64..5_000, proptest::bool::ANY), 1..12),
        copy in 0usize..2,
        torn in 0usize..60,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("floor");
        let (mut file, kept) = FloorFile::open(&path).unwrap();
        assert_eq!(kept, None);
        let mut model = vec![0];
        for (floor, restart) in writes {
            file.write(floor).unwrap();
            if floor > *model.last().unwrap() {
                model.push(floor);
            }
            if restart {
                file = FloorFile::open(&path).unwrap().0;
            }
            let kept = FloorFile::open(&path).unwrap().1;
            assert_eq!(kept.unwrap_or(0), *model.last().unwrap());
        }
        let copy = dir.path().join(format!("floor.{copy}"));
        if let Ok(bytes) = std::fs::read(&copy) {
            std::fs::write(&copy, &bytes[..torn.min(bytes.len())]).unwrap();
        }
        let kept = FloorFile::open(&path).unwrap().1.unwrap_or(0);
        let allowed = &model[model.len().saturating_sub(2)..];
        assert!(allowed.contains(&kept), "{kept} is none of {allowed:?}");
    }
}

#[test]
fn a_folder_that_is_not_there_is_told() {
    let clock = open(
        Path::new("/nowhere/at/all/floor"),
        SystemTrust::Vouched,
        wall_today,
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
    let clock = Arc::new(open(&path, SystemTrust::Hint, wall_1970));
    clock.learn(BUILD_FLOOR + 500);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let keeping = tokio::spawn(Arc::clone(&clock).keep_floor_until(async {
        let _ = stopped.await;
    }));
    stop.send(()).unwrap();
    keeping.await.unwrap();
    let kept = FloorFile::open(&path).unwrap().1.expect("a floor is kept");
    assert!((BUILD_FLOOR + 500..BUILD_FLOOR + 510).contains(&kept));
}
