//! What "refused well" means: one warning in the log, one more in the counters, and the daemon still answers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use holdfast_tests::process::wait_until;
use holdfast_tests::world::{Part, fetch};

/// How long a refusal may take to be logged and counted.
const SOON: Duration = Duration::from_secs(5);
/// A second line for the same refusal would come within this time.
const ECHO: Duration = Duration::from_millis(300);

/// Words in a counter's name or labels that say that something was turned away.
const TURNED_AWAY: [&str; 5] = [
    "refus",
    "denied",
    "malformed",
    "reason=\"protocol\"",
    "reason=\"tls\"",
];

/// A daemon's log and counters before something bad is sent.
pub(crate) struct Watch {
    told: usize,
    counted: BTreeMap<String, f64>,
    metrics: SocketAddr,
}

impl Watch {
    pub(crate) async fn begin(part: &Part, metrics: SocketAddr) -> Self {
        Self {
            told: refusals(part).len(),
            counted: counters(metrics).await,
            metrics,
        }
    }

    /// Asserts that since the beginning exactly one line tells of a refusal, that it was counted, and that the daemon is
    /// well.
    pub(crate) async fn refused_once(self, part: &Part, what: &str) {
        let came = wait_until("a word", SOON, || refusals(part).len() > self.told).await;
        assert!(
            came.is_ok(),
            "{what}: nothing was logged:\n{}",
            part.logged()
        );
        tokio::time::sleep(ECHO).await;
        let new = &refusals(part)[self.told..];
        assert_eq!(
            new.len(),
            1,
            "{what}: logged more than once:\n{}",
            new.join("\n")
        );
        let grown: Vec<String> = counters(self.metrics)
            .await
            .into_iter()
            .filter(|(name, value)| *value > self.counted.get(name).copied().unwrap_or_default())
            .map(|(name, _)| name)
            .collect();
        let is_counted = grown.iter().any(|name| {
            let name = name.to_lowercase();
            TURNED_AWAY.iter().any(|word| name.contains(word))
        });
        assert!(
            is_counted,
            "{what}: not counted; only these grew: {grown:?}"
        );
        is_well(part, self.metrics).await;
    }
}

/// The daemon answers on its health page and to its own command.
pub(crate) async fn is_well(part: &Part, metrics: SocketAddr) {
    fetch(metrics, "/health")
        .await
        .expect("the health page answers");
    part.ask(&["status"]).await.expect("status answers");
}

/// Log lines that tell of something turned away, at whatever level.
fn refusals(part: &Part) -> Vec<String> {
    let is_refusal = |line: &&str| {
        let line = line.to_lowercase();
        [
            " refus",
            " turned away",
            "update the client",
            " warn ",
            " error ",
        ]
        .iter()
        .any(|word| line.contains(word))
    };
    part.logged()
        .lines()
        .filter(is_refusal)
        .map(str::to_owned)
        .collect()
}

/// Every sample of the metrics page by name and labels.
async fn counters(metrics: SocketAddr) -> BTreeMap<String, f64> {
    let page = fetch(metrics, "/metrics")
        .await
        .expect("the metrics page answers");
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}
