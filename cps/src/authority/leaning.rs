//! Who leans on which root, at the cloud: what gateways showed when they last asked, and what the log
//! says of certificates. Called by the rotation, which locks nobody out unasked, and by the views.
//!
//! A certificate in the log does not say which root it leads to. A gateway's own certificate does, when
//! it is shown: whatever the gateway signed after that, by its own clock, which never runs back, leads
//! to the same root or a newer one. Everything else is taken to lean on the old one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use holdfast_protocol::certificate::validity;
use holdfast_protocol::id::{ServerId, SiteId};
use holdfast_protocol::name::Party;
use holdfast_protocol::roots;
use serde::{Deserialize, Serialize};

use super::{Authority, AuthorityError, pem, serial_of};
use crate::keys::{KeyError, read_file, write_secret};
use crate::registry::RegistryError;
use crate::tables::CertificateRow;

/// In the key folder.
const FILE: &str = "gateways.json";

/// Somebody who leans on a root that is to be retired.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Leaning {
    /// A gateway's name, or whom a certificate names.
    pub who: String,
    /// Why it is thought to lean on it.
    pub why: String,
    /// When that ends by itself, unix seconds; none for a gateway.
    pub until: Option<u64>,
}

/// How a gateway stood when it last asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Fingerprint of the root to which its authority leads.
    pub root: String,
    /// From when the first certificate of its own that was seen under that root is valid.
    pub since: u64,
    /// Serial of its authority.
    pub intermediate: String,
    /// From when its authority is valid.
    pub intermediate_since: u64,
}

/// What is kept of gateways.
#[derive(Debug, Default)]
pub(super) struct Gateways {
    path: PathBuf,
    kept: Kept,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    seen: BTreeMap<String, Standing>,
    /// Authorities that the operator wants replaced, by their serials.
    ordered: BTreeMap<String, String>,
}

impl Gateways {
    pub(super) fn open(folder: &Path) -> Result<Self, KeyError> {
        let path = folder.join(FILE);
        let kept = match read_file(&path)? {
            // It is learnt anew from whoever asks, so a damaged one begins anew.
            Some(text) => serde_json::from_slice(&text).unwrap_or_default(),
            None => Kept::default(),
        };
        Ok(Self { path, kept })
    }

    fn change(&mut self, change: impl FnOnce(&mut Kept)) -> Result<(), KeyError> {
        let mut kept = self.kept.clone();
        change(&mut kept);
        if kept != self.kept {
            let text = serde_json::to_vec_pretty(&kept).expect("plain strings and numbers");
            write_secret(&self.path, &text)?;
            self.kept = kept;
        }
        Ok(())
    }
}

impl Authority {
    /// A gateway asked, and showed this chain: how it stands is noted. Whether its authority was ordered
    /// to be replaced.
    ///
    /// # Errors
    /// Our own files.
    pub(crate) fn note_gateway(
        &self,
        gateway: &ServerId,
        chain: &[Vec<u8>],
    ) -> Result<bool, AuthorityError> {
        let anchors = self.anchors()?;
        let Some(standing) = standing(chain, &anchors) else {
            return Ok(false);
        };
        let mut gateways = self.gateways();
        let serial = standing.intermediate.clone();
        let name = gateway.to_string();
        gateways.change(|kept| {
            let since = match kept.seen.get(&name) {
                Some(before) if before.root == standing.root => before.since,
                _ => standing.since,
            };
            kept.seen
                .insert(name.clone(), Standing { since, ..standing });
            match kept.ordered.get_mut(&name) {
                // Ordered before it was ever seen: this is the one that was meant.
                Some(ordered) if ordered.is_empty() => *ordered = serial,
                // It has another one: the order is done.
                Some(ordered) if *ordered != serial => _ = kept.ordered.remove(&name),
                _ => {}
            }
        })?;
        Ok(gateways.kept.ordered.contains_key(&name))
    }

    /// Orders the authorities of a site's gateways to be replaced; they do so when they next ask. The
    /// gateways' names.
    ///
    /// # Errors
    /// Our own store and files.
    pub fn order_rotation(&self, site: &SiteId) -> Result<Vec<ServerId>, AuthorityError> {
        let rows = self.core.registry.read(|view| view.gateways());
        let rows = rows.map_err(RegistryError::from)?;
        let names = rows.into_iter().filter(|row| row.site == *site);
        let names: Vec<ServerId> = names.map(|row| row.server).collect();
        self.gateways().change(|kept| {
            for name in names.iter().map(ToString::to_string) {
                let seen = kept.seen.get(&name).map(|seen| seen.intermediate.clone());
                // One that was never seen is told when it first shows what it has.
                kept.ordered.insert(name, seen.unwrap_or_default());
            }
        })?;
        Ok(names)
    }

    /// How each gateway stood when it last asked; none if it never did.
    ///
    /// # Errors
    /// Our own store.
    pub fn standings(&self) -> Result<Vec<(ServerId, Option<Standing>)>, AuthorityError> {
        let rows = self.core.registry.read(|view| view.gateways());
        let gateways = self.gateways();
        let seen = |name: &ServerId| gateways.kept.seen.get(name.as_str()).cloned();
        let rows = rows.map_err(RegistryError::from)?.into_iter();
        Ok(rows
            .map(|row| (row.server.clone(), seen(&row.server)))
            .collect())
    }

    /// Who on record leans on that root and would be locked out without it.
    ///
    /// # Errors
    /// Our own store and files.
    pub fn leaning_on(&self, root: &[u8]) -> Result<Vec<Leaning>, AuthorityError> {
        let anchors = self.anchors()?;
        let Some(present) = anchors.first().filter(|present| *present != root) else {
            return Ok(Vec::new());
        };
        let name = roots::fingerprint(present);
        let mut since = self.since_under(&name)?;
        if let Some(own) = self.own_since(present) {
            since.insert(self.core.config.server.to_string(), own);
        }
        let rows = self.core.registry.read(|view| view.certificates());
        let rows = rows.map_err(RegistryError::from)?;
        let mut leaning = Vec::new();
        if !self.own_leads_to(present) {
            leaning.push(Leaning {
                who: "this server".into(),
                why: "its own certificate is not renewed yet; that takes seconds".into(),
                until: None,
            });
        }
        for (gateway, standing) in self.standings()? {
            let renewed = standing.is_some_and(|standing| standing.root == name);
            if !renewed && self.has_certificate(&gateway, &rows) {
                leaning.push(Leaning {
                    who: format!("gateway {gateway}"),
                    why: "it has not shown an authority under the present root; it follows within a minute when it is in reach".into(),
                    until: None,
                });
            }
        }
        let live = rows.iter().filter(|row| self.is_live(row));
        leaning.extend(live.filter_map(|row| self.leans(row, &since)));
        Ok(leaning)
    }

    /// From when on each server's certificates lead to that root.
    fn since_under(&self, root: &str) -> Result<BTreeMap<String, u64>, AuthorityError> {
        let standings = self.standings()?.into_iter();
        let under = standings.filter_map(|(name, standing)| {
            let standing = standing.filter(|standing| standing.root == root)?;
            Some((name.to_string(), standing.since))
        });
        Ok(under.collect())
    }

    /// The same of this server, by its own certificate.
    fn own_since(&self, root: &[u8]) -> Option<u64> {
        let kept = read_file(&self.core.keys.folder().join("server.pem")).ok()??;
        let chain = pem::certificates(&kept)?;
        roots::leads_to(&chain[1..], &[root.to_vec()])?;
        Some(validity(&chain[0])?.0)
    }

    /// Not revoked, and good or renewable for a while yet.
    fn is_live(&self, row: &CertificateRow) -> bool {
        let grace = self.core.config.lives.grace.as_secs();
        let now = self.core.clock.certain().secs;
        !row.revoked && row.not_after.saturating_add(grace) > now
    }

    fn has_certificate(&self, gateway: &ServerId, rows: &[CertificateRow]) -> bool {
        let domain = &self.core.config.domain;
        let mut live = rows.iter().filter(|row| self.is_live(row));
        live.any(|row| {
            let party = Party::parse(&row.subject, domain);
            matches!(party, Ok(Party::Gateway { server, .. }) if server == *gateway)
        })
    }

    fn leans(&self, row: &CertificateRow, since: &BTreeMap<String, u64>) -> Option<Leaning> {
        let party = Party::parse(&row.subject, &self.core.config.domain).ok()?;
        let after = since.get(row.issuer.as_str());
        // Servers renew by themselves and show it; in the same second it may have been either.
        if party.is_server() || after.is_some_and(|since| row.not_before > *since) {
            return None;
        }
        Some(Leaning {
            who: party.to_string(),
            why: format!(
                "its certificate {} may lead to it; {}",
                row.serial,
                remedy(&party)
            ),
            until: Some(row.not_after),
        })
    }

    fn gateways(&self) -> std::sync::MutexGuard<'_, Gateways> {
        let gateways = self.shared.gateways.lock();
        gateways.unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// What is to be done about one who leans.
fn remedy(party: &Party) -> String {
    match party {
        Party::Client { name, .. } => format!(
            "it renews nothing by itself: issue it another with 'clients issue' for {name}, give it the files, then revoke this one"
        ),
        Party::Device { device, .. } => format!(
            "it renews when it is next there; 'certificates renew --device {device}' at its gateway says so now"
        ),
        _ => "its device renews it when it is next there".to_owned(),
    }
}

/// By a chain that was shown: leaf, intermediate, and what goes with it.
fn standing(chain: &[Vec<u8>], anchors: &[Vec<u8>]) -> Option<Standing> {
    let intermediate = chain.get(1)?;
    Some(Standing {
        root: roots::fingerprint(roots::leads_to(&chain[1..], anchors)?),
        since: validity(&chain[0])?.0,
        intermediate: serial_of(intermediate)?.to_string(),
        intermediate_since: validity(intermediate)?.0,
    })
}
