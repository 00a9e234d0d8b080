//! TO1 by hand: the test as a device that keeps its token and its proof, to send them where and when it wants.

use std::net::SocketAddr;

use holdfast_protocol::credential::DeviceCredential;
use holdfast_protocol::fdo::{ErrorMessage, Message, MessageType, to1};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// An answer as it came.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Number of the message.
    pub(crate) kind: u8,
    token: String,
    body: Vec<u8>,
}

impl Answer {
    /// The code, if it is an error (255).
    pub(crate) fn error_code(&self) -> Option<u16> {
        let error = ErrorMessage::parse(&self.body);
        (self.kind == 255).then(|| error.code.number())
    }
}

/// A run after message 31.
pub(crate) struct Run {
    token: String,
    proof: Message,
}

impl Run {
    /// Sends 30 and keeps what 31 brings.
    pub(crate) async fn begin(at: SocketAddr, credential: &DeviceCredential) -> Self {
        let (state, hello) = to1::hello(credential);
        let answer = post(at, &hello, "").await;
        assert_eq!(answer.kind, 31, "{answer:?}");
        let message = Message::new(MessageType::To1HelloRvAck, answer.body.clone());
        let (_, proof) = state.step(&message).unwrap();
        let token = answer.token;
        Self { token, proof }
    }

    /// Sends 32 to this server.
    pub(crate) async fn proves_at(&self, at: SocketAddr) -> Answer {
        post(at, &self.proof, &self.token).await
    }
}

async fn post(at: SocketAddr, message: &Message, token: &str) -> Answer {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let head = format!(
        "POST /fdo/101/msg/{} HTTP/1.1\r\nhost: {at}\r\ncontent-type: application/cbor\r\nauthorization: {token}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        message.kind,
        message.body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&message.body).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap();
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let header = |name: &str| {
        let line = head.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    // Tokens are case sensitive: taken from the bytes as they came.
    let original = String::from_utf8_lossy(&answer[..end]).into_owned();
    let token = original
        .lines()
        .find(|line| line.to_ascii_lowercase().starts_with("authorization:"));
    let token = token
        .and_then(|line| line.split_once(':'))
        .map(|(_, value)| value.trim().to_owned());
    Answer {
        kind: header("message-type:").parse().unwrap_or(0),
        token: token.unwrap_or_default(),
        body: answer[end + 4..].to_vec(),
    }
}
