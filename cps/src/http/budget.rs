//! What one address may ask of a listener before and while it proves who it is: connections,
//! handshakes and requests, so that a flood from one address crowds nobody else out. Asked by the
//! serving loops; it closes and answers nothing itself. An address is an IPv4 address, or the /64
//! network of an IPv6 address: who has one of these has all addresses in it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::config::Limits;
use crate::metrics::Metrics;
use crate::quiet::Quiet;

/// Addresses remembered at once; beyond it new ones share one budget.
const MOST_ADDRESSES: usize = 16_384;
/// Looking through all of them is worth it so often.
const SWEEP: Duration = Duration::from_secs(1);
/// An address that was quiet may send so many seconds' worth of requests at once.
const BURST_SECS: u32 = 4;

/// Why somebody is turned away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Over {
    Connections,
    Handshakes,
    Requests,
    HandshakeFailed,
    HandshakeSlow,
}

impl Over {
    /// For the counters.
    pub(super) fn reason(self) -> &'static str {
        match self {
            Self::Connections => "connections of one address",
            Self::Handshakes => "handshakes at once",
            Self::Requests => "requests of one address",
            Self::HandshakeFailed => "handshake failed",
            Self::HandshakeSlow => "handshake too slow",
        }
    }
}

/// The budget of one listener.
#[derive(Debug)]
pub(super) struct Budget {
    bounds: Bounds,
    inner: Mutex<Inner>,
    quiet: Quiet<(IpAddr, Over)>,
}

/// What a listener must keep to, and where it counts.
#[derive(Clone, Debug)]
pub struct Bounds {
    pub(super) limits: Limits,
    metrics: Metrics,
    /// Tells when standing connections must end, and who stands there be let in anew.
    pub(super) ends: Option<watch::Receiver<u64>>,
}

impl Bounds {
    /// Bounds of listeners that belong to no CPS server; those of one are [`crate::Cps::bounds`].
    #[must_use]
    pub fn new(limits: Limits, metrics: Metrics) -> Self {
        Self {
            limits,
            metrics,
            ends: None,
        }
    }

    pub(crate) fn ending(self, ends: watch::Receiver<u64>) -> Self {
        let ends = Some(ends);
        Self { ends, ..self }
    }
}

#[derive(Debug, Default)]
struct Inner {
    addresses: HashMap<IpAddr, Account>,
    handshakes: usize,
    /// When those that need no account any more were last forgotten.
    swept: Option<Instant>,
}

/// What one address uses now.
#[derive(Debug)]
struct Account {
    connections: usize,
    handshakes: usize,
    /// Requests that it may still send, as of `at`.
    requests: f64,
    at: Instant,
}

impl Budget {
    pub(super) fn new(bounds: Bounds) -> Arc<Self> {
        Arc::new(Self {
            bounds,
            inner: Mutex::default(),
            quiet: Quiet::default(),
        })
    }

    /// A place for a connection from this address.
    pub(super) fn connection(self: &Arc<Self>, address: IpAddr) -> Result<Place, Over> {
        let limit = self.bounds.limits.connections_per_address;
        let mut inner = self.inner();
        let network = inner.room_for(network(address), self.burst());
        let account = inner.account(network, self.burst());
        if account.connections >= limit {
            return Err(Over::Connections);
        }
        account.connections += 1;
        Ok(Place {
            budget: Arc::clone(self),
            network,
            handshake: false,
        })
    }

    /// Takes the address's turn to send one request.
    pub(super) fn request(&self, address: IpAddr) -> Result<(), Over> {
        let rate = f64::from(self.bounds.limits.requests_per_address);
        let burst = self.burst();
        let mut inner = self.inner();
        let network = inner.room_for(network(address), burst);
        let account = inner.account(network, burst);
        let now = Instant::now();
        let gained = now.duration_since(account.at).as_secs_f64() * rate;
        account.requests = (account.requests + gained).min(burst);
        account.at = now;
        if account.requests < 1.0 {
            return Err(Over::Requests);
        }
        account.requests -= 1.0;
        Ok(())
    }

    /// Counts why a handshake failed.
    pub(super) fn handshake_refused(&self, reason: &'static str) {
        self.bounds.metrics.refused("https handshake", reason);
    }

    /// Counts who was turned away, and says so once a minute for each address and reason.
    pub(super) fn turned_away(&self, address: IpAddr, over: Over, why: &dyn std::fmt::Display) {
        self.bounds.metrics.refused("http", over.reason());
        if let Some(unsaid) = self.quiet.admits((network(address), over)) {
            let reason = over.reason();
            tracing::warn!(%address, reason, unsaid, %why, "turned away");
        }
    }

    fn burst(&self) -> f64 {
        f64::from(self.bounds.limits.requests_per_address) * f64::from(BURST_SECS)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The account to use for this address: its own, or the common one when there are too many.
    fn room_for(&mut self, network: IpAddr, burst: f64) -> IpAddr {
        if self.addresses.contains_key(&network) || self.addresses.len() < MOST_ADDRESSES {
            return network;
        }
        let now = Instant::now();
        let due = self
            .swept
            .is_none_or(|last| now.duration_since(last) >= SWEEP);
        if due {
            self.swept = Some(now);
            self.addresses.retain(|_, account| {
                let rested = now.duration_since(account.at).as_secs() >= u64::from(BURST_SECS);
                account.connections > 0 || (account.requests < burst && !rested)
            });
        }
        match self.addresses.len() < MOST_ADDRESSES {
            true => network,
            false => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        }
    }

    fn account(&mut self, network: IpAddr, burst: f64) -> &mut Account {
        self.addresses.entry(network).or_insert_with(|| Account {
            connections: 0,
            handshakes: 0,
            requests: burst,
            at: Instant::now(),
        })
    }
}

/// A connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    budget: Arc<Budget>,
    network: IpAddr,
    handshake: bool,
}

impl Place {
    /// Its handshake begins.
    pub(super) fn begin_handshake(&mut self) -> Result<(), Over> {
        let limits = &self.budget.bounds.limits;
        let (each, all) = (limits.handshakes_per_address, limits.handshakes);
        let mut inner = self.budget.inner();
        let open = inner.handshakes;
        let Some(account) = inner.addresses.get_mut(&self.network) else {
            return Err(Over::Handshakes);
        };
        if open >= all || account.handshakes >= each {
            return Err(Over::Handshakes);
        }
        account.handshakes += 1;
        inner.handshakes += 1;
        self.handshake = true;
        Ok(())
    }

    /// Its handshake is over.
    pub(super) fn end_handshake(&mut self) {
        if !std::mem::take(&mut self.handshake) {
            return;
        }
        let mut inner = self.budget.inner();
        inner.handshakes -= 1;
        if let Some(account) = inner.addresses.get_mut(&self.network) {
            account.handshakes -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.end_handshake();
        let burst = self.budget.burst();
        let mut inner = self.budget.inner();
        let Some(account) = inner.addresses.get_mut(&self.network) else {
            return;
        };
        account.connections -= 1;
        // Nothing left to remember of it.
        if account.connections == 0 && account.requests >= burst {
            inner.addresses.remove(&self.network);
        }
    }
}

fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
        }
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget() -> Arc<Budget> {
        let limits = Limits {
            connections_per_address: 3,
            handshakes: 3,
            handshakes_per_address: 2,
            requests_per_address: 10,
            ..Limits::default()
        };
        Budget::new(Bounds::new(limits, Metrics::default()))
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_takes_its_share_and_others_theirs() {
        let budget = budget();
        let one = ip("10.0.0.1");
        let mut places: Vec<Place> = (0..3).map(|_| budget.connection(one).unwrap()).collect();
        assert_eq!(budget.connection(one).unwrap_err(), Over::Connections);
        let mut other = budget.connection(ip("10.0.0.2")).unwrap();
        for place in &mut places[..2] {
            place.begin_handshake().unwrap();
        }
        assert_eq!(places[2].begin_handshake(), Err(Over::Handshakes));
        other.begin_handshake().unwrap();
        let mut third = budget.connection(ip("10.0.0.3")).unwrap();
        assert_eq!(third.begin_handshake(), Err(Over::Handshakes), "in all");
        other.end_handshake();
        third.begin_handshake().unwrap();
        drop(places.pop());
        budget.connection(one).unwrap();
        drop((places, other, third));
        assert!(budget.inner().addresses.is_empty());
        assert_eq!(budget.inner().handshakes, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn requests_flow_at_a_rate_with_a_burst() {
        let budget = budget();
        let sent = |from: &str| {
            (0..100)
                .filter(|_| budget.request(ip(from)).is_ok())
                .count()
        };
        assert_eq!(sent("10.0.0.1"), 40);
        assert_eq!(sent("10.0.0.2"), 40, "another address has its own");
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(sent("10.0.0.1"), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(sent("10.0.0.1"), 40);
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        assert_eq!(network(ip("2001:db8::1")), network(ip("2001:db8::ffff:1")));
        assert_ne!(network(ip("2001:db8::1")), network(ip("2001:db8:0:1::1")));
        assert_eq!(network(ip("::ffff:10.0.0.1")), ip("10.0.0.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_addresses_takes_no_more_memory() {
        let budget = budget();
        for number in 0..u32::try_from(2 * MOST_ADDRESSES).unwrap() {
            budget.request(Ipv4Addr::from(number + 1).into()).ok();
        }
        assert!(budget.inner().addresses.len() <= MOST_ADDRESSES + 1);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(budget.request(ip("192.0.2.1")), Ok(()), "room again");
        assert!(budget.inner().addresses.len() < 10);
    }
}
