//! The client against a small hyper server, and against servers that misbehave byte by byte.

use super::*;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

fn plain(addresses: &[&str]) -> Endpoint {
    Endpoint {
        addresses: addresses
            .iter()
            .map(|&address| address.to_owned())
            .collect(),
        security: Security::Plain,
    }
}

fn limits() -> Limits {
    Limits {
        per_address: Duration::from_millis(500),
        deadline: Duration::from_secs(2),
        body: 1000,
        ..Limits::default()
    }
}

struct Server {
    address: String,
    connections: Arc<AtomicUsize>,
    _task: AbortOnDropHandle<()>,
}

/// Answers with method, path, headers of interest and the length of the body; `/long` with as many
/// bytes as the query says, `/stream` the same without a length.
async fn answer(
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    let text = if parts.uri.path() == "/long" {
        "x".repeat(parts.uri.query().unwrap().parse().unwrap())
    } else {
        let header = |name: &str| {
            let value = parts.headers.get(name);
            value.map_or("-".to_owned(), |value| value.to_str().unwrap().to_owned())
        };
        format!(
            "{} {} host={} length={} encoding={} type={} got={}",
            parts.method,
            parts.uri.path(),
            header("host"),
            header("content-length"),
            header("transfer-encoding"),
            header("content-type"),
            bytes.len()
        )
    };
    Ok(hyper::Response::new(Full::new(Bytes::from(text))))
}

async fn server() -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let task = tokio::spawn(async move {
        let mut serving = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            counter.fetch_add(1, Ordering::SeqCst);
            serving.spawn(
                hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(answer)),
            );
        }
    });
    Server {
        address,
        connections,
        _task: AbortOnDropHandle::new(task),
    }
}

/// A server that reads a request and then does as told with the connection.
async fn misbehaving<F>(
    then: impl Fn(TcpStream) -> F + Send + 'static,
) -> (String, AbortOnDropHandle<()>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let task = tokio::spawn(async move {
        let mut serving = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            serving.spawn(then(stream));
        }
    });
    (address, AbortOnDropHandle::new(task))
}

async fn scripted(answer: &'static [u8]) -> (String, AbortOnDropHandle<()>) {
    misbehaving(move |mut stream| async move {
        let _ = stream.write_all(answer).await;
        let _ = stream.shutdown().await;
    })
    .await
}

#[tokio::test]
async fn requests_carry_their_length_and_connections_are_reused() {
    let server = server().await;
    let client = Client::new(plain(&[&server.address]), limits());
    for _ in 0..5 {
        let response = client.post("/in", "text/plain", "abc").await.unwrap();
        assert_eq!(response.status, StatusCode::OK);
        let expected = format!(
            "POST /in host={} length=3 encoding=- type=text/plain got=3",
            server.address
        );
        assert_eq!(response.body, expected);
        assert_eq!(response.peer.to_string(), server.address);
    }
    let response = client.post("/none", "text/plain", "").await.unwrap();
    assert!(response.body.starts_with(b"POST /none") && response.body.ends_with(b"got=0"));
    assert!(String::from_utf8_lossy(&response.body).contains("length=0 encoding=-"));
    let response = client.get("/get").await.unwrap();
    assert!(response.body.starts_with(b"GET /get"));
    assert_eq!(
        server.connections.load(Ordering::SeqCst),
        1,
        "one connection for all"
    );
}

#[tokio::test]
async fn requests_at_once_get_a_connection_each_and_few_are_kept() {
    let server = server().await;
    let client = Client::new(plain(&[&server.address]), limits());
    let mut all = JoinSet::new();
    for _ in 0..8 {
        let client = client.clone();
        all.spawn(async move { client.get("/").await.unwrap() });
    }
    assert_eq!(all.join_all().await.len(), 8);
    assert!(client.0.idle.lock().unwrap().len() <= limits().idle);
}

#[tokio::test]
async fn a_kept_connection_that_the_server_closed_is_replaced() {
    // Answers once per connection and then closes without having said so.
    let (address, _task) = scripted(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
    let client = Client::new(plain(&[&address]), limits());
    for _ in 0..5 {
        assert_eq!(client.get("/").await.unwrap().body, "ok");
        // The close reaches us before the next request is tried.
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn addresses_are_tried_in_order() {
    let server = server().await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap().to_string()
    };
    // A listener that accepts nothing: TCP answers, so the request goes there and is lost.
    let client = Client::new(plain(&[&closed, &server.address]), limits());
    assert_eq!(
        client.get("/").await.unwrap().peer.to_string(),
        server.address
    );

    let client = Client::new(plain(&[&closed]), limits());
    let error = client.get("/").await.unwrap_err();
    assert!(
        matches!(error, Error::Dial(DialError::Connect { .. })),
        "{error}"
    );
    let error = Client::new(plain(&[]), limits())
        .get("/")
        .await
        .unwrap_err();
    assert!(
        matches!(error, Error::Dial(DialError::NoAddress)),
        "{error}"
    );
    let client = Client::new(plain(&["no.such.name.invalid:1"]), limits());
    let error = client.get("/").await.unwrap_err();
    assert!(
        error.to_string().contains("no.such.name.invalid:1"),
        "{error}"
    );
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = server().await;
    let client = Client::new(plain(&[&server.address]), limits());
    // The control: what just fits comes through.
    assert_eq!(client.get("/long?1000").await.unwrap().body.len(), 1000);
    let error = client.get("/long?1001").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge(1000)), "{error}");

    // Declared only: refused at once, not at the deadline.
    let (address, _task) = misbehaving(|mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n";
        let _ = stream.write_all(head).await;
        std::future::pending::<()>().await;
    })
    .await;
    let error = Client::new(plain(&[&address]), limits())
        .get("/")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge(1000)), "{error}");

    // No length told, chunks without end.
    let (address, _task) = misbehaving(|mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
        let mut sent = stream.write_all(head).await;
        while sent.is_ok() {
            sent = stream.write_all(b"10\r\n0123456789abcdef\r\n").await;
        }
    })
    .await;
    let error = Client::new(plain(&[&address]), limits())
        .get("/")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::TooLarge(1000)), "{error}");
}

#[tokio::test]
async fn slow_and_silent_servers_meet_the_deadline() {
    let begun = tokio::time::Instant::now();
    let (slow, _task) = misbehaving(|mut stream| async move {
        let head = b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n";
        let mut sent = stream.write_all(head).await;
        while sent.is_ok() {
            sent = stream.write_all(b"x").await;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let (silent, _task) = misbehaving(|stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let one = Client::new(plain(&[&slow]), limits());
    let two = Client::new(plain(&[&silent]), limits());
    let (one, two) = tokio::join!(one.get("/"), two.get("/"));
    assert!(matches!(one, Err(Error::Deadline(_))), "{one:?}");
    assert!(matches!(two, Err(Error::Deadline(_))), "{two:?}");
    assert!(begun.elapsed() < Duration::from_secs(4));
}

#[tokio::test]
async fn garbage_is_refused() {
    let answers: [&'static [u8]; 7] = [
        b"",
        b"\0\0\0\0\0\0\0\0",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 999999 what\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nab\r\n",
    ];
    for answer in answers {
        let (address, _task) = scripted(answer).await;
        let got = Client::new(plain(&[&address]), limits()).get("/").await;
        let text = String::from_utf8_lossy(answer);
        assert!(matches!(got, Err(Error::Broken(_))), "{text}: {got:?}");
    }
}

#[tokio::test]
async fn headers_without_end_are_refused() {
    let (address, _task) = misbehaving(|mut stream| async move {
        let mut sent = stream.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while sent.is_ok() {
            sent = stream
                .write_all(b"x-more: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n")
                .await;
        }
    })
    .await;
    let got = Client::new(plain(&[&address]), limits()).get("/").await;
    assert!(matches!(got, Err(Error::Broken(_))), "{got:?}");
}

#[tokio::test]
async fn misuse_is_told_before_anything_is_dialled() {
    let client = Client::new(plain(&[]), limits());
    for path in ["", "no-slash", "/with space", "http://elsewhere/"] {
        let error = client.get(path).await.unwrap_err();
        assert!(matches!(error, Error::BadRequest(_)), "{path}: {error}");
    }
}
