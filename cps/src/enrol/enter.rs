//! A gateway comes in by its token. Everything that others may change at the same time is read, and
//! all that follows is written, in one commit; the answer is kept with the token, so that who lost
//! it hears the same again.

use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::csr::Csr;
use holdfast_protocol::id::{Domain, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::record::Change;
use holdfast_store::{StoreError, WriteError};

use super::replace::voided;
use super::{Asked, Enrolment, Given, Refusal, flat, hashed};
use crate::registry::{Draft, Writing};
use crate::tables::{Enrolled, GatewayRow, PeerRow, TokenRow};

impl Enrolment {
    pub(super) async fn try_enrol(&self, asked: &Asked) -> Result<Given, Refusal> {
        if self.core.cloud.is_some() {
            return Err(Refusal::NotHere);
        }
        let (key, keys) = (hashed(&asked.secret.0), keys_of(asked)?);
        let now = self.core.clock.now().secs;
        let token = self.core.registry.read(|view| view.token(&key))?;
        let token = match check(token, (&asked.gateway, &keys), now)? {
            Checked::Again(answer) => return self.again(&asked.gateway, &answer),
            Checked::Fresh(token) => token,
        };
        let TokenRow { site, gateway, .. } = token;
        let (issuer_chain, issuer_draft) =
            self.authority
                .sign_intermediate(&site, &gateway, &asked.issuer_request)?;
        let party = Party::Gateway {
            server: gateway.clone(),
            site: site.clone(),
        };
        let (own, own_draft) =
            self.authority
                .sign_request(party, &asked.server_request, &asked.addresses)?;
        let mut drafts = vec![issuer_draft, own_draft];
        drafts.extend(self.vouchers_for(&site, &asked.owner_key)?);
        let mut server_chain = own.full_chain();
        server_chain.extend(self.authority.anchors()?);
        let entering = Entering {
            token: key,
            keys,
            gateway: gateway.clone(),
            site: site.clone(),
            record_key: asked.record_key.clone(),
            owner_key: asked.owner_key.clone(),
            now,
            drafts,
            peer: PeerRow {
                server: gateway.clone(),
                site: site.clone(),
                mqtt: asked.mqtt.clone(),
                https: asked.https.clone(),
            },
            given: self.given(&site, issuer_chain, server_chain)?,
            domain: self.core.config.domain.clone(),
        };
        let done = self.core.registry.write(move |it| entering.enter(it)).await;
        let (given, again) = done.map_err(flat)?;
        match again {
            true => self.again(&asked.gateway, &given),
            false => {
                let given: Given = read_answer(&given)?;
                tracing::info!(%site, %gateway, epoch = given.epoch, "gateway enrolled");
                Ok(given)
            }
        }
    }

    /// The answer got lost on its way: the same again, as long as nothing took its place.
    fn again(&self, gateway: &str, answer: &[u8]) -> Result<Given, Refusal> {
        let given = read_answer(answer)?;
        let present = match gateway.parse::<ServerId>() {
            Ok(gateway) => self.core.registry.read(|view| view.gateway(&gateway))?,
            Err(_) => None,
        };
        if present.is_none_or(|row| row.epoch != given.epoch) {
            return Err(Refusal::UsedToken);
        }
        tracing::info!(
            gateway,
            epoch = given.epoch,
            "an enrolment is answered again"
        );
        Ok(given)
    }
}

/// What one commit of an enrolment does.
#[derive(Debug)]
struct Entering {
    token: [u8; 32],
    keys: String,
    gateway: ServerId,
    site: SiteId,
    record_key: VerifyingKey,
    owner_key: VerifyingKey,
    now: u64,
    drafts: Vec<Draft>,
    peer: PeerRow,
    given: Given,
    domain: Domain,
}

impl Entering {
    /// Everything that depends on what others may do at the same time is read here: the token, the
    /// number, and what that number makes void. The answer is kept with it, and whether it is one
    /// that was given before.
    fn enter(&self, it: &mut Writing<'_>) -> Result<(Vec<u8>, bool), WriteError<Refusal>> {
        let name = self.gateway.to_string();
        let row = match check(it.tables.token(&self.token)?, (&name, &self.keys), self.now) {
            Ok(Checked::Fresh(row)) => row,
            Ok(Checked::Again(answer)) => return Ok((answer, true)),
            Err(refusal) => return Err(WriteError::Job(refusal)),
        };
        let known = it.tables.gateway(&self.gateway)?;
        // Two tokens may have been made before the first was used.
        if let Some(row) = known.as_ref().filter(|row| row.site != self.site) {
            let bearer = format!("a gateway of site {}", row.site);
            let taken = Refusal::NameTaken(self.gateway.clone(), bearer);
            return Err(WriteError::Job(taken));
        }
        let epoch = known.map_or(1, |row: GatewayRow| row.epoch.saturating_add(1));
        let enrolled = Change::GatewayEnrolled {
            gateway: self.gateway.clone(),
            epoch,
            record_key: self.record_key.clone(),
            owner_key: self.owner_key.clone(),
        };
        let mut drafts = voided(it.tables, &self.domain, (&self.site, &self.gateway))?;
        drafts.push(Draft {
            site: self.site.clone(),
            device: None,
            change: enrolled,
        });
        drafts.extend(self.drafts.iter().cloned());
        let given = Given {
            epoch,
            ..self.given.clone()
        };
        let answer = serde_json::to_vec(&given).expect("plain strings and numbers");
        let mut former = row.former.clone();
        former.extend(row.enrolled.as_ref().map(|last| last.keys.clone()));
        let row = TokenRow {
            former,
            used: Some(self.now),
            enrolled: Some(Enrolled {
                keys: self.keys.clone(),
                epoch,
                answer: answer.clone(),
            }),
            ..row
        };
        it.tables.put_token(&self.token, &row)?;
        it.tables.put_peer(&self.peer)?;
        for draft in drafts {
            it.append(draft).map_err(|error| match error {
                WriteError::Store(error) => WriteError::Store(error),
                WriteError::Job(error) => WriteError::Job(Refusal::Registry(error)),
            })?;
        }
        Ok((answer, false))
    }
}

/// What a token is good for.
enum Checked {
    /// To enrol.
    Fresh(TokenRow),
    /// To hear again what was answered to the same keys.
    Again(Vec<u8>),
}

fn check(
    token: Option<TokenRow>,
    (gateway, keys): (&str, &str),
    now: u64,
) -> Result<Checked, Refusal> {
    let token = token.ok_or(Refusal::UnknownToken)?;
    if token.void {
        return Err(Refusal::VoidToken);
    }
    if token.expires <= now {
        return Err(match token.used {
            Some(_) => Refusal::UsedToken,
            None => Refusal::ExpiredToken,
        });
    }
    if token.gateway.as_str() != gateway {
        return Err(Refusal::OtherGateway(token.gateway));
    }
    if token.former.iter().any(|former| former == keys) {
        // A later use took the place of this machine.
        return Err(Refusal::UsedToken);
    }
    let left = token.times() < token.uses;
    match (token.used, &token.enrolled) {
        (None, _) => Ok(Checked::Fresh(token)),
        (Some(_), Some(enrolled)) if enrolled.keys == keys => {
            Ok(Checked::Again(enrolled.answer.clone()))
        }
        (Some(_), Some(_)) if left => Ok(Checked::Fresh(token)),
        (Some(_), Some(_)) => Err(Refusal::StolenToken(token.gateway)),
        (Some(_), None) => Err(Refusal::UsedToken),
    }
}

/// Who asks, told by all the keys that it brings.
fn keys_of(asked: &Asked) -> Result<String, Refusal> {
    let mut all = Vec::new();
    for request in [&asked.issuer_request, &asked.server_request] {
        let csr = Csr::parse(request)?;
        all.extend(csr.key().to_spki_der());
    }
    for key in [&asked.record_key, &asked.owner_key] {
        all.extend(key.to_spki_der());
    }
    let digest = hashed(&all);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn read_answer(answer: &[u8]) -> Result<Given, Refusal> {
    let damaged = |_| StoreError::Misuse("an enrolment's answer is not of this version".into());
    Ok(serde_json::from_slice(answer).map_err(damaged)?)
}
