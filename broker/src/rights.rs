//! Who may connect, publish, subscribe and receive: asked of the embedding program.
//!
//! Called by `session` at CONNECT, PUBLISH, SUBSCRIBE and delivery, and when a will fires. The
//! library has no rule of its own: what is not granted is denied.

use std::net::SocketAddr;
use std::sync::Arc;

/// The other end of a connection as the door saw it.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its network address.
    pub address: SocketAddr,
    /// Its certificate chain in DER, leaf first, verified by the door's TLS configuration; empty
    /// when it presented none or the door is plain.
    pub certificates: Vec<Vec<u8>>,
    /// The name of the door it came through (see [`crate::Broker::serve_named`]).
    pub door: Arc<str>,
    /// The user whose password the door has checked; `None` where the door checks none.
    pub user: Option<Arc<str>>,
}

/// What the client says of itself in CONNECT. Nothing of it is proven.
#[derive(Debug, Clone, Copy)]
pub struct Connect<'a> {
    /// The client id; empty when it asks for one.
    pub client_id: &'a str,
    /// The user name.
    pub user_name: Option<&'a str>,
    /// The password.
    pub password: Option<Password<'a>>,
    /// Whether it speaks MQTT 5 (else 3.1.1).
    pub v5: bool,
}

/// A password; never printed.
#[derive(Clone, Copy)]
pub struct Password<'a>(pub &'a [u8]);

impl std::fmt::Debug for Password<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Password")
    }
}

/// Who a session belongs to. Both parts are stored with a persistent session, so that rights can be
/// asked again after a restart. A session goes by its client id alone: give one client id to one party
/// only. The subject may change from one connection to the next (a renewed certificate).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The client id the session runs under: by the rights' choice, not by the client's word.
    pub client_id: Arc<str>,
    /// What the rights need to know the party again (a certificate name, a user name).
    pub subject: Arc<str>,
}

/// Why a CONNECT is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Wrong user name or password (0x86, 3.1.1: 4).
    BadCredentials,
    /// Known, but not allowed here (0x87, 3.1.1: 5).
    NotAuthorized,
    /// The client id is not this party's (0x85, 3.1.1: 2).
    ClientId,
    /// Shut out (0x8A, 3.1.1: 5).
    Banned,
    /// Not now (0x89, 3.1.1: 3).
    Busy,
}

/// The decisions. Every method is called often and must not block; the answers of `may_*` are
/// remembered for at most half a second, or until [`crate::Broker::rights_changed`].
pub trait Rights: Send + Sync + 'static {
    /// Who is it?
    ///
    /// # Errors
    /// The reason to refuse; the client is told its code.
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal>;

    /// Hears of a login that the door itself refused, before anybody was identified: a wrong user or
    /// password ([`Refusal::BadCredentials`]), or too many guesses ([`Refusal::Busy`]).
    fn turned_away(&self, _peer: &Peer, _connect: &Connect<'_>, _why: Refusal) {}

    /// What to tell it in the CONNACK, as user properties (MQTT 5 only); left out where it does not
    /// fit the client's packet size.
    fn greeting(&self, _who: &Identity) -> Vec<(Box<str>, Box<str>)> {
        Vec::new()
    }

    /// May it publish to this topic (also its will, at CONNECT and when it fires)?
    fn may_publish(&self, _who: &Identity, _topic: &str) -> bool {
        false
    }

    /// May it subscribe to this filter (without a `$share/<group>/` prefix)?
    fn may_subscribe(&self, _who: &Identity, _filter: &str) -> bool {
        false
    }

    /// May it subscribe to this filter with the members of a group, who take messages from one
    /// another? Unless overridden, whoever may subscribe to it may also share it.
    fn may_share(&self, who: &Identity, _group: &str, filter: &str) -> bool {
        self.may_subscribe(who, filter)
    }

    /// May it receive a message of this topic, now?
    fn may_receive(&self, _who: &Identity, _topic: &str) -> bool {
        false
    }

    /// May it read the broker's own figures below `$SYS/`? This alone decides there; nobody
    /// publishes to them.
    fn may_see_figures(&self, _who: &Identity) -> bool {
        false
    }
}

/// The first level of the broker's own figures.
pub(crate) const FIGURES: &str = "$SYS";

/// Whether a topic or filter is one of the broker's own figures: no wildcard reaches them
/// [MQTT-4.7.2-1].
fn is_figures(text: &str) -> bool {
    text.split('/').next() == Some(FIGURES)
}

pub(crate) fn may_publish(rights: &dyn Rights, who: &Identity, topic: &str) -> bool {
    !is_figures(topic) && rights.may_publish(who, topic)
}

pub(crate) fn may_subscribe(
    rights: &dyn Rights,
    who: &Identity,
    group: Option<&str>,
    filter: &str,
) -> bool {
    match group {
        _ if is_figures(filter) => rights.may_see_figures(who),
        Some(group) => rights.may_share(who, group, filter),
        None => rights.may_subscribe(who, filter),
    }
}

pub(crate) fn may_receive(rights: &dyn Rights, who: &Identity, topic: &str) -> bool {
    if is_figures(topic) {
        rights.may_see_figures(who)
    } else {
        rights.may_receive(who, topic)
    }
}
