//! The three verbs hold at every cut; the kit catches orders that do not.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::fault::{Image, Recorder};
use super::*;

/// Numbers that look random and are the same each time.
fn dice(seed: u64) -> impl FnMut() -> u64 {
    let mut state = seed;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

fn each(recorder: &Recorder, mut visit: impl FnMut(usize, &Image)) -> usize {
    let mut seen = 0;
    for seed in 1..20 {
        recorder.each_image(8, dice(seed), |at, image| {
            seen += 1;
            visit(at, &image);
        });
    }
    seen
}

#[test]
fn a_cut_leaves_the_old_or_the_new_and_what_returned_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (path, other) = (folder.path().join("key"), folder.path().join("other"));
    write(&path, b"one", 0o600).unwrap();
    let recorder = Recorder::watch(&[folder.path()]).unwrap();
    write(&path, b"two", 0o600).unwrap();
    let second = recorder.position();
    write(&other, b"three", 0o644).unwrap();
    rename(&other, &path).unwrap();
    let third = recorder.position();
    remove(&path).unwrap();
    let (mut twos, mut gone) = (0, 0);
    let seen = each(&recorder, |at, image| match image.file(&path) {
        Some(b"one") => assert!(at < second, "undone at {at}"),
        Some(b"two") => twos += 1,
        Some(b"three") => assert!(at > second),
        None => {
            assert!(at >= third, "lost at {at}");
            gone += 1;
        }
        Some(mixture) => panic!("{mixture:?} at {at}"),
    });
    assert!(seen > 1000 && twos > 0 && gone > 0);
    assert_eq!(
        recorder.image(recorder.position(), dice(3)).file(&other),
        None
    );
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    write(&other, b"x", 0o644).unwrap();
    assert_eq!(mode(&other), 0o644);
}

#[test]
fn control_an_order_without_syncs_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    write(&path, b"one", 0o600).unwrap();
    let recorder = Recorder::watch(&[folder.path()]).unwrap();
    recorder.forget_syncs();
    write(&path, b"two", 0o600).unwrap();
    let end = recorder.position();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 1..400 {
        let image = recorder.image(end, dice(seed));
        seen.insert(image.file(&path).map(<[u8]>::to_vec));
    }
    // Undone although it returned, empty and torn: all of it would be seen.
    assert!(seen.contains(&Some(b"one".to_vec())));
    assert!(seen.contains(&Some(Vec::new())));
    assert!(seen.contains(&Some(b"t".to_vec())));
}

#[test]
fn control_a_rename_before_the_sync_of_the_content_is_caught() {
    let folder = tempfile::tempdir().unwrap();
    let (path, fresh) = (folder.path().join("key"), folder.path().join("fresh"));
    write(&path, b"one", 0o600).unwrap();
    let recorder = Recorder::watch(&[folder.path()]).unwrap();
    fs::write(&fresh, b"two").unwrap();
    fault::created(&fresh);
    fault::wrote(&fresh, b"two");
    rename(&fresh, &path).unwrap();
    let end = recorder.position();
    let torn = (1..100).any(|seed| {
        let image = recorder.image(end, dice(seed));
        !matches!(image.file(&path), Some(b"one" | b"two"))
    });
    assert!(torn);
}

#[test]
fn an_image_is_put_where_it_is_wanted_and_others_are_not_heard() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let below = folder.path().join("keys");
    fs::create_dir(&below).unwrap();
    let recorder = Recorder::watch_beside(&[folder.path()], Box::new(|| vec![7])).unwrap();
    write(&below.join("a"), b"1", 0o600).unwrap();
    write(&elsewhere.path().join("b"), b"2", 0o600).unwrap();
    let (end, others) = recorder.boundaries().pop().unwrap();
    assert_eq!((end, others), (recorder.position(), vec![7]));
    assert_eq!((recorder.before(0, 7), recorder.before(0, 8)), (0, end));
    let to = elsewhere.path().join("to");
    recorder
        .image(end, dice(1))
        .put(folder.path(), &to)
        .unwrap();
    assert_eq!(fs::read(to.join("keys/a")).unwrap(), b"1");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
}
