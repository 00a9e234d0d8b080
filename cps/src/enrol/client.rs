//! Enrolment, the gateway's side: makes its keys, asks the cloud that the token pins, checks what
//! it got and keeps it. Called by the gateway's CLI before its CPS server can open. Nothing is kept
//! of an answer that does not fit.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use holdfast_link::dial::{Endpoint, Security};
use holdfast_link::https;
use holdfast_link::time::Clock;
use holdfast_link::tls::{Anchors, Purpose, Trust, client_config, verify_chain};
use holdfast_protocol::crypto::{HashAlg, VerifyingKey, hash};
use holdfast_protocol::id::{Domain, ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::roots;
use holdfast_protocol::succession::KeyRole;
use serde::{Deserialize, Serialize};

use super::{Asked, Given, Secret, Token, parse_given};
use crate::OpenError;
use crate::authority::{Issuer, SignerError, pem, witness};
use crate::config::{CpsConfig, Role};
use crate::keys::{KeyError, Keys, load_or_make, read_file, write_secret};
use crate::rotation::known::{Era, Known};

/// Where the cloud's identity is kept, in the key folder.
const FILE: &str = "cloud.json";

/// Why the gateway did not enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The token names another gateway than the configuration.
    #[error(
        "the token is for gateway {token} of site {site}, this one is configured as {own}; use the right token or name"
    )]
    OtherGateway {
        /// The token's gateway.
        token: ServerId,
        /// The token's site.
        site: SiteId,
        /// Our configured name.
        own: ServerId,
    },
    /// The cloud was not reached, or is not the one that the token pins.
    #[error(
        "the cloud was not reached: {0}; check the address, and that the token is of this cloud"
    )]
    Unreachable(#[from] https::Error),
    /// The cloud said no.
    #[error("the cloud refused (HTTP {status}): {why}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// Its words.
        why: String,
    },
    /// The answer does not fit the question.
    #[error("the cloud's answer does not hold: {0}; nothing was kept, ask the cloud's operator")]
    Answer(&'static str),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// Our own keys.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Our own authority's keys.
    #[error(transparent)]
    Signer(#[from] SignerError),
}

/// The cloud that a gateway enrolled with, and as what.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Cloud {
    server: String,
    domain: String,
    site: String,
    gateway: String,
    /// The number of the enrolment.
    pub epoch: u32,
    /// Verifies the cloud's entries and notices.
    #[serde(with = "crate::tables::key")]
    pub record_key: VerifyingKey,
    /// Vouchers are extended to it.
    #[serde(with = "crate::tables::key")]
    pub owner_key: VerifyingKey,
    /// Where its broker is reached, `host:port`.
    pub mqtt: Vec<String>,
    /// Where its HTTPS is reached, `host:port`.
    pub https: Vec<String>,
    /// By which keys it signed in this site's log before, and from which number on.
    #[serde(default)]
    record_eras: Vec<Era>,
    /// Owner keys that it had before.
    #[serde(default)]
    owner_keys: Vec<Known>,
    /// This gateway's owner key and signing key, with which it enrolled.
    #[serde(default)]
    own: Option<(Known, Known)>,
}

impl Cloud {
    /// By which keys the cloud signs in this site's log, as far as the enrolment said.
    pub(crate) fn eras(&self) -> Vec<Era> {
        match self.record_eras.is_empty() {
            true => vec![Era {
                from: 1,
                key: self.record_key.clone(),
            }],
            false => self.record_eras.clone(),
        }
    }

    /// The owner keys of the cloud, as far as the enrolment said.
    pub(crate) fn all_owner_keys(&self) -> Vec<VerifyingKey> {
        let earlier = self.owner_keys.iter().map(|known| known.0.clone());
        earlier.chain([self.owner_key.clone()]).collect()
    }

    /// The key of this gateway with which it enrolled.
    pub(crate) fn own_key(&self, role: KeyRole) -> Option<&VerifyingKey> {
        let (owner, record) = self.own.as_ref()?;
        Some(match role {
            KeyRole::Owner => &owner.0,
            KeyRole::Signing => &record.0,
        })
    }

    /// The cloud's server id.
    ///
    /// # Panics
    /// Never: it is checked on loading.
    #[must_use]
    pub fn server(&self) -> ServerId {
        self.server.parse().expect("checked on loading")
    }

    /// The installation's domain.
    ///
    /// # Panics
    /// Never: it is checked on loading.
    #[must_use]
    pub fn domain(&self) -> Domain {
        self.domain.parse().expect("checked on loading")
    }

    /// The site that this gateway enrolled for.
    ///
    /// # Panics
    /// Never: it is checked on loading.
    #[must_use]
    pub fn site(&self) -> SiteId {
        self.site.parse().expect("checked on loading")
    }

    /// The gateway's own name.
    ///
    /// # Panics
    /// Never: it is checked on loading.
    #[must_use]
    pub fn gateway(&self) -> ServerId {
        self.gateway.parse().expect("checked on loading")
    }

    /// The DNS name to verify at the cloud.
    #[must_use]
    pub fn name(&self) -> String {
        Party::Cloud {
            server: self.server(),
        }
        .dns(&self.domain())
    }

    /// Reads what an earlier enrolment left; `None` before the first. For the gateway's binary,
    /// which learns its site and domain from it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(folder: &Path) -> Result<Option<Self>, KeyError> {
        let path = folder.join(FILE);
        let Some(text) = read_file(&path)? else {
            return Ok(None);
        };
        let cloud: Self =
            serde_json::from_slice(&text).map_err(|_| KeyError::Content(path.clone()))?;
        let whole = cloud.server.parse::<ServerId>().is_ok()
            && cloud.domain.parse::<Domain>().is_ok()
            && cloud.site.parse::<SiteId>().is_ok()
            && cloud.gateway.parse::<ServerId>().is_ok();
        if whole {
            Ok(Some(cloud))
        } else {
            Err(KeyError::Content(path))
        }
    }

    /// The cloud of a gateway that opens; `None` for the cloud itself.
    pub(crate) fn load(config: &CpsConfig, keys: &Keys) -> Result<Option<Self>, OpenError> {
        let Role::Gateway { site } = &config.role else {
            return Ok(None);
        };
        let cloud = Self::read(keys.folder())?.ok_or(OpenError::NotEnrolled)?;
        let name = |server: &ServerId, site: &SiteId, domain: &Domain| {
            Party::Gateway {
                server: server.clone(),
                site: site.clone(),
            }
            .dns(domain)
        };
        let enrolled = name(&cloud.gateway(), &cloud.site(), &cloud.domain());
        let configured = name(&config.server, site, &config.domain);
        if enrolled != configured {
            return Err(OpenError::OtherParty {
                enrolled,
                configured,
            });
        }
        Ok(Some(cloud))
    }
}

/// What the gateway brings to its enrolment.
#[derive(Clone, Debug)]
pub struct Enrolling {
    /// Its configured name; `None` takes the token's.
    pub gateway: Option<ServerId>,
    /// `host:port` of the cloud's HTTPS, in order.
    pub cloud: Vec<String>,
    /// Its LAN addresses.
    pub addresses: Vec<IpAddr>,
    /// Where devices reach its broker.
    pub mqtt: Vec<String>,
    /// Where devices reach its HTTPS.
    pub https: Vec<String>,
}

/// Enrols with the cloud. The keys are in `folder` before the cloud is asked; the certificates
/// after it answered.
///
/// # Errors
/// See [`EnrolError`]. After a refusal the same folder serves for the next try.
pub async fn enrol(
    folder: &Path,
    token: &Token,
    enrolling: Enrolling,
    clock: Arc<dyn Clock>,
) -> Result<Cloud, EnrolError> {
    let gateway = enrolling
        .gateway
        .clone()
        .unwrap_or_else(|| token.gateway.clone());
    if gateway != token.gateway {
        let (token, site) = (token.gateway.clone(), token.site.clone());
        return Err(EnrolError::OtherGateway {
            token,
            site,
            own: gateway,
        });
    }
    let keys = Keys::open(folder)?;
    let issuer = Issuer::Site(token.site.clone());
    keys.signer().prepare(&issuer)?;
    let server_key = load_or_make(&folder.join("server.key"))?;
    let asked = Asked {
        secret: Secret(token.secret().to_vec()),
        issuer_request: keys.signer().request(&issuer)?,
        server_request: holdfast_protocol::csr::request(gateway.as_str(), &server_key),
        record_key: keys.record().public(),
        owner_key: keys.owner().public(),
        gateway: gateway.to_string(),
        addresses: enrolling.addresses.clone(),
        mqtt: enrolling.mqtt.clone(),
        https: enrolling.https.clone(),
    };
    let given = ask(&enrolling, token, &asked, Arc::clone(&clock)).await?;
    let mut cloud = check(
        &given,
        token,
        &server_key.public(),
        &*clock,
        enrolling.cloud,
    )?;
    cloud.own = Some((Known(asked.owner_key), Known(asked.record_key)));
    let issuer_chain: Vec<Vec<u8>> = given.issuer_chain.into_iter().map(|der| der.0).collect();
    if keys.signer().chain(&issuer)?.is_empty()
        && let Some(own) = issuer_chain.first()
    {
        witness::note_fresh(folder, own)?;
    }
    keys.signer().install(&issuer, &issuer_chain)?;
    let server_chain: Vec<Vec<u8>> = given.server_chain.into_iter().map(|der| der.0).collect();
    write_secret(
        &folder.join("server.pem"),
        pem::chain(&server_chain).as_bytes(),
    )?;
    // Last, since its presence says that the rest is there.
    let text = serde_json::to_vec_pretty(&cloud).expect("plain strings and numbers");
    write_secret(&folder.join(FILE), &text)?;
    Ok(cloud)
}

async fn ask(
    enrolling: &Enrolling,
    token: &Token,
    asked: &Asked,
    clock: Arc<dyn Clock>,
) -> Result<Given, EnrolError> {
    let config = client_config(Trust::RootHashes(vec![token.root_hash]), None, clock)?;
    let security = Security::Tls {
        name: token.cloud.clone(),
        config,
    };
    let endpoint = Endpoint {
        addresses: enrolling.cloud.clone(),
        security,
    };
    let client = https::Client::new(endpoint, https::Limits::default());
    let body = serde_json::to_vec(asked).expect("plain strings and numbers");
    let response = client
        .post("/api/v1/enrol", "application/json", body)
        .await?;
    if !response.status.is_success() {
        let why = serde_json::from_slice::<serde_json::Value>(&response.body).ok();
        let why = why
            .and_then(|it| it["error"].as_str().map(str::to_owned))
            .unwrap_or_default();
        return Err(EnrolError::Refused {
            status: response.status.as_u16(),
            why,
        });
    }
    serde_json::from_slice(&response.body).map_err(|_| EnrolError::Answer("not understood"))
}

/// The answer must be for this token, under the pinned root, over our keys.
fn check(
    given: &Given,
    token: &Token,
    server_key: &VerifyingKey,
    clock: &dyn Clock,
    addresses: Vec<String>,
) -> Result<Cloud, EnrolError> {
    let (server, domain, site) = parse_given(given).ok_or(EnrolError::Answer("names"))?;
    if site != token.site {
        return Err(EnrolError::Answer("another site"));
    }
    if (Party::Cloud { server }).dns(&domain) != token.cloud {
        return Err(EnrolError::Answer("another cloud than the token's"));
    }
    check_own(given, token, &domain, server_key, clock)?;
    let https = if given.https.is_empty() {
        addresses
    } else {
        given.https.clone()
    };
    Ok(Cloud {
        server: given.server.clone(),
        domain: given.domain.clone(),
        site: given.site.clone(),
        gateway: token.gateway.to_string(),
        epoch: given.epoch,
        record_key: given.record_key.clone(),
        owner_key: given.owner_key.clone(),
        mqtt: given.mqtt.clone(),
        https,
        record_eras: given.record_eras.clone(),
        owner_keys: given.owner_keys.clone(),
        own: None,
    })
}

fn check_own(
    given: &Given,
    token: &Token,
    domain: &Domain,
    server_key: &VerifyingKey,
    clock: &dyn Clock,
) -> Result<(), EnrolError> {
    let bad = EnrolError::Answer("this gateway's certificate");
    let chain: Vec<Vec<u8>> = given.issuer_chain.iter().map(|der| der.0.clone()).collect();
    // The holder of the pinned root says which others hold; it must be among them, and lead to ours.
    let (_, told) = roots::split(&chain);
    let is_pinned = |der: &&Vec<u8>| hash(HashAlg::Sha256, der).value() == token.root_hash;
    let pinned = told.iter().find(is_pinned);
    let pinned = pinned.ok_or(EnrolError::Answer("another root than the token's"))?;
    if roots::leads_to(&chain, &told).is_none() {
        return Err(EnrolError::Answer("the site's intermediate"));
    }
    let anchors =
        Anchors::new([pinned.clone()]).map_err(|_| EnrolError::Answer("the root certificate"))?;
    let Some((own, above)) = given.server_chain.split_first() else {
        return Err(bad);
    };
    if crate::authority::spki_of(&own.0) != Some(server_key.to_spki_der()) {
        return Err(bad);
    }
    let party = Party::Gateway {
        server: token.gateway.clone(),
        site: token.site.clone(),
    };
    let name = rustls::pki_types::ServerName::try_from(party.dns(domain));
    let name = name.map_err(|_| EnrolError::Answer("names"))?;
    let above: Vec<_> = above.iter().map(|der| der.0.clone().into()).collect();
    let own = own.0.clone().into();
    verify_chain(
        &own,
        &above,
        &anchors,
        Purpose::Server,
        Some(&name),
        clock.certain(),
    )
    .map_err(|_| bad)
}
