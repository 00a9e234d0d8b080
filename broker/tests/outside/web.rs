//! The other doors: WebSocket, and users with passwords.

use std::sync::Arc;

use futures_util::{Sink, Stream};
use holdfast_broker::{Config, Door, Origins, Passwords};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;

use crate::common::{Hello, Server, Wire};
use crate::kit::{VERSIONS, door, server};

async fn next<T>(stream: &mut (impl Stream<Item = T> + Unpin)) -> Option<T> {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *stream).poll_next(cx)).await
}

async fn put<T, E: std::fmt::Debug>(sink: &mut (impl Sink<T, Error = E> + Unpin), item: T) {
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *sink).poll_ready(cx))
        .await
        .unwrap();
    std::pin::Pin::new(&mut *sink).start_send(item).unwrap();
    std::future::poll_fn(|cx| std::pin::Pin::new(&mut *sink).poll_flush(cx))
        .await
        .unwrap();
}

type Frames = WebSocketStream<TcpStream>;

async fn handshake(
    address: std::net::SocketAddr,
    protocols: Option<&str>,
    origin: Option<&str>,
) -> Result<(Frames, Option<String>), u16> {
    let mut request = format!("ws://{address}/mqtt")
        .into_client_request()
        .unwrap();
    let headers = request.headers_mut();
    if let Some(protocols) = protocols {
        headers.insert("Sec-WebSocket-Protocol", protocols.parse().unwrap());
    }
    if let Some(origin) = origin {
        headers.insert("Origin", origin.parse().unwrap());
    }
    let stream = TcpStream::connect(address).await.unwrap();
    match tokio_tungstenite::client_async(request, stream).await {
        Ok((frames, response)) => {
            let chosen = response.headers().get("Sec-WebSocket-Protocol");
            Ok((frames, chosen.map(|name| name.to_str().unwrap().to_owned())))
        }
        Err(tokio_tungstenite::tungstenite::Error::Http(response)) => {
            Err(response.status().as_u16())
        }
        Err(_) => Err(0),
    }
}

/// A client whose bytes go in frames of at most `step` bytes, whatever packets they belong to.
fn wire(mut frames: Frames, step: usize) -> Wire<DuplexStream> {
    let (mine, mut other) = tokio::io::duplex(1 << 20);
    tokio::spawn(async move {
        let mut buffer = vec![0; step];
        loop {
            tokio::select! {
                read = other.read(&mut buffer) => {
                    let Ok(length @ 1..) = read else { return };
                    put(&mut frames, Message::Binary(buffer[..length].to_vec().into())).await;
                }
                frame = next(&mut frames) => match frame {
                    Some(Ok(Message::Binary(bytes))) => other.write_all(&bytes).await.unwrap(),
                    Some(Ok(_)) => {}
                    _ => return,
                },
            }
        }
    });
    Wire::new(mine)
}

#[tokio::test]
async fn mqtt5_6_0_0_2_packets_and_websocket_frames_need_not_coincide() {
    let server = server().await;
    let (address, _cancel) = door(
        &server,
        Door::WebSocket(Box::new(Door::Plain), Origins::None),
    )
    .await;
    let large = "x".repeat(100_000);
    for v5 in VERSIONS {
        for step in [1, 7, 4096] {
            let (frames, chosen) = handshake(address, Some("chat, mqtt"), None).await.unwrap();
            assert_eq!(chosen.as_deref(), Some("mqtt"), "[MQTT-6.0.0-4]");
            let mut web = wire(frames, step);
            web.v5 = v5;
            let mut hello = Hello::v5("web");
            hello.v5 = v5;
            web.send(&hello.bytes()).await;
            web.connack(0).await;
            web.subscribe("a/#", 2).await;
            let mut other = server.v5("other").await;
            other.publish("a/b", 2, "to the web").await;
            assert_eq!(web.receive().await.text(), "to the web");
            other.subscribe("b", 1).await;
            web.publish("b", 1, "from the web").await;
            assert_eq!(other.receive().await.text(), "from the web");
            if step == 4096 {
                other.publish("a/large", 1, &large).await;
                assert_eq!(web.receive().await.text(), large);
                web.publish("b", 2, &large).await;
                assert_eq!(other.receive().await.text(), large);
            }
            web.disconnect().await;
        }
    }
}

#[tokio::test]
async fn mqtt5_6_0_0_1_and_3_only_mqtt_in_binary_frames_is_served() {
    let server = server().await;
    let (address, _cancel) = door(
        &server,
        Door::WebSocket(Box::new(Door::Plain), Origins::None),
    )
    .await;
    for protocols in [None, Some("chat"), Some("mqttv3.1")] {
        assert_eq!(handshake(address, protocols, None).await.err(), Some(400));
    }
    let (mut frames, _) = handshake(address, Some("mqtt"), None).await.unwrap();
    let hello = String::from_utf8(Hello::v3("text").bytes()).unwrap();
    put(&mut frames, Message::Text(hello.into())).await;
    while let Some(Ok(frame)) = next(&mut frames).await {
        assert!(!matches!(frame, Message::Binary(_)), "served in text");
    }
    assert_eq!(server.broker.metrics().sessions, 0);
    // What is no WebSocket at all gets nowhere either.
    let stream = TcpStream::connect(address).await.unwrap();
    let mut raw = Wire::new(stream);
    raw.send(&Hello::v3("raw").bytes()).await;
    raw.stream.shutdown().await.unwrap();
    let mut answer = Vec::new();
    let _ = raw.stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(&[0x20]), "{answer:?}");
    assert_eq!(server.broker.metrics().sessions, 0);
}

#[tokio::test]
async fn pages_of_other_origins_are_kept_out() {
    let server = server().await;
    let known = "https://console.example";
    for (origins, ours, other) in [
        (Origins::None, false, false),
        (Origins::Only(vec![known.into()]), true, false),
        (Origins::Any, true, true),
    ] {
        let (address, _cancel) =
            door(&server, Door::WebSocket(Box::new(Door::Plain), origins)).await;
        for (origin, allowed) in [
            (None, true),
            (Some(&format!("http://{address}")[..]), true),
            (Some("http://127.0.0.1:1"), other),
            (Some(known), ours),
            (Some("https://console.example.evil"), other),
            (Some("null"), other),
        ] {
            let found = handshake(address, Some("mqtt"), origin).await;
            assert_eq!(found.err(), (!allowed).then_some(403), "{origin:?}");
        }
    }
}

#[tokio::test]
async fn a_frame_above_the_packet_limit_ends_the_connection() {
    let mut config = Config::default();
    config.limits.packet_bytes = 1000;
    let server = Server::start(config).await;
    let (address, _cancel) = door(
        &server,
        Door::WebSocket(Box::new(Door::Plain), Origins::None),
    )
    .await;
    let (mut frames, _) = handshake(address, Some("mqtt"), None).await.unwrap();
    put(&mut frames, Message::Binary(Hello::v3("x").bytes().into())).await;
    assert!(matches!(
        next(&mut frames).await,
        Some(Ok(Message::Binary(_)))
    ));
    put(&mut frames, Message::Binary(vec![0; 2000].into())).await;
    while let Some(Ok(_)) = next(&mut frames).await {}
    crate::kit::until("gone", || server.broker.metrics().connections == 0).await;
}

#[tokio::test]
async fn a_door_with_passwords_lets_in_its_users_alone() {
    let server = server().await;
    let file = format!(
        "{}\n{}\n",
        Passwords::line("meter", b"right").unwrap(),
        Passwords::line("pump", b"other").unwrap()
    );
    let passwords = Arc::new(Passwords::parse(&file).unwrap());
    let (address, _cancel) = door(
        &server,
        Door::Passwords(Box::new(Door::Plain), Arc::clone(&passwords)),
    )
    .await;
    for v5 in VERSIONS {
        let connect = async |user: Option<&str>, password: Option<&[u8]>| {
            let mut hello = Hello::v5("device");
            hello.v5 = v5;
            hello.user = user.map(Into::into);
            hello.password = password.map(<[u8]>::to_vec);
            let mut wire = Wire::new(TcpStream::connect(address).await.unwrap());
            wire.v5 = v5;
            wire.send(&hello.bytes()).await;
            let (_, body) = wire.packet().await.unwrap();
            body[1]
        };
        assert_eq!(connect(Some("meter"), Some(b"right")).await, 0);
        let refused = if v5 { 0x86 } else { 4 };
        for (user, password) in [
            (None, None),
            (Some("meter"), None),
            (Some("meter"), Some(&b"other"[..])),
            (Some("nobody"), Some(b"right")),
            (Some("meter:x"), Some(b"right")),
        ] {
            assert_eq!(connect(user, password).await, refused, "{user:?} {v5}");
        }
        // The users change at run time; a text that is wrong changes nothing.
        passwords.replace("meter:nonsense").unwrap_err();
        assert_eq!(connect(Some("meter"), Some(b"right")).await, 0);
        passwords
            .replace(file.lines().next_back().unwrap())
            .unwrap();
        assert_eq!(connect(Some("meter"), Some(b"right")).await, refused);
        passwords.replace(&file).unwrap();
    }
}
