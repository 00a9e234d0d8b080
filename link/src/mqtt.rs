//! An MQTT 5 (and, for foreign brokers, 3.1.1) client for one connection: a pipe that keeps no
//! message for itself.
//!
//! Called by the bridge, the agent and the drill's tools. One [`connect`] is one connection: when it
//! ends, every message not yet settled is reported [`Outcome::Lost`] and the caller, who has the
//! message, sends it again over the next. QoS 0 and 1. Everything is bounded: the in-flight window,
//! the bytes waiting to be written, the messages waiting to be taken. Never reconnects by itself.

mod client;
mod message;
mod options;
mod outcome;
mod packet;
mod pump;
mod session;
mod shared;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

pub use client::{Client, Inbox};
pub use message::{Incoming, Publish, Qos, UserProperty};
pub use options::{Granted, LARGEST_WINDOW, Login, Options, Version};
pub use outcome::{
    ConnectError, Ended, Outcome, PublishError, ReasonCode, Settled, SubscribeError,
};

use crate::dial::{self, Stream};
use pump::{MAILBOX, Pace, PingState, Pump};
use session::{Accepted, Happening, Session};
use shared::Shared;

/// Dials, says CONNECT and waits for the server's word.
///
/// # Errors
/// See [`ConnectError`].
pub async fn connect(options: Options) -> Result<(Client, Inbox, Granted), ConnectError> {
    let mut session =
        Session::begin(&options).map_err(|error| ConnectError::BadOptions(error.to_string()))?;
    let (mut stream, peer) = dial::dial(&options.endpoint, options.connect_timeout).await?;
    let greeting = greet(&mut session, &mut stream);
    let (accepted, early, rest) = timeout(options.connect_timeout, greeting)
        .await
        .map_err(|_| ConnectError::Timeout(options.connect_timeout))??;
    let granted = grant(&options, accepted, peer);
    let (client, inbox, pump) = assemble(&options, session, granted.clone());
    let task = tokio::spawn(pump.run(stream, early, rest));
    let client = Client {
        _task: Arc::new(AbortOnDropHandle::new(task)),
        shared: client.0,
        mailbox: client.1,
    };
    Ok((client, inbox, granted))
}

/// Writes CONNECT, reads until CONNACK; gives what came behind it too.
async fn greet(
    session: &mut Session,
    stream: &mut Stream,
) -> Result<(Accepted, Vec<Happening>, BytesMut), ConnectError> {
    let broken = |error: std::io::Error| ConnectError::Broken(error.to_string());
    let out = std::mem::take(&mut session.out);
    stream.write_all(&out).await.map_err(broken)?;
    stream.flush().await.map_err(broken)?;
    let mut read = BytesMut::with_capacity(FIRST_READ);
    loop {
        if stream.read_buf(&mut read).await.map_err(broken)? == 0 {
            let text = "it closed without an answer";
            return Err(ConnectError::Broken(text.to_owned()));
        }
        let mut happenings = Vec::new();
        let taken = session.receive(&read, &mut happenings);
        read.advance(taken);
        if happenings.is_empty() {
            continue;
        }
        return match happenings.remove(0) {
            Happening::Accepted(accepted) => Ok((accepted, happenings, read)),
            Happening::Refused(code) => Err(ConnectError::Refused(code)),
            Happening::Ended(ended) => Err(ConnectError::Broken(ended.to_string())),
            _ => Err(ConnectError::Broken("a packet before CONNACK".to_owned())),
        };
    }
}

/// Enough for a CONNACK with its properties.
const FIRST_READ: usize = 4096;

fn grant(options: &Options, accepted: Accepted, peer: std::net::SocketAddr) -> Granted {
    let keep_alive = accepted.keep_alive.unwrap_or(options.keep_alive_secs());
    Granted {
        session_present: accepted.session_present,
        window: options
            .window
            .min(accepted.receive_maximum)
            .clamp(1, LARGEST_WINDOW),
        max_packet: accepted.max_packet,
        acknowledges: accepted.acknowledges,
        retains: accepted.retains,
        keep_alive: Duration::from_secs(u64::from(keep_alive)),
        user: accepted.user,
        peer,
    }
}

type Sending = (Arc<Shared>, mpsc::Sender<pump::Command>);

fn assemble(options: &Options, session: Session, granted: Granted) -> (Sending, Inbox, Pump) {
    let loose_bound = usize::from(options.loose_bound);
    let (inbox_sender, messages) = mpsc::channel(session::owed_bound(options) + loose_bound);
    let (mailbox, commands) = mpsc::channel(MAILBOX);
    // A server's keep-alive of 0 means that it does not watch; ours still measures.
    let half = match granted.keep_alive / 2 {
        Duration::ZERO => options.ping_interval,
        half => half,
    };
    let shared = Arc::new(Shared::new(options.version, granted, loose_bound));
    let pump = Pump {
        session,
        shared: Arc::clone(&shared),
        mailbox: commands,
        inbox: inbox_sender,
        pace: Pace {
            interval: options.ping_interval.min(half),
            timeout: options.ping_timeout,
        },
        ping: PingState::starting(),
        unflushed: false,
        settled: Vec::new(),
    };
    let inbox = Inbox {
        messages,
        mailbox: mailbox.clone(),
        shared: Arc::clone(&shared),
    };
    ((shared, mailbox), inbox, pump)
}

#[cfg(test)]
mod tests;
