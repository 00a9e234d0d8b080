//! The history of a device's services: against a model, in any order, from both sides.

use super::{super::*, assignment, device, now, site};
use crate::{
    fixture::Dice,
    time::{Time, TimeQuality},
};

fn entry(origin: &str, rank: u64, change: Change) -> Entry {
    Entry {
        id: EntryId {
            origin: origin.parse().unwrap(),
            epoch: 1,
            seq: rank,
        },
        rank,
        site: site(),
        at: Time::new(now().secs + rank, TimeQuality::Floor),
        device: Some(device()),
        change,
    }
}

fn started(service: &str, serial: u8) -> Change {
    Change::ServiceStarted {
        assignment: Box::new(assignment(service)),
        serial: Serial::new(&[serial]).unwrap(),
    }
}

fn fold(entries: &[Entry]) -> DeviceRecord {
    let mut record = DeviceRecord::new(device());
    for entry in entries {
        record.apply(entry, Standing::Attested);
    }
    record
}

/// The history as one would keep it by hand, from entries in their order.
fn by_hand(entries: &[Entry]) -> Vec<(String, u64, Option<u64>)> {
    let mut lines: Vec<(String, u64, Option<u64>)> = Vec::new();
    for entry in entries {
        let at = entry.at.secs;
        let open = lines.last_mut().filter(|line| line.2.is_none());
        match &entry.change {
            Change::ServiceStarted { assignment, .. } => {
                let name = assignment.service.to_string();
                if let Some(open) = open {
                    if open.0 == name {
                        continue;
                    }
                    open.2 = Some(at);
                }
                lines.push((name, at, None));
            }
            Change::ServiceEnded => {
                if let Some(open) = open {
                    open.2 = Some(at);
                }
            }
            _ => {}
        }
    }
    lines
}

#[test]
fn any_order_of_delivery_gives_the_history_of_the_log() {
    let mut naive_differs = 0;
    for seed in 0..800 {
        let mut dice = Dice::new(seed);
        let names = ["civil", "weather", "soil"];
        let mut entries = Vec::new();
        for rank in 1..dice.below(14) + 3 {
            let (name, origin): (&str, &str) = (*dice.pick(&names), *dice.pick(&["gw1", "cloud"]));
            let change = match dice.below(9) {
                0 => Change::ServiceEnded,
                8 => Change::ServiceEndOrdered,
                1 => Change::ServiceOrdered(Box::new(assignment(name))),
                2 => Change::ServiceActivated {
                    credential: [u8::try_from(rank).unwrap(); 32],
                },
                _ => started(name, u8::try_from(rank).unwrap()),
            };
            entries.push(entry(origin, rank, change));
        }
        let expected = fold(&entries);
        let lines = |record: &DeviceRecord| {
            let lines = record.services().history();
            let lines = lines.iter().map(|line| {
                let end = line.end.map(|end| end.secs);
                (line.assignment.service.to_string(), line.start.secs, end)
            });
            lines.collect::<Vec<_>>()
        };
        assert_eq!(lines(&expected), by_hand(&entries), "seed {seed}");
        let mut delivered = entries.clone();
        delivered.reverse();
        let at = usize::try_from(dice.below(delivered.len() as u64)).unwrap();
        delivered.rotate_left(at);
        delivered.push(dice.pick(&entries).clone());
        assert_eq!(fold(&delivered), expected, "seed {seed}");
        // Two sides with a part each, joined either way round.
        let (a, b) = (fold(&entries[..at]), fold(&entries[at / 2..]));
        let (mut ab, mut ba) = (a.clone(), b.clone());
        ab.merge(&b);
        ba.merge(&a);
        assert_eq!((&ab, &ba), (&expected, &expected), "seed {seed}");
        // Control: who keeps the history in the order of arrival keeps another one.
        naive_differs += u32::from(by_hand(&delivered) != by_hand(&entries));
    }
    assert!(naive_differs > 300, "{naive_differs}");
}

#[test]
fn one_entry_ends_the_old_service_and_begins_the_new() {
    let entries = [
        entry("gw1", 1, started("civil", 1)),
        entry("gw1", 2, started("civil", 2)),
        entry("cloud", 3, started("weather", 3)),
        entry("gw1", 4, started("civil", 2)),
        entry("gw1", 5, Change::ServiceEnded),
    ];
    let record = fold(&entries[..3]);
    let history = record.services().history();
    let serial = |n: u8| Serial::new(&[n]).unwrap();
    assert_eq!(history[0].serials, [serial(1), serial(2)], "a renewal");
    let renewed = &history[0].renewals;
    assert_eq!((renewed.len(), &renewed[0].serial), (1, &serial(2)));
    assert_eq!(renewed[0].at, entries[1].at);
    assert_eq!(renewed[0].entry, entries[1].id);
    assert_eq!(history[0].end, Some(history[1].start));
    assert_eq!((history.len(), history[1].end), (2, None));
    let running = record.services().running();
    assert_eq!(running, Some((&assignment("weather"), &serial(3))));
    // The first was void once the second worked; while it is not, the second never did.
    let before = |void: &[u8]| {
        let void = void.iter().map(|n| serial(*n)).collect();
        let before = record.services().before(&serial(3), &void);
        before.map(|(assignment, serial)| (assignment.clone(), serial.clone()))
    };
    let civil = |n| Some((assignment("civil"), serial(n)));
    assert_eq!((before(&[1]), before(&[])), (civil(2), civil(1)));
    assert_eq!(before(&[1, 2]), None);
    assert_eq!(
        record.services().before(&serial(1), &Default::default()),
        None
    );
    let record = fold(&entries);
    let ends: Vec<_> = record.services().history();
    assert!(ends.len() == 3 && ends.iter().all(|line| line.end.is_some()));
    assert_eq!(record.services().running(), None);
}

#[test]
fn what_a_device_went_back_from_is_no_renewal() {
    let entries = [
        entry("gw1", 1, started("civil", 1)),
        entry("gw1", 2, started("civil", 2)),
        entry("gw1", 3, started("civil", 3)),
        entry("gw1", 4, started("civil", 2)),
        entry("gw1", 5, started("civil", 4)),
        entry("gw1", 6, started("civil", 1)),
    ];
    let renewed = |most: usize| {
        let history = fold(&entries[..most]).services().history();
        assert_eq!(history.len(), 1, "one service, from its start on");
        let serials = history[0].renewals.iter();
        serials
            .map(|one| one.serial.as_bytes()[0])
            .collect::<Vec<_>>()
    };
    assert_eq!(renewed(3), [2, 3]);
    assert_eq!(renewed(4), [2]);
    assert_eq!(renewed(5), [2, 4]);
    assert_eq!(renewed(6), [0_u8; 0]);
}

#[test]
fn an_order_to_work_for_nothing_is_an_order_like_others() {
    let ordered = |service| Change::ServiceOrdered(Box::new(assignment(service)));
    let entries = [
        entry("gw1", 1, Change::ServiceEndOrdered),
        entry("gw1", 2, ordered("civil")),
        entry("cloud", 3, Change::ServiceEndOrdered),
        entry("gw1", 4, ordered("weather")),
    ];
    for (count, desired, ends) in [
        (0, None, 0),
        (1, None, 1),
        (2, Some("civil"), 0),
        (3, None, 3),
        (4, Some("weather"), 0),
    ] {
        let mut backwards = entries[..count].to_vec();
        backwards.reverse();
        for entries in [&entries[..count], &backwards] {
            let record = fold(entries);
            let services = record.services();
            let wanted = services
                .desired()
                .map(|order| order.assignment.service.as_str());
            assert_eq!(wanted, desired, "{count}");
            assert_eq!(
                services.end_ordered().map_or(0, |end| end.rank),
                ends,
                "{count}"
            );
        }
    }
}

#[test]
fn the_highest_order_holds_on_both_sides() {
    let order = |service| Change::ServiceOrdered(Box::new(assignment(service)));
    let activated = |n| Change::ServiceActivated {
        credential: [n; 32],
    };
    let gateway = [
        entry("gw1", 5, order("soil")),
        entry("gw1", 6, activated(1)),
    ];
    let cloud = [
        entry("cloud", 5, order("civil")),
        entry("cloud", 7, activated(2)),
    ];
    let (mut here, mut there) = (fold(&gateway), fold(&cloud));
    here.merge(&fold(&cloud));
    there.merge(&fold(&gateway));
    assert_eq!(here, there);
    // Of the same rank the origin decides, everywhere alike.
    let desired = here.services().desired().unwrap();
    assert_eq!(desired.assignment, assignment("soil"));
    assert_eq!(here.services().activation().unwrap().credential, [2; 32]);
    assert!(here.services().knows(&[1; 32]) && !here.services().knows(&[3; 32]));
}
