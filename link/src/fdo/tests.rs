//! A run against a stub server that notes what it was sent.

use super::*;
use crate::dial::Security;
use holdfast_protocol::fdo::{Error as FdoError, ErrorCode};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// One request as it came over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    path: String,
    /// Lower case, without line ends, in order.
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.headers
            .iter()
            .find_map(|line| line.strip_prefix(&prefix))
    }
}

struct Stub {
    client: Client,
    seen: Arc<Mutex<Vec<Seen>>>,
    _task: AbortOnDropHandle<()>,
}

/// Gives the answers in turn, whatever is asked.
async fn stub(answers: Vec<String>) -> Stub {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Endpoint {
        addresses: vec![listener.local_addr().unwrap().to_string()],
        security: Security::Plain,
    };
    let seen = Arc::new(Mutex::new(Vec::new()));
    let notes = Arc::clone(&seen);
    let task = tokio::spawn(async move {
        let mut answers = answers.into_iter();
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = BufReader::new(stream);
            while let Some(request) = read(&mut stream).await {
                notes.lock().unwrap().push(request);
                let Some(answer) = answers.next() else { return };
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    });
    Stub {
        client: Client::new(endpoint, "/base/", https::Limits::default()),
        seen,
        _task: AbortOnDropHandle::new(task),
    }
}

async fn read(stream: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut first = String::new();
    if stream.read_line(&mut first).await.ok()? == 0 {
        return None;
    }
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        match line.trim_end() {
            "" => break,
            header => {
                let (name, value) = header.split_once(": ").unwrap();
                headers.push(format!("{}: {value}", name.to_lowercase()));
            }
        }
    }
    let mut seen = Seen {
        path: first.split(' ').nth(1).unwrap().to_owned(),
        headers,
        body: Vec::new(),
    };
    let length = seen
        .header("content-length")
        .expect("a length")
        .parse()
        .unwrap();
    seen.body.resize(length, 0);
    stream.read_exact(&mut seen.body).await.ok()?;
    Some(seen)
}

fn http(status: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}")
}

fn fdo(number: u8, token: &str, body: &str) -> String {
    let headers = format!(
        "content-type: application/cbor\r\nmessage-type: {number}\r\nauthorization: {token}\r\n"
    );
    http("200 OK", &headers, body)
}

fn message(kind: MessageType, body: &[u8]) -> Message {
    Message::new(kind, body.to_vec())
}

#[tokio::test]
async fn a_run_keeps_the_token_of_its_first_answer() {
    let stub = stub(vec![
        fdo(31, "Bearer first", "a"),
        fdo(33, "Bearer second", "bb"),
        fdo(33, "Bearer third", "c"),
        fdo(31, "Bearer fourth", "d"),
    ])
    .await;
    let mut run = stub.client.start();
    let answer = run
        .exchange(&message(MessageType::To1HelloRv, b"hello"))
        .await
        .unwrap();
    assert_eq!(answer, message(MessageType::To1HelloRvAck, b"a"));
    let answer = run
        .exchange(&message(MessageType::To1ProveToRv, b""))
        .await
        .unwrap();
    assert_eq!(answer, message(MessageType::To1RvRedirect, b"bb"));
    run.exchange(&message(MessageType::To1ProveToRv, b""))
        .await
        .unwrap();
    assert!(
        !format!("{run:?}").contains("first"),
        "a token is not printed"
    );
    // A new run begins without.
    let mut run = stub.client.start();
    run.exchange(&message(MessageType::To1HelloRv, b"x"))
        .await
        .unwrap();

    let seen = stub.seen.lock().unwrap().clone();
    let paths: Vec<_> = seen.iter().map(|seen| seen.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "/base/fdo/101/msg/30",
            "/base/fdo/101/msg/32",
            "/base/fdo/101/msg/32",
            "/base/fdo/101/msg/30"
        ]
    );
    let tokens: Vec<_> = seen
        .iter()
        .map(|seen| seen.header("authorization"))
        .collect();
    let first = Some("Bearer first");
    assert_eq!(tokens, [None, first, first, None]);
    for seen in &seen {
        assert_eq!(seen.header("content-type"), Some("application/cbor"));
        assert_eq!(seen.header("transfer-encoding"), None);
        assert_eq!(
            seen.header("content-length"),
            Some(seen.body.len().to_string().as_str())
        );
    }
    assert_eq!(seen[0].body, b"hello");
}

#[tokio::test]
async fn errors_are_read_under_every_status() {
    let body = "\u{3}\u{6}";
    for status in ["200 OK", "404 Not Found", "500 Internal Server Error"] {
        let stub = stub(vec![http(status, "message-type: 255\r\n", body)]).await;
        let error = stub
            .client
            .start()
            .exchange(&message(MessageType::To1HelloRv, b""))
            .await
            .unwrap_err();
        let Error::Refused { message, error } = error else {
            panic!("{status}: {error}");
        };
        assert_eq!(message, MessageType::To1HelloRv);
        assert_eq!(error.code, ErrorCode::Internal, "unreadable is code 500");
    }
    // Bare: no message type, but CBOR and not a success.
    let stub = stub(vec![http(
        "400 Bad Request",
        "content-type: application/cbor\r\n",
        "\u{1}",
    )])
    .await;
    let refused = stub
        .client
        .start()
        .exchange(&message(MessageType::To0Hello, b""))
        .await;
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_not_fdo_is_told_so() {
    let answers = [
        http("200 OK", "content-type: text/html\r\n", "<html>"),
        http("404 Not Found", "", "no"),
        http("200 OK", "message-type: 99\r\n", ""),
        http("200 OK", "message-type: 0x1f\r\n", ""),
        http("200 OK", "message-type: 287\r\n", ""),
        http(
            "301 Moved",
            "message-type: 31\r\nlocation: http://elsewhere/\r\n",
            "",
        ),
    ];
    for answer in answers {
        let stub = stub(vec![answer.clone()]).await;
        let got = stub
            .client
            .start()
            .exchange(&message(MessageType::To1HelloRv, b""))
            .await;
        assert!(
            matches!(got, Err(Error::NotFdo { .. })),
            "{answer}: {got:?}"
        );
    }
}

#[tokio::test]
async fn giving_up_tells_the_other_side_under_the_token_of_the_run() {
    let stub = stub(vec![fdo(61, "Bearer t", "x"), http("200 OK", "", "")]).await;
    let mut run = stub.client.start();
    run.exchange(&message(MessageType::To2HelloDevice, b""))
        .await
        .unwrap();
    let report = FdoError::NotFound
        .report(MessageType::To2ProveOvHdr)
        .unwrap();
    run.give_up(report.clone()).await;
    let seen = stub.seen.lock().unwrap().clone();
    assert_eq!(seen[1].path, "/base/fdo/101/msg/255");
    assert_eq!(seen[1].header("authorization"), Some("Bearer t"));
    assert_eq!(seen[1].body, report);
}

#[tokio::test]
async fn bodies_end_at_the_bound_of_fdo() {
    let exact = "x".repeat(MAX_BODY);
    let stub = stub(vec![
        fdo(31, "t", &exact),
        fdo(31, "t", &format!("{exact}x")),
    ])
    .await;
    let mut run = stub.client.start();
    let hello = message(MessageType::To1HelloRv, b"");
    assert_eq!(run.exchange(&hello).await.unwrap().body.len(), MAX_BODY);
    let error = run.exchange(&hello).await.unwrap_err();
    assert!(
        matches!(error, Error::Transport(https::Error::TooLarge(MAX_BODY))),
        "{error}"
    );
}
