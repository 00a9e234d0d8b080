//! Key and certificate of the service that runs are renewed: in time, late, later; and the power
//! goes at every step of it.

use holdfast_disk::fault::Recorder;
use holdfast_protocol::record::Serial;
use tempfile::TempDir;

use super::*;

impl World {
    /// A device that works for a service, its report taken; its state in a file, and no agent on it.
    async fn serving(&self) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        let mut room = self.start_on(File::new(folder.path()));
        let civil = self.notice(1, "civil");
        room.desk.notices.send(civil).await.unwrap();
        room.reports("civil", "runs").await;
        self.until(|plant| plant.asked.contains(&"report")).await;
        room.end().await;
        folder
    }

    fn pass(&self, days: u64) {
        self.clock.advance(Duration::from_secs(days * DAY));
    }

    async fn until(&self, is_so: impl Fn(&Plant) -> bool) {
        let wait = async {
            while !is_so(&self.plant()) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, wait).await.expect("it comes to that");
    }

    fn times(&self, word: &str) -> usize {
        let asked = self.plant().asked.clone();
        asked.iter().filter(|one| **one == word).count()
    }
}

impl Room {
    fn now(&self) -> Arc<Running> {
        self.runs.borrow().clone().expect("a service runs")
    }

    /// Waits until another certificate than this one is used.
    async fn goes_over_from(&mut self, old: &Serial) -> Arc<Running> {
        let wait = self.runs.wait_for(|runs| match runs {
            Some(runs) => runs.serial != *old,
            None => false,
        });
        let found = timeout(PATIENCE, wait).await.expect("renewed").unwrap();
        found.clone().unwrap()
    }
}

fn held(folder: &TempDir) -> Running {
    let state = File::new(folder.path()).load().unwrap();
    state.running().expect("a service runs").clone()
}

#[tokio::test]
async fn a_due_certificate_is_renewed_with_a_fresh_key_and_the_old_one_is_void_then() {
    let world = World::new();
    let folder = world.serving().await;
    let old = held(&folder);
    // At a third of its life nothing is to be done.
    world.pass(LIFE / 3);
    let room = world.start_on(File::new(folder.path()));
    world
        .until(|plant| plant.asked.last() == Some(&"poll"))
        .await;
    room.end().await;
    assert_eq!(
        (world.times("update"), &held(&folder).serial),
        (1, &old.serial)
    );
    world.pass(LIFE / 3);
    let mut room = world.start_on(File::new(folder.path()));
    let new = room.goes_over_from(&old.serial).await;
    assert_ne!(new.key.public(), old.key.public());
    assert_eq!(new.assignment, old.assignment);
    world
        .until(|plant| plant.accepted == [new.serial.clone()])
        .await;
    let report = room.reports("civil", "runs").await;
    assert_eq!(report["serial"], new.serial.to_string());
    world
        .until(|plant| plant.asked.last() == Some(&"poll"))
        .await;
    room.end().await;
    assert_eq!((world.times("update"), world.times("activate")), (2, 1));
    assert_eq!(world.plant().tried, ["civil", "civil"]);
}

/// Nobody answers; then the register does, but nobody takes the new certificate; then all is well.
#[tokio::test]
async fn what_cannot_be_renewed_goes_on_with_the_old_one_and_tries_later() {
    let world = World::new();
    let folder = world.serving().await;
    let old = held(&folder);
    world.pass(LIFE - 1);
    world.plant().silent = usize::MAX;
    let mut room = world.start_on(File::new(folder.path()));
    world.until(|plant| plant.silent < usize::MAX - 5).await;
    assert_eq!(room.now().serial, old.serial);
    world.plant().broken.insert("civil".to_owned());
    world.plant().silent = 0;
    // Three attempts with each of three new certificates, and back each time.
    world.until(|plant| plant.tried.len() > 9).await;
    assert_eq!(room.now().serial, old.serial);
    assert!(world.plant().accepted.contains(&old.serial));
    let report = room.reports("civil", "runs").await;
    assert_eq!(report["serial"], old.serial.to_string());
    world.plant().broken.clear();
    let new = room.goes_over_from(&old.serial).await;
    world
        .until(|plant| plant.accepted == [new.serial.clone()])
        .await;
    room.end().await;
}

#[tokio::test]
async fn a_certificate_that_is_over_is_renewed_late_and_an_order_that_failed_is_no_hindrance() {
    let world = World::new();
    let folder = world.serving().await;
    world.plant().broken.insert("soil".to_owned());
    let mut room = world.start_on(File::new(folder.path()));
    let soil = world.notice(2, "soil");
    room.desk.notices.send(soil).await.unwrap();
    room.reports("soil", "rolled back").await;
    world.until(|plant| plant.accepted.len() == 1).await;
    let old = room.now();
    room.end().await;
    world.pass(10 * LIFE);
    let mut room = world.start_on(File::new(folder.path()));
    let new = room.goes_over_from(&old.serial).await;
    assert_eq!(new.assignment.service.as_str(), "civil");
    world
        .until(|plant| plant.accepted == [new.serial.clone()])
        .await;
    let report = room.reports("soil", "rolled back").await;
    assert_eq!(
        (&report["runs"], &report["in_use"]),
        (&"civil".into(), &true.into())
    );
    room.end().await;
}

/// Renews with the power cut at every step; how many cuts, and how many devices held a certificate
/// that nobody took any more.
async fn cut_everywhere(is_hasty: bool) -> (usize, usize) {
    let world = World::new();
    let folder = world.serving().await;
    let old = held(&folder);
    world.pass(LIFE - 1);
    let recorder = Recorder::watch(&[folder.path()]).unwrap();
    {
        let mut plant = world.plant();
        plant.is_hasty = is_hasty;
        plant.disk = Some(recorder);
        let good = plant.accepted.clone();
        plant.past = vec![(0, good)];
        plant.asked.clear();
    }
    let mut room = world.start_on(File::new(folder.path()));
    room.goes_over_from(&old.serial).await;
    world
        .until(|plant| plant.asked.ends_with(&["report", "poll"]))
        .await;
    room.end().await;
    let recorder = world.plant().disk.take().unwrap();
    let past = std::mem::take(&mut world.plant().past);
    let until = |most: usize| past.iter().rev().find(|(then, _)| *then <= most);
    let mut images = Vec::new();
    let random = || rand_core::Rng::next_u64(&mut SystemRandom);
    recorder.each_image(7, random, |at, image| images.push((at, image)));
    let left = tempfile::tempdir().unwrap();
    let (mut cuts, mut lost) = (0, 0);
    for (at, image) in images {
        // What may have been good when the device's disk was there.
        let good = [until(at), at.checked_sub(1).and_then(until)];
        for (_, good) in good.into_iter().flatten() {
            image.put(folder.path(), left.path()).unwrap();
            cuts += 1;
            if !good.contains(&held(&left).serial) {
                lost += 1;
                continue;
            }
            if is_hasty {
                continue;
            }
            world.plant().accept(good.clone());
            let room = world.start_on(File::new(left.path()));
            world
                .until(|plant| plant.accepted.len() == 1 && plant.accepted[0] != old.serial)
                .await;
            room.end().await;
            assert_eq!(world.plant().accepted, [held(&left).serial]);
        }
    }
    (cuts, lost)
}

#[tokio::test]
async fn a_renewal_cut_anywhere_leaves_an_accepted_certificate_and_is_ended() {
    let (cuts, lost) = cut_everywhere(false).await;
    assert_eq!(lost, 0, "of {cuts}");
    assert!(cuts >= 60, "{cuts} cuts");
}

#[tokio::test]
async fn control_an_old_certificate_that_is_void_too_early_is_caught() {
    let (cuts, lost) = cut_everywhere(true).await;
    assert!(lost > 0, "of {cuts}");
}
