//! The task of one connection: socket, mailbox, timer, journal.
//!
//! Spawned by `door` with a secured socket; owns it. Reads into a buffer of its thread, so that an
//! idle connection holds none, and writes what `outbound` produced, in one go.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use super::inbound::{Client, OUTSTANDING, Slow};
use super::outbound::OUT_SOFT;
use super::registry::Cell;
use super::silence::Silence;
use super::speech::{goodbye, listen_on, poll_read, tell_refusal};
use super::start::{self, Started};
use super::unwritten::Unwritten;
use crate::broker::Shared;
use crate::codec::{self, Connect, Disconnect, Fault, Flow, Frames, code};
use crate::door::{Closing, Guest, Stop};
use crate::journal::{Op, WillRecord};
use crate::socket::Socket;
use crate::{CutReason, Event, Identity, Peer};

/// How long the journal has for answers that something must wait for.
const LAST_ANSWERS: Duration = Duration::from_secs(10);

/// CONNECT, until it is accepted.
pub(crate) async fn enter(
    shared: Arc<Shared>,
    mut socket: Socket,
    mut guest: Guest,
    stop: Stop,
    admitted: impl FnOnce(),
) -> Option<Box<Connection>> {
    let mut frames = Frames::default();
    let limit = shared.core.config.limits.connect_bytes;
    let first = timeout_at(
        guest.deadline,
        read_connect(&mut socket, &mut frames, limit),
    );
    let first = tokio::select! {
        () = stop.asked.cancelled() => {
            turned_away(&shared, &guest.peer, CutReason::Shutdown);
            return None;
        }
        first = first => first,
    };
    let connect = match first {
        Ok(Ok(connect)) => connect,
        Ok(Err((reason, fault))) => {
            if let Some(fault) = fault {
                tell_refusal(&mut socket, fault).await;
            }
            turned_away(&shared, &guest.peer, reason);
            return None;
        }
        Err(_) => {
            turned_away(&shared, &guest.peer, CutReason::ConnectDeadline);
            return None;
        }
    };
    let mut out = BytesMut::new();
    let started = start::start(&shared, &mut guest, connect, &mut out).await;
    admitted();
    match started {
        Ok(started) => {
            let connection = Connection::new(shared, socket, frames, started, out, stop.closing);
            Some(Box::new(connection))
        }
        Err(refused) => {
            goodbye(&mut socket, &mut out).await;
            turned_away(&shared, &guest.peer, refused.reason);
            None
        }
    }
}

fn turned_away(shared: &Shared, peer: &Peer, reason: CutReason) {
    shared.core.turn_away(peer.address, reason, None);
}

/// Reads up to the end of the first packet; what follows it stays in `frames`.
async fn read_connect(
    socket: &mut Socket,
    frames: &mut Frames,
    limit: usize,
) -> Result<Connect, (CutReason, Option<Fault>)> {
    loop {
        let mut found = None;
        let step = std::future::poll_fn(|cx| {
            poll_read(socket, cx, |bytes| {
                frames.feed(bytes, limit, |first, body| {
                    found = Some(codec::connect(first, body)?);
                    Ok(Flow::Pause)
                })
            })
        })
        .await;
        match step {
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(fault))) => return Err((fault.reason(), Some(fault))),
            Ok(None) => return Err((CutReason::Closed, None)),
            Err(_) => return Err((CutReason::Network, None)),
        }
        if let Some(connect) = found {
            return Ok(connect);
        }
        if let Some(first) = frames.first_byte().filter(|first| *first != 0x10) {
            // Whatever it will be, it is no CONNECT: nothing is waited for.
            let fault = codec::connect(first, &[]).err().unwrap_or(Fault::Protocol);
            return Err((fault.reason(), Some(fault)));
        }
    }
}

/// A connection that has a session.
pub(crate) struct Connection {
    pub(super) shared: Arc<Shared>,
    socket: Socket,
    frames: Frames,
    pub(super) client: Client,
    pub(super) out: BytesMut,
    flushing: bool,
    /// Something may wait in the mailbox, or we may have to go.
    pub(super) look: bool,
    /// The queues may hold more than was taken when they were last looked at.
    pub(super) cut_short: bool,
    /// What is held beside the queue may have changed.
    pub(super) recount: bool,
    pub(super) paused: bool,
    ticket: u64,
    cell: Arc<Cell>,
    will: Option<Box<WillRecord>>,
    will_delay: u32,
    silence: Option<Box<Silence>>,
    /// Ends when a busy receiver may have room.
    room: Option<Room>,
    closing: Closing,
    pub(super) unwritten: Unwritten,
}

type Room = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why the loop ends, and the code to tell an MQTT 5 client.
#[derive(Debug)]
struct End {
    reason: CutReason,
    code: Option<u8>,
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self {
            reason: fault.reason(),
            code: Some(fault.code()),
        }
    }
}

fn end(reason: CutReason) -> End {
    let code = match reason {
        CutReason::KeepAlive => Some(code::KEEP_ALIVE),
        CutReason::TakenOver => Some(code::TAKEN_OVER),
        CutReason::Administrative => Some(code::ADMINISTRATIVE),
        CutReason::NotAuthorized => Some(code::NOT_AUTHORIZED),
        CutReason::Shutdown => Some(code::SHUTTING_DOWN),
        CutReason::Journal => Some(code::UNSPECIFIED),
        CutReason::Quota | CutReason::TooSlow => Some(code::QUOTA),
        _ => None,
    };
    End { reason, code }
}

impl Connection {
    fn new(
        shared: Arc<Shared>,
        socket: Socket,
        frames: Frames,
        started: Started,
        out: BytesMut,
        closing: Closing,
    ) -> Self {
        let mut client = started.client;
        client.out = out;
        Self {
            shared,
            socket,
            paused: frames.held() > 0,
            frames,
            client,
            out: BytesMut::new(),
            flushing: false,
            look: true,
            cut_short: false,
            recount: false,
            ticket: started.ticket,
            cell: started.cell,
            will: started.will.map(Box::new),
            will_delay: started.will_delay,
            silence: started.keep_alive.map(Silence::new),
            room: None,
            closing,
            unwritten: Unwritten::default(),
        }
    }

    /// Serves it to its end.
    pub(crate) async fn run(mut self: Box<Self>) {
        let ended = loop {
            if let Err(end) = self.work().await {
                break end;
            }
            if std::mem::take(&mut self.look)
                && let Some(reason) = self.told_to_go()
            {
                break end(reason);
            }
            if std::mem::take(&mut self.client.heard)
                && let Some(silence) = &mut self.silence
            {
                silence.last_heard = Instant::now();
            }
            self.room = self.client.rest.first().map(|rest| {
                let (busy, deadline) = (Arc::clone(&rest.mailbox), rest.deadline);
                Box::pin(async move { busy.patience().wait(deadline).await }) as Room
            });
            if let Err(end) = std::future::poll_fn(|cx| self.poll_wait(cx)).await {
                break end;
            }
        };
        Box::pin(self.finish(ended)).await;
    }

    /// Whoever wants it to end changes something in its mailbox after saying so.
    fn told_to_go(&self) -> Option<CutReason> {
        if self.closing.is_set() {
            return Some(CutReason::Shutdown);
        }
        let cut = self.cell.cut(self.ticket);
        cut.or_else(|| self.must_go().then_some(CutReason::TooSlow))
    }

    /// Waits until there is something to do.
    fn poll_wait(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if let Some(receiver) = self.client.served.take()
            && !self.out.is_empty()
            && receiver.follow(cx.waker())
        {
            // Who is served comes before who is acknowledged: it is the one that waits. Whatever wakes
            // us next, then it is our turn.
            return Poll::Pending;
        }
        let woken = self.poll_events(cx);
        if woken.is_ready() {
            self.look |= self.client.mailbox.looks();
        }
        woken
    }

    fn poll_events(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        if let Poll::Ready(done) = self.poll_io(cx) {
            return Poll::Ready(done);
        }
        if self.client.mailbox.poll_changed(cx).is_ready() {
            self.look = true;
            return Poll::Ready(Ok(()));
        }
        if let Some(room) = &mut self.room
            && room.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Ok(()));
        }
        let listens = self.listens();
        if let Some(silence) = &mut self.silence {
            ready!(silence.poll(cx));
            if listens {
                return Poll::Ready(Err(end(CutReason::KeepAlive)));
            }
            // It is not heard because of us: its time begins anew.
            silence.last_heard = Instant::now();
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }

    /// Everything that can be done without waiting for the peer.
    async fn work(&mut self) -> Result<(), End> {
        loop {
            self.hand_over_now().await?;
            // Before it is asked whether more may be read: nothing else may come to wake us up.
            if self.look {
                self.client.outcomes().map_err(end)?;
            }
            self.client.settle_rest();
            if self.paused && self.client.outstanding < OUTSTANDING && self.client.rest.is_empty() {
                self.client.begin_read();
                let limit = self.shared.core.config.limits.packet_bytes;
                let client = &mut self.client;
                self.paused = self
                    .frames
                    .feed(&[], limit, |first, body| client.take(first, body))?;
                continue;
            }
            break;
        }
        self.look |= std::mem::take(&mut self.client.acted);
        if self.look || self.cut_short {
            self.fill();
        }
        self.client.answer_pings();
        self.hand_over_now().await?;
        if self.out.is_empty() {
            self.out = std::mem::take(&mut self.client.out);
        } else {
            self.out.extend_from_slice(&self.client.out);
            self.client.out.clear();
        }
        self.client.delivered_to.place(self.out.len());
        self.recount |= self.look || !self.out.is_empty();
        if std::mem::take(&mut self.client.crowded) {
            // A receiver has much to do: let it have this thread before we bring more.
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    /// Gives the journal what the last frames brought, and does what they asked for.
    async fn hand_over_now(&mut self) -> Result<(), End> {
        let ops = self.client.operations();
        if ops.is_empty() && self.client.slow.is_none() {
            return Ok(());
        }
        Box::pin(self.hand_over(ops)).await
    }

    async fn hand_over(&mut self, ops: Vec<Op>) -> Result<(), End> {
        // What is asked for here may bring messages, or take the mailbox's changes for itself.
        self.look = true;
        for op in ops {
            self.shared
                .journal
                .send(op)
                .await
                .map_err(|_| end(CutReason::Journal))?;
        }
        match self.client.slow.take().map(|slow| *slow) {
            None => Ok(()),
            Some(Slow::Subscribe(subscribe)) => {
                self.answers(|client| client.outcomes().map_err(end))
                    .await?;
                let journal = &self.shared.journal;
                let fits = self.client.subscribe(journal, subscribe).await;
                self.answered(fits)
            }
            Some(Slow::Unsubscribe(unsubscribe)) => {
                let journal = &self.shared.journal;
                let fits = self.client.unsubscribe(journal, unsubscribe).await;
                self.answered(fits)
            }
            Some(Slow::Disconnect(disconnect)) => Err(self.said_goodbye(disconnect)),
        }
    }

    /// After SUBSCRIBE or UNSUBSCRIBE: an answer above the client's limit is not sent [MQTT-3.1.2-24].
    fn answered(&mut self, fits: bool) -> Result<(), End> {
        fits.then_some(()).ok_or(Fault::PacketTooLarge.into())
    }

    fn said_goodbye(&mut self, disconnect: Disconnect) -> End {
        if let Some(expiry) = disconnect.session_expiry {
            if self.client.held.expiry == 0 && expiry > 0 {
                // [MQTT-3.14.2-2]
                return Fault::Protocol.into();
            }
            let max = self.shared.core.config.session_expiry_max;
            self.client.held.expiry = expiry.min(max);
        }
        let reason = if disconnect.code == 0 {
            CutReason::Goodbye
        } else {
            // 0x04 and every error keep the will [MQTT-3.14.4-3].
            CutReason::GoodbyeWithWill
        };
        End { reason, code: None }
    }

    fn poll_io(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let mut wrote = false;
        while self.out.has_remaining() {
            match self.socket.poll_write(cx, &self.out) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(end(CutReason::Closed))),
                Poll::Ready(Ok(written)) => {
                    self.out.advance(written);
                    self.took(written);
                    self.flushing = true;
                    wrote = true;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(end(CutReason::Network))),
                Poll::Pending => {
                    self.blocked();
                    break;
                }
            }
        }
        if wrote || std::mem::take(&mut self.recount) {
            self.count_held();
        }
        if self.flushing
            && let Poll::Ready(done) = self.socket.poll_flush(cx)
        {
            if done.is_err() {
                return Poll::Ready(Err(end(CutReason::Network)));
            }
            self.flushing = false;
        }
        if wrote && self.out.is_empty() {
            // An idle connection holds no buffer.
            self.out = BytesMut::new();
        }
        // A busy receiver may have got room before its sender began to wait for that.
        let more = self.cut_short || !self.client.rest.is_empty();
        if wrote && more && self.out.len() < OUT_SOFT {
            return Poll::Ready(Ok(()));
        }
        if self.may_read() {
            return self.poll_frames(cx);
        }
        Poll::Pending
    }

    fn poll_frames(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        let limit = self.shared.core.config.limits.packet_bytes;
        let Self {
            socket,
            frames,
            client,
            ..
        } = self;
        let read = ready!(poll_read(socket, cx, |bytes| {
            client.begin_read();
            frames.feed(bytes, limit, |first, body| client.take(first, body))
        }));
        Poll::Ready(match read {
            Ok(Some(Ok(paused))) => {
                self.paused = paused;
                Ok(())
            }
            Ok(Some(Err(fault))) => Err(fault.into()),
            Ok(None) => Err(end(CutReason::Closed)),
            Err(_) => Err(end(CutReason::Network)),
        })
    }

    /// The end: last words, last answers, the will, and what becomes of the session.
    async fn finish(mut self: Box<Self>, ended: End) {
        if ended.reason == CutReason::TooSlow {
            // It would not read last words either.
            self.out = BytesMut::new();
            self.count_held();
        }
        self.client.end_run();
        self.rest_in_time().await;
        for op in self.client.operations() {
            // When the journal is gone, nobody was told otherwise.
            let _ = self.shared.journal.send(op).await;
        }
        self.last_answers().await;
        // A PINGREQ right before DISCONNECT is one too [MQTT-3.12.4-1].
        self.client.answer_pings();
        self.shared.core.counters.ended(ended.reason);
        if !matches!(ended.reason, CutReason::Network | CutReason::TooSlow) {
            if let Some(code) = ended.code
                && self.client.v5
            {
                let why = if self.client.explains() {
                    code::text(code)
                } else {
                    ""
                };
                codec::disconnect(&mut self.client.out, code, why);
            }
            let mut out = std::mem::take(&mut self.out);
            out.extend_from_slice(&self.client.out);
            goodbye(&mut self.socket, &mut out).await;
        }
        let identity = Identity::clone(&self.client.identity);
        if ended.reason.is_usual() {
            debug!(client = &*identity.client_id, reason = %ended.reason, "connection ended");
        } else {
            info!(client = &*identity.client_id, reason = %ended.reason, "connection ended");
        }
        let core = Arc::clone(&self.shared.core);
        let mut socket = self.leave_session(ended.reason).await;
        core.counters.leave();
        core.tell(Event::Disconnected {
            identity,
            reason: ended.reason,
        });
        if ended.reason.is_the_clients_fault() {
            listen_on(&mut socket).await;
        }
    }

    /// What waits for busy receivers is theirs although its sender goes.
    async fn rest_in_time(&mut self) {
        while !self.client.settle_rest()
            && let Some(rest) = self.client.rest.first()
        {
            let (mailbox, deadline) = (Arc::clone(&rest.mailbox), rest.deadline);
            mailbox.patience().wait(deadline).await;
        }
    }

    /// Answers under way decide what the session holds: they are waited for.
    async fn last_answers(&mut self) {
        // A failed commit is no reason to stop here: the connection ends anyway.
        let _ = self
            .answers(|client| {
                let _ = client.outcomes();
                Ok(())
            })
            .await;
    }

    /// Takes the journal's answers until none is outstanding, or for as long as it may take.
    async fn answers(
        &mut self,
        mut take: impl FnMut(&mut Client) -> Result<(), End>,
    ) -> Result<(), End> {
        let deadline = Instant::now() + LAST_ANSWERS;
        let mailbox = Arc::clone(&self.client.mailbox);
        loop {
            take(&mut self.client)?;
            if self.client.outstanding == 0 {
                return Ok(());
            }
            let changed = std::future::poll_fn(|cx| mailbox.poll_changed(cx));
            if timeout_at(deadline, changed).await.is_err() {
                mailbox.looks();
                return Ok(());
            }
        }
    }

    async fn leave_session(self: Box<Self>, reason: CutReason) -> Socket {
        let Self {
            shared,
            socket,
            mut client,
            will,
            will_delay,
            ..
        } = *self;
        if let Some(row) = client.stalled.take() {
            client.mailbox.rewind(row.id.saturating_sub(1));
        }
        if let Some(stored) = client.unmarked.first() {
            client.mailbox.rewind(stored.row.id.saturating_sub(1));
        }
        let identity = Identity::clone(&client.identity);
        let expiry = client.held.expiry;
        if expiry == 0 {
            // Should the journal fail now, the next start finds a session whose time is over.
            let _ = shared.end_session(&mut client.held).await;
        }
        let unsent = client.mailbox.set_connected(false);
        shared
            .core
            .dropped(client.client_id(), crate::DropReason::Offline, unsent);
        if expiry == 0 {
            shared.sessions.remove(&identity.client_id);
        } else {
            let now = shared.core.clock.now();
            client.held.left_at = now;
            let record = client.held.record(Some(now));
            if let Some(id) = client.consumer() {
                let _ = shared.journal.send(Op::Left { id, record }).await;
            }
            let deadline = client.held.deadline();
            shared.sessions.expires(&identity.client_id, deadline);
        }
        match will {
            Some(will) if reason == CutReason::Goodbye => shared.forget_will(&will).await,
            Some(will) => shared.will_begins(*will, will_delay.min(expiry)).await,
            None => {}
        }
        socket
    }
}
