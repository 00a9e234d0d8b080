//! Answers the broker's questions by what the certificate names, or by the user whose password was
//! checked: the one adapter between [`holdfast_broker::Rights`], the registry's roster and the
//! configured users.
//!
//! Asked by the broker for each CONNECT, PUBLISH, SUBSCRIBE and delivery. It decides nothing: who
//! may what is compiled in `protocol`, who is admitted and who is revoked stands in the roster, who
//! has a password in [`crate::users`]. What the client says of itself counts only as far as it agrees.

use holdfast_broker::{Broker, Connect, CutReason, Identity, Peer, Refusal, Rights};
use holdfast_cps::roster::{self, Roster};
use holdfast_cps::{Cps, Metrics};
use holdfast_protocol::id::Domain;
use holdfast_protocol::record::Serial;
use holdfast_protocol::rights;
use holdfast_protocol::time::PROPERTY;
use tokio_util::sync::CancellationToken;

use crate::users::{self, Users};

/// Characters of what a stranger says of itself that the log shows.
const SHOWN: usize = 64;

/// Rights by certificate, and of users with passwords.
#[derive(Debug)]
pub struct ServerRights {
    roster: Roster,
    users: Users,
    domain: Domain,
    metrics: Metrics,
}

impl ServerRights {
    /// Rights as `roster` knows the parties of `domain`, and as `users` are configured; who is refused
    /// is counted in `metrics`.
    #[must_use]
    pub fn new(roster: Roster, users: Users, domain: Domain, metrics: Metrics) -> Self {
        Self {
            roster,
            users,
            domain,
            metrics,
        }
    }

    /// The rights of a session's subject now: none once its certificate is revoked or its user gone.
    fn of(&self, who: &Identity) -> rights::Rights {
        if let Some(user) = users::named_by(&who.subject) {
            return self.users.rights(user);
        }
        let Some((serial, dns)) = parse(&who.subject) else {
            return rights::Rights::none();
        };
        if self.roster.is_revoked(&serial) {
            return rights::Rights::none();
        }
        let known = self.roster.rights_for_subject(dns);
        known.map_or_else(|_| rights::Rights::none(), |(_, rights)| rights)
    }
}

impl ServerRights {
    fn by_certificate(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        let known = self.roster.identify(&peer.certificates).map_err(|why| {
            tracing::warn!(address = %peer.address, %why, "MQTT client refused");
            self.metrics.refused("mqtt", why.reason());
            match why {
                roster::Refusal::Revoked(_) => Refusal::Banned,
                _ => Refusal::NotAuthorized,
            }
        })?;
        let client_id = client_id(&known.subject, &self.domain);
        if !agrees(connect.client_id, client_id) {
            let said = shown(connect.client_id);
            tracing::warn!(
                address = %peer.address, %said,
                "MQTT client refused: its client id is not its certificate's, {client_id}; let it \
                 say that one, its first label, or none"
            );
            self.metrics.refused("mqtt", "client id");
            return Err(Refusal::ClientId);
        }
        let subject = format!("{} {}", known.serial, known.subject);
        Ok(Identity {
            client_id: client_id.into(),
            subject: subject.into(),
        })
    }

    fn by_password(
        &self,
        user: &str,
        peer: &Peer,
        connect: &Connect<'_>,
    ) -> Result<Identity, Refusal> {
        use users::Stranger;
        self.users
            .identify(user, connect.client_id)
            .map_err(|stranger| {
                let said = shown(connect.client_id);
                let (address, door) = (peer.address, &peer.door);
                match stranger {
                    Stranger::Gone => {
                        tracing::warn!(%address, %door, user, "MQTT client refused: no such client any more");
                        self.metrics.refused(LOGINS, "unknown");
                        Refusal::NotAuthorized
                    }
                    Stranger::ClientId => {
                        tracing::warn!(
                            %address, %door, user, %said,
                            "MQTT client refused: its client id is not its own; let it say its user \
                             name or none, or write what it says as client_id of its [[client]]"
                        );
                        self.metrics.refused(LOGINS, "client id");
                        Refusal::ClientId
                    }
                }
            })
    }
}

/// Under which area refused logins are counted.
pub const LOGINS: &str = "mqtt login";

fn shown(said: &str) -> String {
    said.chars().take(SHOWN).collect()
}

impl Rights for ServerRights {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
        match &peer.user {
            Some(user) if peer.certificates.is_empty() => self.by_password(user, peer, connect),
            _ => self.by_certificate(peer, connect),
        }
    }

    fn turned_away(&self, peer: &Peer, connect: &Connect<'_>, why: Refusal) {
        let (address, door) = (peer.address, &peer.door);
        let user = connect.user_name.map(shown);
        match (why, user) {
            (Refusal::Busy, user) => {
                // Not a line for each: that is what a flood would want.
                tracing::debug!(%address, %door, user, "login not checked: too many wrong ones from there");
                self.metrics.refused(LOGINS, "too many guesses");
            }
            (_, Some(user)) if connect.password.is_some() => {
                tracing::warn!(%address, %door, user, "login refused: wrong user or password");
                self.metrics.refused(LOGINS, "wrong password");
            }
            _ => {
                tracing::warn!(%address, %door, "login refused: this listener wants user name and password");
                self.metrics.refused(LOGINS, "no password");
            }
        }
    }

    fn greeting(&self, who: &Identity) -> Vec<(Box<str>, Box<str>)> {
        if users::named_by(&who.subject).is_some() {
            return Vec::new();
        }
        let told = self.roster.certain().to_words();
        vec![(PROPERTY.into(), told.into())]
    }

    fn may_publish(&self, who: &Identity, topic: &str) -> bool {
        self.of(who).may_publish(topic)
    }

    fn may_subscribe(&self, who: &Identity, filter: &str) -> bool {
        self.of(who).may_subscribe(filter)
    }

    fn may_share(&self, who: &Identity, group: &str, filter: &str) -> bool {
        let shared = format!("$share/{group}/{filter}");
        self.of(who).may_subscribe(&shared)
    }

    fn may_receive(&self, who: &Identity, topic: &str) -> bool {
        self.of(who).may_receive(topic)
    }
}

/// Whether the session of `who` must end: its certificate is revoked, or leads to a root that was retired, or
/// it is locked out. Users with
/// passwords are in no roster: their sessions end when the file is read again.
fn is_revoked(roster: &Roster, who: &Identity) -> bool {
    if users::named_by(&who.subject).is_some() {
        return false;
    }
    parse(&who.subject).is_none_or(|(serial, dns)| {
        roster.is_revoked(&serial)
            || roster.is_groundless(&serial)
            || roster.rights_for_subject(dns).is_err()
    })
}

/// Cuts sessions of those who are admitted no longer, as soon as the roster says so, until `stop`.
pub async fn watch(cps: Cps, broker: Broker, stop: CancellationToken) {
    let mut changes = cps.roster().changes();
    while let Some(Ok(())) = stop.run_until_cancelled(changes.changed()).await {
        broker.rights_changed();
        let cut = broker.cut_where(CutReason::NotAuthorized, |who| {
            is_revoked(cps.roster(), who)
        });
        if cut > 0 {
            tracing::info!(cut, "sessions of certificates that hold no longer were cut");
        }
    }
    stop.cancelled().await;
}

/// The id a session runs under: the certificate's name without the domain, which no other party
/// has at any broker of this owner.
fn client_id<'a>(dns: &'a str, domain: &Domain) -> &'a str {
    dns.strip_suffix(domain.as_str())
        .and_then(|rest| rest.strip_suffix('.'))
        .unwrap_or(dns)
}

/// A client may leave its id open, say it in full, or say the first label alone, which is all that
/// many clients can be told.
fn agrees(said: &str, client_id: &str) -> bool {
    said.is_empty() || said == client_id || client_id.split('.').next() == Some(said)
}

/// Reads back a subject as it is kept with a session, perhaps from before a restart.
fn parse(subject: &str) -> Option<(Serial, &str)> {
    let (hex, dns) = subject.split_once(' ')?;
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let bytes: Option<Vec<u8>> = hex.as_bytes().chunks(2).map(byte).collect();
    Some((Serial::new(&bytes?)?, dns))
}

#[cfg(test)]
mod tests;
