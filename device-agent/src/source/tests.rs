//! The sensors: every shape of a CSV row, restarts at every row, replaced and growing files, lines.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::csv::Rows;
use super::*;
use crate::outbox::Numbering;
use crate::status::Board;

fn all(path: &Path, kept: Option<Position>) -> (Vec<String>, Position) {
    let mut rows = Rows::open(path, kept).unwrap();
    let mut found = Vec::new();
    while let Some(row) = rows.next(false).unwrap() {
        found.push(String::from_utf8(row).unwrap());
    }
    (found, rows.position)
}

fn file(content: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data.csv");
    fs::write(&path, content).unwrap();
    (folder, path)
}

#[test]
fn rows_become_objects_and_numbers_keep_their_digits() {
    let cases: [(&str, &str); 14] = [
        ("1,2", r#"{"a":1,"b":2}"#),
        ("12.80,-0.5e+10", r#"{"a":12.80,"b":-0.5e+10}"#),
        ("007,+1", r#"{"a":"007","b":"+1"}"#),
        ("NaN,1.", r#"{"a":"NaN","b":"1."}"#),
        (".5,1e", r#"{"a":".5","b":"1e"}"#),
        ("0,-", r#"{"a":0,"b":"-"}"#),
        (",", r#"{"a":null,"b":null}"#),
        ("\"\",x", r#"{"a":null,"b":"x"}"#),
        (
            "\"a,b\",\"say \"\"so\"\"\"",
            r#"{"a":"a,b","b":"say \"so\""}"#,
        ),
        ("\"two\nlines\",2", r#"{"a":"two\nlines","b":2}"#),
        ("tab\t,\u{1}", r#"{"a":"tab\t","b":"\u0001"}"#),
        ("é,日", r#"{"a":"é","b":"日"}"#),
        ("2012-01-01, 5", r#"{"a":"2012-01-01","b":" 5"}"#),
        ("\"1\",true", r#"{"a":1,"b":"true"}"#),
    ];
    for (row, expected) in cases {
        for end in ["", "\n", "\r\n"] {
            let (_folder, path) = file(format!("a,b\n{row}{end}").as_bytes());
            assert_eq!(all(&path, None).0, [expected], "{row:?}{end:?}");
            serde_json::from_str::<serde_json::Value>(expected).unwrap();
        }
    }
}

#[test]
fn what_is_no_row_is_left_out_counted_and_does_not_take_others_with_it() {
    let long = "x".repeat(70_000);
    let bad: [Vec<u8>; 7] = [
        b"only one".to_vec(),
        b"1,2,3".to_vec(),
        b"\"x\"y,2".to_vec(),
        b"\xff,2".to_vec(),
        format!("{long},2").into_bytes(),
        format!("{long}{long}").into_bytes(),
        b"5\" pipe,2,\"".to_vec(),
    ];
    for row in bad {
        let content = [b"a,b\n1,1\n".as_slice(), &row, b"\n\n3,3\r\n"].concat();
        let (_folder, path) = file(&content);
        let (found, position) = all(&path, None);
        let shown = String::from_utf8_lossy(&row[..row.len().min(20)]).into_owned();
        assert_eq!(found, [r#"{"a":1,"b":1}"#, r#"{"a":3,"b":3}"#], "{shown}");
        assert_eq!((position.taken, position.skipped), (2, 1), "{shown}");
        assert_eq!(position.offset, content.len() as u64, "{shown}");
    }
}

#[test]
fn a_quote_that_nothing_closes_costs_its_line_only() {
    let rows: String = (0..20_000).map(|n| format!("{n},{n}\n")).collect();
    let (_folder, path) = file(format!("a,b\n1,\"open\n{rows}").as_bytes());
    let (found, position) = all(&path, None);
    assert_eq!((found.len(), position.skipped), (20_000, 1));
}

#[test]
fn headers_that_are_none_are_refused() {
    for header in ["", "a,a\n", "a,\n", "\"open\n", "a,b,\"\"\n"] {
        let (_folder, path) = file(header.as_bytes());
        assert!(Rows::open(&path, None).is_err(), "{header:?}");
    }
    let (_folder, path) = file(b"\xef\xbb\xbfa\n1\n");
    assert_eq!(all(&path, None).0, [r#"{"a":1}"#]);
    assert!(Rows::open(Path::new("/nowhere/data.csv"), None).is_err());
}

/// Stopped after any row and opened again, also across the bound up to which the file's start is
/// remembered, the rest comes and nothing twice.
#[test]
fn goes_on_after_any_row() {
    let rows: String = (0..300).map(|n| format!("{n},\"value\n{n}\"\n")).collect();
    let (_folder, path) = file(format!("n,text\n{rows}").as_bytes());
    let (expected, _) = all(&path, None);
    assert_eq!(expected.len(), 300);
    let mut kept = None;
    for row in &expected {
        let mut rows = Rows::open(&path, kept.take()).unwrap();
        assert_eq!(rows.next(false).unwrap().unwrap(), row.as_bytes());
        // As it comes back from the outbox.
        kept = serde_json::from_slice(&rows.position.encode()).unwrap();
    }
    assert_eq!(all(&path, kept).0, Vec::<String>::new());
}

#[test]
fn another_file_is_not_taken_for_the_one_before() {
    let (_folder, path) = file(b"n\n1\n2\n3\n");
    let mut rows = Rows::open(&path, None).unwrap();
    rows.next(false).unwrap().unwrap();
    rows.next(false).unwrap().unwrap();
    let kept = rows.position;
    for (content, expected) in [
        ("n\n1\n2\n3\n4\n", vec![r#"{"n":3}"#, r#"{"n":4}"#]),
        (
            "n\n7\n8\n9\n",
            vec![r#"{"n":7}"#, r#"{"n":8}"#, r#"{"n":9}"#],
        ),
        ("n\n5\n", vec![r#"{"n":5}"#]),
        (
            "m\n1\n2\n3\n",
            vec![r#"{"m":1}"#, r#"{"m":2}"#, r#"{"m":3}"#],
        ),
    ] {
        fs::write(&path, content).unwrap();
        assert_eq!(all(&path, Some(kept.clone())).0, expected, "{content:?}");
    }
}

#[test]
fn a_growing_file_gives_whole_rows_only() {
    let (_folder, path) = file(b"n,m\n1,1\n2,");
    let mut rows = Rows::open(&path, None).unwrap();
    assert_eq!(rows.next(true).unwrap().unwrap(), br#"{"n":1,"m":1}"#);
    assert_eq!(rows.next(true).unwrap(), None);
    let mut writer = fs::File::options().append(true).open(&path).unwrap();
    for (more, expected) in [
        ("2", None),
        ("\n3,\"two\n", Some(r#"{"n":2,"m":22}"#)),
        ("lines\"\n", Some(r#"{"n":3,"m":"two\nlines"}"#)),
    ] {
        if more == "2" {
            writer.write_all(b"2").unwrap();
        }
        writer.write_all(more.as_bytes()).unwrap();
        let found = rows
            .next(true)
            .unwrap()
            .map(|row| String::from_utf8(row).unwrap());
        assert_eq!(found.as_deref(), expected, "after {more:?}");
    }
}

fn readings(outbox: &Outbox) -> Vec<String> {
    let rows = outbox.after(0, usize::MAX).unwrap();
    rows.into_iter()
        .map(|row| String::from_utf8(row.reading).unwrap())
        .collect()
}

/// The agent is stopped again and again in mid-file; the outbox ends with each row once, in order.
#[tokio::test]
async fn a_file_is_played_once_across_restarts() {
    let rows: String = (0..120).map(|n| format!("{n}\n")).collect();
    let (folder, path) = file(format!("n\n{rows}").as_bytes());
    let board = Board::default();
    let source = Source {
        name: "weather".into(),
        input: Input::Csv {
            file: path,
            interval: Duration::from_millis(1),
            follow: false,
        },
        to: crate::config::Destination::Site,
    };
    for stop in 0.. {
        let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
        let run = run(source.clone(), outbox.clone(), board.clone());
        if tokio::time::timeout(Duration::from_millis(15 + stop), run)
            .await
            .is_ok()
        {
            break;
        }
    }
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    let expected: Vec<_> = (0..120).map(|n| format!(r#"{{"n":{n}}}"#)).collect();
    assert_eq!(readings(&outbox), expected);
    let shown = board.now().sources["weather"];
    assert_eq!((shown.taken, shown.ended), (120, true));
}

#[tokio::test]
async fn lines_are_readings_as_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let outbox = Outbox::open(folder.path(), Numbering::Each, 1 << 20, 1).unwrap();
    let board = Board::default();
    let long = "y".repeat(crate::outbox::MAX_READING + 1);
    let input = format!("one\r\n\n  two\n{long}\n{long}{long}\nthree");
    lines::run(
        "in",
        std::io::Cursor::new(input.into_bytes()),
        &outbox,
        &board,
    )
    .await;
    assert_eq!(readings(&outbox), ["one", "  two", "three"]);
    let shown = board.now().sources["in"];
    assert_eq!((shown.taken, shown.skipped), (3, 2));
    lines::run("in", &b"four\n"[..], &outbox, &board).await;
    assert_eq!(readings(&outbox).len(), 4);
    assert_eq!(board.now().sources["in"].taken, 4);
}
