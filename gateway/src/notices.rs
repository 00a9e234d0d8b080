//! Tells devices which service is wanted of them: publishes the signed notices, retained.
//!
//! Run by [`crate::app`]. A notice holds until the next one, so that a device that is away finds it
//! when it comes. What it says, and its number, are `cps::lifecycle`'s; nothing is decided here, and
//! the same notice published again changes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_broker::{Broker, Message, Qos};
use holdfast_cps::Cps;
use holdfast_cps::lifecycle::Desired;
use holdfast_protocol::id::DeviceId;
use holdfast_protocol::topic::Topic;
use tokio_util::sync::CancellationToken;

/// Pause after a fault of the registry or the journal.
const RETRY: Duration = Duration::from_secs(2);

/// Publishes what is ordered now and whatever is ordered later, until `stop`.
pub async fn run(cps: Cps, broker: Broker, stop: CancellationToken) {
    let mut orders = cps.lifecycle().orders();
    let mut published = BTreeMap::new();
    loop {
        orders.mark_unchanged();
        let told = tell(&cps, &broker, &mut published).await;
        let again = async {
            match told {
                true => _ = orders.changed().await,
                false => tokio::time::sleep(RETRY).await,
            }
        };
        if stop.run_until_cancelled(again).await.is_none() {
            return;
        }
    }
}

/// Publishes what was not published before; false if it has to be done again.
async fn tell(cps: &Cps, broker: &Broker, published: &mut BTreeMap<DeviceId, Vec<u8>>) -> bool {
    let notices = match cps.lifecycle().notices().await {
        Ok(notices) => notices,
        Err(error) => {
            tracing::warn!(%error, "cannot read which services are ordered; trying again");
            return false;
        }
    };
    let mut whole = true;
    for Desired {
        site,
        device,
        notice,
    } in notices
    {
        if published.get(&device) == Some(&notice) {
            continue;
        }
        let topic = Topic::ServiceDesired { site, device }.to_string();
        let message = Message::new(&topic, notice.clone());
        let message = message.qos(Qos::AtLeastOnce).retain(true);
        match broker.publish(message).await {
            Ok(()) => _ = published.insert(device, notice),
            Err(error) => {
                tracing::warn!(%device, %error, "a notice could not be published; trying again");
                whole = false;
            }
        }
    }
    whole
}
