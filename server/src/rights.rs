//! Answers the broker's questions by what the certificate names: the adapter between
//! [`holdfast_broker::Rights`] and the registry's roster.
//!
//! Asked by the broker for each CONNECT, PUBLISH, SUBSCRIBE and delivery. It decides nothing: who
//! may what is compiled in `protocol`, who is admitted and who is revoked stands in the roster. What
//! the client says of itself counts only as far as it agrees.

use holdfast_broker::{Connect, Identity, Peer, Refusal, Rights};
use holdfast_cps::Metrics;
use holdfast_cps::roster::{self, Roster};
use holdfast_protocol::id::Domain;
use holdfast_protocol::record::Serial;
use holdfast_protocol::rights;
use holdfast_protocol::time::PROPERTY;

/// Rights by certificate.
#[derive(Debug)]
pub struct CertificateRights {
    roster: Roster,
    domain: Domain,
    metrics: Metrics,
}

impl CertificateRights {
    /// Rights as `roster` knows the parties of `domain`; who is refused is counted in `metrics`.
    #[must_use]
    pub fn new(roster: Roster, domain: Domain, metrics: Metrics) -> Self {
        Self {
            roster,
            domain,
            metrics,
        }
    }

    /// The rights of a session's subject now: none once its certificate is revoked.
    fn of(&self, who: &Identity) -> rights::Rights {
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

impl Rights for CertificateRights {
    fn identify(&self, peer: &Peer, connect: &Connect<'_>) -> Result<Identity, Refusal> {
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
            let said: String = connect.client_id.chars().take(64).collect();
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

    fn greeting(&self, _who: &Identity) -> Vec<(Box<str>, Box<str>)> {
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

/// Whether the session of `who` must end: its certificate is revoked, or it is locked out.
#[must_use]
pub fn is_revoked(roster: &Roster, who: &Identity) -> bool {
    parse(&who.subject).is_none_or(|(serial, dns)| {
        roster.is_revoked(&serial) || roster.rights_for_subject(dns).is_err()
    })
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
mod tests {
    use super::*;

    #[test]
    fn the_client_id_is_the_certificates() {
        let domain = "holdfast.internal".parse().expect("domain");
        let id = client_id("thermo.clients.bern.holdfast.internal", &domain);
        assert_eq!(id, "thermo.clients.bern");
        for good in ["", "thermo", "thermo.clients.bern"] {
            assert!(agrees(good, id), "{good}");
        }
        for bad in [
            "thermo.clients",
            "other",
            "thermo.clients.basel",
            "THERMO",
            " ",
        ] {
            assert!(!agrees(bad, id), "{bad}");
        }
    }

    #[test]
    fn subjects_are_read_back() {
        let (serial, dns) = parse("0a1b2c a.b").expect("parses");
        assert_eq!((serial.to_string().as_str(), dns), ("0a1b2c", "a.b"));
        for bad in ["", "0a1b2c", "zz a.b", " a.b"] {
            assert!(parse(bad).is_none(), "{bad:?}");
        }
    }
}
