//! Where to knock: turns rendezvous directives and owners' addresses into addresses to dial.
//!
//! `.local` names are asked by mDNS, others left to the system's resolver. Nothing found here is
//! trusted: it only says where to try.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use holdfast_link::discovery::{self, Discovery};
use holdfast_protocol::rv::{Contact, RvProtocol, To2Address, To2Protocol};
use rand_core::Rng;

use super::Fault;
use crate::status::Board;

/// How names are resolved.
#[derive(Debug)]
pub(super) struct Places<'a> {
    pub(super) board: &'a Board,
    pub(super) discovery: Option<&'a Discovery>,
    pub(super) patience: Duration,
}

impl Places<'_> {
    /// The addresses of a rendezvous directive, as host:port.
    pub(super) async fn of_contact(&self, contact: &Contact) -> Result<Vec<String>, Fault> {
        if contact.protocol != RvProtocol::Http {
            return Err(Fault::Nowhere(format!(
                "a rendezvous server wants {:?}, which this agent does not speak: FDO needs plain HTTP only",
                contact.protocol
            )));
        }
        self.dialable(contact.dns.as_deref(), contact.ip, contact.port)
            .await
    }

    /// The addresses that an owner registered.
    pub(super) async fn of_owner(&self, address: &To2Address) -> Result<Vec<String>, Fault> {
        if address.protocol != To2Protocol::Http {
            return Err(Fault::Nowhere(format!(
                "the owner wants {:?}, which this agent does not speak",
                address.protocol
            )));
        }
        self.dialable(address.dns.as_deref(), address.ip, address.port)
            .await
    }

    async fn dialable(
        &self,
        dns: Option<&str>,
        ip: Option<IpAddr>,
        port: u16,
    ) -> Result<Vec<String>, Fault> {
        let mut found = match dns {
            Some(name) if is_local(name) => self.ask_lan(name, port).await?,
            Some(name) => vec![format!("{name}:{port}")],
            None => Vec::new(),
        };
        found.extend(ip.map(|ip| SocketAddr::new(ip, port).to_string()));
        match (found.is_empty(), dns) {
            (false, _) => Ok(found),
            (true, Some(name)) => Err(Fault::Nowhere(format!(
                "nobody on the LAN answers for {name}: is the gateway running, and in this network?"
            ))),
            (true, None) => Err(Fault::Nowhere("a directive names no address".into())),
        }
    }

    async fn ask_lan(&self, name: &str, port: u16) -> Result<Vec<String>, Fault> {
        let Some(discovery) = self.discovery else {
            return Ok(Vec::new());
        };
        let found = discovery
            .resolve(name, self.patience)
            .await
            .map_err(|error| Fault::Nowhere(error.to_string()))?;
        if !found.is_empty() {
            self.watch_for_rivals(discovery, name, &found).await;
        }
        Ok(found
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port).to_string())
            .collect())
    }
}

/// Longest look at who else claims a name.
const LOOK: Duration = Duration::from_millis(500);

impl Places<'_> {
    /// Two parties that answer for the gateway's name: one of them leads devices astray. FDO proves who is the owner, so
    /// the device goes on; people are told.
    async fn watch_for_rivals(&self, discovery: &Discovery, name: &str, found: &[IpAddr]) {
        let Ok(seen) = discovery.browse(self.patience.min(LOOK)).await else {
            return;
        };
        self.board
            .rivals(name, &discovery::claimants(name, &seen, found));
    }
}

fn is_local(name: &str) -> bool {
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    name.rsplit('.').next() == Some("local")
}

/// A quarter up or down, by lot, so that devices powered on together do not ask together.
pub(super) fn jitter(delay: Duration, rng: &mut impl Rng) -> Duration {
    delay.mul_f64(0.75 + f64::from(rng.next_u32()) / f64::from(u32::MAX) * 0.5)
}

#[cfg(test)]
mod tests {
    use holdfast_link::random::SystemRandom;

    use super::*;

    fn contact(dns: Option<&str>, ip: Option<&str>) -> Contact {
        Contact {
            dns: dns.map(str::to_owned),
            ip: ip.map(|ip| ip.parse().unwrap()),
            port: 8042,
            protocol: RvProtocol::Http,
            delay_secs: None,
            bypass: false,
        }
    }

    #[tokio::test]
    async fn names_come_before_addresses_and_local_names_need_mdns() {
        let nowhere = Places {
            board: &Board::default(),
            discovery: None,
            patience: Duration::ZERO,
        };
        let found = nowhere
            .of_contact(&contact(Some("rv.example"), Some("10.1.2.3")))
            .await;
        assert_eq!(found.unwrap(), ["rv.example:8042", "10.1.2.3:8042"]);
        let found = nowhere.of_contact(&contact(None, Some("fd00::1"))).await;
        assert_eq!(found.unwrap(), ["[fd00::1]:8042"]);
        let found = nowhere
            .of_contact(&contact(Some("holdfast-rv.LOCAL."), None))
            .await;
        assert!(
            found
                .unwrap_err()
                .to_string()
                .contains("is the gateway running")
        );
        assert!(nowhere.of_contact(&contact(None, None)).await.is_err());
        let mut other = contact(Some("rv.example"), None);
        other.protocol = RvProtocol::Https;
        assert!(nowhere.of_contact(&other).await.is_err());
    }

    #[test]
    fn delays_vary_by_a_quarter() {
        let delay = Duration::from_secs(100);
        for _ in 0..200 {
            let jittered = jitter(delay, &mut SystemRandom);
            assert!((75..=125).contains(&jittered.as_secs()), "{jittered:?}");
        }
    }
}
