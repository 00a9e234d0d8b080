//! What this server counts: FDO messages, refusals by area and reason, sync, ledger, certificates.
//! Registered once in the binary's registry; every room holds a cheap clone. Label values come
//! from this crate's own lists, never from a peer.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// All counters of a CPS server.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    fdo: Family<FdoLabels, Counter>,
    refused: Family<RefusedLabels, Counter>,
    issued: Counter,
    revoked: Counter,
    onboarded: Counter,
    sync_taken: Counter,
    sync_repeated: Counter,
    ledger_new: Counter,
    ledger_repeated: Counter,
    ledger_pruned: Counter,
    relayed: Family<RelayLabels, Counter>,
    registered: Gauge,
    roots: Gauge,
    authority_since: Gauge,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FdoLabels {
    message: u32,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    area: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RelayLabels {
    backend: &'static str,
}

impl Metrics {
    /// Makes the counters visible under `holdfast_cps_*`.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("holdfast_cps");
        registry.register("fdo_messages", "FDO messages answered", self.fdo.clone());
        registry.register(
            "refused",
            "Refused input by area and reason",
            self.refused.clone(),
        );
        registry.register(
            "certificates_issued",
            "Certificates issued",
            self.issued.clone(),
        );
        registry.register(
            "certificates_revoked",
            "Certificates revoked",
            self.revoked.clone(),
        );
        registry.register(
            "devices_onboarded",
            "TO2 runs completed",
            self.onboarded.clone(),
        );
        registry.register(
            "sync_entries_taken",
            "Entries taken over",
            self.sync_taken.clone(),
        );
        let repeated = self.sync_repeated.clone();
        registry.register("sync_entries_repeated", "Entries received again", repeated);
        registry.register(
            "ledger_messages",
            "Messages recorded",
            self.ledger_new.clone(),
        );
        let repeated = self.ledger_repeated.clone();
        registry.register(
            "ledger_repeats",
            "Messages received again and dropped",
            repeated,
        );
        let pruned = self.ledger_pruned.clone();
        registry.register(
            "ledger_pruned",
            "Messages dropped by the retention bound",
            pruned,
        );
        registry.register("relay_runs", "TO1 runs by backend", self.relayed.clone());
        registry.register(
            "roots",
            "Root certificates believed; two until the earlier one is retired",
            self.roots.clone(),
        );
        registry.register(
            "authority_since_seconds",
            "When the intermediate that certifies here began to be valid, unix time",
            self.authority_since.clone(),
        );
        let registered = self.registered.clone();
        registry.register(
            "rendezvous_registered",
            "Vouchers registered (TO0)",
            registered,
        );
    }

    pub(crate) fn fdo(&self, message: u8, good: bool) {
        let outcome = if good { "answered" } else { "refused" };
        self.fdo
            .get_or_create(&FdoLabels {
                message: u32::from(message),
                outcome,
            })
            .inc();
    }

    /// Counts one refused input. Both words come from this program.
    pub fn refused(&self, area: &'static str, reason: &'static str) {
        self.refused
            .get_or_create(&RefusedLabels { area, reason })
            .inc();
    }

    /// How often input was refused for this reason (for `status` and tests).
    #[must_use]
    pub fn refusals(&self, area: &'static str, reason: &'static str) -> u64 {
        self.refused
            .get_or_create(&RefusedLabels { area, reason })
            .get()
    }

    pub(crate) fn believes(&self, roots: usize, authority_since: u64) {
        self.roots.set(i64::try_from(roots).unwrap_or(i64::MAX));
        let since = i64::try_from(authority_since).unwrap_or(i64::MAX);
        self.authority_since.set(since);
    }

    pub(crate) fn issued(&self) {
        self.issued.inc();
    }

    pub(crate) fn revoked(&self) {
        self.revoked.inc();
    }

    pub(crate) fn onboarded(&self) {
        self.onboarded.inc();
    }

    pub(crate) fn synced(&self, taken: u64, repeated: u64) {
        self.sync_taken.inc_by(taken);
        self.sync_repeated.inc_by(repeated);
    }

    pub(crate) fn recorded(&self, new: u64, repeated: u64, pruned: u64) {
        self.ledger_new.inc_by(new);
        self.ledger_repeated.inc_by(repeated);
        self.ledger_pruned.inc_by(pruned);
    }

    pub(crate) fn relayed(&self, backend: &'static str) {
        self.relayed.get_or_create(&RelayLabels { backend }).inc();
    }

    pub(crate) fn registered(&self, vouchers: usize) {
        self.registered
            .set(i64::try_from(vouchers).unwrap_or(i64::MAX));
    }
}
