//! What becomes known of the time afterwards: of whose entries, and of which.

use super::*;

const SHIFT: LearntSpan = LearntSpan {
    first: 2,
    last: 4,
    shift: 1_000,
};

fn entry(origin: &str, epoch: u32, seq: u64, quality: TimeQuality, change: Change) -> Entry {
    Entry {
        id: EntryId {
            origin: origin.parse().unwrap(),
            epoch,
            seq,
        },
        rank: seq,
        site: site(),
        at: Time::new(now().secs + seq, quality),
        device: None,
        change,
    }
}

fn learnt(seq: u64, quality: TimeQuality, spans: &[LearntSpan]) -> Vec<(EntryId, LearntSpan)> {
    let spans = spans.to_vec();
    let by = entry("gw1", 1, seq, quality, Change::TimeLearnt { spans });
    let Change::TimeLearnt { spans } = &by.change else {
        unreachable!()
    };
    let told = spans_of(&by, spans);
    told.map(|span| (by.id.clone(), *span)).collect()
}

fn made(seq: u64) -> Entry {
    entry("gw1", 1, seq, TimeQuality::Floor, Change::ServiceEnded)
}

#[test]
fn the_entries_of_a_span_and_no_others_get_their_time() {
    let learnt = learnt(6, TimeQuality::Authenticated, &[SHIFT]);
    for seq in 1..=5 {
        let known = real_time(&made(seq), &learnt);
        let expected = Time::new(now().secs + seq + 1_000, TimeQuality::Authenticated);
        assert_eq!(known, (2..=4).contains(&seq).then_some(expected), "{seq}");
    }
    let sure = entry(
        "gw1",
        1,
        3,
        TimeQuality::Authenticated,
        Change::ServiceEnded,
    );
    assert_eq!(real_time(&sure, &learnt), Some(sure.at), "never moved");
}

#[test]
fn nobody_speaks_of_the_logs_of_others_nor_of_what_comes_later() {
    let told = learnt(6, TimeQuality::Authenticated, &[SHIFT]);
    for (origin, epoch) in [("gw2", 1), ("gw1", 2)] {
        let other = entry(origin, epoch, 3, TimeQuality::None, Change::ServiceEnded);
        assert_eq!(real_time(&other, &told), None, "{origin} {epoch}");
    }
    assert!(learnt(4, TimeQuality::Authenticated, &[SHIFT]).is_empty());
    assert!(
        learnt(6, TimeQuality::Floor, &[SHIFT]).is_empty(),
        "who does not know"
    );
    let again = LearntSpan { shift: -9, ..SHIFT };
    let mut both = learnt(9, TimeQuality::Authenticated, &[again]);
    both.extend(told);
    let known = real_time(&made(3), &both).unwrap();
    assert_eq!(known.secs, now().secs + 3 + 1_000, "the first counts");
}

#[test]
fn spans_that_are_none_are_refused() {
    let key = SigningKey::generate(&mut TestRng::new(1));
    let mut author = Author::new("gw1".parse().unwrap(), 1, site());
    for (first, last) in [(0, 3), (4, 3)] {
        let bad = LearntSpan {
            first,
            last,
            shift: 1,
        };
        let change = Change::TimeLearnt { spans: vec![bad] };
        let signed = author.write(now(), None, change, &key).unwrap();
        let read = SignedEntry::parse(signed.as_bytes());
        assert!(matches!(read, Err(RecordFault::Cbor(_))), "{read:?}");
    }
    let change = Change::TimeLearnt {
        spans: vec![SHIFT; MAX_SPANS + 1],
    };
    let signed = author.write(now(), None, change, &key).unwrap();
    assert!(SignedEntry::parse(signed.as_bytes()).is_err());
}
