//! The one task of a connection: moves bytes and commands, keeps the ping, tells how it ended.
//!
//! Called by [`super::connect`], which spawns it; owned by the [`super::Client`] clones, the last of
//! which aborts it. Whatever way it goes, its drop tells everybody who waits.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use mqtt_protocol_core::mqtt::packet::Packet;
use mqtt_protocol_core::mqtt::result_code::MqttError;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::message::{Incoming, Qos};
use super::outcome::{Ended, Outcome, Settled};
use super::session::{Answer, Happening, Session, Waiter};
use super::shared::Shared;
use crate::dial::Stream;

/// What the handles ask of the task.
#[derive(Debug)]
pub(super) enum Command {
    Publish(Box<Packet>, Option<Waiter>),
    Acknowledge(u16),
    Subscribe(Vec<(String, Qos)>, oneshot::Sender<Answer>),
    Unsubscribe(Vec<String>, oneshot::Sender<Answer>),
    Ping(oneshot::Sender<Duration>),
    Disconnect,
}

/// Commands waiting; a full mailbox makes publishers wait.
pub(super) const MAILBOX: usize = 1024;
/// Commands taken in one go.
const BATCH: usize = 256;
/// Commands are left waiting while more bytes than this wait to be written.
const OUT_BOUND: usize = 256 * 1024;
/// Read at most this much at once.
const READ_BOUND: usize = 64 * 1024;
/// Askers for a ping waiting at once; more get none.
const PING_ASKERS: usize = 64;
/// For the last bytes and the DISCONNECT to go out.
const FAREWELL: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    pub(super) interval: Duration,
    pub(super) timeout: Duration,
}

#[derive(Debug)]
pub(super) struct Pump {
    pub(super) session: Session,
    pub(super) shared: Arc<Shared>,
    pub(super) mailbox: mpsc::Receiver<Command>,
    pub(super) inbox: mpsc::Sender<Incoming>,
    pub(super) pace: Pace,
    pub(super) ping: PingState,
    /// Unflushed bytes may sit in the TLS layer.
    pub(super) unflushed: bool,
    /// Collected while a batch of bytes is worked on, then handed over at once.
    pub(super) settled: Vec<Settled>,
}

#[derive(Debug)]
pub(super) struct PingState {
    open: Option<Instant>,
    next: Instant,
    last_heard: Instant,
    askers: Vec<oneshot::Sender<Duration>>,
}

impl PingState {
    pub(super) fn starting() -> Self {
        let now = Instant::now();
        Self {
            open: None,
            next: now,
            last_heard: now,
            askers: Vec::new(),
        }
    }

    fn deadline(&self, pace: Pace) -> Instant {
        match self.open {
            Some(sent) => sent.max(self.last_heard) + pace.timeout,
            None => self.next,
        }
    }
}

impl Pump {
    /// Runs to the end of the connection. `early` is what came behind the CONNACK.
    pub(super) async fn run(mut self, stream: Stream, early: Vec<Happening>, rest: BytesMut) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let ended = match self.happened(early) {
            Some(ended) => ended,
            None => self.turn(&mut reader, &mut writer, rest).await,
        };
        if !matches!(ended, Ended::Silent(_) | Ended::Broken(_)) {
            self.farewell(&mut writer).await;
        }
        tracing::debug!(%ended, "MQTT connection ended");
        self.shared.end(ended);
        self.empty_mailbox().await;
        // The rest is told by drop.
    }

    /// A publisher that found a place before the close is still handing over: only receiving to the
    /// end meets its message.
    async fn empty_mailbox(&mut self) {
        self.mailbox.close();
        while let Some(command) = self.mailbox.recv().await {
            if let Command::Publish(_, Some(waiter)) = command {
                self.shared.lose(waiter);
            }
        }
    }

    async fn turn(
        &mut self,
        reader: &mut ReadHalf<Stream>,
        writer: &mut WriteHalf<Stream>,
        mut read: BytesMut,
    ) -> Ended {
        let mut commands = Vec::with_capacity(BATCH);
        loop {
            if let Some(ended) = self.digest(&mut read) {
                return ended;
            }
            // What the server sends beyond what we bear stays in the socket.
            let open = !self.session.is_full();
            let deadline = self.ping.deadline(self.pace);
            let pending = !self.session.out.is_empty() || self.unflushed;
            let room = self.session.out.len() < OUT_BOUND;
            let ended = tokio::select! {
                got = reader.read_buf(&mut read), if open => self.heard(got),
                done = write_some(writer, &mut self.session.out), if pending => {
                    self.wrote(done)
                }
                count = self.mailbox.recv_many(&mut commands, BATCH), if room => {
                    if count == 0 { Some(Ended::ByUs) } else { self.obey(&mut commands) }
                }
                () = sleep_until(deadline) => self.rang(),
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    fn wrote(&mut self, done: io::Result<bool>) -> Option<Ended> {
        match done {
            Ok(flushed) => self.unflushed = !flushed,
            Err(error) => return Some(broken(&error)),
        }
        // A burst of long messages is over: its memory goes back.
        if self.session.out.is_empty() && self.session.out.capacity() > OUT_BOUND {
            self.session.out = BytesMut::new();
        }
        None
    }

    fn heard(&mut self, got: io::Result<usize>) -> Option<Ended> {
        match got {
            Ok(0) => return Some(Ended::Broken("the server closed it".to_owned())),
            Ok(_) => {}
            Err(error) => return Some(broken(&error)),
        }
        self.ping.last_heard = Instant::now();
        None
    }

    /// Takes what was read, as far as there is room for it, and makes room for more bytes.
    fn digest(&mut self, read: &mut BytesMut) -> Option<Ended> {
        let mut happenings = Vec::new();
        if !read.is_empty() {
            let taken = self.session.receive(read, &mut happenings);
            read.advance(taken);
        }
        if read.is_empty() {
            read.reserve(READ_BOUND);
        }
        self.happened(happenings)
    }

    fn happened(&mut self, happenings: Vec<Happening>) -> Option<Ended> {
        let mut ended = None;
        for happening in happenings {
            match happening {
                Happening::Settled {
                    id,
                    waiter,
                    outcome,
                } => {
                    self.shared.give_back_id(id);
                    self.tell(waiter, outcome);
                }
                Happening::Incoming(message) => {
                    if let Err(error) = self.take_in(message) {
                        ended = Some(error);
                    }
                }
                Happening::Pong => self.ponged(),
                Happening::Ended(end) => ended = Some(end),
                Happening::Refused(code) => ended = Some(Ended::ByServer(code)),
                Happening::Accepted(_) => {}
            }
        }
        self.shared.settle(&mut self.settled);
        ended
    }

    fn tell(&mut self, waiter: Waiter, outcome: Outcome) {
        match waiter {
            Waiter::Tag(tag) => self.settled.push(Settled { tag, outcome }),
            Waiter::Once(asker) => {
                self.shared.give_back_place();
                let _ = asker.send(outcome);
            }
        }
    }

    fn take_in(&mut self, message: Incoming) -> Result<(), Ended> {
        if message.qos == Qos::AtMostOnce && !self.shared.admit_loose() {
            return Ok(());
        }
        match self.inbox.try_send(message) {
            // Nobody takes messages any more, or never did: without acknowledgement they stay with
            // the server.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
            // There is a place for each the session lets through.
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(Ended::Broken("the inbox overflowed".to_owned()))
            }
        }
    }

    fn obey(&mut self, commands: &mut Vec<Command>) -> Option<Ended> {
        let mut ended = None;
        for command in commands.drain(..) {
            if ended.is_some() {
                // Behind a DISCONNECT nothing is sent; its messages are lost with the rest.
                if let Command::Publish(_, Some(waiter)) = command {
                    self.shared.lose(waiter);
                }
                continue;
            }
            ended = match command {
                Command::Publish(packet, waiter) => sent(self.session.publish(*packet, waiter)),
                Command::Acknowledge(id) => sent(self.session.acknowledge(id)),
                Command::Subscribe(filters, asker) => {
                    self.session.subscribe(&filters, asker);
                    None
                }
                Command::Unsubscribe(filters, asker) => {
                    self.session.unsubscribe(&filters, asker);
                    None
                }
                Command::Ping(asker) => {
                    if self.ping.askers.len() < PING_ASKERS {
                        self.ping.askers.push(asker);
                    }
                    if self.ping.open.is_none() {
                        self.send_ping()
                    } else {
                        None
                    }
                }
                Command::Disconnect => Some(Ended::ByUs),
            };
        }
        ended
    }

    fn rang(&mut self) -> Option<Ended> {
        // While we do not read we hear nothing, whoever is there.
        if self.session.is_full() {
            self.ping.last_heard = Instant::now();
        } else if self.ping.open.is_some() {
            return Some(Ended::Silent(self.ping.last_heard.elapsed()));
        }
        self.send_ping()
    }

    fn send_ping(&mut self) -> Option<Ended> {
        let now = Instant::now();
        self.ping.open = Some(now);
        self.ping.next = now + self.pace.interval;
        sent(self.session.ping())
    }

    fn ponged(&mut self) {
        let Some(sent) = self.ping.open.take() else {
            return;
        };
        let took = sent.elapsed();
        self.shared.set_round_trip(took);
        for asker in self.ping.askers.drain(..) {
            let _ = asker.send(took);
        }
    }

    async fn farewell(&mut self, writer: &mut WriteHalf<Stream>) {
        // When the server broke the protocol mqtt-protocol-core has put its DISCONNECT in place.
        let _ = self.session.disconnect();
        let out = std::mem::take(&mut self.session.out);
        let write = async {
            writer.write_all(&out).await?;
            writer.flush().await?;
            writer.shutdown().await
        };
        let _ = timeout(FAREWELL, write).await;
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        // When the task is aborted no publisher is left whose message could still come.
        for waiter in self.session.abandon() {
            self.shared.lose(waiter);
        }
        self.shared.settle(&mut self.settled);
        self.shared.finish();
    }
}

/// Writes what there is, or flushes when all is written. Tells whether nothing is left to flush.
/// May be dropped while it waits: nothing is then lost or doubled.
async fn write_some(writer: &mut WriteHalf<Stream>, out: &mut BytesMut) -> io::Result<bool> {
    if out.is_empty() {
        writer.flush().await?;
        return Ok(true);
    }
    writer.write_buf(out).await?;
    Ok(false)
}

fn sent(result: Result<(), MqttError>) -> Option<Ended> {
    result
        .err()
        .map(|error| Ended::Protocol(format!("we cannot send: {error}")))
}

fn broken(error: &io::Error) -> Ended {
    Ended::Broken(error.to_string())
}
