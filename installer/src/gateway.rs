//! The gateway as the installer sees it: found on the LAN or told, known by the pinned root, asked
//! for its owner key, handed a voucher.
//!
//! mDNS is a hint where to knock. The first question is asked of the address, whose certificate
//! must come from the pinned root; the answer names the gateway, and everything after it is asked
//! of that name. Nothing is retried here: the person with the installer is told what to do.

use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use holdfast_config::HostPort;
use holdfast_link::dial::{DialError, Endpoint, Security};
use holdfast_link::discovery::{Discovery, DiscoveryError, Interfaces, Sighting};
use holdfast_link::https;
use holdfast_link::time::Clock;
use holdfast_link::tls::{PeerFault, Trust, client_config};
use holdfast_protocol::crypto::VerifyingKey;
use holdfast_protocol::id::SiteId;
use holdfast_protocol::roots::MOST_ROOTS;
use holdfast_protocol::voucher::Voucher;
use serde_json::Value;

use crate::cli::progress;
use crate::trust::Roots;

/// How long the LAN is listened to.
const LISTEN: Duration = Duration::from_secs(4);
/// Gateways named in one message; mDNS may tell of any number.
const MOST_SHOWN: usize = 5;
/// The port of HTTPS where a gateway does not tell another.
const HTTPS_PORT: u16 = 8443;

/// Why a gateway was not found or did not take a voucher.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub(crate) enum GatewayFault {
    #[error(
        "no gateway was found on this LAN; check that this machine is on the site's LAN, or give --gateway HOST:PORT"
    )]
    NotFound,
    #[error(
        "no gateway of site {0} was found on this LAN, but {1}; check --site, or give --gateway HOST:PORT"
    )]
    OtherSites(SiteId, String),
    #[error(
        "more than one gateway was found ({0}); choose one with --site SITE or --gateway HOST:PORT"
    )]
    Several(String),
    #[error("the LAN cannot be searched: {0}; give --gateway HOST:PORT")]
    Search(#[from] DiscoveryError),
    #[error(
        "the gateway at {at} was not reached: {source}; check the address, and that it runs and is on this network"
    )]
    Unreachable { at: String, source: https::Error },
    #[error(
        "what answers at {at} cannot prove to be a gateway under the root you trust: {fault}; nothing was sent to it. If it is the right one, fetch its root there (`holdfast-gateway root`) and give it by --root FILE"
    )]
    Untrusted { at: String, fault: PeerFault },
    #[error("the gateway {name} is of site {site}, not of {wanted}; check --site and --gateway")]
    OtherSite {
        name: String,
        site: String,
        wanted: SiteId,
    },
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
    #[error(
        "what answers at {0} is no gateway of this version; check the address, and update what is older"
    )]
    NotAGateway(String),
    #[error("the gateway {name} refuses the voucher (HTTP {status}): {why}")]
    Refused {
        name: String,
        status: u16,
        why: String,
    },
    #[error("the gateway {name} could not take the voucher (HTTP {status}): {why}")]
    Failed {
        name: String,
        status: u16,
        why: String,
    },
}

impl GatewayFault {
    /// Whether trying again later may help.
    pub(crate) fn is_unavailable(&self) -> bool {
        matches!(
            self,
            Self::NotFound | Self::Unreachable { .. } | Self::Failed { .. }
        )
    }

    /// Whether the gateway said for good that it does not keep the voucher.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// Looks for the one gateway of this LAN, or of this site; its addresses.
pub(crate) async fn find(
    interfaces: &Interfaces,
    site: Option<&SiteId>,
) -> Result<Vec<String>, GatewayFault> {
    let discovery = Discovery::start(interfaces)?;
    progress(&format!("searching the LAN for a gateway, {LISTEN:?}"));
    let mut seen = discovery.browse(LISTEN).await?;
    choose(&mut seen, site)
}

fn choose(seen: &mut Vec<Sighting>, site: Option<&SiteId>) -> Result<Vec<String>, GatewayFault> {
    let shown = show(seen);
    if let Some(site) = site.filter(|_| !seen.is_empty()) {
        seen.retain(|one| fact(one, "site") == Some(site.as_str()));
        if seen.is_empty() {
            return Err(GatewayFault::OtherSites(site.clone(), shown));
        }
    }
    match seen.as_slice() {
        [] => Err(GatewayFault::NotFound),
        [one] => match addresses(one) {
            none if none.is_empty() => Err(GatewayFault::NotFound),
            some => Ok(some),
        },
        several => Err(GatewayFault::Several(show(several))),
    }
}

fn show(seen: &[Sighting]) -> String {
    let shown = seen.iter().take(MOST_SHOWN).map(|one| {
        let at = addresses(one).into_iter().next().unwrap_or_default();
        let site = fact(one, "site").unwrap_or("?");
        format!("{} of site {site} at {at}", one.instance)
    });
    shown.collect::<Vec<_>>().join(", ")
}

fn fact<'a>(seen: &'a Sighting, name: &str) -> Option<&'a str> {
    let found = seen.facts.iter().find(|(known, _)| known == name);
    found.map(|(_, value)| value.as_str())
}

fn addresses(seen: &Sighting) -> Vec<String> {
    let told = fact(seen, "https").and_then(|port| port.parse().ok());
    let port = told.unwrap_or(HTTPS_PORT);
    seen.addresses
        .iter()
        .map(|ip| std::net::SocketAddr::new(*ip, port).to_string())
        .collect()
}

/// A gateway that proved its name under the pinned root.
#[derive(Debug)]
pub(crate) struct Gateway {
    client: https::Client,
    /// The DNS name in its certificate.
    pub(crate) name: String,
    /// Vouchers for it are extended to this.
    pub(crate) owner_key: VerifyingKey,
}

impl Gateway {
    /// Asks the first of `addresses` that answers who it is, then has it prove that name.
    pub(crate) async fn meet(
        addresses: &[String],
        site: Option<&SiteId>,
        roots: &Roots,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, GatewayFault> {
        let config = client_config(Trust::RootHashes(roots.0.clone()), None, clock)
            .map_err(|error| GatewayFault::Tls(error.to_string()))?;
        let client = |name: String, addresses: &[String]| {
            let endpoint = Endpoint {
                addresses: addresses.to_vec(),
                security: Security::Tls {
                    name,
                    config: Arc::clone(&config),
                },
            };
            https::Client::new(endpoint, https::Limits::default())
        };
        let mut last = GatewayFault::NotFound;
        for address in addresses {
            let one = std::slice::from_ref(address);
            let host = address.parse::<HostPort>().map(|at| at.host);
            let first = client(host.unwrap_or_else(|_| address.clone()), one);
            match ask(&first, address).await {
                Ok(told) => {
                    let client = client(told.name, one);
                    let told = ask(&client, address).await?;
                    told.check_site(site)?;
                    return Ok(Self {
                        client,
                        name: told.name,
                        owner_key: told.owner_key,
                    });
                }
                Err(fault) => last = fault,
            }
        }
        Err(last)
    }

    /// Which roots it believes, and the cross-certificates between them; nothing of one that does not tell.
    pub(crate) async fn roots(&self) -> Option<(Vec<Vec<u8>>, Vec<Vec<u8>>)> {
        let answer = self.client.get("/api/v1/authority").await.ok()?;
        let value: Value = serde_json::from_slice(&answer.body).ok()?;
        let list = |name: &str| -> Option<Vec<Vec<u8>>> {
            let list = value[name].as_array()?.iter().take(MOST_ROOTS);
            list.map(|one| STANDARD.decode(one.as_str()?).ok())
                .collect()
        };
        Some((list("roots")?, list("crosses")?))
    }

    /// Hands in a voucher; whether the gateway had it before.
    pub(crate) async fn hand_in(&self, voucher: &Voucher) -> Result<bool, GatewayFault> {
        let body = voucher.as_bytes().to_vec();
        let answer = self
            .client
            .post("/api/v1/vouchers", "application/octet-stream", body)
            .await
            .map_err(|source| unreached(&self.name, source))?;
        let value: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        if answer.status.is_success() {
            let known = value["known"].as_bool();
            return known.ok_or_else(|| GatewayFault::NotAGateway(self.name.clone()));
        }
        let (name, status) = (self.name.clone(), answer.status.as_u16());
        let why = value["error"]
            .as_str()
            .unwrap_or("no reason given")
            .to_owned();
        Err(match answer.status.is_client_error() {
            true => GatewayFault::Refused { name, status, why },
            false => GatewayFault::Failed { name, status, why },
        })
    }
}

/// Nobody there, or somebody else.
fn unreached(at: &str, source: https::Error) -> GatewayFault {
    let at = at.to_owned();
    match source {
        https::Error::Dial(DialError::Untrusted { fault, .. }) => {
            GatewayFault::Untrusted { at, fault }
        }
        source => GatewayFault::Unreachable { at, source },
    }
}

#[derive(Debug)]
struct Told {
    name: String,
    site: Option<String>,
    owner_key: VerifyingKey,
}

impl Told {
    fn check_site(&self, wanted: Option<&SiteId>) -> Result<(), GatewayFault> {
        match wanted {
            Some(wanted) if self.site.as_deref() != Some(wanted.as_str()) => {
                Err(GatewayFault::OtherSite {
                    name: self.name.clone(),
                    site: self.site.clone().unwrap_or_else(|| "none".to_owned()),
                    wanted: wanted.clone(),
                })
            }
            _ => Ok(()),
        }
    }
}

async fn ask(client: &https::Client, at: &str) -> Result<Told, GatewayFault> {
    let answer = client.get("/api/v1/owner").await;
    let answer = answer.map_err(|source| unreached(at, source))?;
    let stranger = || GatewayFault::NotAGateway(at.to_owned());
    if !answer.status.is_success() {
        return Err(stranger());
    }
    let value: Value = serde_json::from_slice(&answer.body).map_err(|_| stranger())?;
    let key = value["owner_key"]
        .as_str()
        .and_then(|text| STANDARD.decode(text).ok());
    let key = key.and_then(|der| VerifyingKey::from_spki_der(&der).ok());
    Ok(Told {
        name: value["name"].as_str().ok_or_else(stranger)?.to_owned(),
        site: value["site"].as_str().map(str::to_owned),
        owner_key: key.ok_or_else(stranger)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(instance: &str, site: &str) -> Sighting {
        Sighting {
            instance: instance.to_owned(),
            host: "holdfast-rv.local".to_owned(),
            addresses: vec!["10.0.0.2".parse().expect("address")],
            port: 8042,
            facts: vec![
                ("site".to_owned(), site.to_owned()),
                ("https".to_owned(), "9443".to_owned()),
            ],
        }
    }

    #[test]
    fn one_gateway_is_chosen_or_the_choice_is_left_to_the_person() {
        let (harbour, quay) = ("harbour".parse().ok(), "quay".parse().ok());
        let choose = |seen: &[Sighting], site: &Option<SiteId>| {
            choose(&mut seen.to_vec(), site.as_ref()).map_err(|fault| fault.to_string())
        };
        let one = [seen("gw1", "harbour")];
        let two = [seen("gw1", "harbour"), seen("gw2", "quay")];
        let at = Ok(vec!["10.0.0.2:9443".to_owned()]);
        assert_eq!(choose(&one, &None), at);
        assert_eq!(choose(&two, &harbour), at);
        let nobody = choose(&[], &harbour).expect_err("nobody");
        assert!(nobody.contains("--gateway HOST:PORT"), "{nobody}");
        let several = choose(&two, &None).expect_err("two");
        assert!(
            several.contains("gw2 of site quay") && several.contains("--site"),
            "{several}"
        );
        let other = choose(&one, &quay).expect_err("another site's");
        assert!(
            other.contains("no gateway of site quay") && other.contains("gw1"),
            "{other}"
        );
        let crowd = vec![seen("gw1", "harbour"); 60];
        assert!(choose(&crowd, &None).expect_err("many").len() < 600);
    }
}
