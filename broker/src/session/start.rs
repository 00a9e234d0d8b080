//! CONNECT: who is it, may it, whose session goes on; then CONNACK.
//!
//! Called by `run` with the first packet. Takes the session over from an older connection, opens or
//! changes its record in the journal, and only then answers.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::sync::OwnedMutexGuard;
use tokio::time::timeout_at;
use tracing::{debug, info};

use super::inbound::{Client, Terms};
use super::registry::{Cell, Held};
use crate::broker::Shared;
use crate::codec::{self, Connack, Connect, Will, code};
use crate::door::Guest;
use crate::exchange::Mailbox;
use crate::journal::{Op, WillRecord};
use crate::rights::{self, Password};
use crate::{Config, CutReason, Event, Identity, Message, Peer, Refusal};

/// How long an old connection has to let its session go.
const TAKEOVER: Duration = Duration::from_secs(10);

/// Bytes of a CONNACK with all we say in it but the text of an assigned client id.
const CONNACK_BYTES: usize = 32;
/// Bytes of one with only what is always said: receive maximum, packet size, topic aliases.
const SHORT_CONNACK: usize = 16;

/// A connection that has a session.
pub(super) struct Started {
    pub(super) client: Client,
    pub(super) ticket: u64,
    pub(super) cell: Arc<Cell>,
    pub(super) will: Option<WillRecord>,
    /// As asked for; the session's expiry may still change.
    pub(super) will_delay: u32,
    pub(super) keep_alive: Option<Duration>,
}

/// A CONNECT that is refused: the answer is in `out` already.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) reason: CutReason,
}

/// Turns a CONNECT into a session, writing the CONNACK to `out`.
pub(super) async fn start(
    shared: &Arc<Shared>,
    guest: &mut Guest,
    connect: Connect,
    out: &mut BytesMut,
) -> Result<Started, Refused> {
    let v5 = connect.v5;
    let room = usize::try_from(connect.maximum_packet).unwrap_or(usize::MAX);
    let explains = connect.problem_information && room >= code::TEXT_BYTES;
    match admit(shared, guest, connect).await {
        Ok((started, connack_bytes)) => {
            out.extend_from_slice(&connack_bytes);
            Ok(started)
        }
        Err((code, reason)) => {
            let connack = Connack {
                code: if v5 { code } else { v3_code(code) },
                reason: if explains { code::text(code) } else { "" },
                ..Connack::default()
            };
            let before = out.len();
            codec::connack(out, &connack, v5);
            if v5 && out.len() - before > room {
                // The client takes not even this much: it hears nothing [MQTT-3.1.2-24].
                out.truncate(before);
            }
            Err(Refused { reason })
        }
    }
}

type Turned = (u8, CutReason);

/// Checks the password where the door wants one, then begins.
async fn admit(
    shared: &Arc<Shared>,
    guest: &mut Guest,
    connect: Connect,
) -> Result<(Started, BytesMut), Turned> {
    if let Some(passwords) = &guest.passwords {
        let password = connect.password.as_deref().map(Password);
        let (from, user) = (guest.peer.address.ip(), connect.user_name.as_deref());
        let check = passwords.check(from, user, password);
        let checked = timeout_at(guest.deadline, check)
            .await
            .map_err(|_| (code::BUSY, CutReason::ConnectDeadline))?;
        guest.peer.user = Some(checked.map_err(|refusal| {
            let asked = as_said(&connect);
            shared.core.rights.turned_away(&guest.peer, &asked, refusal);
            tell_refused(shared, &guest.peer, &connect, refusal);
            (refusal_code(refusal), CutReason::Refused)
        })?);
    }
    begin(shared, &guest.peer, connect).await
}

async fn begin(
    shared: &Arc<Shared>,
    peer: &Peer,
    connect: Connect,
) -> Result<(Started, BytesMut), Turned> {
    let core = &shared.core;
    let (identity, assigned) = identify(shared, peer, &connect)?;
    let told_id = if assigned {
        identity.client_id.len()
    } else {
        0
    };
    if (connect.maximum_packet as usize) < least_connack(&core.config, &connect, told_id) {
        // Not even our answer would fit [MQTT-3.1.2-24].
        return Err((code::PACKET_TOO_LARGE, CutReason::PacketTooLarge));
    }
    let will = connect
        .will
        .as_ref()
        .map(|will| check_will(shared, &identity, will))
        .transpose()?;
    let (cell, mut held, ticket) = take_over(shared, &identity).await?;
    let present = match resume(shared, &identity, &connect, &mut held).await {
        Ok(present) => present,
        Err(turned) => {
            forget_if_new(shared, &held);
            return Err(turned);
        }
    };
    let will_delay = connect.will.as_ref().map_or(0, |will| will.delay);
    let will = will.map(|message| WillRecord {
        identity: identity.clone(),
        message,
        delay: will_delay.min(held.expiry),
        due: None,
        serial: shared.will_serial(),
    });
    if let Some(will) = &will {
        shared.keep_will(will).await;
    }
    cell.show(&held);
    core.counters.enter();
    core.tell(Event::Connected {
        identity: identity.clone(),
        address: peer.address,
        resumed: present,
    });
    let limits = &core.config.limits;
    let responses = response_information(shared, &connect, &identity);
    let (keep_alive, told) = keep_alive(core.config.keep_alive_max, &connect);
    let greeting = greeting(shared, &identity, &connect, CONNACK_BYTES + told_id);
    let connack = Connack {
        user: &greeting,
        session_present: present,
        code: code::SUCCESS,
        session_expiry: (held.expiry != connect.session_expiry).then_some(held.expiry),
        receive_maximum: Some(limits.receive_maximum),
        maximum_packet: u32::try_from(limits.packet_bytes).ok(),
        assigned_client_id: assigned.then_some(&*identity.client_id),
        topic_alias_maximum: Some(limits.topic_aliases),
        server_keep_alive: told,
        response_information: responses.as_deref(),
        reason: "",
    };
    let mut bytes = BytesMut::new();
    codec::connack(&mut bytes, &connack, connect.v5);
    let terms = Terms {
        v5: connect.v5,
        window: usize::from(connect.receive_maximum.min(limits.inflight)),
        max_packet: usize::try_from(connect.maximum_packet).unwrap_or(usize::MAX),
        reasons: connect.problem_information,
        alias_max: connect.topic_alias_maximum.min(limits.topic_aliases),
    };
    held.mailbox.set_connected(true);
    held.inflight.resume();
    let client = Client::new(Arc::clone(core), held, terms);
    let started = Started {
        client,
        ticket,
        cell,
        will,
        will_delay,
        keep_alive,
    };
    Ok((started, bytes))
}

/// Bytes of the CONNACK without what can be left out.
fn least_connack(config: &Config, connect: &Connect, told_id: usize) -> usize {
    let mut bytes = SHORT_CONNACK;
    if connect.session_expiry > config.session_expiry_max {
        bytes += 5;
    }
    if keep_alive(config.keep_alive_max, connect).1.is_some() {
        bytes += 3;
    }
    if told_id > 0 {
        // Identifier, length, text; the lengths of the packet may take two bytes each then.
        bytes += 5 + told_id;
    }
    bytes
}

/// What the rights want the client told, if it fits.
fn greeting(
    shared: &Shared,
    identity: &Identity,
    connect: &Connect,
    others: usize,
) -> Vec<(Box<str>, Box<str>)> {
    let mut greeting = match connect.v5 {
        true => shared.core.rights.greeting(identity),
        false => Vec::new(),
    };
    let bytes = |(name, value): &(Box<str>, Box<str>)| 5 + name.len() + value.len();
    if others + greeting.iter().map(bytes).sum::<usize>() > connect.maximum_packet as usize {
        greeting.clear();
    }
    greeting
}

/// Asks the rights; an empty client id gets one of ours if that is allowed.
fn identify(shared: &Shared, peer: &Peer, connect: &Connect) -> Result<(Identity, bool), Turned> {
    let core = &shared.core;
    let asked = as_said(connect);
    let mut identity = core.rights.identify(peer, &asked).map_err(|refusal| {
        tell_refused(shared, peer, connect, refusal);
        (refusal_code(refusal), CutReason::Refused)
    })?;
    let mut assigned = false;
    if identity.client_id.is_empty() {
        // 3.1.1 may leave it out only with a clean session [MQTT-3.1.3-8].
        if !core.config.assign_client_ids || (!connect.v5 && !connect.clean) {
            return Err((code::CLIENT_ID, CutReason::Refused));
        }
        identity.client_id = shared.new_client_id().into();
        assigned = true;
    } else if connect.client_id.is_empty() {
        // The rights chose the session's id. Only a client that named none is told [MQTT-3.2.3.3.7]:
        // stock clients take an assigned id in answer to their own for a protocol error.
        assigned = true;
    }
    Ok((identity, assigned))
}

/// The CONNECT as the rights see it.
fn as_said(connect: &Connect) -> crate::Connect<'_> {
    crate::Connect {
        client_id: &connect.client_id,
        user_name: connect.user_name.as_deref(),
        password: connect.password.as_deref().map(Password),
        v5: connect.v5,
    }
}

fn tell_refused(shared: &Shared, peer: &Peer, connect: &Connect, refusal: Refusal) {
    let core = &shared.core;
    if core.worth_saying(peer.address.ip(), CutReason::Refused) {
        // Only the rights know what the client should do instead, and they say it.
        debug!(address = %peer.address, client = connect.client_id.as_str(), ?refusal, "CONNECT refused: check the client's certificate, credentials and client id");
    }
    core.tell(Event::Refused {
        address: peer.address,
        client_id: connect.client_id.as_str().into(),
        refusal,
    });
}

fn check_will(shared: &Shared, identity: &Identity, will: &Will) -> Result<Message, Turned> {
    let limits = &shared.core.config.limits;
    if will.topic.len() > limits.topic_bytes
        || crate::topic::levels(&will.topic) > limits.topic_levels
    {
        return Err((code::TOPIC, CutReason::Refused));
    }
    if !rights::may_publish(&*shared.core.rights, identity, &will.topic) {
        shared.core.counters.denied();
        info!(
            client = &*identity.client_id,
            topic = will.topic.as_str(),
            "CONNECT refused: no right to the topic of its will"
        );
        return Err((code::NOT_AUTHORIZED, CutReason::Refused));
    }
    let mut message = Message::new(&will.topic, will.payload.clone())
        .qos(will.qos)
        .retain(will.retain);
    message.expiry = will.expiry;
    message.properties = will.properties.clone();
    message.owner = will.retain.then(|| Arc::new(identity.clone()));
    Ok(message)
}

type Taken = (Arc<Cell>, OwnedMutexGuard<Held>, u64);

/// Becomes the session's connection; the one before it is told to go.
async fn take_over(shared: &Shared, identity: &Identity) -> Result<Taken, Turned> {
    let core = &shared.core;
    loop {
        let cell = shared
            .sessions
            .cell(&identity.client_id, core.config.limits.sessions, || {
                shared.new_held(identity)
            })
            .ok_or((code::QUOTA, CutReason::Quota))?;
        let ticket = cell.enter();
        let lock = Arc::clone(&cell.held).lock_owned();
        let held = tokio::time::timeout(TAKEOVER, lock)
            .await
            .map_err(|_| (code::BUSY, CutReason::Quota))?;
        if !shared.sessions.holds(&identity.client_id, &cell) {
            // It ended while we waited for it.
            continue;
        }
        if cell.cut(ticket).is_some() {
            forget_if_new(shared, &held);
            return Err((code::TAKEN_OVER, CutReason::TakenOver));
        }
        return Ok((cell, held, ticket));
    }
}

/// Goes on with the session, or begins a new one; true when there was one.
async fn resume(
    shared: &Arc<Shared>,
    identity: &Identity,
    connect: &Connect,
    held: &mut OwnedMutexGuard<Held>,
) -> Result<bool, Turned> {
    let core = &shared.core;
    let over = held
        .deadline()
        .is_some_and(|deadline| deadline <= core.clock.now());
    let present = held.exists && !connect.clean && !over;
    let will = shared.wills.take(&identity.client_id);
    if !present {
        let existed = held.exists;
        shared
            .end_session(held)
            .await
            .map_err(|_| (code::UNSPECIFIED, CutReason::Journal))?;
        **held = shared.new_held(identity);
        if existed && let Some(will) = will {
            // The session it belonged to has ended: now is its time [MQTT-3.1.3-9].
            shared.fire(will).await;
        }
    } else if let Some(will) = will {
        shared.forget_will(&will).await;
    }
    held.mailbox.set_identity(identity);
    held.expiry = connect.session_expiry.min(core.config.session_expiry_max);
    if held.expiry > 0 || held.mailbox.consumer().is_some() {
        let record = held.record(None);
        let mailbox = Arc::clone(&held.mailbox);
        let id = shared
            .journal
            .call(|answer| Op::Open {
                id: mailbox.consumer(),
                record,
                mailbox: Arc::clone(&mailbox),
                answer: Some(answer),
            })
            .await
            .map_err(|_| (code::UNSPECIFIED, CutReason::Journal))?;
        held.mailbox.set_consumer(Some(id));
        if present {
            // After a failed commit only the journal knows which QoS 2 publishes are in.
            let received = shared
                .journal
                .received(id)
                .map_err(|_| (code::UNSPECIFIED, CutReason::Journal))?;
            held.received = received.into();
        }
    }
    held.exists = true;
    Ok(present)
}

fn forget_if_new(shared: &Shared, held: &Held) {
    if !held.exists {
        shared.sessions.remove(&held.mailbox.name);
    }
}

/// Where a client's responses may come to: said only when it asks [MQTT-3.1.2-28] and it fits.
fn response_information(shared: &Shared, connect: &Connect, identity: &Identity) -> Option<String> {
    let root = shared.core.config.response_topics.as_deref()?;
    let text = format!("{root}/{}", identity.client_id);
    let fits = connect.maximum_packet as usize >= 2 * CONNACK_BYTES + 2 * text.len();
    (connect.response_information && fits).then_some(text)
}

/// The time without a word after which the client is gone, and what MQTT 5 is told.
fn keep_alive(max: u16, connect: &Connect) -> (Option<Duration>, Option<u16>) {
    let asked = connect.keep_alive;
    let (seconds, told) = if connect.v5 && max > 0 && (asked == 0 || asked > max) {
        (max, Some(max))
    } else {
        (asked, None)
    };
    let silent = Duration::from_millis(u64::from(seconds) * 1500);
    ((seconds > 0).then_some(silent), told)
}

fn refusal_code(refusal: Refusal) -> u8 {
    match refusal {
        Refusal::BadCredentials => code::BAD_CREDENTIALS,
        Refusal::NotAuthorized => code::NOT_AUTHORIZED,
        Refusal::ClientId => code::CLIENT_ID,
        Refusal::Banned => code::BANNED,
        Refusal::Busy => code::BUSY,
    }
}

/// MQTT 3.1.1, table 3.1.
pub(super) fn v3_code(code: u8) -> u8 {
    match code {
        code::VERSION => 1,
        code::CLIENT_ID => 2,
        code::BAD_CREDENTIALS => 4,
        code::NOT_AUTHORIZED | code::BANNED | code::TOPIC => 5,
        _ => 3,
    }
}

impl Shared {
    /// A session's state that is not there yet.
    pub(crate) fn new_held(&self, identity: &Identity) -> Held {
        let mailbox = Mailbox::new(
            self.core.next_key(),
            identity.clone(),
            self.core.queue_bounds(),
        );
        Held::new(Arc::new(mailbox))
    }
}
