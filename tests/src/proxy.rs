//! The uplink as a cuttable wire: a TCP proxy that can fall silent, reset everything or be slow.
//! Called by `world`; all its wires share one switch. It is on the path of bytes only and reads none of them.
//!
//! A silent cut holds the bytes, as packets that are lost and sent again by TCP would be: what was on its way arrives
//! when the wire is whole again, unless an end gave up in the meantime. A user-space proxy cannot swallow the SYN of
//! a new connection: it is accepted and then hears nothing.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Bytes taken from a connection at once.
const CHUNK: usize = 16 * 1024;
/// Connections carried at once on one wire.
const MOST_CONNECTIONS: usize = 512;

/// What happens to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// They pass.
    Open,
    /// They are held and nothing is said.
    Silent,
    /// Connections are reset, new ones at once.
    Reset,
}

/// The switch's position: a mode, and a delay for each chunk that passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Position {
    mode: Mode,
    delay: Duration,
}

/// A bundle of wires that are cut together. Dropping it closes them.
#[derive(Debug)]
pub struct Proxy {
    switch: watch::Sender<Position>,
    wires: JoinSet<()>,
}

impl Default for Proxy {
    fn default() -> Self {
        Self::new()
    }
}

impl Proxy {
    /// No wire yet; open.
    #[must_use]
    pub fn new() -> Self {
        let (switch, _) = watch::channel(Position {
            mode: Mode::Open,
            delay: Duration::ZERO,
        });
        Self {
            switch,
            wires: JoinSet::new(),
        }
    }

    /// Adds a wire: what connects to `near` is carried to `far`. Returns the address it listens on.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn wire(&mut self, near: SocketAddr, far: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(near).await?;
        let address = listener.local_addr()?;
        self.wires
            .spawn(accept(listener, far, self.switch.subscribe()));
        Ok(address)
    }

    /// Puts the switch into `mode`, for what is open and what comes.
    pub fn set(&self, mode: Mode) {
        self.switch.send_modify(|position| position.mode = mode);
    }

    /// Each chunk waits so long before it goes on.
    pub fn set_delay(&self, delay: Duration) {
        self.switch.send_modify(|position| position.delay = delay);
    }
}

async fn accept(listener: TcpListener, far: SocketAddr, switch: watch::Receiver<Position>) {
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if open.len() < MOST_CONNECTIONS => {
                if let Ok((near, _)) = accepted {
                    open.spawn(connect(near, far, switch.clone()));
                }
            }
            Some(_) = open.join_next() => {}
        }
    }
}

async fn connect(near: TcpStream, far: SocketAddr, mut switch: watch::Receiver<Position>) {
    let is_open = switch
        .wait_for(|position| position.mode != Mode::Silent)
        .await;
    if is_open.is_ok_and(|position| position.mode == Mode::Reset) {
        reset(&near);
        return;
    }
    match TcpStream::connect(far).await {
        Ok(far) => carry(near, far, switch).await,
        Err(_) => reset(&near),
    }
}

/// Carries both ways until both ends are done or the switch says reset.
async fn carry(mut near: TcpStream, mut far: TcpStream, switch: watch::Receiver<Position>) {
    let was_reset = {
        let (near_read, near_write) = near.split();
        let (far_read, far_write) = far.split();
        let both = async {
            tokio::join!(
                pump(near_read, far_write, switch.clone()),
                pump(far_read, near_write, switch.clone()),
            )
        };
        let mut watched = switch.clone();
        tokio::select! {
            biased;
            outcome = watched.wait_for(|position| position.mode == Mode::Reset) => outcome.is_ok(),
            _ = both => false,
        }
    };
    if was_reset {
        reset(&near);
        reset(&far);
    }
}

/// One direction. Ends when the sender is done, an end fails or the proxy goes.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut switch: watch::Receiver<Position>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        if passable(&mut switch).await.is_none() {
            return;
        }
        let read = from.read(&mut buffer).await;
        // The cut may have come while this end was quiet: what was read then stays here until it is over.
        let Some(delay) = passable(&mut switch).await else {
            return;
        };
        let Ok(count @ 1..) = read else {
            // An end of stream is carried on; a failed read ends the direction the same way.
            let _ = to.shutdown().await;
            return;
        };
        sleep(delay).await;
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Waits while the wire is silent; the delay to keep, or `None` when the proxy is gone or resets.
async fn passable(switch: &mut watch::Receiver<Position>) -> Option<Duration> {
    let position = *switch
        .wait_for(|position| position.mode != Mode::Silent)
        .await
        .ok()?;
    (position.mode == Mode::Open).then_some(position.delay)
}

/// Makes the coming close a reset instead of an orderly end.
fn reset(stream: &TcpStream) {
    // A stream that is gone already needs no reset.
    let _ = stream.set_zero_linger();
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::time::timeout;

    use super::*;

    const SHORT: Duration = Duration::from_millis(150);
    const LONG: Duration = Duration::from_secs(5);

    /// A proxy before a server that sends back what it gets, and a connection through it.
    async fn echo_behind_proxy() -> (Proxy, SocketAddr, TcpStream) {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = TcpListener::bind(any).await.unwrap();
        let far = server.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        let mut proxy = Proxy::new();
        let near = proxy.wire(any, far).await.unwrap();
        let stream = TcpStream::connect(near).await.unwrap();
        (proxy, near, stream)
    }

    async fn say(stream: &mut TcpStream, text: &[u8]) {
        stream.write_all(text).await.unwrap();
    }

    async fn hear(stream: &mut TcpStream, count: usize) -> Vec<u8> {
        let mut buffer = vec![0; count];
        timeout(LONG, stream.read_exact(&mut buffer))
            .await
            .expect("in time")
            .unwrap();
        buffer
    }

    #[tokio::test]
    async fn open_carries_both_ways() {
        let (_proxy, _, mut stream) = echo_behind_proxy().await;
        say(&mut stream, b"hello").await;
        assert_eq!(hear(&mut stream, 5).await, b"hello");
    }

    #[tokio::test]
    async fn silence_holds_bytes_and_connections_and_gives_them_back() {
        let (proxy, near, mut stream) = echo_behind_proxy().await;
        say(&mut stream, b"a").await;
        hear(&mut stream, 1).await;
        proxy.set(Mode::Silent);
        say(&mut stream, b"b").await;
        let mut late = TcpStream::connect(near).await.unwrap();
        say(&mut late, b"c").await;
        let mut byte = [0; 1];
        assert!(
            timeout(SHORT, stream.read(&mut byte)).await.is_err(),
            "bytes passed a silent cut"
        );
        assert!(
            timeout(SHORT, late.read(&mut byte)).await.is_err(),
            "a new connection passed a silent cut"
        );
        proxy.set(Mode::Open);
        assert_eq!(hear(&mut stream, 1).await, b"b");
        assert_eq!(hear(&mut late, 1).await, b"c");
    }

    #[tokio::test]
    async fn reset_ends_what_is_open_and_what_comes() {
        let (proxy, near, mut stream) = echo_behind_proxy().await;
        say(&mut stream, b"a").await;
        hear(&mut stream, 1).await;
        proxy.set(Mode::Reset);
        let mut byte = [0; 1];
        let ended = timeout(LONG, stream.read(&mut byte))
            .await
            .expect("in time");
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let mut late = TcpStream::connect(near).await.unwrap();
        let ended = timeout(LONG, late.read(&mut byte)).await.expect("in time");
        assert!(!matches!(ended, Ok(1)));
    }

    #[tokio::test]
    async fn delay_is_kept() {
        let (proxy, _, mut stream) = echo_behind_proxy().await;
        proxy.set_delay(SHORT);
        let began = tokio::time::Instant::now();
        say(&mut stream, b"a").await;
        hear(&mut stream, 1).await;
        assert!(
            began.elapsed() >= SHORT * 2,
            "there and back take the delay twice"
        );
    }
}
