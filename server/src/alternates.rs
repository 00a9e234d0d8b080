//! What devices are told by both servers: of the other server ([`Servers`]), and of rotated keys and ordered
//! renewals ([`Keys`]).
//!
//! Run by each server's `app` through [`crate::retained`]. What is said, and when it is due, is
//! `cps::alternates`'s and `cps::tidings`'s; nothing is decided here.

use std::time::Duration;

use holdfast_broker::Broker;
use holdfast_cps::Cps;
use holdfast_cps::{alternates, tidings};
use holdfast_protocol::topic::Topic;
use holdfast_store::StoreError;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::retained::{News, Retained, tell};

/// Rest after a look: what it says is not urgent.
const REST: Duration = Duration::from_secs(2);

/// Publishes what is due now and whatever comes later, until `stop`.
pub async fn run(cps: Cps, broker: Broker, stop: CancellationToken) {
    let servers = Servers {
        cps: cps.clone(),
        told: alternates::Told::default(),
    };
    let keys = Keys {
        cps,
        told: tidings::Told::default(),
    };
    tokio::join!(
        tell(servers, broker.clone(), stop.clone()),
        tell(keys, broker, stop)
    );
}

/// Of the other server.
struct Servers {
    cps: Cps,
    told: alternates::Told,
}

impl News for Servers {
    type Due = alternates::Due;
    const ABOUT: &'static str = "the site's other server";
    const REST: Duration = REST;

    fn changes(&self) -> watch::Receiver<u64> {
        self.cps.alternates().changes()
    }

    async fn due(&mut self) -> Result<Vec<alternates::Due>, StoreError> {
        self.cps.alternates().due(&self.told).await
    }

    fn message(due: &alternates::Due) -> Retained {
        let (site, device) = (due.notice.site.clone(), due.notice.device);
        Retained {
            device,
            topic: Topic::Alternate { site, device },
            payload: due.notice.notice.clone(),
        }
    }

    fn told(&mut self, due: alternates::Due) {
        self.told.note(&due);
    }
}

/// Of rotated keys and ordered renewals.
struct Keys {
    cps: Cps,
    told: tidings::Told,
}

impl News for Keys {
    type Due = tidings::Due;
    const ABOUT: &'static str = "rotated keys and renewals";
    const REST: Duration = REST;

    fn changes(&self) -> watch::Receiver<u64> {
        self.cps.tidings().changes()
    }

    async fn due(&mut self) -> Result<Vec<tidings::Due>, StoreError> {
        self.cps.tidings().due(&self.told).await
    }

    fn message(due: &tidings::Due) -> Retained {
        let (site, device) = (due.site.clone(), due.device);
        Retained {
            device,
            topic: Topic::Identity { site, device },
            payload: due.payload.clone(),
        }
    }

    fn told(&mut self, due: tidings::Due) {
        self.told.note(&due);
    }
}
