//! Tells devices which service is wanted of them.
//!
//! Run by [`crate::app`] through `holdfast_server::retained`. What a notice says, and its number, are
//! `cps::lifecycle`'s; nothing is decided here, and the same notice published again changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_broker::Broker;
use holdfast_cps::Cps;
use holdfast_cps::lifecycle::Desired;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::topic::Topic;
use holdfast_server::retained::{News, Retained, tell};
use holdfast_store::StoreError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Publishes what is ordered now and whatever is ordered later, until `stop`.
pub async fn run(cps: Cps, broker: Broker, stop: CancellationToken) {
    let orders = Orders {
        cps,
        told: BTreeMap::new(),
    };
    tell(orders, broker, stop).await;
}

/// Services that are ordered, and what was published of them.
struct Orders {
    cps: Cps,
    told: BTreeMap<DeviceId, Vec<u8>>,
}

impl News for Orders {
    type Due = Desired;
    const ABOUT: &'static str = "the services that are ordered";
    /// An operator waits for what follows an order.
    const REST: Duration = Duration::ZERO;

    fn changes(&self) -> watch::Receiver<u64> {
        self.cps.lifecycle().orders()
    }

    async fn due(&mut self) -> Result<Vec<Desired>, StoreError> {
        let mut all = self.cps.lifecycle().notices().await?;
        all.retain(|one| self.told.get(&one.device) != Some(&one.notice));
        Ok(all)
    }

    fn message(due: &Desired) -> Retained {
        let (site, device) = (due.site.clone(), due.device);
        Retained {
            device,
            topic: Topic::ServiceDesired { site, device },
            payload: due.notice.clone(),
        }
    }

    fn told(&mut self, due: Desired) {
        self.told.insert(due.device, due.notice);
    }
}
